"""Stored numbers and settings that the inputs of a proof may not reach, compared as they stand in both models.

No input reads every row of a table, the end of a slice matters to lengths that nobody tried, and numbers seldom come
near a bound. So nodes that belong together are compared in what is stored with them: rows of tables, bounds,
thresholds, ends of slices, single numbers that are reckoned with, the attributes that say how a node computes; and in
which values they read, where both models have these.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.graph import bodies, extras
from onnxprune.graph.extras import Kept
from onnxprune.graph.tensors import rank_of
from onnxprune.proof import paired
from onnxprune.proof.decisions import at_kept, first_output
from onnxprune.proof.differences import FLOOR, Tally
from onnxprune.proof.paired import Pair, stored_array

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
    "Trilu": (1,),
    "Dropout": (1,),
    "Resize": (2,),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
}
# Operators that reckon with single numbers: of lengths that nobody tried, of what masks, beside numbers that are tiny.
RECKONING = frozenset("Add Sub Mul Div Mod Pow BitShift BitwiseAnd BitwiseOr BitwiseXor".split())
ML = "ai.onnx.ml"  # trees, encoders of labels: no input reaches every leaf and every label
# All inputs show the factors of these.
LINEAR = frozenset("Gemm FusedGemm FusedMatMul FusedConv TransposeMatMul Scaler".split())
SWITCHES = frozenset(  # integers that matter to some lengths or numbers only; all texts and single floats do
    "ceil_mode center_point_box count_include_pad exclude_outside select_last_index largest is_causal unidirectional "
    "causal fmod saturate storage_order detect_negative detect_positive linear_before_reset input_forget antialias "
    "align_corners allowzero sampling_ratio local_window_size smooth_softmax".split()
)

# Attributes that are lengths of axes: they follow the cut.
FOLLOWING = frozenset(
    "shape split starts ends hidden_size group num_heads q_num_heads kv_num_heads qkv_hidden_sizes num_groups N K "
    "num_outputs kernel_shape".split()
)
# What the lists hold that are not written.
NEUTRAL = {"pads": 0, "output_padding": 0, "strides": 1, "dilations": 1}
GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def compared(cut: ir.Model, masked: ir.Model, *, floor: float = FLOOR) -> Iterator[tuple[str, str, Tally]]:
    """(kind of evidence, where, tally) of all that is stored with nodes that stand in both models, bodies included."""
    kept = extras.of(masked).kept
    opsets = masked.opset_imports
    told = _told_by_inputs(masked)
    found = paired.nodes(cut, masked)
    for node in found.gone:
        yield "setting", f"{node.name or node.op_type}: left out", _verdict(False)
    for pair in found.pairs:
        where = pair.twin.name or pair.op_type
        if pair.crossed:
            yield "setting", f"{where}: the values that it reads", _verdict(False)
        for kind, index in _stored_inputs(pair, kept):
            small = kind == "setting" or any(value in told for value in pair.twin.inputs)
            arrays = _stored(pair, index, kept, floor, small, optional=pair.op_type in BOUNDS)
            yield from ((kind, f"{where}: {name}", tally) for name, tally in arrays)
        if pair.op_type == "Slice" and (tally := _ends(pair.own, pair.twin, kept)) is not None:
            yield "setting", f"{where}: starts and ends", tally
        yield from (("setting", f"{where}: {name}", tally) for name, tally in _attributes(pair, opsets, floor))


def _stored_inputs(pair: Pair, kept: Kept) -> Iterator[tuple[str, int]]:
    """(kind of evidence, number) of the inputs of a node that are compared as they are stored."""
    tables, bounds = TABLES.get(pair.op_type, ()), BOUNDS.get(pair.op_type, ())
    yield from (("table", index) for index in tables)
    yield from (("setting", index) for index in bounds)
    loses = _loses(pair, kept)
    for index, value in enumerate(pair.twin.inputs if pair.alike else ()):
        array = stored_array(value) if index not in (*tables, *bounds) else None
        if array is None:
            continue
        single = pair.op_type in RECKONING and array.size == 1
        if single or (not loses and array.dtype.kind in "iub" and array.size <= SIZES):
            yield "setting", index


def _loses(pair: Pair, kept: Kept) -> bool:
    """Whether positions are gone of some value of a node."""
    return any(value is not None and kept.get(value.name or "") for value in (*pair.twin.inputs, *pair.twin.outputs))


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
    pair: Pair, index: int, kept: Kept, floor: float, small: bool, optional: bool
) -> Iterator[tuple[str, Tally]]:
    """(name, tally) of an input that is stored in both.

    small: also a few whole numbers of 32 and 64 bits, which in tables may be sizes, that follow the cut.
    optional: what is stored in the twin alone is a difference.
    """
    a, b = _constant(pair.own, index), _constant(pair.twin, index)
    value = pair.twin.inputs[index] if index < len(pair.twin.inputs) else None
    if b is None or value is None or b.dtype.kind not in "fiub":
        return
    if a is None:
        if optional:
            yield value.name or "", _verdict(False)
        return
    if b.dtype.kind in "iu" and b.dtype.itemsize > 2 and not small and b.ndim < 2 and b.size <= SIZES:
        return
    taken = at_kept(b, value.name or "", kept, a.shape)
    if taken is not None:
        yield value.name or "", _tallied(a, taken, floor) if a.dtype == taken.dtype else _verdict(False)


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    """An array that is stored, half precision as floats that can be reckoned with."""
    found = stored_array(node.inputs[index]) if index < len(node.inputs) else None
    return found.astype(np.float32) if found is not None and found.dtype.name == "bfloat16" else found


def _verdict(same: bool) -> Tally:
    return _tallied(np.array([same]), np.array([True]), 0.0)


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


def _attributes(pair: Pair, opsets: Mapping[str, int], floor: float) -> Iterator[tuple[str, Tally]]:
    """All attributes but those that follow the cut; lists and whole numbers where a node reads the same in both, for
    else it may be a rewriting; of what no cut touches, such as trees, all that they hold."""
    own, twin = pair.own, pair.twin
    if twin.domain == ML:
        whole = [sorted(each.SerializeToString() for each in _messages(node)) for node in (own, twin)]
        yield "attributes", _verdict(whole[0] == whole[1])
        return
    for name in sorted({*own.attributes, *twin.attributes} - FOLLOWING):
        ours, theirs = (_plain(node, name, opsets) for node in (own, twin))
        if (isinstance(theirs, float) and twin.op_type in LINEAR) or (name == "pads" and twin.op_type == "Pad"):
            continue
        if isinstance(theirs, float) and isinstance(ours, float):
            yield name, _tallied(np.array([ours], np.float32), np.array([theirs], np.float32), floor)
        elif theirs is not None and (isinstance(theirs, str) or name in SWITCHES or pair.alike):
            yield name, _verdict(ours == theirs)


def _messages(node: ir.Node) -> list[onnx.AttributeProto]:
    return [ir.serde.serialize_attribute(each) for each in node.attributes.values() if not each.is_ref()]


def _plain(node: ir.Node, name: str, opsets: Mapping[str, int]) -> object:
    """The value of an attribute, or what the operator takes in its place; None for graphs, arrays and the unknown."""
    attribute = node.attributes.get(name)
    opset = opsets.get(node.domain, opsets.get("", 1))
    if attribute is not None and attribute.type in GRAPHS:
        return None
    value: Any = attribute.value if attribute is not None else _default(node.op_type, node.domain, name, opset)
    listed = tuple(cast(Sequence[object], value)) if isinstance(value, (list, tuple)) else ()
    if name in NEUTRAL:
        return listed if set(listed) - {NEUTRAL[name]} else ()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, (float, int, str)) else listed or None


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
