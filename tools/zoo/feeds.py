"""Does a pruned file run, and with the same interface? Asked of onnxruntime alone, without any code of onnxprune.

    python feeds.py ORIGINAL PRUNED     prints one JSON object: same_interface, runs, finite

Inputs are random. Symbolic sizes are tried from a short list until the original accepts them; a file whose original
takes none of them gives runs = null.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort

DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_}
INTEGERS = ("int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
BATCHES = (1, 2)
SIZES = (64, 96, 128, 160, 224, 256, 320, 32, 48, 16, 512, 1, 3, 80, 112, 640, 15600, 43844)
LARGEST = 2**24

Feeds = dict[str, np.ndarray]


def session(path: str) -> ort.InferenceSession:
    """An onnxruntime session on the CPU with one thread and no warnings."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interface(run: ort.InferenceSession) -> list[tuple[str, str, list[Any]]]:
    """Names, types and shapes of inputs and outputs; a size for which onnxruntime made up a name is None."""
    return [
        (v.name, v.type, [None if str(n).startswith("unk__") else n for n in v.shape])
        for v in (*run.get_inputs(), *run.get_outputs())
    ]


def values(kind: str, shape: list[int], top: int, rng: np.random.Generator) -> np.ndarray:
    """One input of an onnxruntime type such as tensor(float): normal floats, integers below 3 or all equal to `top`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    if name in DTYPES:
        return np.asarray(rng.standard_normal(shape)).astype(DTYPES[name])
    if name in INTEGERS:
        return np.asarray(rng.integers(0, 3, shape) if top < 3 else np.full(shape, top)).astype(name)
    raise TypeError(f"no random values for inputs of type {kind}")


def concrete(shape: list[Any], batch: int, inner: int, last: int) -> list[int]:
    """The shape with numbers for its symbols: a batch first, `last` last, `inner` between."""
    ends = len(shape) - 1
    fill = [batch if axis == 0 else last if axis == ends else inner for axis in range(len(shape))]
    return [n if isinstance(n, int) and n > 0 else other for n, other in zip(shape, fill, strict=True)]


def candidates(run: ort.InferenceSession, seed: int = 0) -> Iterator[Feeds]:
    """Random feeds for one choice of the symbolic sizes after the other, none over LARGEST elements."""
    inputs = run.get_inputs()
    symbolic = any(not isinstance(n, int) or n < 1 for v in inputs for n in v.shape[1:])
    tops = (0, 16000) if any(v.type.removeprefix("tensor(")[:-1] in INTEGERS for v in inputs) else (0,)
    for top, batch, last in itertools.product(tops, BATCHES, SIZES if symbolic else SIZES[:1]):
        for inner in dict.fromkeys((last, batch)) if symbolic else (last,):
            shapes = {v.name: concrete(v.shape, batch, inner, last) for v in inputs}
            if all(math.prod(shape) <= LARGEST for shape in shapes.values()):
                rng = np.random.default_rng(seed)
                yield {v.name: values(v.type, shapes[v.name], top, rng) for v in inputs}


def accepted(run: ort.InferenceSession) -> Feeds | None:
    """The first feeds that the model runs on, or None."""
    for feeds in candidates(run):
        try:
            run.run(None, feeds)
        except Exception:
            continue
        return feeds
    return None


def compare(original: str, pruned: str) -> dict[str, Any]:
    """What the two files say: same_interface, runs, finite."""
    first, second = session(original), session(pruned)
    row: dict[str, Any] = {"same_interface": interface(first) == interface(second), "runs": None, "finite": None}
    feeds = accepted(first)
    if feeds is None:
        return row
    try:
        outputs = [np.asarray(y) for y in second.run(None, feeds) if isinstance(y, np.ndarray)]
    except Exception as error:
        return {**row, "runs": False, "message": str(error).splitlines()[0][:200]}
    return {**row, "runs": True, "finite": all(bool(np.isfinite(y).all()) for y in outputs if y.dtype.kind == "f")}


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if "-h" in sys.argv or "--help" in sys.argv else 2)
    print(json.dumps(compare(*sys.argv[1:])))
