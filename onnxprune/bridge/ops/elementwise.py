"""Element-wise arithmetic, comparison and logic, with numpy broadcasting (opset 7) or the attribute of opset 6."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import register, torch_function

for _name, _function in {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}.items():
    register(_name, _function)

for _name, _function in {
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "Round": torch.round,  # half to even, as ONNX has it
    "Sign": torch.sign,
    "IsNaN": torch.isnan,
    "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le,
}.items():
    register(_name, _function, differentiable=False)


def align(b: Tensor, rank: int, axis: int | None) -> Tensor:
    """b with the axes it lacks behind its own, so that it starts at `axis` of a tensor of `rank` axes (opset 6)."""
    if axis is None or b.ndim == 0:
        return b
    start = axis % rank
    return b.reshape(*b.shape, *([1] * (rank - start - b.ndim)))


def _legacy(
    a: Tensor, b: Tensor, *, function: Callable[[Tensor, Tensor], Tensor], axis: int | None = None, broadcast: int = 0
) -> Tensor:
    return function(a, align(b, a.ndim, axis) if broadcast else b)


def div(a: Tensor, b: Tensor) -> Tensor:
    """a / b; integers are truncated toward zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() or b.is_floating_point() else "trunc")


def power(a: Tensor, b: Any) -> Tensor:
    """a to the power b in the type of a; a constant b arrives as a number, for which torch has short ways."""
    if isinstance(b, list):
        flat = b
        while isinstance(flat, list) and len(flat) == 1:
            flat = flat[0]
        b = torch.tensor(b, device=a.device) if isinstance(flat, list) or a.ndim == 0 else flat
    if isinstance(b, Tensor) and b.dtype in (torch.uint16, torch.uint32, torch.uint64):
        b = b.to(torch.int64)
    if isinstance(b, Tensor) and b.device != a.device:
        b = b.to(a.device)
    return torch.pow(a, b).to(a.dtype)


for _name, _function, _differentiable in (
    ("Add", torch.add, True),
    ("Sub", torch.sub, True),
    ("Mul", torch.mul, True),
    ("Div", div, True),
    ("And", torch.logical_and, False),
    ("Or", torch.logical_or, False),
    ("Xor", torch.logical_xor, False),
    ("Equal", torch.eq, False),
    ("Greater", torch.gt, False),
    ("Less", torch.lt, False),
):
    register(_name, functools.partial(_legacy, function=_function), differentiable=_differentiable)
    register(_name, _function, since=7, differentiable=_differentiable)

register("Pow", functools.partial(_legacy, function=torch.pow))
register("Pow", power, since=7, host=(1,))


@torch_function("Max")
def Max(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, inputs)


@torch_function("Min")
def Min(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, inputs)


@torch_function("Sum")
def Sum(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs)


@torch_function("Mean")
def Mean(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


@torch_function("Mod")
def Mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder with the sign of b, or with fmod of a."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@torch_function("Where")
def Where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@torch_function("BitShift", differentiable=False)
def BitShift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        wide = _shifted(x.to(torch.int64), y.to(torch.int64), direction)
        bits = {torch.uint16: 0xFFFF, torch.uint32: 0xFFFFFFFF, torch.uint64: -1}[x.dtype]
        return (wide & bits).to(x.dtype)
    return _shifted(x, y, direction)


def _shifted(x: Tensor, y: Tensor, direction: str) -> Tensor:
    return torch.bitwise_left_shift(x, y) if direction == "LEFT" else torch.bitwise_right_shift(x, y)


@torch_function("IsInf", differentiable=False)
def IsInf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_negative:
        return torch.isneginf(x)
    return torch.isposinf(x) if detect_positive else torch.zeros_like(x, dtype=torch.bool)
