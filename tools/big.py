"""Writes a synthetic transformer with external data, prunes it, and reports the peak memory against the file size.

python tools/big.py FOLDER --billions 0.3
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WORK = """
import json, resource, sys, time
import numpy as np
from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.plan.select import Selection
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
steps, start = {}, time.perf_counter()
def done(name): steps[name] = {"peak_bytes": peak(), "seconds": round(time.perf_counter() - start, 1)}
done("import")
model = graph.load(sys.argv[1]); done("load")
model = graph.normalize(model); done("normalize")
coupling = analyze(model); done("analyze")
rng = np.random.default_rng(0)
keep = {dim: rng.permutation(dim.size) < dim.size * 3 // 4 for dim in coupling.free}
cut = surgery.cut(Selection(coupling, keep)); done("cut")
graph.save(cut, sys.argv[2]); done("save")
print(json.dumps({"free": len(coupling.free), "steps": steps}))
"""


def write_transformer(path: Path, width: int, layers: int, vocabulary: int, sequence: int | str) -> int:
    """Writes the model and, block by block, its weights; their number of bytes."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    rng = np.random.default_rng(0)
    heads = width // 64
    with open(path.with_suffix(".onnx.data"), "wb") as file:

        def weight(name: str, *shape: int) -> str:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
            offset = file.tell()
            for _ in range(shape[0]):
                file.write((rng.random(shape[1:], np.float32) - 0.5) * np.float32(0.05))
            for key, value in (
                ("location", file.name.split("/")[-1]),
                ("offset", offset),
                ("length", file.tell() - offset),
            ):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            return name

        def small(name: str, array: list[int]) -> str:
            weights.append(onnx.numpy_helper.from_array(np.array(array, np.int64), name))
            return name

        def node(op_type: str, *inputs: str, **attributes: object) -> str:
            name = f"{op_type}_{len(nodes)}"
            nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"n_{name}", **attributes))
            return name

        small("to_heads", [0, 0, heads, 64])
        small("to_width", [0, 0, width])
        x = node("Gather", weight("words", vocabulary, width), "ids")
        for k in range(layers):
            n = node("LayerNormalization", x, weight(f"{k}.n1.s", width), weight(f"{k}.n1.b", width))
            q, keys, v = (
                node("Reshape", node("MatMul", n, weight(f"{k}.{p}.weight", width, width)), "to_heads") for p in "qkv"
            )
            q, v = (node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
            scores = node("Softmax", node("MatMul", q, node("Transpose", keys, perm=[0, 2, 3, 1])), axis=-1)
            mixed = node("Reshape", node("Transpose", node("MatMul", scores, v), perm=[0, 2, 1, 3]), "to_width")
            x = node("Add", x, node("MatMul", mixed, weight(f"{k}.o.weight", width, width)))
            n = node("LayerNormalization", x, weight(f"{k}.n2.s", width), weight(f"{k}.n2.b", width))
            hidden = node("Relu", node("MatMul", n, weight(f"{k}.up.weight", width, 4 * width)))
            x = node("Add", x, node("MatMul", hidden, weight(f"{k}.down.weight", 4 * width, width)))
        y = node("MatMul", x, weight("head.weight", width, 512))
        size = file.tell()
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", sequence])]
    outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["batch", sequence, 512])]
    graph = helper.make_graph(nodes, "big", inputs, outputs, weights)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--billions", type=float, default=0.3, help="parameters of the model, in billions")
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    path, out = options.folder / "big.onnx", options.folder / "small.onnx"
    layers = max(1, round((options.billions * 1e9 - 32000 * options.width) / (12 * options.width**2)))
    size = write_transformer(path, options.width, layers, 32000, "sequence")
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", WORK, str(path), str(out)], capture_output=True, text=True)
    if run.returncode:
        print(run.stderr, file=sys.stderr)
        return 1
    found = json.loads(run.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    written = out.stat().st_size + sum(f.stat().st_size for f in options.folder.glob("small.onnx.data"))
    print(json.dumps({**found, "file_bytes": size, "written_bytes": written, "peak_bytes": peak}, indent=1))
    print(f"peak {peak / size:.2f} x the file, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return 0 if peak < 1.6 * size else 1


if __name__ == "__main__":
    sys.exit(main())
