"""Activations, and the softmax family."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import register, torch_function
from onnxprune.bridge.tensors import number

register("Relu", torch.relu)


@torch_function("LeakyRelu")
def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@torch_function("Elu")
def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@torch_function("Selu")
def Selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


@torch_function("Celu")
def Celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@torch_function("HardSigmoid")
def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0, 1)


@torch_function("HardSwish")
def HardSwish(x: Tensor) -> Tensor:
    return F.hardswish(x)


@torch_function("Mish")
def Mish(x: Tensor) -> Tensor:
    return F.mish(x)


@torch_function("Swish")
def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@torch_function("SwiGLU")
def SwiGLU(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    return Swish(a, alpha=alpha) * b


@torch_function("Gelu")
def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@torch_function("Softplus")
def Softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


@torch_function("Softsign")
def Softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


@torch_function("ThresholdedRelu")
def ThresholdedRelu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0)


@torch_function("Shrink")
def Shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@torch_function("PRelu")
def PRelu_1(x: Tensor, slope: Tensor) -> Tensor:
    """slope (C,) or one number."""
    return F.prelu(x, slope.reshape(-1).to(x.dtype))


@torch_function("PRelu", since=7)
def PRelu(x: Tensor, slope: Tensor) -> Tensor:
    """slope broadcasts to x (N, C, ...) in one direction."""
    slope = slope.to(x.dtype)
    per_channel = x.ndim > 1 and slope.ndim == x.ndim - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    if x.is_floating_point() and (slope.numel() == 1 or per_channel):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, slope * x, x)


@torch_function("Clip")
def Clip_1(x: Tensor, *, min: float | None = None, max: float | None = None) -> Tensor:
    return _clip(x, min, max)


@torch_function("Clip", since=11, host=(1, 2))
def Clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    return _clip(x, None if low is None else number(low), None if high is None else number(high))


def _clip(x: Tensor, low: float | None, high: float | None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


# Up to opset 12 the softmax family sees x as a matrix: axes from `axis` on are one.


@torch_function("Softmax")
def Softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.softmax(_matrix(x, axis), -1).reshape(x.shape)


@torch_function("Softmax", since=13)
def Softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@torch_function("LogSoftmax")
def LogSoftmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.log_softmax(_matrix(x, axis), -1).reshape(x.shape)


@torch_function("LogSoftmax", since=13)
def LogSoftmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


@torch_function("Hardmax", differentiable=False)
def Hardmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return Hardmax(_matrix(x, axis)).reshape(x.shape)


@torch_function("Hardmax", since=13, differentiable=False)
def Hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def _matrix(x: Tensor, axis: int) -> Tensor:
    """x with the axes before `axis` as rows and the others as columns; as it is when it has that form already."""
    return x if axis in (-1, x.ndim - 1) else x.flatten(axis % x.ndim)


@torch_function("Dropout")
def Dropout_1(x: Tensor, *, is_test: int = 0, ratio: float = 0.5, outputs: int = 1) -> tuple[Tensor, ...]:
    """Inert: an exported Dropout of old opsets says nothing about training."""
    return (x,) if outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))


@torch_function("Dropout", since=12, host=(1, 2), pure=False)
def Dropout(
    x: Tensor, ratio: Any = None, training_mode: Any = None, *, context: Any, seed: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Drops only where the node itself is in training mode and so is the network."""
    share = 0.5 if ratio is None else float(number(ratio))
    active = training_mode is not None and bool(number(training_mode)) and context.training
    if not active or share == 0:
        return (x,) if outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    mask = torch.rand(x.shape, device=x.device, generator=generator) >= share
    return x * mask / (1 - share), mask
