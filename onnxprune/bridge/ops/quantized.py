"""com.microsoft operators between 8-bit tensors: dequantized, computed in float, quantized again.

Numbers may differ by one step from onnxruntime's integer arithmetic. No gradient flows through integers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.activation import Softmax, Softmax_1
from onnxprune.bridge.ops.matrix import Gemm
from onnxprune.bridge.ops.pooling import AveragePool, GlobalAveragePool
from onnxprune.bridge.ops.quantization import DequantizeLinear, QuantizeLinear
from onnxprune.bridge.ops.reduction import ReduceMean_1
from onnxprune.bridge.ops.registry import register, torch_function

integer = partial(torch_function, domain="com.microsoft", differentiable=False)


def _wide(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return DequantizeLinear(x, scale, zero)


def _narrow(y: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return QuantizeLinear(y, scale, zero)


def _binary(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    return _narrow(function(_wide(a, a_scale, a_zero), _wide(b, b_scale, b_zero)), y_scale, y_zero)


for _name, _function in (("QLinearAdd", torch.add), ("QLinearMul", torch.mul)):
    register(_name, partial(_binary, function=_function), domain="com.microsoft", differentiable=False)


@integer("QLinearSigmoid")
def QLinearSigmoid(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    return _narrow(torch.sigmoid(_wide(x, x_scale, x_zero)), y_scale, y_zero)


@integer("QLinearLeakyRelu")
def QLinearLeakyRelu(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    return _narrow(F.leaky_relu(_wide(x, x_scale, x_zero), alpha), y_scale, y_zero)


@integer("QLinearSoftmax")
def QLinearSoftmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Tensor:
    function = Softmax if opset >= 13 else Softmax_1
    return _narrow(function(_wide(x, x_scale, x_zero), axis=axis), y_scale, y_zero)


@integer("QLinearConcat")
def QLinearConcat(y_scale: Tensor, y_zero: Tensor | None, *inputs: Tensor, axis: int) -> Tensor:
    """inputs: tensor, scale, zero point, again and again."""
    parts = [_wide(*inputs[k : k + 3]) for k in range(0, len(inputs), 3)]
    return _narrow(torch.cat(parts, axis), y_scale, y_zero)


@integer("QLinearGlobalAveragePool")
def QLinearGlobalAveragePool(
    x: Tensor, x_scale: Tensor, x_zero: Tensor, y_scale: Tensor, y_zero: Tensor, *, channels_last: int = 0
) -> Tensor:
    return _pooled(x, x_scale, x_zero, y_scale, y_zero, GlobalAveragePool, channels_last)


@integer("QLinearAveragePool")
def QLinearAveragePool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    channels_last: int = 0,
    **attributes: Any,
) -> Tensor:
    return _pooled(x, x_scale, x_zero, y_scale, y_zero, partial(AveragePool, **attributes), channels_last)


def _pooled(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    function: Callable[[Tensor], Tensor],
    channels_last: int,
) -> Tensor:
    wide = _wide(x, x_scale, x_zero)
    y = function(wide.movedim(-1, 1)).movedim(1, -1) if channels_last else function(wide)
    return _narrow(y, y_scale, y_zero)


@integer("QLinearReduceMean")
def QLinearReduceMean(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
) -> Tensor:
    return _narrow(ReduceMean_1(_wide(x, x_scale, x_zero), axes=axes, keepdims=keepdims), y_scale, y_zero)


@integer("QGemm")
def QGemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """c in int32 with scale alpha * a_scale * b_scale; without y_scale the result stays a float tensor."""
    b = b.t() if transB else b
    y = Gemm(_wide(a, a_scale, a_zero), DequantizeLinear(b, b_scale, b_zero, axis=1), transA=transA)
    y = alpha * (y if c is None else y + c.float() * (a_scale * b_scale))
    return y if y_scale is None else _narrow(y, y_scale, y_zero)
