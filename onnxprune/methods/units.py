"""Where the units of a Dim are made: the weights that produce them and the values that carry them.

Legend: U units of the Dim, L length of the axis on which it stands, R everything else.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, Member, dims, unit_positions
from onnxprune.coupling.layers import layer_of
from onnxprune.coupling.node import Role
from onnxprune.graph import quantized
from onnxprune.graph.tensors import tensor_of
from onnxprune.methods.base import Context, places

LARGE_BYTES = 64_000_000  # more precise numbers of a larger weight would be as large as a few layers
CONVERSIONS = frozenset({"Cast", "DequantizeLinear", "Identity"})
ELEMENTWISE = frozenset({"BatchNormalization", "Add", "Sub", "Mul", "Div", "BiasAdd"})


@dataclass(frozen=True)
class Source:
    """A value that carries the units: `units` (L,) tells for each position of `axis` its unit, -1 for none."""

    value: str
    axis: int
    units: np.ndarray
    batched: bool  # samples are stacked on axis 0, and `axis` is another one


def weights(context: Context, dim: Dim) -> Iterator[tuple[Member, np.ndarray, np.ndarray]]:
    """(member, array as floats, units (L,) on its axis) for the weights that produce the units of `dim`, one by one.

    Biases are left out, quantized weights are dequantized, and the scale of a BatchNormalization that follows is
    multiplied in. Where nothing produces the units (a norm's own scale), what follows or consumes them stands in.
    """
    found = _places(context, dim, "produces")
    solid = [entry for entry in found if not _is_bias(entry[0], _shape(context, entry[0]))]
    for role in ("follows", "scales", "consumes"):
        solid = solid or _places(context, dim, role)
    nodes = {node.name: node for node in context.model.graph.all_nodes()}
    for member, positions in solid or found:
        yield member, folded(nodes[member.node], member, as_float(context, member, _array(context, member))), positions


def in_role(context: Context, dim: Dim, role: str) -> list[tuple[Member, np.ndarray, np.ndarray]]:
    """Like `slices`, for initializers that reach their layer through Cast or DequantizeLinear as well."""
    return [(member, _array(context, member), positions) for member, positions in _places(context, dim, role)]


def _places(context: Context, dim: Dim, role: str) -> list[tuple[Member, np.ndarray]]:
    """(member, units (L,) on its axis), as in_role."""
    nodes = {node.name: node for node in context.model.graph.all_nodes()}
    found = [
        (_behind(nodes[member.node], member, len(_shape(context, member))), positions)
        for member, positions in places(context, dim, role, "follows")
    ]
    return [entry for entry in found if entry[0].role == role]


def _array(context: Context, member: Member) -> np.ndarray:
    return graph.array_of(context.model.graph.initializers[member.initializer])


def _shape(context: Context, member: Member) -> tuple[int, ...]:
    return tuple(tensor_of(context.model.graph.initializers[member.initializer]).shape.numpy())


def _behind(node: ir.Node, member: Member, rank: int) -> Member:
    """`member` with its role and input index at the layer that alone reads the converted weight, if that is so."""
    users = list(node.outputs[0].uses())
    if member.role != "follows" or node.op_type not in CONVERSIONS or member.input or len(users) != 1:
        return member
    user, index = users[0]
    layer = layer_of(user)
    if layer is None or index == 0:
        return member
    if index == layer.weights.weight:
        roles: dict[int, Role] = {layer.inputs(rank): "consumes", layer.outputs(rank): "produces"}
        return replace(member, role=roles.get(member.axis, member.role))
    return replace(member, role="produces", input=index)


def is_bias(member: Member, array: np.ndarray) -> bool:
    """Whether an array is an addend behind a product: Conv's and Gemm's third input, or the like of it."""
    return _is_bias(member, array.shape)


def _is_bias(member: Member, shape: tuple[int, ...]) -> bool:
    return member.input >= 2 and prod(shape) == shape[member.axis]


def as_float(context: Context, member: Member, array: np.ndarray) -> np.ndarray:
    """The weights as float64, large ones as they are stored; integers as what they stand for."""
    if array.nbytes > LARGE_BYTES and array.dtype == np.float32:
        return array
    node = next(node for node in context.model.graph.all_nodes() if node.name == member.node)
    return quantized.dequantized(node, member.input, array)


def folded(node: ir.Node, member: Member, w: np.ndarray) -> np.ndarray:
    """w times |gamma| / sqrt(var + eps) of the BatchNormalization that alone reads `node`, if there is one."""
    scale = norm_scale(node)
    if member.role != "produces" or scale is None or scale.size != w.shape[member.axis]:
        return w
    shape = [1] * w.ndim
    shape[member.axis] = -1
    return w * np.abs(scale).reshape(shape)


def norm_scale(node: ir.Node) -> np.ndarray | None:
    """gamma / sqrt(var + eps) (C,) of the BatchNormalization that alone reads the output of `node`."""
    users = list(node.outputs[0].uses())
    if node.op_type in CONVERSIONS and len(users) == 1 and layer_of(users[0].node) is not None:
        users = list(users[0].node.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "BatchNormalization" or users[0].idx != 0:
        return None
    norm = users[0].node
    gamma, variance = graph.constant(norm.inputs[1]), graph.constant(norm.inputs[4])
    if gamma is None or variance is None:
        return None
    eps = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    return gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)


def rows(array: np.ndarray, axis: int, units: np.ndarray, size: int) -> np.ndarray | None:
    """The numbers of each unit as a row: (U, R); None where units do not all have as many positions."""
    counts = np.bincount(units[units >= 0], minlength=size)
    if not counts.size or counts.min() != counts.max() or counts[0] == 0:
        return None
    inside = np.flatnonzero(units >= 0)
    order = inside[np.argsort(units[inside], kind="stable")]
    return np.moveaxis(array, axis, 0)[order].reshape(size, -1)


# Values -----------------------------------------------------------------------------------------------------------


def sources(coupling: Coupling, dim: Dim, *, all_makers: bool = False) -> list[Source]:
    """The values that first carry the units of `dim`, behind their bias and norm: silencing the units zeroes these.

    A node that reads the Dim and gives it on (a depthwise convolution, a residual sum) is not among them, so that a
    gate on all of them at once scales every unit once. With all_makers it is, if it has weights or a bias of its
    own: for gates of 0 and 1 that are to silence a unit wholly.
    """
    found: dict[str, Source] = {}
    makers = {member.node for member in coupling.members[dim] if member.role in ("produces", "follows")}
    constants = _constants(coupling.model)
    for node in coupling.model.graph:
        if node.outputs[0] in constants:  # a weight on its way: the layer behind it is the maker
            if node.name in makers:
                makers |= {user.name or "" for user, _ in node.outputs[0].uses()}
            continue
        if node.name not in makers or (_reads(coupling, node, dim, constants) and not all_makers):
            continue
        source = _source(coupling, _behind_affine(coupling, node.outputs[0], dim), dim)
        if source is not None:
            found[source.value] = source
    return list(found.values())


def _reads(coupling: Coupling, node: ir.Node, dim: Dim, constants: set[ir.Value]) -> bool:
    """Whether a computed input of `node` carries `dim`."""
    computed = (value for value in node.inputs if value is not None and value not in constants)
    return any(stands_in(coupling, value, dim) for value in computed)


def _constants(model: ir.Model) -> set[ir.Value]:
    """Initializers, and what is computed from them alone."""
    found = set(model.graph.initializers.values())
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(value in found for value in inputs):
            found |= set(node.outputs)
    return found


def stands_in(coupling: Coupling, value: ir.Value, dim: Dim) -> bool:
    """Whether `dim` stands on an axis of `value`."""
    return any(leaf is dim for axis in coupling.axes.get(value.name or "", ()) for leaf in dims.leaves(axis))


def _behind_affine(coupling: Coupling, value: ir.Value, dim: Dim) -> ir.Value:
    """The last value of the chain of norms and sums with initializers of `dim` that alone read `value`."""
    while value not in coupling.model.graph.outputs:
        users = list(value.uses())
        if len(users) != 1 or users[0].node.op_type not in ELEMENTWISE:
            break
        node = users[0].node
        others = [other for other in node.inputs if other is not None and other is not value]
        if not others or not all(other.is_initializer() for other in others) or not stands_in(coupling, others[0], dim):
            break
        value = node.outputs[0]
    return value


def _source(coupling: Coupling, value: ir.Value, dim: Dim) -> Source | None:
    axes = coupling.axes.get(value.name or "", ())
    places = [k for k, axis in enumerate(axes) if any(leaf is dim for leaf in dims.leaves(axis))]
    if not places:
        return None
    axis = places[-1]
    batch = _batch_axes(coupling)
    return Source(value.name or "", axis, unit_positions(axes[axis], dim), axis > 0 and axes[0] in batch)


def _batch_axes(coupling: Coupling) -> list[dims.Axis]:
    """The first axis of every graph input: samples are stacked there."""
    names: Iterator[str] = (value.name or "" for value in coupling.model.graph.inputs)
    return [coupling.axes[name][0] for name in names if coupling.axes.get(name)]
