"""Stored numbers and settings that the inputs of a proof may not reach, compared as they stand in both models.

No input reads every row of a table, the end of a slice matters to lengths that nobody tried, and numbers seldom come
near a bound. So nodes that belong together are compared in what is stored with them: rows of tables, bounds,
thresholds, ends of slices, and the attributes that say how a node computes.
"""

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.graph import bodies, extras
from onnxprune.graph.extras import Kept
from onnxprune.graph.tensors import constant, rank_of
from onnxprune.proof.decisions import at_kept, first_output
from onnxprune.proof.differences import FLOOR, Tally

TABLE_ROWS = 4096  # of a table that are compared at a time: it may be half of a model
SIZES = 16  # a list of whole numbers that is longer is a table, such as a map of tokens
END = 2**31 - 1  # what is larger means the end of an axis, as ends of slices are written
# Operator -> the inputs of which a run may read a part.
TABLES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("Gather", "GatherElements", "GatherND", "Slice", "Compress", "ScatterND", "ScatterElements"), (0,)
    ),
    "Where": (1, 2),
    "EmbedLayerNormalization": (2, 3, 4),
    "RotaryEmbedding": (1, 2, 3),  # cosines and sines, by position: lengths that nobody tried read further rows
    "GroupQueryAttention": (7, 8),
    "PagedAttention": (8, 9),
    "SparseAttention": (9, 10),
    "GatherBlockQuantized": (0, 2, 3),
}
# Operator -> the inputs that are bounds or thresholds.
BOUNDS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "NonMaxSuppression": (2, 3, 4),
    **dict.fromkeys("Greater GreaterOrEqual Less LessOrEqual Equal Min Max".split(), tuple(range(8))),
}
# Operators that reckon with whole numbers: where these come from inputs, not from sizes, the constants are no sizes.
RECKONING = (
    frozenset("Add Sub Mul Div Mod Min Max BitShift BitwiseAnd BitwiseOr BitwiseXor Where".split()) | BOUNDS.keys()
)
ML = "ai.onnx.ml"  # trees, encoders of labels: no input reaches every leaf and every label
# All inputs show the factors of these.
LINEAR = frozenset("Gemm FusedGemm FusedMatMul FusedConv TransposeMatMul Scaler".split())
SWITCHES = frozenset(  # integers that matter to some lengths or numbers only; all texts and single floats do
    "ceil_mode center_point_box count_include_pad exclude_outside select_last_index largest is_causal unidirectional "
    "causal fmod saturate storage_order detect_negative detect_positive linear_before_reset input_forget antialias "
    "align_corners allowzero sampling_ratio local_window_size smooth_softmax".split()
)

Pair = tuple[ir.Node, ir.Node]  # of the cut model, of the masked one


def compared(cut: ir.Model, masked: ir.Model, *, floor: float = FLOOR) -> Iterator[tuple[str, str, Tally]]:
    """(kind of evidence, where, tally) of all that is stored with nodes that stand in both models, bodies included."""
    kept = extras.of(masked).kept
    opsets = masked.opset_imports
    told = _told_by_inputs(masked)
    for own, twin in _pairs(cut, masked):
        where = twin.name or twin.op_type
        reckons = twin.op_type in RECKONING and any(value in told for value in twin.inputs)
        for index in TABLES.get(twin.op_type, ()):
            yield from (("table", f"{where}: {name}", t) for name, t in _stored(own, twin, index, kept, floor, reckons))
        for index in BOUNDS.get(twin.op_type, (0, 1) if reckons and twin.op_type not in TABLES else ()):
            found = _stored(own, twin, index, kept, floor, reckons)
            yield from (("setting", f"{where}: {name}", tally) for name, tally in found)
        if twin.op_type == "Slice" and (tally := _ends(own, twin, kept)) is not None:
            yield "setting", f"{where}: starts and ends", tally
        yield from (("setting", f"{where}: {name}", tally) for name, tally in _attributes(own, twin, opsets, floor))


def _pairs(cut: ir.Model, masked: ir.Model) -> Iterator[Pair]:
    ours = {(node.op_type, first_output(node)): node for node in bodies.all_nodes(cut.graph)}
    for node in bodies.all_nodes(masked.graph):
        other = ours.get((node.op_type, first_output(node)))
        if other is not None and first_output(node):
            yield other, node


def _told_by_inputs(model: ir.Model) -> set[ir.Value | None]:
    """The values that depend on what the inputs hold, not on their sizes alone."""
    found: set[ir.Value | None] = {
        value for each in (model.graph, *bodies.all_bodies(model.graph)) for value in each.inputs
    }
    for node in bodies.all_nodes(model.graph):
        if node.op_type not in ("Shape", "Size") and (bodies.of(node) or any(value in found for value in node.inputs)):
            found.update(node.outputs)
    return found


def _stored(
    own: ir.Node, twin: ir.Node, index: int, kept: Kept, floor: float, reckons: bool
) -> Iterator[tuple[str, Tally]]:
    """(name, tally) of an input that is stored in both; reckons: the node reckons with numbers that inputs hold.

    Where it does not, a few whole numbers of 32 and 64 bits are left out: they are sizes, which follow the cut.
    """
    a, b = _constant(own, index), _constant(twin, index)
    value = twin.inputs[index] if index < len(twin.inputs) else None
    if a is None or b is None or value is None:
        return
    if reckons and twin.op_type not in BOUNDS and twin.op_type != "Where" and b.dtype.kind not in "iu":
        return  # all inputs show what floats are added and multiplied
    size_like = b.dtype.kind in "iu" and b.dtype.itemsize > 2 and twin.op_type != "NonMaxSuppression" and not reckons
    if b.dtype.kind not in "fiub" or (size_like and b.ndim < 2 and b.size <= SIZES):
        return
    taken = at_kept(b, value.name or "", kept, a.shape)
    if taken is not None and a.dtype == taken.dtype:
        yield value.name or "", _tallied(a, taken, floor)


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    """An array that is stored, half precision as floats that can be reckoned with."""
    found = constant(node.inputs[index]) if index < len(node.inputs) else None
    return found.astype(np.float32) if found is not None and found.dtype.name == "bfloat16" else found


def _tallied(ours: np.ndarray, theirs: np.ndarray, floor: float) -> Tally:
    tally = Tally(floor)
    if not theirs.ndim:
        ours, theirs = ours.reshape(1), theirs.reshape(1)
    for start in range(0, len(theirs), TABLE_ROWS):
        rows = slice(start, start + TABLE_ROWS)
        a, b = ours[rows], theirs[rows]
        tally.add(*((a, b) if b.dtype.kind != "f" else (a.astype(np.float32), b.astype(np.float32))))
    return tally


def _ends(own: ir.Node, twin: ir.Node, kept: Kept) -> Tally | None:
    """Starts, ends and steps of a Slice along axes of which no position is gone; None where they are computed."""
    found = [[_constant(node, index) for index in (1, 2, 3, 4)] for node in (own, twin)]
    if any((a is None) != (b is None) for a, b in zip(*found, strict=True)):
        return None
    starts, ends, axes, _ = found[1]
    counts = {array.size for side in found for array in side if array is not None}
    if starts is None or ends is None or len(counts) != 1 or twin.inputs[0] is None:
        return None
    lost = {*kept.get(twin.inputs[0].name or "", {}), *kept.get(first_output(twin), {})}
    numbers = range(starts.size) if axes is None else axes.astype(int).tolist()
    if lost and min(numbers, default=0) < 0:  # the rank tells which axis that is
        rank = rank_of(twin.inputs[0])
        if not rank:
            return None
        numbers = [n % rank for n in numbers]
    whole = [k for k, axis in enumerate(numbers) if axis not in lost]
    ours, theirs = (
        np.concatenate(
            [np.clip(array.reshape(-1)[whole].astype(np.int64), -END, END) for array in side if array is not None]
        )
        for side in found
    )
    return _tallied(ours, theirs, 0.0) if whole else None


# Attributes -----------------------------------------------------------------------------------------------------------


def _attributes(own: ir.Node, twin: ir.Node, opsets: Mapping[str, int], floor: float) -> Iterator[tuple[str, Tally]]:
    """Single floats, texts and switches, each as a number: a text is one or zero, by whether it is the same.

    Of what no cut touches, such as trees, all attributes; of other nodes no lists: they are sizes.
    """
    if twin.domain == ML:
        whole = [sorted(each.SerializeToString() for each in _messages(node)) for node in (own, twin)]
        yield "attributes", _tallied(np.array([whole[0] == whole[1]]), np.array([True]), floor)
        return
    for name in sorted({*own.attributes, *twin.attributes}):
        ours, theirs = (_plain(node, name, opsets) for node in (own, twin))
        if ours is None or theirs is None or (isinstance(theirs, float) and twin.op_type in LINEAR):
            continue
        if isinstance(theirs, float) and isinstance(ours, float):
            yield name, _tallied(np.array([ours], np.float32), np.array([theirs], np.float32), floor)
        elif isinstance(theirs, str) or name in SWITCHES:
            yield name, _tallied(np.array([ours == theirs]), np.array([True]), floor)


def _messages(node: ir.Node) -> list[onnx.AttributeProto]:
    return [ir.serde.serialize_attribute(each) for each in node.attributes.values() if not each.is_ref()]


def _plain(node: ir.Node, name: str, opsets: Mapping[str, int]) -> float | int | str | None:
    """The value of an attribute, or what the operator takes in its place; None for lists, graphs and the unknown."""
    attribute = node.attributes.get(name)
    opset = opsets.get(node.domain, opsets.get("", 1))
    value = attribute.value if attribute is not None else _default(node.op_type, node.domain, name, opset)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, (float, int, str)) else None


@cache
def _default(op_type: str, domain: str, name: str, opset: int) -> object:
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    return (
        onnx.helper.get_attribute_value(attribute.default_value) if attribute and attribute.default_value.name else None
    )
