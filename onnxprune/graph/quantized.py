"""Weights stored as integers: which inputs hold them, how many numbers these are, and how scales lie along them."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.graph.tensors import constant

# Operator -> the inputs that hold weights as integers.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3, 8),
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    "QGemm": (0, 3, 6),
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeLSTM": (1, 2),
    "QAttention": (0, 1),
    "QEmbedLayerNormalization": (2, 3, 4, 5, 6),
    "MatMulNBits": (1,),
    "MatMulBnb4": (1,),
    "MatMulInteger16": (0, 1),
    "MatMulFpQ4": (1,),
    "MatMulBlockQuantizedFp8Weight": (1,),
    "MatMulBlockQuantizedFp4Weight": (1,),
    "GatherBlockQuantized": (0,),
    "QMoE": (2, 5, 8),
    "QOrderedMatMul": (2, 5),
    "QOrderedAttention": (5, 6, 7),
    "QOrderedLongformerAttention": (2, 8),
}
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
    ("QAttention", 1): 7,
}
# Inputs that are scales or zero points: silencing them is needless and would divide by zero. They are no parameters.
SCALES: dict[str, tuple[int, ...]] = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QAttention": (3, 4, 6, 7),
    "QEmbedLayerNormalization": tuple(range(8, 18)),
    "MatMulNBits": (2, 3, 4),
    "MatMulBnb4": (2,),
    "MatMulBlockQuantizedFp8Weight": (2, 3),
    "MatMulBlockQuantizedFp4Weight": (2, 3, 4),
    "GatherBlockQuantized": (2, 3),
    "QMoE": (3, 6, 9, 11, 12, 13, *range(15, 21)),
    "QOrderedMatMul": (1, 3, 4, 7),
    "QOrderedAttention": (1, 2, 3, 4, 8, 9, 10, 14, 15, 16),
    "QOrderedLongformerAttention": (1, 3, 5, 6, 9, 11, 13),
}
# Scales of weights that have no zero among their numbers: these are silenced by a scale of zero.
MULTIPLIERS: dict[str, tuple[int, ...]] = {"MatMulNBits": (2,), "QMoE": (3, 6, 9)}
# Quantized input of an operator -> the input that holds its scale.
SCALE_OF = {
    ("DequantizeLinear", 0): 1,
    ("DynamicQuantizeMatMul", 1): 2,
    ("MatMulIntegerToFloat", 1): 3,
    ("DynamicQuantizeLSTM", 1): 8,
    ("DynamicQuantizeLSTM", 2): 10,
    ("QAttention", 1): 4,
}
# Operators that only move numbers: a quantized table is often gathered first.
MOVING = frozenset("Gather Reshape Transpose Slice Squeeze Unsqueeze Identity Flatten Expand Concat Split".split())
# Those that read several weights from one stored number: the attribute that says in how many bits, and its default.
BITS = {"MatMulNBits": ("bits", 4), "MatMulBnb4": ("bits", 4), "QMoE": ("expert_weight_bits", 4)}
BITS["GatherBlockQuantized"] = ("bits", 4)
SETTING_SIZE = 16  # integers that are cast are weights where there are more of them, stored in one byte each


def readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The uses of `value`, also behind nodes that only move numbers."""
    for use in value.uses():
        yield use.node, use.idx
        if (use.idx == 0 or use.node.op_type == "Concat") and use.node.op_type in MOVING:
            yield from readers(use.node.outputs[0])


def is_scale(value: ir.Value) -> bool:
    """Whether every node that reads `value` takes it for a scale or a zero point."""
    uses = list(value.uses())
    return bool(uses) and all(index in SCALES.get(node.op_type, ()) for node, index in uses)


def only_multiplies(value: ir.Value) -> bool:
    """Whether a scale of zero makes the weights zero that it belongs to, wherever `value` is read."""
    return all(index in MULTIPLIERS.get(node.op_type, ()) for node, index in value.uses())


def dequantized(node: ir.Node, index: int, array: np.ndarray) -> np.ndarray:
    """The weights, as float64, that input `index` of `node` stands for: `array` itself where it holds no integers.

    Axes stay but for those of packed bytes, in the place of which stand the weights.
    """
    if array.dtype.kind not in "iu" and "int" not in array.dtype.name:
        return array.astype(np.float64)
    if node.op_type == "MatMulNBits" and index == 1:
        return _unpacked_blocks(node, array)
    if node.op_type == "QMoE" and index in WEIGHTS["QMoE"]:
        return _unpacked_experts(node, index, array)
    zeros, scales = (_parameter(node, table.get((node.op_type, index))) for table in (ZERO_POINTS, SCALE_OF))
    q = array.astype(np.float64)
    q = q if zeros is None else q - along(node, zeros, q)
    return q if scales is None else q * along(node, scales, q)


def _parameter(node: ir.Node, index: int | None) -> np.ndarray | None:
    value = node.inputs[index] if index is not None and index < len(node.inputs) else None
    array = constant(value)
    return None if array is None else array.astype(np.float64)


def _unpacked_blocks(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """(N, blocks, bytes) -> (N, blocks, weights of a block)."""
    bits = _integer(node, "bits", 4)
    q = unpacked(array, bits)[..., : _integer(node, "block_size", 0)].astype(np.float64)
    scales = constant(node.inputs[2])
    points = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    zeros = np.full(array.shape[:2], 2.0 ** (bits - 1))
    if points is not None:
        rows = points.reshape(array.shape[0], -1)
        zeros = (unpacked(rows, bits) if points.dtype == np.uint8 else rows)[:, : array.shape[1]].astype(np.float64)
    scale = np.ones(array.shape[:2]) if scales is None else scales.astype(np.float64).reshape(array.shape[:2])
    return (q - zeros[..., None]) * scale[..., None]


def _unpacked_experts(node: ir.Node, index: int, array: np.ndarray) -> np.ndarray:
    """(E, O, bytes) -> (E, O, bytes, weights of a byte)."""
    layer = WEIGHTS["QMoE"].index(index)
    bits = _integer(node, f"fc{layer + 1}_expert_weight_bits", _integer(node, "expert_weight_bits", 4))
    scales, points = (_parameter(node, k) for k in (index + 1, 11 + layer))
    q = unpacked(array, bits).reshape(*array.shape, 8 // bits).astype(np.float64)
    if points is None:
        q -= 2.0 ** (bits - 1)
    else:
        zeros = unpacked(points.astype(np.uint8), bits)
        count = array.shape[1] if zeros.ndim == 2 or scales is None else scales.shape[2]
        q -= _by_bytes(zeros[..., :count], array)
    return q if scales is None else q * _by_bytes(scales, array)


def _by_bytes(numbers: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Numbers of rows (E, O), or of blocks of these (E, O, blocks), beside every byte of `array` (E, O, bytes)."""
    if numbers.ndim == 2:
        return numbers[:, :, None, None]
    each = -(-array.shape[2] // numbers.shape[2])
    return np.repeat(numbers, each, axis=2)[:, :, : array.shape[2], None]


def unpacked(array: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned numbers of `bits` out of the bytes (..., n) that they share, lowest bits first: (..., 8 n / bits)."""
    parts = (array[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8((1 << bits) - 1)
    return parts.reshape(*array.shape[:-1], -1)


def numbers_of(value: ir.Value) -> int:
    """How many weights an initializer stands for: none where it is a scale, an index or a setting."""
    return 0 if value.const_value is None else numbers_in(value.const_value, value)


def numbers_in(tensor: ir.TensorProtocol, value: ir.Value) -> int:
    """How many weights `tensor` stands for, which the nodes see as `value`."""
    if tensor.dtype == ir.DataType.STRING or is_scale(value):
        return 0
    uses = list(readers(value))
    held = next((node for node, index in uses if index in WEIGHTS.get(node.op_type, ())), None)
    if held is not None:
        return _unpacked(held, tensor)
    if tensor.dtype.is_floating_point():
        return tensor.size
    is_byte = tensor.dtype.itemsize <= 1 and tensor.dtype != ir.DataType.BOOL and tensor.size > SETTING_SIZE
    return tensor.size if is_byte and any(node.op_type == "Cast" for node, _ in uses) else 0


def _unpacked(node: ir.Node, tensor: ir.TensorProtocol) -> int:
    """Weights in `tensor`, of which several may share a byte; what pads blocks to their length is not counted."""
    if node.op_type in ("MatMulNBits", "MatMulBnb4"):
        return _integer(node, "N", 0) * _integer(node, "K", 0)
    name, default = BITS.get(node.op_type, ("", 8))
    own = 8 if tensor.dtype.itemsize == 1 else default  # 4-bit types hold one weight a number
    return tensor.size * own // _integer(node, name, default)


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
