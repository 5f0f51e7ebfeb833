"""The linear layers of a model: which weights may lose single entries, and how they read as matrices.

Legend: O outputs, I inputs, K kernel positions.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling.layers import Kind, layer_of
from onnxprune.graph import half


@dataclass(frozen=True)
class Layer:
    """One convolution or product of matrices with a constant weight.

    x_axis: of the channels in what it reads. outputs, inputs: axes of the weight. groups: of a convolution. first: it
    reads a graph input; last: its answer, perhaps through a bias or softmax, is a graph output. bias: initializer that
    the same node adds, or None.
    """

    node: str
    kind: Kind
    weight: str
    bias: str | None
    data: str  # name of the value that it reads
    x_axis: int
    outputs: int
    inputs: int
    groups: int
    first: bool
    last: bool

    def matrix(self, w: np.ndarray) -> np.ndarray:
        """w with its outputs first and its inputs last: (O, *K, I) as a view."""
        return np.moveaxis(w, (self.outputs, self.inputs), (0, -1))


def linear_layers(model: ir.Model) -> list[Layer]:
    """All layers of `model` in graph order; a weight that several nodes share is left out."""
    found = (_layer(node) for node in model.graph)
    return [layer for layer in found if layer is not None]


def _layer(node: ir.Node) -> Layer | None:
    found = layer_of(node)
    if found is None or found.weights.fused or found.kind == "transposed":
        return None
    weight, bias = _held(found.weight), _held(found.bias)
    w = graph.constant(weight)
    if w is None or weight is None or not half.is_floating(w.dtype) or (found.kind == "matrix" and w.ndim != 2):
        return None
    return Layer(
        node.name or "",
        found.kind,
        weight.name or "",
        bias.name if bias is not None else None,
        found.x.name or "",
        found.x_axis,
        found.outputs(w.ndim),
        found.inputs(w.ndim),
        found.groups,
        _first(found.x),
        _last(node),
    )


def _held(value: ir.Value | None) -> ir.Value | None:
    """The initializer that `value` is, or is cast from, where nothing else reads it."""
    while value is not None and len(list(value.uses())) == 1:
        if graph.constant(value) is not None:
            return value
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in ("Cast", "Identity") else None
    return None


PASSING = frozenset("Softmax LogSoftmax Sigmoid Add BatchNormalization Reshape Flatten Squeeze Identity Cast".split())


def _first(data: ir.Value) -> bool:
    """Whether `data` is a graph input, perhaps scaled or cast first."""
    node = data.producer()
    while node is not None:
        if node.op_type not in ("Sub", "Div", "Mul", "Add", "Cast", "Transpose", "Identity"):
            return False
        computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if len(computed) != 1:
            return False
        data = computed[0]
        node = data.producer()
    return not data.is_initializer()


def _last(node: ir.Node) -> bool:
    value = node.outputs[0]
    while not value.is_graph_output():
        users = list(value.uses())
        if len(users) != 1 or users[0].node.op_type not in PASSING:
            return False
        value = users[0].node.outputs[0]
    return True
