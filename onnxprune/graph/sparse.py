"""Sparse tensors in files, read as the dense ones that they stand for."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def densify(proto: onnx.ModelProto, folder: Path) -> int:
    """Makes every sparse initializer and every Constant of a sparse value dense, in place; how many there were."""
    bodies = [proto.graph, *(node for function in proto.functions for node in function.node)]
    return sum(_densify(each, folder) for each in bodies)


def _densify(where: onnx.GraphProto | onnx.NodeProto, folder: Path) -> int:
    if isinstance(where, onnx.NodeProto):
        return sum(_attribute(attribute, folder) for attribute in where.attribute)
    sparse = list(where.sparse_initializer)
    where.initializer.extend(_dense(tensor, folder) for tensor in sparse)
    del where.sparse_initializer[:]
    return len(sparse) + sum(_densify(node, folder) for node in where.node)


def _attribute(attribute: onnx.AttributeProto, folder: Path) -> int:
    if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and attribute.name == "sparse_value":
        dense = _dense(attribute.sparse_tensor, folder)
        attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
        return 1
    # Asking a message for a part that it does not have, and changing that, would give it one.
    bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
    return sum(_densify(body, folder) for body in bodies)


def _dense(sparse: onnx.SparseTensorProto, folder: Path) -> onnx.TensorProto:
    """Indices are places in the flattened tensor (K,), or one row of them an entry (K, rank)."""
    values, indices = (numpy_helper.to_array(part, str(folder)) for part in (sparse.values, sparse.indices))
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array[np.unravel_index(indices, array.shape) if indices.ndim == 1 else tuple(indices.T)] = values
    return numpy_helper.from_array(array, sparse.values.name)
