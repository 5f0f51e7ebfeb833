"""Inputs that exercise a model: indices over whole tables, bytes over their range, masks with both values, two lengths,
two magnitudes."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.errors import GraphError, OutOfMemoryError
from onnxprune.graph import extras, sessions, shapes

PASSING = frozenset("Cast Reshape Unsqueeze Squeeze Transpose Identity Flatten Expand Concat Slice Tile".split())
LOUD, QUIET = 1.0, 0.25  # magnitudes of floats; louder ones overflow in models that are not used to them
# Operator -> {input that indexes: (input that is the table, attribute of the axis)}.
TABLES: dict[str, dict[int, tuple[int, str]]] = {
    "Gather": {1: (0, "axis")},
    "GatherElements": {1: (0, "axis")},
    "EmbedLayerNormalization": {0: (2, ""), 1: (4, "")},
}


def random_feeds(model: ir.Model, observed: shapes.Shapes, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random inputs at both probe sizes."""
    inputs = list(model.graph.inputs)
    probes = [observed.probe]
    if observed.second and observed.second != observed.probe:
        probes.append(observed.second)
    tables = {value.name or "": length for value in inputs if (length := table_length(value, observed))}
    plain = [shapes.feeds(inputs, probe, seed + k) for k, probe in enumerate(probes)]
    wide = [_exercising(model, feeds, tables, seed + k) for k, feeds in enumerate(plain)]
    spread = dict.fromkeys(
        n
        for a, b in zip(plain, wide, strict=True)
        for n in a
        if a[n].dtype.kind in "iub" and not np.array_equal(a[n], b[n])
    )
    return _accepted(model, plain, wide, list(spread)) if spread else wide


def _accepted(
    model: ir.Model, plain: list[dict[str, np.ndarray]], wide: list[dict[str, np.ndarray]], spread: list[str]
) -> list[dict[str, np.ndarray]]:
    """`wide`, with the inputs in `spread` as in `plain` where the model does not take what they are there: an input may
    be more than an index. A note on the model says which."""

    def narrowed(names: Collection[str]) -> list[dict[str, np.ndarray]]:
        return [b | {n: a[n] for n in names} for a, b in zip(plain, wide, strict=True)]

    why = _refusal(model, wide)
    if not why:
        return wide
    narrow = [name for name in spread if _refusal(model, narrowed([n for n in spread if n != name]))]
    if not narrow or _refusal(model, narrowed(narrow)):
        narrow = spread
    listed = ", ".join(f"'{name}'" for name in narrow)
    extras.note(model, f"without samples {listed} is zeros and ones in the proof, for the model takes no others: {why}")
    return plain if _refusal(model, narrowed(narrow)) else narrowed(narrow)


def _exercising(
    model: ir.Model, feeds: Mapping[str, np.ndarray], tables: Mapping[str, int], seed: int
) -> dict[str, np.ndarray]:
    """`feeds` with numbers that reach more: indices over whole tables, masks with gaps, small and large floats."""
    rng = np.random.default_rng(seed + 1)
    found: dict[str, np.ndarray] = {}
    for name, array in feeds.items():
        if name in tables:
            found[name] = _indices(array, tables[name], rng)
        elif array.dtype.kind in "iub" and array.ndim >= 2 and array.size > 1:
            found[name] = array.copy()  # a row that masks everything makes softmax divide by zero
            found[name][..., 0] = 1
            if array.dtype.itemsize == 1 and array.dtype.kind in "iu":
                found[name] = _with_bytes(found[name], rng)
        elif array.dtype.kind == "f" and array.size > 1:
            found[name] = (array * _magnitudes(array.shape)).astype(array.dtype)
        else:
            found[name] = array
    return found


def _indices(array: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Indices spread over a whole table: each stretch of it is hit as often as any other, the ends always."""
    count = array.size
    places = (np.arange(count) + rng.random(count)) * length / max(count, 1)
    places = rng.permutation(np.minimum(places.astype(np.int64), length - 1))
    if count > 1:
        places[0], places[-1] = length - 1, 0
    return places.reshape(array.shape).astype(array.dtype)


def _with_bytes(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`array` with every second row over the whole range of its type, as pictures are: it may be no mask."""
    limits = np.iinfo(array.dtype)
    array[::2] = rng.integers(limits.min, limits.max, array[::2].shape, endpoint=True).astype(array.dtype)
    return array


def _magnitudes(shape: Sequence[int]) -> np.ndarray:
    """Every second row quieter than the others; of a single row its second half."""
    if shape[0] > 1 and len(shape) > 1:
        quiet = np.arange(shape[0]) % 2 == 1
        return np.where(quiet, QUIET, LOUD).reshape(-1, *([1] * (len(shape) - 1)))
    quiet = np.arange(shape[-1]) >= (shape[-1] + 1) // 2
    return np.where(quiet, QUIET, LOUD)


def _refusal(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> str:
    """Why `model` does not take these, empty where it does."""
    try:
        session = sessions.open_session(model, threads=sessions.few_threads(), optimize=False)
        for batch in feeds:
            sessions.run(session, batch)
    except (GraphError, OutOfMemoryError) as error:
        return str(error)
    return ""


def table_length(value: ir.Value, observed: shapes.Shapes) -> int | None:
    """The length of the shortest table that an integer input indexes; None where it indexes none."""
    if value.dtype is None or not value.dtype.is_integer():
        return None
    return min(_lengths(value, observed, set()), default=None)


def _lengths(value: ir.Value, observed: shapes.Shapes, seen: set[ir.Value]) -> Iterator[int]:
    """The lengths of the tables in which `value` is looked up, also behind nodes that hand it on."""
    if value in seen:
        return
    seen.add(value)
    for node, index in value.uses():
        if node.op_type in TABLES and index in TABLES[node.op_type]:
            place, attribute = TABLES[node.op_type][index]
            table = node.inputs[place] if place < len(node.inputs) else None
            sizes = observed.sizes.get(table.name or "") if table is not None else None
            if sizes:
                yield sizes[node.attributes.get_int(attribute, 0) if attribute else 0]
        elif node.op_type in PASSING and index == 0 and node.outputs:
            yield from _lengths(node.outputs[0], observed, seen)
