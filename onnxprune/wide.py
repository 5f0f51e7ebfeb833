"""Half precision made single: the same graph computes with the same weights, and rounds a thousand times finer."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
TYPES = ("to", "dtype")  # attributes that name the type of what a node makes


def is_half(model: ir.Model) -> bool:
    """Whether some weights are float16."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return any(value.const_value is not None and value.const_value.dtype == HALF for value in values)


def widened(model: ir.Model) -> ir.Model:
    """A copy of `model` in which every float16 is a float32."""
    wide = model.clone()
    wide.meta.update(model.meta)
    for graph in wide.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == HALF:
                value.const_value = _single(tensor)
        made = [value for node in graph for value in node.outputs]
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values(), *made):
            if value.dtype == HALF:
                value.type = ir.TensorType(SINGLE)
        for node in graph:
            _widen_attributes(node)
    return wide


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
            node.attributes[name] = ir.AttrTensor(name, _single(attribute.as_tensor()))
        elif attribute.type == ir.AttributeType.INT and name in TYPES and attribute.as_int() == HALF:
            node.attributes[name] = ir.AttrInt64(name, int(SINGLE))


def _single(tensor: ir.TensorProtocol) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def widened_feeds(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in feeds.items()}
