"""Whole blocks: branches of which the result is added to a stream that they read, y = x + f(x).

Residual blocks, inverted bottlenecks and the attention and MLP branches of encoders are such. Where f(x) has the shape
of x, the branch can go as a whole: y = x is left, or y = x + c with a constant for each channel.

    find      the branches, those that cannot go with the reason
    silenced  the model in which they add zero, for the weights that stand last in them are zero
    without   the model that no longer has them

Both give the same numbers: that is the proof, as cut = mask is for units.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune import graph
from onnxprune.coupling import Coupling, dims
from onnxprune.coupling.layers import layer_of, stored_as, stored_behind
from onnxprune.errors import CouplingError
from onnxprune.graph import bodies

SUMS = ("Add", "Sum")
# Norms of which scale and bias are the second and third input: with both zero they give zero.
NORMS = frozenset(
    "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization "
    "SimplifiedLayerNormalization".split()
)
# What gives zero where its first input is zero; the other inputs say where or how much. Sigmoid or Exp do not.
PASSING = frozenset(
    "Relu LeakyRelu Elu Selu Celu ThresholdedRelu Tanh Gelu Sin Tan Sqrt Abs Neg Erf Identity MaxPool AveragePool "
    "GlobalAveragePool GlobalMaxPool Flatten Reshape Transpose Squeeze Unsqueeze Split Slice Resize Upsample Dropout "
    "Cast DepthToSpace SpaceToDepth ReduceMean ReduceSum".split()
)
JOINING = ("Concat", "Add", "Sub", "Sum")
PROJECTED = "neither of the two values that are added is computed from the other, as behind a shortcut with layers"


@dataclass(frozen=True)
class Place:
    """Numbers of the model that make a branch zero when they are zero: all of `initializer`, input `input` of `node`.

    axis: along which none of its positions is kept, in the words of a plan.
    """

    initializer: str
    node: str
    input: int
    axis: int


@dataclass(frozen=True)
class Block:
    """A branch that is added to a stream. name: of the node that adds; branch, stream: the two values.

    nodes: those that only the branch needs. places: what makes it zero. axis: of the channels, in the branch's value,
    None where that is not known. reason: why it cannot go, '' where it can.
    """

    name: str
    branch: str = ""
    stream: str = ""
    nodes: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    axis: int | None = None
    reason: str = ""


def find(coupling: Coupling) -> list[Block]:
    """Every branch with weights that is added to a stream, in the order of the graph."""
    finder = _Finder(coupling)
    return [block for node in coupling.model.graph for block in finder.at(node)]


def named(found: Iterable[Block], names: Iterable[str]) -> list[Block]:
    """The blocks of these names, in the order of the graph. Raises: CouplingError where one is none, or cannot go."""
    found, wanted = list(found), set(names)
    by_name = {block.name: block for block in found}
    for name in sorted(wanted):
        block = by_name.get(name)
        if block is None:
            raise CouplingError(f"the model has no block '{name}'; 'onnxprune inspect' lists its blocks")
        if block.reason:
            raise CouplingError(f"block '{name}' cannot go: {block.reason}")
    return [block for block in found if block.name in wanted]


def silenced(model: ir.Model, blocks: Iterable[Block]) -> ir.Model:
    """A copy of `model` in which the blocks add zero: the twin of the model without them."""
    made = graph.copy(model)
    for place in {place.initializer: place for block in blocks for place in block.places}.values():
        value = made.graph.initializers[place.initializer]
        graph.change(value, tuple(graph.array_of(value).shape), np.zeros_like)
    return made


def without(model: ir.Model, blocks: Sequence[Block], constants: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """A copy of `model` without the blocks: each sum is then the stream alone, under the name that it had.

    constants: shape, by block, of a constant of zeros that is added in its place, for recovery to set.
    """
    made = graph.copy(model)
    nodes = {node.name: node for node in made.graph}
    for block in blocks:
        node = nodes[block.name]
        index = next(k for k, value in enumerate(node.inputs) if value is not None and value.name == block.branch)
        branch, stream = node.inputs[index], node.inputs[1 - index]
        assert branch is not None, block
        if constants is not None and block.name in constants:
            dtype = (branch.dtype or ir.DataType.FLOAT).numpy()
            constant = graph.add_constant(made.graph, constant_of(block.name), np.zeros(constants[block.name], dtype))
            node.replace_input_with(index, constant)
        else:
            node.replace_input_with(0, stream)
            node.resize_inputs(1)
            node.op_type = "Identity"
    passes.RemoveUnusedNodesPass()(made)
    return made


def set_constants(model: ir.Model, found: Mapping[str, np.ndarray | float]) -> None:
    """Stores numbers by block, (C,) or one for all channels, in the constants that stand for these blocks."""
    for name, numbers in found.items():
        value = model.graph.initializers[constant_of(name)]
        stored = graph.array_of(value)
        flat = np.broadcast_to(numbers, stored.size)
        graph.set_constant(value, flat.reshape(stored.shape).astype(stored.dtype))


def constant_of(name: str) -> str:
    """The name of the initializer that is added in place of block `name`."""
    return f"{name}.constant"


class _Finder:
    """The search for blocks of one model."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.nodes = list(coupling.model.graph)

    @cached_property
    def _behind(self) -> Mapping[ir.Value, int]:
        """For each value the set of all values that it is computed from, itself included: bits of one number."""
        found: dict[ir.Value, int] = {value: 1 << k for k, value in enumerate(self.coupling.model.graph.inputs)}
        count = len(found)
        for node in self.nodes:
            read = 0
            captured = (value for inner in bodies.nodes_inside(node) for value in inner.inputs)
            for value in (*node.inputs, *captured):
                read |= found.get(value, 0) if value is not None else 0
            for value in node.outputs:
                found[value] = read | 1 << count
                count += 1
        return found

    @property
    def _given(self) -> int:
        """The bits of the model's inputs: what has none of them is stored."""
        return (1 << len(self.coupling.model.graph.inputs)) - 1

    def _among(self, found: int, value: ir.Value) -> bool:
        """Whether `value` is one of a set of values: its number is the highest bit of its own set."""
        return bool(found >> (self._behind[value].bit_length() - 1) & 1)

    def at(self, node: ir.Node) -> Iterator[Block]:
        """The block that ends in `node`, if it is one."""
        terms = [value for value in node.inputs if value is not None and self._behind.get(value, 0) & self._given]
        if node.op_type not in SUMS or len(node.inputs) != 2 or len(terms) != 2 or terms[0] is terms[1]:
            return
        for branch, stream in (terms, terms[::-1]):
            if self._among(self._behind[branch], stream):
                only = self._only_for(branch, node)
                if self._has_weights(only) or (not only and self._adds_weights(branch, stream)):
                    yield self._block(node, branch, stream, only)
                return
        if any(self._has_weights(self._only_for(value, node)) for value in terms):
            yield Block(node.name or "", reason=PROJECTED)

    def _block(self, node: ir.Node, branch: ir.Value, stream: ir.Value, only: Mapping[ir.Node, None]) -> Block:
        """The block whose `branch` is added to `stream` in `node`, or why it cannot go."""
        block = partial(Block, node.name or "", branch.name or "", stream.name or "")
        sizes = [self.coupling.shapes.sizes.get(value.name or "") for value in (branch, stream, node.outputs[0])]
        if not only:
            return block(reason=f"what it adds, '{branch.name}', is read elsewhere as well")
        if len(set(sizes)) != 1 or sizes[0] is None:
            return block(reason=f"its input and output have other sizes: {sizes[0]} is added to {sizes[1]}")
        places = _zeros(branch, only)
        if isinstance(places, str):
            return block(reason=f"nothing stored makes it zero: {places}")
        names = tuple(inner.name or "" for inner in self.nodes if inner in only)
        return block(names, tuple(dict.fromkeys(places)), self._channels(branch, places))

    def _only_for(self, branch: ir.Value, node: ir.Node) -> dict[ir.Node, None]:
        """The nodes of which all results go into `branch`, and that into `node` alone."""
        found: dict[ir.Node, None] = {}
        behind = self._behind[branch]
        for inner in reversed(self.nodes):
            computed = [value for value in inner.outputs if value in self._behind]
            if not any(self._among(behind, value) for value in computed):
                continue
            uses = [(user, value) for value in inner.outputs for user, _ in value.uses()]
            read_here = all(user in found or (user is node and value is branch) for user, value in uses)
            if read_here and not any(value.is_graph_output() for value in inner.outputs):
                found[inner] = None
        return found

    def _has_weights(self, nodes: Iterable[ir.Node]) -> bool:
        return any(_stores_weight(node) for node in nodes)

    def _adds_weights(self, branch: ir.Value, stream: ir.Value) -> bool:
        """Whether there are layers between `stream` and `branch`."""
        between = self._behind[branch] & ~self._behind[stream]
        inside = (node for node in self.nodes if self._among(between, node.outputs[0]))
        return self._has_weights(inside)

    def _channels(self, branch: ir.Value, places: Sequence[Place]) -> int | None:
        """The axis of `branch` on which what the places produce stands."""
        axes = self.coupling.axes
        for place in places:
            made = set(dims.leaves(axes[place.initializer][place.axis] if place.initializer in axes else ()))
            for position, axis in enumerate(axes.get(branch.name or "", ())):
                if made and set(dims.leaves(axis)) == made:
                    return position
        return None


def _stores_weight(node: ir.Node) -> bool:
    layer = layer_of(node)
    return layer is not None and stored_as(layer.weight) is not None


def _zeros(value: ir.Value, only: Mapping[ir.Node, None]) -> list[Place] | str:
    """The places that make `value` zero, all at nodes in `only`; a text that names the node where there are none."""
    node = value.producer()
    if node is None or node not in only:
        return f"'{value.name}' is computed for others as well"
    if _stores_weight(node):
        layer = layer_of(node)
        assert layer is not None
        if layer.weights.fused:
            return f"{node.op_type} '{node.name}' does more than multiply by weights"
        at = [layer.weights.weight, *([layer.weights.bias] if layer.bias is not None and layer.weights.bias else ())]
        source = stored_as(layer.weight)
        assert source is not None
        return _stored(node, at, {layer.weights.weight: layer.outputs(graph.array_of(source).ndim)})
    if node.op_type in NORMS:
        return _stored(node, [k for k, v in enumerate(node.inputs) if k in (1, 2) and v is not None])
    if node.op_type in ("Mul", "MatMul", "Div"):
        return _any_factor(node, only)
    if node.op_type in JOINING:
        return _all_terms(node, only)
    if node.op_type in PASSING and node.inputs[0] is not None:
        return _zeros(node.inputs[0], only)
    return f"{node.op_type} '{node.name}' stands last"


def _any_factor(node: ir.Node, only: Mapping[ir.Node, None]) -> list[Place] | str:
    """One zero factor is enough; a stored one is the nearest."""
    factors = range(1 if node.op_type == "Div" else len(node.inputs))
    stored = [k for k in factors if _is_vector(node.inputs[k])]
    if stored:
        return _stored(node, stored[:1])
    why = ""
    for k in factors:
        value = node.inputs[k]
        found = _zeros(value, only) if value is not None and value.producer() is not None else ""
        if isinstance(found, list):
            return found
        why = why or found
    return why or f"{node.op_type} '{node.name}' stands last"


def _all_terms(node: ir.Node, only: Mapping[ir.Node, None]) -> list[Place] | str:
    places: list[Place] = []
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        found = _zeros(value, only) if stored_as(value) is None else _stored(node, [index])
        if isinstance(found, str):
            return found
        places += found
    return places


def _stored(node: ir.Node, inputs: Iterable[int], axes: Mapping[int, int] | None = None) -> list[Place] | str:
    """The stored inputs of a node as places; axes: of those that are no vectors."""
    places: list[Place] = []
    for index in inputs:
        value, reader, at = node.inputs[index], node, index
        while value is not None and len(list(value.uses())) == 1 and (maker := value.producer()) is not None:
            value, reader, at = maker.inputs[0], maker, 0
        if value is None or not _is_vector(value) or len(list(value.uses())) != 1:
            name = None if value is None else value.name
            return f"'{name}' of {node.op_type} '{node.name}' is not stored as floats for it alone"
        sizes = graph.array_of(value).shape
        axis = (axes or {}).get(index, max(range(len(sizes)), key=lambda k: (sizes[k], k)))
        places.append(Place(value.name or "", reader.name or "", at, axis))
    return places


def _is_vector(value: ir.Value | None) -> bool:
    """Whether a value is stored as floats along at least one axis."""
    stored = stored_behind(value)
    return stored is not None and graph.array_of(stored).ndim > 0
