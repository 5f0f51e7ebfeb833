"""Nodes that multiply what they read by stored weights: convolutions and matrix products, seen alike.

Letters: N batch, C channels, O out, I in, K kernel taps, G groups, S spatial axes. Every such node is
y = W x + b with W as (G, O/G, I/G, K), applied at each output position to the window of taps that it sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling.layers import PASSING, Layer, layer_of, stored_behind
from onnxprune.graph.stored import Spill, is_stored
from onnxprune.graph.tensors import tensor_of

__all__ = ["Linear", "linears", "number", "only_user", "read_weights", "stored_behind", "users", "write_weights"]


@dataclass(frozen=True)
class Linear(Layer):
    """A weighted layer of which the weights are stored as floats, and nothing but W x + b is computed."""

    stored: ir.Value  # the initializer that holds the weights, possibly behind Cast

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights as they are stored."""
        return tuple(tensor_of(self.stored).shape.numpy())

    @property
    def width(self) -> int:
        """Number of output channels, O."""
        shape = self.shape
        return shape[self.outputs(len(shape))] * (self.groups if self.kind == "transposed" else 1)


def linears(model: ir.Model) -> dict[str, Linear]:
    """The nodes with stored float weights by name, in graph order."""
    found = (_linear(node) for node in model.graph)
    return {linear.name: linear for linear in found if linear is not None}


def _linear(node: ir.Node) -> Linear | None:
    layer = layer_of(node)
    if layer is None or layer.weights.fused or not layer.y.name:
        return None
    stored = stored_behind(layer.weight)
    if stored is None or stored_behind(layer.x) is not None:
        return None
    linear = Linear(node, layer.weights, stored)
    return linear if layer.spatial or len(linear.shape) == 2 else None


def number(node: ir.Node, name: str, default: float) -> float:
    """A number that is an attribute of `node`, else its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def read_weights(linear: Linear) -> np.ndarray:
    """W (G, O/G, I/G, K) float32, a factor alpha included; taps of a transposed convolution are reversed."""
    w = np.asarray(graph.array_of(linear.stored), np.float32) * np.float32(linear.alpha)
    w = np.moveaxis(w, _channels(linear, w.ndim), (0, 1))
    groups = linear.groups
    parts = w.reshape(groups, w.shape[0] // groups, w.shape[1], prod(w.shape[2:]))
    return parts.transpose(0, 2, 1, 3)[..., ::-1] if linear.kind == "transposed" else parts


def write_weights(linear: Linear, w: np.ndarray, spill: Spill | None = None) -> None:
    """Stores W (G, O/G, I/G, K) in the form and the type that the initializer has.

    spill: where weights go that stay in files.
    """
    shape = linear.shape
    channels = _channels(linear, len(shape))
    if linear.kind == "transposed":
        w = w[..., ::-1].transpose(0, 2, 1, 3)
    leading = [shape[axis] for axis in channels]
    others = [size for axis, size in enumerate(shape) if axis not in channels]
    array = np.moveaxis(w.reshape(*leading, *others), (0, 1), channels)
    array = (np.asarray(array, np.float32) / np.float32(linear.alpha)).astype(tensor_of(linear.stored).dtype.numpy())
    if spill is not None and is_stored(linear.stored):
        spill.take(linear.stored, array)
    else:
        graph.set_constant(linear.stored, array)


def _channels(linear: Linear, rank: int) -> tuple[int, int]:
    """The two axes of the stored weight with channels, that with those of all groups first."""
    outputs, inputs = linear.outputs(rank), linear.inputs(rank)
    return (inputs, outputs) if linear.kind == "transposed" else (outputs, inputs)


def users(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read `value`, Casts of it passed through."""
    for node, _ in value.uses():
        if node.op_type in PASSING:
            yield from users(node.outputs[0])
        else:
            yield node


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that reads `value`, where it is the only reader and `value` is no graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
