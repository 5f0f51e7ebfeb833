"""Writes the notebooks of docs/notebooks from the scripts below, without outputs; `python tools/notebooks.py`.

A notebook is JSON that nobody can review: so they are written here, as text and code in turn.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
VISION = """
# Pruning a classifier of images

The model and its samples come with onnxprune: a small residual network that reads digits of 8 by 8 pixels.
---
from pathlib import Path

import onnxprune

root = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "models" / "digits.onnx").exists())
model = root / "models" / "digits.onnx"
coupling = onnxprune.analyze(model)
print(f"{len(coupling.free)} dimensions can shrink:", {dim.name: dim.size for dim in coupling.free})
---
## Pruning

`data` may be an array, a dict of arrays, a list, an iterator, a torch Dataset or DataLoader, a Hugging Face dataset,
or the name of a file. Without `out` the smaller model stays in memory. `on_step` is told of every step.
---
steps = []
result = onnxprune.prune(
    model, data="digits", method="l1", target={"macs": 0.5}, epochs=1, on_step=lambda event: steps.append(event.name)
)
result
---
The same numbers for a program:
---
print(f"{result.after.macs / result.before.macs:.3f} of the MACs")
print(f"{result.after.accuracy.metric}: {result.after.accuracy.value:.4f} on {result.after.accuracy.samples} samples")
print("steps:", *dict.fromkeys(steps), sep="\\n  ")
---
## What was removed

The plan says which positions of each dimension stay. `result.plan.to_json()` is the plan file, which `onnxprune apply`
replays on another checkpoint.
---
for dim in result.plan.dims:
    print(f"{dim.name:30s} {len(dim.keep):3d} of {dim.size}")
---
## The model

`result.model` is an `onnx.ModelProto` with the inputs and outputs of the original.
---
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
image = np.zeros((1, 1, 8, 8), np.float32)
print(session.run(None, {session.get_inputs()[0].name: image})[0].round(2))
"""
TEXT = """
# Pruning a model of text

A transformer of one block that reads token ids, with random weights, is made here: the point is what can be pruned.
---
import numpy as np
import onnx

rng = np.random.default_rng(0)
WORDS, WIDTH, HEADS, HIDDEN, LENGTH = 100, 32, 4, 64, 12
shapes = {"table": (WORDS, WIDTH), **dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH))}
shapes |= {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, WIDTH), "head": (WIDTH, 3)}
weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
weights |= {"heads": np.array([0, 0, HEADS, WIDTH // HEADS]), "joined": np.array([0, 0, WIDTH])}
weights |= {"scale": np.float32((WIDTH / HEADS) ** -0.5)}
model = onnx.parser.parse_model('''
<ir_version: 8, opset_import: ["" : 17]>
text (int64[N, 12] ids) => (float[N, 3] scores) {
  x = Gather(table, ids)
  q0 = MatMul(x, wq)   k0 = MatMul(x, wk)   v0 = MatMul(x, wv)
  q1 = Reshape(q0, heads)   k1 = Reshape(k0, heads)   v1 = Reshape(v0, heads)
  q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v = Transpose <perm = [0, 2, 1, 3]> (v1)
  a0 = MatMul(q, k)   a1 = Mul(a0, scale)   a = Softmax <axis = -1> (a1)
  m0 = MatMul(a, v)   m1 = Transpose <perm = [0, 2, 1, 3]> (m0)   m2 = Reshape(m1, joined)   m = MatMul(m2, wo)
  y = Add(x, m)
  h0 = MatMul(y, w1)   h1 = Add(h0, b1)   h = Relu(h1)   f = MatMul(h, w2)
  z = Add(y, f)
  p = ReduceMean <axes = [1], keepdims = 0> (z)
  scores = MatMul(p, head)
}''')
model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
onnx.checker.check_model(model)
---
## What can be removed

Units of the hidden layer, whole heads and the size of a head, the width of the embedding.
---
import onnxprune

coupling = onnxprune.analyze(model)
for dim in coupling.free:
    print(f"{dim.name:20s} {dim.size}")
---
## Pruning it

Samples are arrays named as the inputs. Labels are not needed: the original is the teacher.
---
samples = {"ids": rng.integers(0, WORDS, (400, LENGTH))}
result = onnxprune.prune(model, data=samples, method="l1", target={"macs": 0.6}, recover="reconstruct", latency=False)
result
---
`inner_only` leaves the width of the embedding alone, which all parts of the block read:
---
inner = onnxprune.prune(
    model, data=samples, method="l1", target={"macs": 0.8}, recover="reconstruct", inner_only=True, latency=False
)
for name, found in {"anything": result, "inner only": inner}.items():
    print(f"{name:12s} {found.after.macs / found.before.macs:.2f} of the MACs, {found.after.accuracy.value:.3f}")
"""
NOTEBOOKS = {"vision": VISION, "text": TEXT}


def notebook(script: str) -> dict:
    """The document of a notebook: text and code in turn, the text first."""
    parts = [part.strip("\n") for part in script.split("\n---\n")]
    cells = []
    for index, part in enumerate(parts):
        lines = part.splitlines(keepends=True)
        if index % 2 == 0:
            cells.append({"cell_type": "markdown", "id": f"cell{index}", "metadata": {}, "source": lines})
        else:
            code = {"cell_type": "code", "execution_count": None, "id": f"cell{index}", "metadata": {}, "outputs": []}
            cells.append({**code, "source": lines})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def written(name: str) -> str:
    return json.dumps(notebook(NOTEBOOKS[name]), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in NOTEBOOKS:
        (FOLDER / f"{each}.ipynb").write_text(written(each), encoding="utf-8")
