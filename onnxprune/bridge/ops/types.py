"""Element types: casts with ONNX's rules, constants, and the 2- and 4-bit types that torch does not have."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import to_numpy, to_torch, torch_type

# 2- and 4-bit integers travel in int8 and uint8: bits, signed.
NARROW = {
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT2: (2, True),
    ir.DataType.UINT2: (2, False),
}
FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN: (ml_dtypes.float8_e4m3fn, 448.0),
    ir.DataType.FLOAT8E4M3FNUZ: (ml_dtypes.float8_e4m3fnuz, 240.0),
    ir.DataType.FLOAT8E5M2: (ml_dtypes.float8_e5m2, 57344.0),
    ir.DataType.FLOAT8E5M2FNUZ: (ml_dtypes.float8_e5m2fnuz, 57344.0),
}


@torch_function("Cast")
def Cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast(x, ir.DataType(to), saturate=bool(saturate), round_mode=round_mode)


@torch_function("CastLike", fixed=(1,))
def CastLike(
    x: Tensor,
    like: Tensor,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    input_types: tuple[ir.DataType | None, ...] = (),
) -> Tensor:
    """The type of `like` as the graph knows it; without one, as torch sees it."""
    onnx_type = input_types[1] if len(input_types) > 1 else None
    onnx_type = onnx_type or next((key for key in FLOAT8 if torch_type(key) == like.dtype), None)
    if onnx_type is None:
        return x.to(like.dtype)
    return cast(x, onnx_type, saturate=bool(saturate), round_mode=round_mode)


def cast(x: Tensor, onnx_type: ir.DataType, *, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """x in another element type; floats are cut toward zero, narrow integers wrap, float8 saturates when asked."""
    if onnx_type in NARROW:
        return wrap(x.to(torch.int64), *NARROW[onnx_type])
    if onnx_type == ir.DataType.FLOAT4E2M1:
        return to_float4(x.float())
    if onnx_type in FLOAT8:
        return _to_float8(x, onnx_type, saturate)
    if onnx_type == ir.DataType.FLOAT8E8M0:
        return _to_float8_e8m0(x, saturate, round_mode)
    dtype = torch_type(onnx_type)
    if x.is_complex() and not dtype.is_complex:
        x = x.real
    return x.to(dtype)


def wrap(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Integers modulo 2 ** bits."""
    y = x & (2**bits - 1)
    if signed:
        y = torch.where(y >= 2 ** (bits - 1), y - 2**bits, y)
    return y.to(torch.int8 if signed else torch.uint8)


_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def to_float4(x: Tensor) -> Tensor:
    """x rounded to the values of float4e2m1 (half to even), beyond them saturated; a float32 tensor."""
    if x.device.type == "cpu":
        return torch.from_numpy(to_numpy(x).astype(ml_dtypes.float4_e2m1fn).astype(np.float32))
    table = torch.tensor(_FLOAT4, device=x.device)
    middles = (table[1:] + table[:-1]) / 2
    size = x.abs()
    place = torch.bucketize(size, middles)  # a tie goes to the lower one
    place = place + ((place % 2 == 1) & (size == middles[place.clamp(max=6)])).long()
    return torch.copysign(table[place.clamp(max=7)], x)


def _to_float8(x: Tensor, onnx_type: ir.DataType, saturate: bool) -> Tensor:
    """Through float32; saturating, infinity and what is too large become the largest value."""
    _, largest = FLOAT8[onnx_type]
    wide = x.float()
    if saturate:
        return wide.clamp(-largest, largest).to(torch_type(onnx_type))
    if onnx_type in (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2FNUZ):
        middle = largest + largest / (14 if onnx_type == ir.DataType.FLOAT8E5M2FNUZ else 28)
        wide = torch.where(wide.abs() > middle, torch.nan, wide)
    return wide.to(torch_type(onnx_type))


def _to_float8_e8m0(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """Powers of two from 2**-127 to 2**127; NaN has the code 255."""
    wide = x.float()
    fraction, exponent = torch.frexp(wide.abs())  # value = fraction * 2**exponent, 0.5 <= fraction < 1
    floor = exponent - 1
    up = {
        "up": fraction > 0.5,
        "down": torch.zeros_like(fraction, dtype=torch.bool),
        "nearest": fraction >= 0.75,
    }[round_mode]
    codes = floor + up.int() + 127
    codes = torch.where(wide == 0, torch.zeros_like(codes), codes)
    too_large = (codes > 254) | torch.isinf(wide)
    codes = torch.where(too_large, torch.full_like(codes, 254 if saturate else 255), codes.clamp(0, 255))
    codes = torch.where(torch.isnan(wide) | (wide < 0), torch.full_like(codes, 255), codes)
    return codes.to(torch.uint8).view(torch_type(ir.DataType.FLOAT8E8M0))


@torch_function("BitCast", differentiable=False)
def BitCast(x: Tensor, *, to: int) -> Tensor:
    if ir.DataType(to) in NARROW:
        return wrap(x.to(torch.int64), *NARROW[ir.DataType(to)])
    return x.clone().view(torch_type(to))


@torch_function("Constant")
def Constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Any:
    if value is not None:
        return value
    if value_string is not None or value_strings is not None:
        return np.array(value_string if value_string is not None else value_strings, dtype=object)
    for number, dtype in (
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
    ):
        if number is not None:
            return to_torch(np.array(number, dtype=dtype))
    raise ValueError("Constant has no value attribute")
