"""Prunes one ONNX file with onnxsim's structured pruning at a sparsity of 0.5 and prints what came of it as JSON.

    python onnxsim_worker.py FILE

Whether the result is right is found without knowing what was removed: each smaller initializer is laid onto the
original, the positions that it keeps are read off, all others are zeroed in the original, and both run on equal inputs.
`right` stays null where the positions cannot be read off or the original does not run on random inputs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import feeds
import numpy as np
import onnx
from onnx import numpy_helper

Arrays = dict[str, np.ndarray]
FIBERS = 5  # that positions are read off


def float_arrays(model: onnx.ModelProto) -> Arrays:
    """The float initializers of the main graph by name."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def parameters(model: onnx.ModelProto) -> int:
    """Number of elements of all float initializers."""
    return sum(array.size for array in float_arrays(model).values())


def kept_positions(whole: np.ndarray, part: np.ndarray) -> list[np.ndarray] | None:
    """Positions kept on each axis if `part` is `whole` with positions removed, else None; both of one rank."""
    order = np.argsort(whole, axis=None)
    values = whole.ravel()[order]
    keep = [np.arange(size) for size in whole.shape]
    for axis in range(whole.ndim):
        if part.shape[axis] < whole.shape[axis]:
            fibers = np.moveaxis(part, axis, 0).reshape(part.shape[axis], -1).T
            some = fibers[:: max(1, len(fibers) // FIBERS)]
            # A value may stand in several places, and so may all of a short fiber; other fibers tell these apart.
            found = Counter(kept for fiber in some for kept in _places(values, order, whole.shape, axis, fiber))
            if not found:
                return None
            keep[axis] = np.array(found.most_common(1)[0][0], int)
    return keep if np.array_equal(whole[np.ix_(*keep)], part) else None


def _places(
    values: np.ndarray, order: np.ndarray, shape: tuple[int, ...], axis: int, fiber: np.ndarray
) -> set[tuple[int, ...]]:
    """The positions along `axis` at which a line holds all values of `fiber`.

    values, order: those of an array of that shape by size, and where each stands in it.
    """
    low, high = np.searchsorted(values, fiber, "left"), np.searchsorted(values, fiber, "right")
    lines: dict[tuple[int, ...], dict[int, int]] = {}
    for entry, (first, stop) in enumerate(zip(low, high, strict=True)):
        for place in order[first:stop]:
            index = [int(each) for each in np.unravel_index(place, shape)]
            at = index.pop(axis)
            lines.setdefault(tuple(index), {}).setdefault(entry, at)
    return {tuple(line.values()) for line in lines.values() if len(line) == len(fiber)}


def mask(model: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto | None:
    """The original with everything zeroed that the pruned model no longer has, or None if that cannot be told."""
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    parts = float_arrays(pruned)
    for tensor in masked.graph.initializer:
        part, whole = parts.get(tensor.name), numpy_helper.to_array(tensor)
        if part is None or whole.dtype.kind != "f" or part.shape == whole.shape:
            continue
        keep = kept_positions(whole, part) if part.ndim == whole.ndim else None
        if keep is None:
            return None
        zeroed = np.zeros_like(whole)
        zeroed[np.ix_(*keep)] = part
        tensor.CopyFrom(numpy_helper.from_array(zeroed, tensor.name))
    return masked


def largest_difference(first: Path, second: Path) -> float | None:
    """max|first - second| over max|first| on random inputs, or None if the first takes none of them."""
    runs = [feeds.session(str(path)) for path in (first, second)]
    given = feeds.accepted(runs[0])
    if given is None:
        return None
    pairs = zip(*(run.run(None, given) for run in runs), strict=True)
    floats = [(a, b) for a, b in pairs if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size]
    return max((float(abs(a - b).max() / (abs(a).max() or 1.0)) for a, b in floats), default=0.0)


def main(file: str) -> dict[str, Any]:
    """changed, kept_params, runs, right, difference and seconds. Raises what onnxsim raises."""
    from onnxsim.pruning import apply_structured_pruning

    model = onnx.load(file)
    given = onnx.load(file)
    start, cpu = time.perf_counter(), time.process_time()
    pruned = apply_structured_pruning(given, sparsity=0.5)
    row: dict[str, Any] = {"work_s": time.perf_counter() - start, "work_cpu_s": time.process_time() - cpu}
    row["kept_params"] = parameters(pruned) / parameters(model)
    row["changed"] = row["kept_params"] < 1
    with tempfile.TemporaryDirectory() as scratch:
        out, twin = Path(scratch, "pruned.onnx"), Path(scratch, "masked.onnx")
        onnx.save(pruned, out)
        row |= feeds.compare(file, str(out))
        masked = mask(model, pruned) if row["runs"] else None
        if masked:
            onnx.save(masked, twin)
            row["difference"] = largest_difference(twin, out)
            row["right"] = None if row["difference"] is None else row["difference"] <= 1e-4
    return {**row, "ok": bool(row["changed"] and row["runs"] and row.get("right") is not False)}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if "-h" in sys.argv or "--help" in sys.argv else 2)
    print(json.dumps(main(sys.argv[1])))
