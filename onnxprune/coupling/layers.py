"""The one view of weighted layers: nodes that multiply what they read by weights, y = W x + b.

An operator says once, with its coupling rule, where its weights and channels stand: `Weights`. Whatever has to know,
from scores to least squares and reports, asks `layer_of(node)`, so that a new operator with weights is one rule.

Letters: O output channels, I input channels, G groups, K positions of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

# What is multiplied with what: rows of x; windows of x; or x spread over windows of y.
Kind = Literal["matrix", "convolution", "transposed"]
PASSING = ("Cast", "Identity")


@dataclass(frozen=True)
class Weights:
    """Where the weights of an operator stand, the data being its first input.

    weight, bias: their inputs; without a bias, one is added by the node behind. outputs, inputs: the axes of the weight
    with output and input channels. x_axis, y_axis: the axes of the data and of the result with the channels. groups:
    the attribute that counts groups of channels; a convolution's inputs, and a transposed one's outputs, are then
    those of one group. alpha, beta: attributes by which weight and bias are multiplied. fused: more may follow in the
    same node, such as an activation, so that its result is not linear in the weights.
    """

    weight: int = 1
    bias: int | None = 2
    outputs: int = 0
    inputs: int = 1
    x_axis: int = 1
    y_axis: int = 1
    kind: Kind = "matrix"
    groups: str | None = None
    alpha: str | None = None
    beta: str | None = None
    fused: bool = False


# Of an operator; where that depends on attributes, of a node: None for a form of it that is no such product.
Stated = Weights | Callable[[ir.Node], Weights | None]
STATED: dict[tuple[str, str], Stated] = {}


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by weights, which need not be stored."""

    node: ir.Node
    weights: Weights

    @property
    def name(self) -> str:
        """The name of the node."""
        return self.node.name or ""

    @property
    def kind(self) -> Kind:
        """The kind of layer: a product of matrices, a convolution, a transposed one."""
        return self.weights.kind

    @property
    def spatial(self) -> bool:
        """Whether the layer slides a kernel over positions: the weight's other axes are then the kernel's."""
        return self.kind != "matrix"

    @property
    def x(self) -> ir.Value:
        """The input that is not the weight."""
        value = self.node.inputs[0]
        assert value is not None, self.name
        return value

    @property
    def y(self) -> ir.Value:
        """The result, with the bias where the node adds it."""
        return self.node.outputs[0]

    @property
    def x_axis(self) -> int:
        """The axis of x with the input channels."""
        return self.weights.x_axis

    @property
    def y_axis(self) -> int:
        """The axis of y with the output channels."""
        return self.weights.y_axis

    @property
    def weight(self) -> ir.Value:
        """The weight as the node reads it."""
        value = self.node.inputs[self.weights.weight]
        assert value is not None, self.name
        return value

    @property
    def bias(self) -> ir.Value | None:
        """The bias as the node reads it, None where it reads none."""
        index = self.weights.bias
        return None if index is None or index >= len(self.node.inputs) else self.node.inputs[index]

    @property
    def groups(self) -> int:
        """Into how many groups the channels are divided, each with weights of its own."""
        name = self.weights.groups
        return 1 if name is None else self.node.attributes.get_int(name, 1)

    @property
    def alpha(self) -> float:
        """The factor before the product."""
        name = self.weights.alpha
        return 1.0 if name is None else self.node.attributes.get_float(name, 1.0)

    @property
    def beta(self) -> float:
        """The factor before the bias."""
        name = self.weights.beta
        return 1.0 if name is None else self.node.attributes.get_float(name, 1.0)

    def outputs(self, rank: int) -> int:
        """The axis of the weight, which has `rank` axes, with the output channels (transposed: of one group)."""
        return self.weights.outputs % rank

    def inputs(self, rank: int) -> int:
        """The axis of the weight, which has `rank` axes, with the input channels (convolution: of one group)."""
        return self.weights.inputs % rank


def layer_of(node: ir.Node | None) -> Layer | None:
    """`node` as a weighted layer, None where it is none."""
    if node is None:
        return None
    stated = STATED.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    weights = stated(node) if callable(stated) else stated
    if weights is None or weights.weight >= len(node.inputs) or node.inputs[weights.weight] is None:
        return None
    return Layer(node, weights) if node.inputs[0] is not None else None


def layers(model: ir.Model) -> Iterator[Layer]:
    """The weighted layers of `model`, in graph order."""
    return (layer for node in model.graph if (layer := layer_of(node)) is not None)


def stored_as(value: ir.Value | None) -> ir.Value | None:
    """The initializer, of any type, that `value` is or is a cast of; None where it is computed or absent."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in PASSING:
            return None
        value = producer.inputs[0]
    return None if value is None or value.const_value is None else value


def stored_behind(value: ir.Value | None) -> ir.Value | None:
    """The float initializer that `value` is, or is a cast of; None where it is computed, quantized or absent."""
    stored = stored_as(value)
    tensor = None if stored is None else stored.const_value
    return stored if tensor is not None and tensor.dtype.is_floating_point() else None
