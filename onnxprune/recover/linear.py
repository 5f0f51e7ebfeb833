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

CONVOLUTIONS = ("Conv", "ConvTranspose")
PASSING = ("Cast", "Identity")


@dataclass(frozen=True)
class Linear:
    """A node y = W x + b whose weights are stored; `x_axis` and `y_axis` are its channel axes."""

    node: ir.Node
    stored: ir.Value  # the initializer that holds the weights, possibly behind Cast
    x_axis: int
    y_axis: int

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def y(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def groups(self) -> int:
        attribute = self.node.attributes.get("group")
        return int(attribute.value) if attribute is not None and self.node.op_type in CONVOLUTIONS else 1

    @property
    def spatial(self) -> bool:
        return self.node.op_type in CONVOLUTIONS


def linears(model: ir.Model) -> dict[str, Linear]:
    """The nodes with stored float weights by name, in graph order."""
    found = (_linear(node) for node in model.graph)
    return {linear.name: linear for linear in found if linear is not None}


def _linear(node: ir.Node) -> Linear | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in (*CONVOLUTIONS, "Gemm", "MatMul"):
        return None
    stored = stored_behind(node.inputs[1])
    if stored is None or stored_behind(node.inputs[0]) is not None or not node.outputs[0].name:
        return None
    if node.op_type in CONVOLUTIONS:
        return Linear(node, stored, 1, 1)
    if len(graph.array_of(stored).shape) != 2:
        return None
    if node.op_type == "Gemm":
        return Linear(node, stored, 0 if number(node, "transA", 0) else 1, 1)
    return Linear(node, stored, -1, -1)


def stored_behind(value: ir.Value | None) -> ir.Value | None:
    """The float initializer that `value` is, or is a cast of; None where it is computed, quantized or absent."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in PASSING:
            return None
        value = producer.inputs[0]
    if value is None or value.const_value is None or not value.const_value.dtype.is_floating_point():
        return None
    return value


def number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def read_weights(linear: Linear) -> np.ndarray:
    """W (G, O/G, I/G, K) float32, a factor alpha of Gemm included; ConvTranspose's taps are reversed."""
    w = np.asarray(graph.array_of(linear.stored), np.float32)
    groups, op = linear.groups, linear.node.op_type
    if op == "Conv":
        return w.reshape(groups, w.shape[0] // groups, w.shape[1], prod(w.shape[2:]))
    if op == "ConvTranspose":
        parts = w.reshape(groups, w.shape[0] // groups, w.shape[1], prod(w.shape[2:]))
        return parts.transpose(0, 2, 1, 3)[..., ::-1]
    if op == "Gemm":
        w = w * np.float32(number(linear.node, "alpha", 1.0))
        return (w if number(linear.node, "transB", 0) else w.T)[None, :, :, None]
    return w.T[None, :, :, None]


def write_weights(linear: Linear, w: np.ndarray) -> None:
    """Stores W (G, O/G, I/G, K) in the form and the type that the initializer has."""
    shape, op = graph.array_of(linear.stored).shape, linear.node.op_type
    if op == "Conv":
        array = w.reshape(shape)
    elif op == "ConvTranspose":
        array = w[..., ::-1].transpose(0, 2, 1, 3).reshape(shape)
    elif op == "Gemm":
        matrix = w[0, :, :, 0] / np.float32(number(linear.node, "alpha", 1.0))
        array = matrix if number(linear.node, "transB", 0) else matrix.T
    else:
        array = w[0, :, :, 0].T
    old = graph.array_of(linear.stored)
    graph.set_constant(linear.stored, np.asarray(array, np.float32).astype(old.dtype))


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
