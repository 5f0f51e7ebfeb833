"""Weights stored as integers: which inputs hold them, and their scales and zero points laid out along them."""

import numpy as np
import onnx_ir as ir

# Quantized input of an operator -> the input that holds its zero point.
ZERO_POINTS = {
    ("DequantizeLinear", 0): 2,
    ("MatMulInteger", 0): 2,
    ("MatMulInteger", 1): 3,
    ("ConvInteger", 1): 3,
    ("DynamicQuantizeMatMul", 1): 3,
    ("MatMulIntegerToFloat", 1): 5,
    ("DynamicQuantizeLSTM", 1): 9,
    ("DynamicQuantizeLSTM", 2): 11,
}
# Inputs that are scales or zero points: silencing them is needless and would divide by zero.
SCALES = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
}


def along(node: ir.Node, points: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Zero points shaped to broadcast with `array`: per tensor, per position of an axis, or per block."""
    if points.size == 1:
        return points.reshape(())
    if node.op_type == "DynamicQuantizeLSTM":  # per direction, or per direction and column
        return points.reshape(points.shape[0], 1, -1)
    if points.ndim == 1:
        axis = {"DequantizeLinear": _integer(node, "axis", 1), "ConvInteger": 0}.get(node.op_type, -1)
        shape = [1] * array.ndim
        shape[axis] = points.size
        return points.reshape(shape)
    axis, block = _integer(node, "axis", 1), _integer(node, "block_size", 0)
    if points.ndim == array.ndim and block:
        repeated = np.repeat(points, block, axis=axis)
        return np.take(repeated, np.arange(array.shape[axis]), axis=axis)
    return points


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
