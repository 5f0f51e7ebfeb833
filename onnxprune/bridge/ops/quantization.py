"""Quantization, with the straight-through gradient: rounding counts as the identity inside the range."""

from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.activation import Softmax, Softmax_1
from onnxprune.bridge.ops.convolution import CONV, pad_spatial, window_pads
from onnxprune.bridge.ops.matrix import Gemm, exact_matmul
from onnxprune.bridge.ops.pooling import AveragePool, GlobalAveragePool
from onnxprune.bridge.ops.reduction import ReduceMean_1
from onnxprune.bridge.ops.registry import register, torch_function
from onnxprune.bridge.ops.types import FLOAT8, NARROW, cast, to_float4
from onnxprune.bridge.tensors import torch_type

_RANGES = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-32768, 32767),
    torch.uint16: (0, 65535),
    torch.int32: (-(2**31), 2**31 - 1),
}


class _Fake(torch.autograd.Function):
    """A float tensor that carries integers; the gradient passes where nothing was clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        rounded = torch.round(x)
        ctx.save_for_backward((rounded >= low) & (rounded <= high))
        return rounded.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int = 0) -> Tensor:
    """scale or zero point as it stands at each position of x: per tensor, per `axis`, or per block along it."""
    if parameter.numel() == 1:
        return parameter.reshape([1] * x.ndim) if x.ndim else parameter.reshape(())
    axis = axis % x.ndim
    if parameter.ndim == x.ndim and parameter.ndim > 1:
        block = block_size or -(-x.shape[axis] // parameter.shape[axis])
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if k == axis else 1 for k in range(x.ndim)])


@torch_function("QuantizeLinear", fixed=(1, 2))
def QuantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    input_types: tuple[ir.DataType | None, ...] = (),
) -> Tensor:
    """round(x / scale) + zero, clipped to the range; trained through, the result is a float tensor of integers."""
    onnx_type = ir.DataType(output_dtype) if output_dtype else input_types[2] if len(input_types) > 2 else None
    wide = x.to(torch_type(precision)) if precision else x.float()
    quotient = wide / spread(scale.to(wide.dtype), x, axis, block_size)
    dtype = zero.dtype if zero is not None else torch.uint8 if onnx_type is None else torch_type(onnx_type)
    float8 = next((key for key in FLOAT8 if torch_type(key) == dtype), None)
    if float8 is not None:
        return cast(quotient, float8, saturate=bool(saturate))
    if dtype == torch.float32:
        return to_float4(quotient)
    low, high = _range(onnx_type, dtype)
    offset = 0 if zero is None else spread(_widened(zero), x, axis, block_size).to(wide.dtype)
    if quotient.requires_grad:
        return _Fake.apply(quotient + offset, low, high)  # the sum rounds as the quotient does: offset is whole
    return (torch.round(quotient) + offset).clamp(low, high).to(dtype)


def _range(onnx_type: ir.DataType | None, dtype: torch.dtype) -> tuple[int, int]:
    if onnx_type is not None and onnx_type in NARROW:
        bits, signed = NARROW[onnx_type]
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return _RANGES[dtype]


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.int32) if x.dtype in (torch.uint16, torch.uint32) else x


@torch_function("DequantizeLinear", fixed=(1, 2))
@torch_function("DequantizeLinear", domain="com.microsoft", fixed=(1, 2))
def DequantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero) * scale in the type of scale."""
    wide = _widened(x).float()
    if zero is not None:
        wide = wide - spread(_widened(zero), x, axis, block_size).float()
    y = wide * spread(scale, x, axis, block_size).float()
    return y.to(torch_type(output_dtype) if output_dtype else scale.dtype)


@torch_function("QuantizeLinear", domain="com.microsoft", fixed=(1, 2))
def QuantizeLinear_microsoft(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    return QuantizeLinear(x, scale, zero, axis=axis)


@torch_function("DynamicQuantizeLinear", differentiable=False)
def DynamicQuantizeLinear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 over the range of x, which always includes zero."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


@torch_function("QLinearMatMul", fixed=range(8), differentiable=False)
@torch_function("QLinearMatMul", domain="com.microsoft", fixed=range(8), differentiable=False)
def QLinearMatMul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """Scales and zero points per tensor, per row of a, or per column of b."""
    total = exact_matmul(
        a.to(torch.int32) - _row(a_zero, a).to(torch.int32), b.to(torch.int32) - b_zero.to(torch.int32)
    )
    factor = _row(a_scale, a).float() * b_scale.float() / _row(y_scale, a).float()
    y = torch.round(total.float() * factor) + _row(y_zero, a).float()
    return y.clamp(*_RANGES[y_zero.dtype]).to(y_zero.dtype)


def _row(parameter: Tensor, a: Tensor) -> Tensor:
    per_row = 0 < parameter.ndim < a.ndim and parameter.numel() > 1
    return parameter.unsqueeze(-1) if per_row else parameter


def _integer_conv(x: Tensor, w: Tensor, b: Tensor | None, attributes: dict[str, Any]) -> Tensor:
    """Convolution of whole numbers; float64 holds them exactly."""
    rank = w.ndim - 2
    strides = attributes.get("strides") or (1,) * rank
    dilations = attributes.get("dilations") or (1,) * rank
    pads = window_pads(
        attributes.get("auto_pad", "NOTSET"), x.shape[2:], w.shape[2:], strides, dilations, attributes.get("pads")
    )
    bias = None if b is None else b.double()
    return CONV[rank](
        pad_spatial(x.double(), *pads), w.double(), bias, strides, 0, dilations, attributes.get("group", 1)
    )


@torch_function("ConvInteger", fixed=range(4), differentiable=False)
def ConvInteger(
    x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    x = x.double() - (0 if x_zero is None else x_zero.double())
    w = w.double() - (0 if w_zero is None else w_zero.double().reshape(-1, *([1] * (w.ndim - 1))))
    return _integer_conv(x, w, None, attributes).to(torch.int32)


@torch_function("QLinearConv", fixed=range(9), differentiable=False)
def QLinearConv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    """w_scale and w_zero per tensor or per output channel; b in int32 with scale x_scale * w_scale."""
    channel = (-1, *([1] * (w.ndim - 1)))
    total = _integer_conv(x.double() - x_zero.double(), w.double() - w_zero.double().reshape(channel), b, attributes)
    factor = (x_scale * w_scale / y_scale).reshape(-1, *([1] * (w.ndim - 2)))
    y = torch.round(total.float() * factor) + y_zero.float()
    return y.clamp(*_RANGES[y_zero.dtype]).to(y_zero.dtype)


# com.microsoft between 8-bit tensors: dequantized, computed in float, quantized again; numbers may differ by one step
# from the integer arithmetic of onnxruntime.

integer = partial(torch_function, domain="com.microsoft", differentiable=False)


def _unary(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator that computes `function` of a dequantized x and quantizes its result."""

    def quantized(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor | None,
        y_scale: Tensor,
        y_zero: Tensor | None = None,
        *,
        channels_last: int = 0,
        **attributes: Any,
    ) -> Tensor:
        wide = DequantizeLinear(x, x_scale, x_zero)
        y = (
            function(wide.movedim(-1, 1), **attributes).movedim(1, -1)
            if channels_last
            else function(wide, **attributes)
        )
        return QuantizeLinear(y, y_scale, y_zero)

    return quantized


for _name, _function in (
    ("QLinearAveragePool", AveragePool),
    ("QLinearGlobalAveragePool", GlobalAveragePool),
    ("QLinearLeakyRelu", lambda x, alpha=0.01: F.leaky_relu(x, alpha)),
    ("QLinearReduceMean", ReduceMean_1),
    ("QLinearSigmoid", torch.sigmoid),
):
    register(_name, _unary(_function), domain="com.microsoft", differentiable=False)


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
    return QuantizeLinear(
        function(DequantizeLinear(a, a_scale, a_zero), DequantizeLinear(b, b_scale, b_zero)), y_scale, y_zero
    )


for _name, _function in (("QLinearAdd", torch.add), ("QLinearMul", torch.mul)):
    register(_name, partial(_binary, function=_function), domain="com.microsoft", differentiable=False)


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
    return QuantizeLinear(function(DequantizeLinear(x, x_scale, x_zero), axis=axis), y_scale, y_zero)


@integer("QLinearConcat")
def QLinearConcat(y_scale: Tensor, y_zero: Tensor | None, *inputs: Tensor, axis: int) -> Tensor:
    """inputs: tensor, scale, zero point, again and again."""
    parts = [DequantizeLinear(*inputs[k : k + 3]) for k in range(0, len(inputs), 3)]
    return QuantizeLinear(torch.cat(parts, axis), y_scale, y_zero)


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
    y = Gemm(DequantizeLinear(a, a_scale, a_zero), DequantizeLinear(b, b_scale, b_zero, axis=1), transA=transA)
    y = alpha * (y if c is None else y + c.float() * (a_scale * b_scale))
    return y if y_scale is None else QuantizeLinear(y, y_scale, y_zero)
