"""A model's own noise: the same model with its weights and inputs moved by a rounding error."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph import extras
from onnxprune.graph.half import HALVES
from onnxprune.graph.tensors import array_of, set_constant, size_bytes
from onnxprune.system.memory import LARGE_MODEL_BYTES

MOVED = 2.0**-22  # share by which numbers in single precision are moved, up or down
SIGMOID_GRAIN = 2.0**-22
MOVED_HALF = 2.0**-11  # the same in half precision
LARGE = 1 << 20  # numbers; of large models only smaller weights are moved, for what is moved is held once more
PATTERN = 65_537  # signs are repeated after that many numbers, a prime: no axis has a multiple of it
# Operators of which the weights are numbers to reckon with, not settings, scales or thresholds.
WEIGHTED = frozenset(
    "Conv ConvTranspose Gemm MatMul Add Sub Mul Div BatchNormalization LayerNormalization InstanceNormalization "
    "GroupNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization LSTM GRU RNN Gather PRelu "
    "Attention MultiHeadAttention EmbedLayerNormalization FusedMatMul FusedConv BiasGelu Einsum DeformConv".split()
)


def grain_of(value: ir.Value | None) -> float:
    """The absolute difference that is allowed of `value`, however small it is.

    onnxruntime's Sigmoid gives multiples of 2^-25 and is off by up to four of them, either way: of an output near zero
    nothing is left but steps. What stands in front of it is compared by itself.
    """
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Concat":
            return max(map(grain_of, node.inputs))
        if node.op_type not in ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"):
            return SIGMOID_GRAIN if node.op_type == "Sigmoid" else 0.0
        value = node.inputs[0]
    return 0.0


def moved(model: ir.Model, seed: int) -> ir.Model:
    """A copy of `model` with every weight moved by a rounding error; quantized weights are moved behind their scale."""
    model = extras.copy(model)
    rng = np.random.default_rng(seed)
    large = size_bytes(model) > LARGE_MODEL_BYTES
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size < 2 or (large and tensor.size > LARGE):
            continue
        uses = list(value.uses())
        if tensor.dtype.is_floating_point() and uses and all(node.op_type in WEIGHTED for node, _ in uses):
            array = array_of(value)
            if array.dtype.kind == "f" or tensor.dtype in HALVES:
                share = MOVED_HALF if tensor.dtype in HALVES else MOVED
                set_constant(value, _moved(array, share, rng))
        elif any(node.op_type == "DequantizeLinear" and index == 0 for node, index in uses):
            for node, index in uses:
                if node.op_type == "DequantizeLinear" and index == 0:
                    _move_behind(model, node, tensor.shape.numpy(), rng)
    return model


def moved_feeds(feeds: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """`feeds` with every float moved by a rounding error."""
    rng = np.random.default_rng(seed)
    return {n: _moved(a, MOVED, rng) if a.dtype.kind == "f" and a.size > 1 else a for n, a in feeds.items()}


def _moved(array: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """array * (1 + share) or array * (1 - share), number by number."""
    signs = from_pattern(_PATTERN, array.shape, rng)
    with np.errstate(over="ignore", invalid="ignore"):
        return (array.astype(np.float32) * (1 + np.float32(share) * signs)).astype(array.dtype)


def from_pattern(pattern: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """An array of `shape` with the numbers of `pattern` over and over, from a random place on."""
    return np.resize(np.roll(pattern, int(rng.integers(len(pattern)))), shape)


_PATTERN = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), PATTERN)


def _move_behind(model: ir.Model, node: ir.Node, shape: Sequence[int], rng: np.random.Generator) -> None:
    """Multiplies what a DequantizeLinear gives by numbers close to one."""
    output = node.outputs[0]
    dtype = output.dtype if output.dtype is not None else ir.DataType.FLOAT
    if dtype != ir.DataType.FLOAT or output.is_graph_output():
        return
    uses = list(output.uses())
    tensor = ir.Tensor(_moved(np.ones(shape, np.float32), MOVED, rng), name=f"{output.name}.moving")
    factor = ir.Value(name=tensor.name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(factor)
    product = ir.Node("", "Mul", [output, factor], name=f"{node.name}.moving")
    product.outputs[0].name = f"{output.name}.moved"
    model.graph.insert_after(node, product)
    for user, slot in uses:
        user.replace_input_with(slot, product.outputs[0])
