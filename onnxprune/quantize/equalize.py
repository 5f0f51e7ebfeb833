"""Channels of a value brought to ranges more alike before one scale rounds them all; the float model computes the same.

A value of which one channel reaches a hundred times as far as the others is rounded to steps that are too coarse for
the others. What makes the value is divided by a scale per channel, and what reads it is multiplied by it:

    s_i = max|x_i|^a / max|w_i|^(1 - a)

where w_i are the weights that channel i is multiplied with (Xiao et al., SmoothQuant, ICML 2023, equation 4). Where
weights share one scale, the rows that make the channel stand for its range (Nagel et al., Data-Free Quantization
Through Weight Equalization and Bias Correction, ICCV 2019, equation 11). Scales are powers of two: they change no digit
of a number, so that the float model computes the same.

A group is what has to be scaled together: values that are linked by operators with f(s x) = s f(x), what makes them,
and what reads them. A group with anything else on it stays as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling.layers import Layer, layer_of
from onnxprune.graph import sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.graph.simplify import infer_shapes
from onnxprune.graph.tensors import rank_of
from onnxprune.quantize.prepare import reduced

# f(s x) = s f(x) for s > 0, channel by channel, and the channels stay where they are.
LINKING = frozenset("Relu LeakyRelu Identity Abs MaxPool AveragePool GlobalAveragePool GlobalMaxPool".split())
FLATTENING = frozenset("Flatten Reshape Squeeze Unsqueeze".split())  # where the axis of the channels stays whole
NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))
LEAST_CHANNELS = 2
FURTHEST = 8  # powers of two that a channel is moved by at most
Exponents = Mapping[str, np.ndarray]  # of two, by the name of a group: what its channels are divided by


@dataclass(frozen=True)
class Slot:
    """An input of a node that an initializer stands at, and its axis on which the channels stand."""

    node: ir.Node
    index: int
    axis: int

    @property
    def value(self) -> ir.Value:
        value = self.node.inputs[self.index]
        assert value is not None, self.node.name
        return value

    @property
    def rows(self) -> np.ndarray:
        """The array (C, rest)."""
        array = np.moveaxis(graph.array_of(self.value), self.axis, 0)
        return array.reshape(len(array), -1)


Source = tuple[int, list[Slot], list[Slot]]  # axis of the channels, what makes them, the weights among that


@dataclass(eq=False)
class Group:
    """What is scaled together: made is what makes the channels, weights and all that is added; rows are the weights of
    these; read is what the channels are multiplied with, by layers that read `readers`. open: it has to stay as it is.
    """

    values: dict[ir.Value, int] = field(default_factory=dict)  # value -> axis
    made: list[Slot] = field(default_factory=list)
    rows: list[Slot] = field(default_factory=list)
    read: list[Slot] = field(default_factory=list)
    readers: list[ir.Value] = field(default_factory=list)  # values that layers read: these are rounded
    open: bool = False

    @property
    def name(self) -> str:
        """The name by which plans know it: that of its first value."""
        return next(iter(self.values)).name or ""

    @property
    def channels(self) -> int:
        return len(self.made[0].rows)


def groups(model: ir.Model) -> list[Group]:
    """The groups of `model` that can be scaled, as they stand in a copy of it in which all shapes are known."""
    model = graph.copy(model)
    infer_shapes(model)
    found: list[Group] = []
    seen: set[ir.Value] = set()
    for node in model.graph:
        source = _source(node)
        if source is None or node.outputs[0] in seen:
            continue
        group = _grown(node.outputs[0], source)
        seen |= group.values.keys()
        if not group.open and group.readers and group.channels >= LEAST_CHANNELS:
            found.append(group)
    return found


def exponents(
    found: Sequence[Group], reached: Mapping[str, np.ndarray], share: float, by_rows: bool = False
) -> Exponents:
    """Powers of two by which the channels of each group are divided; reached: max|x| per channel by group."""
    made = {}
    for group in found:
        x = _largest(group.rows) if by_rows else reached[group.name]
        w = _largest(group.read)
        if x is None or w is None:
            continue
        known = (x > 0) & (w > 0)
        if not known.any():
            continue
        steps = np.zeros(len(x))
        steps[known] = share * np.log2(x[known]) - (1 - share) * np.log2(w[known])
        steps[known] -= np.median(steps[known])
        rounded = np.clip(np.rint(steps), -FURTHEST, FURTHEST).astype(int)
        if rounded.any():
            made[group.name] = rounded
    return made


def scaled(model: ir.Model, by: Exponents) -> ir.Model:
    """A copy of `model` with the channels of its groups divided by powers of two, and multiplied again where read."""
    made = graph.copy(model)
    nodes = {node.name: node for node in made.graph}
    for group in groups(model):
        if group.name not in by:
            continue
        scales = np.exp2(np.asarray(by[group.name], np.float64))
        for slots, factors in ((group.made, 1 / scales), (group.read, scales)):
            for slot in slots:
                _multiply(made, replace(slot, node=nodes[slot.node.name]), factors)
    return made


def reached(model: ir.Model, found: Sequence[Group], batches: Iterable[Feeds]) -> Mapping[str, np.ndarray]:
    """The largest |x| of each channel (C,) by group, over all values that layers read there and all `batches`."""
    measuring = graph.copy(model)
    values = {value.name: value for node in measuring.graph for value in node.outputs}
    names: dict[str, str] = {}
    made: list[ir.Node] = []
    for group in found:
        for number, read in enumerate(dict.fromkeys(group.readers)):
            axes = [axis for axis in range(rank_of(read) or 0) if axis != group.values[read]]
            size = ir.Node("", "Abs", [values[read.name]], num_outputs=1)
            made += [size, reduced(measuring, "ReduceMax", f"{group.name}/largest.{number}", size.outputs[0], axes)]
            names[made[-1].outputs[0].name or ""] = group.name
    measuring.graph.extend(made)
    del measuring.graph.outputs[:]
    measuring.graph.outputs.extend(node.outputs[0] for node in made[1::2])
    most: dict[str, np.ndarray] = {}
    session = sessions.open_session(measuring, threads=sessions.few_threads())
    for batch in batches:
        for name, array in sessions.run(session, batch).items():
            key, array = names[name], np.asarray(array, np.float64)
            most[key] = np.maximum(most[key], array) if key in most else array
    return most


# Groups -------------------------------------------------------------------------------------------------------------


def _source(node: ir.Node) -> Source | None:
    """How a group begins at `node`, None where none does."""
    layer = layer_of(node)
    if layer is not None:
        return _layer_source(layer)
    rank = rank_of(node.outputs[0]) if node.outputs else None
    if rank is None:
        return None
    if node.op_type in NORMS and node.attributes.get_int("axis", -1) % rank == rank - 1 and len(node.outputs) == 1:
        slots = [Slot(node, index, 0) for index, value in enumerate(node.inputs) if index and value is not None]
        return (rank - 1, slots, []) if slots and all(_vector(slot.value) for slot in slots) else None
    found = _by_channel(node, rank) if node.op_type == "Mul" else None
    return None if found is None else (found[1], [found[0]], [])


def _layer_source(layer: Layer) -> Source | None:
    w, b = layer.weight, layer.bias
    rank = rank_of(layer.y)
    if layer.weights.fused or layer.kind == "transposed" or not _own(w) or rank is None:
        return None
    weight = Slot(layer.node, layer.weights.weight, layer.outputs(graph.array_of(w).ndim))
    if b is None:
        return layer.y_axis % rank, [weight], [weight]
    if layer.weights.bias is None or not _vector(b) or graph.array_of(b).size != len(weight.rows):
        return None
    return layer.y_axis % rank, [weight, Slot(layer.node, layer.weights.bias, 0)], [weight]


def _grown(start: ir.Value, source: Source) -> Group:
    """The group around `start`."""
    group = Group()
    pending = [(start, source[0])]
    while pending and not group.open:
        value, axis = pending.pop()
        if value in group.values:
            group.open |= group.values[value] != axis
            continue
        group.values[value] = axis
        if value.is_graph_output() or value.is_graph_input() or value.is_initializer():
            group.open = True
            break
        pending += _behind(group, value, axis)
        pending += _ahead(group, value, axis)
    return group


def _behind(group: Group, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    """What makes `value`: entered into the group where it can be scaled, or else what it is made of."""
    node = value.producer()
    source = None if node is None else _source(node)
    if source is not None and source[0] == axis and node is not None and node.outputs[0] is value:
        group.made += source[1]
        group.rows += source[2]
        return
    linked = None if node is None or node.outputs[0] is not value else _linked(group, node, axis)
    if linked is None:
        group.open = True
        return
    yield from linked


def _ahead(group: Group, value: ir.Value, axis: int) -> Iterator[tuple[ir.Value, int]]:
    """What reads `value`: entered into the group where it multiplies by weights, or else what is made there."""
    for node, index in value.uses():
        if node.graph is not value.producer().graph:  # type: ignore[union-attr]
            group.open = True
            return
        read = _read(node, index, value, axis)
        if read is not None:
            group.read.append(read)
            group.readers.append(value)
            continue
        moved = _forward(node, axis)
        if moved is not None:
            yield node.outputs[0], moved
        else:
            group.open = True


def _linked(group: Group, node: ir.Node, axis: int) -> list[tuple[ir.Value, int]] | None:
    """The values that a linking node reads, with their axis; what it adds is entered into the group. Else None."""
    back = [(value, at) for value in node.inputs[:2] if value is not None for at in range(rank_of(value) or 0)]
    found = [(value, at) for value, at in back if not value.is_initializer() and _forward(node, at, value) == axis]
    if node.op_type != "Add" or not found:
        return found or None
    added = _by_channel(node, rank_of(node.outputs[0]) or 0)
    group.made += [] if added is None else [added[0]]
    return found


def _forward(node: ir.Node, axis: int, value: ir.Value | None = None) -> int | None:
    """The axis on which the channels of `value`, an input with channels on `axis`, stand behind a linking node; None
    where it does not hand them on."""
    x, y = node.inputs[0] if value is None else value, node.outputs[0]
    before, after = _sizes(x), _sizes(y)
    if before is None or after is None:
        return None
    if node.op_type in LINKING:
        return axis if x is node.inputs[0] and len(before) == len(after) else None
    if node.op_type == "Add":
        one, two = node.inputs
        if one is None or two is None or len(before) != len(after):
            return None
        if not one.is_initializer() and not two.is_initializer():
            alike = rank_of(one) == rank_of(two) and _size(one, axis) == _size(two, axis)
            return axis if alike and _size(one, axis) is not None else None
        added = _by_channel(node, len(after))
        return axis if added is not None and added[1] == axis else None
    if node.op_type in FLATTENING and x is node.inputs[0]:
        return _flattened(before, after, axis)
    return None


def _flattened(before: list[str], after: list[str], axis: int) -> int | None:
    """Where `axis` stands behind a Reshape: what follows it, or what leads to it, is as it was; else None."""
    end = axis - len(before)
    if -end <= len(after) and before[end:] == after[end:] and all(size.isdigit() for size in before[end:]):
        return len(after) + end
    if before[: axis + 1] == after[: axis + 1]:
        return axis
    left, right = ([k for k, size in enumerate(sizes) if size != "1"] for sizes in (before, after))
    same = [before[k] for k in left] == [after[k] for k in right]
    return right[left.index(axis)] if same and axis in left else None


def _read(node: ir.Node, index: int, value: ir.Value, axis: int) -> Slot | None:
    """Where `node` multiplies the channels of `value` by weights of their own, None where it does something else."""
    rank, layer = rank_of(value), layer_of(node)
    if rank is None:
        return None
    if layer is None:
        found = _by_channel(node, rank) if node.op_type == "Mul" and rank_of(node.outputs[0]) == rank else None
        return found[0] if found is not None and found[1] == axis else None
    if index != 0 or layer.weights.fused or layer.kind == "transposed" or not _own(layer.weight):
        return None
    if layer.x_axis % rank != axis or sum(other is value for other in node.inputs) != 1:
        return None
    w = graph.array_of(layer.weight)
    if layer.groups == 1:
        return Slot(node, layer.weights.weight, layer.inputs(w.ndim))
    depthwise = layer.groups == w.shape[0] == _size(value, axis)
    return Slot(node, layer.weights.weight, layer.outputs(w.ndim)) if depthwise else None


def _by_channel(node: ir.Node, rank: int) -> tuple[Slot, int] | None:
    """(where, the axis of the result) Mul or Add takes one number per channel, None where it does not."""
    for index, (value, other) in enumerate((node.inputs, node.inputs[::-1])):
        if value is None or other is None or other.is_initializer() or not _single(value) or rank_of(other) != rank:
            continue
        shape = graph.array_of(value).shape
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if len(wide) == 1 and len(shape) <= rank:
            at = wide[0] + rank - len(shape)
            return (Slot(node, index, wide[0]), at) if _size(other, at) == shape[wide[0]] else None
    return None


def _single(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer in single precision."""
    array = graph.constant(value)
    return array is not None and array.dtype == np.float32


def _own(value: ir.Value | None) -> bool:
    """The same of one that is read once: a copy of a matrix that others read would be stored beside it."""
    return _single(value) and value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _vector(value: ir.Value) -> bool:
    return _single(value) and graph.array_of(value).ndim == 1


def _multiply(model: ir.Model, slot: Slot, scales: np.ndarray) -> None:
    array = graph.array_of(slot.value)
    shape = [1] * array.ndim
    shape[slot.axis] = -1
    array = (array * scales.reshape(shape)).astype(np.float32)
    if _own(slot.value):
        graph.set_constant(slot.value, array)
    else:  # equal vectors of several nodes are one initializer
        named = f"{slot.node.name}/equalized.{slot.index}"
        slot.node.replace_input_with(slot.index, graph.add_constant(model.graph, named, array))


def _largest(slots: Sequence[Slot]) -> np.ndarray | None:
    """max|w| by channel, None where there are no weights."""
    return np.maximum.reduce([np.abs(slot.rows).max(axis=1) for slot in slots]) if slots else None


def _sizes(value: ir.Value | None) -> list[str] | None:
    """Lengths as texts; two that are not known differ."""
    if value is None or value.shape is None:
        return None
    return [f"?{value.name}/{k}" if str(size) in ("None", "?") else str(size) for k, size in enumerate(value.shape)]


def _size(value: ir.Value, axis: int) -> int | None:
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else None
