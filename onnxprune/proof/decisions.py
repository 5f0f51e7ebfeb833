"""Operators that decide, and models in which they decide on numbers that are fed to them.

An operator that rounds, ranks or compares turns a rounding error into another answer. So what the twin has in front
of it is fed to both models there: their own numbers in front are compared, and so is everything behind.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import bodies, extras
from onnxprune.graph.extras import Kept

DECIDING = frozenset(
    "ArgMax ArgMin TopK NonMaxSuppression NonZero Greater GreaterOrEqual Less LessOrEqual Equal Round Floor Ceil Sign "
    "Unique Compress OneHot QuantizeLinear DynamicQuantizeLinear Hardmax Mod GridSample RoiAlign MaxRoiPool Shrink "
    "ThresholdedRelu IsNaN IsInf Bernoulli Multinomial BitCast DynamicQuantizeMatMul DynamicQuantizeLSTM QAttention "
    "MoE QMoE DynamicTimeWarping Range MatMulNBits".split()
)


@dataclass(frozen=True)
class Point:
    """An input of a node, in both models: `feed` names the graph input that takes its place."""

    node: str  # what a reader calls it
    index: int
    ours: int  # number of the node in the cut model
    theirs: int  # and in the masked one
    own: str  # name of the value in the cut model
    twin: str  # and in the masked one
    feed: str


Numbered = tuple[int, ir.Node]  # a node and its number in the order of the graph


def pairs(cut: ir.Model, masked: ir.Model) -> tuple[list[Point], list[str]]:
    """(the points at which decisions are made in both models, the names of deciding nodes that only `masked` has).

    Nodes belong together when they have the same operator and output, else by their order where both models have as
    many of that operator left.
    """
    ours, theirs = (_deciding(model) for model in (cut, masked))
    left = {(node.op_type, first_output(node)): (number, node) for number, node in ours}
    matched: list[tuple[Numbered, Numbered]] = []
    lone: list[Numbered] = []
    for number, node in theirs:
        other = left.pop((node.op_type, first_output(node)), None)
        if other is None:
            lone.append((number, node))
        else:
            matched.append((other, (number, node)))
    missing: list[str] = []
    for op_type in dict.fromkeys(node.op_type for _, node in lone):
        rest = [pair for pair in lone if pair[1].op_type == op_type]
        others = sorted((pair for (kind, _), pair in left.items() if kind == op_type), key=lambda pair: pair[0])
        if len(rest) == len(others):
            matched += zip(others, rest, strict=True)
        else:
            missing += [node.name or node.op_type for _, node in rest]
    points: list[Point] = []
    for (our_number, our_node), (their_number, their_node) in sorted(matched, key=lambda pair: pair[1][0]):
        points += points_of(our_number, our_node, their_number, their_node)
    return points, missing


def in_bodies(model: ir.Model) -> Iterator[tuple[str, str]]:
    """(node, the node in whose body it lies) of all that decide on floats inside of control flow: none can be fed."""
    for outer in model.graph:
        for node in bodies.nodes_inside(outer):
            if decides(node) and any(map(_is_float, node.inputs)):
                yield node.name or node.op_type, outer.name or outer.op_type


def points_of(ours: int, our_node: ir.Node, theirs: int, their_node: ir.Node) -> list[Point]:
    """The computed floats that a node reads in both models."""
    found: list[Point] = []
    for index, (a, b) in enumerate(zip(our_node.inputs, their_node.inputs, strict=False)):
        if is_computed_float(a) and is_computed_float(b):
            assert a is not None
            assert b is not None
            name = their_node.name or their_node.op_type
            feed = f"twin:{theirs}.{index}"
            found.append(Point(name, index, ours, theirs, a.name or "", b.name or "", feed))
    return found


def first_output(node: ir.Node) -> str:
    """The name of the first output that a node gives; outputs that are left out have none."""
    return next((value.name for value in node.outputs if value.name), "")


def _deciding(model: ir.Model) -> list[Numbered]:
    return [(number, node) for number, node in enumerate(model.graph) if decides(node)]


def decides(node: ir.Node) -> bool:
    """Whether a rounding error in what `node` reads may become another answer."""
    if node.op_type in DECIDING:
        return True
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 1) not in FLOATS
    if node.op_type == "MaxPool":
        return len(node.outputs) > 1 and bool(node.outputs[1].uses() or node.outputs[1].is_graph_output())
    return False


FLOATS = frozenset(int(kind) for kind in ir.DataType if kind.is_floating_point() and kind.bitwidth >= 16)


def is_computed_float(value: ir.Value | None) -> bool:
    """Whether `value` is a float, or of a type that is not known, that some node makes."""
    return value is not None and value.producer() is not None and _is_float(value)


def _is_float(value: ir.Value | None) -> bool:
    if value is None or value.const_value is not None:
        return False
    return value.dtype is None or value.dtype.is_floating_point()


def fed(
    model: ir.Model, points: Sequence[Point], number_of: Callable[[Point], int], arrays: Mapping[str, np.ndarray]
) -> ir.Model:
    """A copy of `model` in which each point is a graph input of its own.

    number_of: of the node in that model; arrays: of which types these inputs are, by the twin's names.
    """
    if not points:
        return model
    model = extras.copy(model)
    nodes = list(model.graph)
    for point in points:
        node = nodes[number_of(point)]
        given = ir.Value(name=point.feed, type=ir.TensorType(ir.DataType.from_numpy(arrays[point.twin].dtype)))
        model.graph.inputs.append(given)
        node.replace_input_with(point.index, given)
    return model


# Positions ------------------------------------------------------------------------------------------------------------


def at_kept(array: np.ndarray, name: str, kept: Kept, shape: Sequence[int]) -> np.ndarray | None:
    """`array` of the twin's value `name` at the positions that the cut model has; None where it has not that shape.

    Axes that are as long in both are left: the twin may compute over kept positions itself, and the cut model over
    all of them, spread before and gathered behind.
    """
    axes = [k for k in kept.get(name, {}) if k >= len(shape) or array.shape[k] != shape[k]]
    found = taken(array, name, kept, axes) if array.shape != tuple(shape) else array
    return found if found is not None and found.shape == tuple(shape) else None


def at_counted(own: np.ndarray, name: str, kept: Kept, full: Sequence[int]) -> np.ndarray:
    """`own` of the cut model without the positions that go behind it: those that it has although they are not kept.

    full: shape of the same value in the twin.
    """
    for axis in kept.get(name, {}):
        if own.ndim == len(full) and own.shape[axis] == full[axis]:
            found = taken(own, name, kept, [axis])
            own = own if found is None else found
    return own


def taken(array: np.ndarray, name: str, kept: Kept, axes: Iterable[int]) -> np.ndarray | None:
    """`array` at the kept positions of `axes`; None where an axis has not all of these, or none is kept."""
    for axis in axes:
        size = array.shape[axis]
        chosen = kept[name][axis](size)
        if not len(chosen) or chosen[-1] >= size:
            return None
        array = np.take(array, chosen, axis=axis)
    return array
