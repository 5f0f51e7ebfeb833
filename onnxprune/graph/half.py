"""Half precision written out as single precision: what two models still differ by is then no rounding.

Double precision is written so too where it is asked for: no provider has kernels for every operator in it, nor in
bfloat16, and single precision is what all have.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.graph import extras

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
UNUSUAL = HALVES | {ir.DataType.DOUBLE}  # in which onnxruntime lacks kernels that it has in single precision
NO_KERNEL = re.compile(r"NOT_IMPLEMENTED|Type 'tensor\((bfloat16|double)\)'")  # of what onnxruntime says
TYPES = frozenset({"to", "dtype", "output_dtype"})  # attributes that name a type


def has_halves(model: ir.Model) -> bool:
    """Whether something in `model` is computed or stored in half precision."""
    return has_kinds(model, HALVES)


def has_kinds(model: ir.Model, kinds: Collection[ir.DataType]) -> bool:
    """Whether something in `model` is computed or stored in one of `kinds`."""
    inside = (value for node in _nodes(model) for value in node.outputs)
    stored = (value for graph in _graphs(model) for value in graph.initializers.values())
    return any(value.dtype in kinds for value in (*inside, *stored, *model.graph.inputs))


def is_floating(dtype: np.dtype) -> bool:
    """Whether arrays of `dtype` hold weights that are reckoned with: numpy does not count bfloat16 among its floats."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def single(model: ir.Model, kinds: Collection[ir.DataType] = HALVES) -> ir.Model:
    """A copy of `model` that computes in single precision wherever it did in one of `kinds`, with the same numbers."""
    model = extras.copy(model)
    for graph in _graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in kinds:
                value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            _widen(value, kinds)
        for value in graph.inputs:
            _widen(value, kinds)
    for node in _nodes(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.INT and name in TYPES and attribute.as_int() in kinds:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in kinds:
                array = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        for value in node.outputs:
            _widen(value, kinds)
    return model


def runnable(model: ir.Model | onnx.ModelProto | bytes | str | Path, refused: Exception) -> ir.Model | None:
    """`model` in single precision, where `refused` says that a kernel in double or bfloat16 is missing; else None."""
    if not NO_KERNEL.search(str(refused)):
        return None
    if isinstance(model, (str, Path)):
        model = ir.load(model)
    elif isinstance(model, bytes):
        model = onnx.load_from_string(model)
    model = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return single(model, UNUSUAL) if has_kinds(model, UNUSUAL) else None


def single_feeds(
    batches: Iterable[Mapping[str, np.ndarray]], kinds: Collection[ir.DataType] = HALVES
) -> list[dict[str, np.ndarray]]:
    """`batches` as `single` takes them."""
    names = {kind.numpy() for kind in kinds}
    return [{n: a.astype(np.float32) if a.dtype in names else a for n, a in batch.items()} for batch in batches]


def _widen(value: ir.Value, kinds: Collection[ir.DataType]) -> None:
    if value.dtype in kinds and isinstance(value.type, ir.TensorType):
        value.type = ir.TensorType(ir.DataType.FLOAT)  # not value.dtype: a clone shares the type with its model


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    for whole in (model.graph, *(function.graph for function in model.functions.values())):
        yield whole
        yield from whole.subgraphs()


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for whole in (model.graph, *(function.graph for function in model.functions.values())):
        yield from whole.all_nodes()
