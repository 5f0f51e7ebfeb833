"""Half precision written out as single precision: what two models still differ by is then no rounding."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.graph import extras

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
TYPES = frozenset({"to", "dtype", "output_dtype"})  # attributes that name a type


def has_halves(model: ir.Model) -> bool:
    """Whether something in `model` is computed or stored in half precision."""
    inside = (value for node in model.graph.all_nodes() for value in node.outputs)
    stored = (value for graph in _graphs(model) for value in graph.initializers.values())
    return any(value.dtype in HALVES for value in (*inside, *stored, *model.graph.inputs))


def single(model: ir.Model) -> ir.Model:
    """A copy of `model` that computes in single precision wherever it did in half, with the same numbers stored."""
    model = extras.copy(model)
    for graph in _graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in HALVES:
                value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            _widen(value)
        for value in graph.inputs:
            _widen(value)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.INT and name in TYPES and attribute.as_int() in HALVES:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
                array = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        for value in node.outputs:
            _widen(value)
    return model


def single_feeds(batches: Iterable[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """`batches` as `single` takes them."""
    return [{n: a.astype(np.float32) if _is_half(a) else a for n, a in batch.items()} for batch in batches]


def _is_half(array: np.ndarray) -> bool:
    return array.dtype.name in ("float16", "bfloat16")


def _widen(value: ir.Value) -> None:
    if value.dtype in HALVES and isinstance(value.type, ir.TensorType):
        value.type = ir.TensorType(ir.DataType.FLOAT)  # not value.dtype: a clone shares the type with its model


def _graphs(model: ir.Model) -> list[ir.Graph]:
    return [model.graph, *model.graph.subgraphs()]
