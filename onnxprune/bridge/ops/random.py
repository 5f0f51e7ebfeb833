"""Random values. With a seed the same ones on every run, but not those of another runtime."""

from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import torch_type


def _generator(seed: float | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def _normal(
    shape: Any, dtype: torch.dtype, device: torch.device, mean: float, scale: float, seed: float | None
) -> Tensor:
    return torch.randn(tuple(shape), device=device, generator=_generator(seed, device)).to(dtype) * scale + mean


def _uniform(
    shape: Any, dtype: torch.dtype, device: torch.device, low: float, high: float, seed: float | None
) -> Tensor:
    return torch.rand(tuple(shape), device=device, generator=_generator(seed, device)).to(dtype) * (high - low) + low


@torch_function("RandomNormal", pure=False, differentiable=False)
def RandomNormal(
    *, context: Any, shape: Any, dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return _normal(shape, torch_type(dtype), context.device, mean, scale, seed)


@torch_function("RandomUniform", pure=False, differentiable=False)
def RandomUniform(
    *, context: Any, shape: Any, dtype: int = 1, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    return _uniform(shape, torch_type(dtype), context.device, low, high, seed)


@torch_function("RandomNormalLike", pure=False, differentiable=False)
def RandomNormalLike(
    x: Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> Tensor:
    return _normal(x.shape, x.dtype if dtype is None else torch_type(dtype), x.device, mean, scale, seed)


@torch_function("RandomUniformLike", pure=False, differentiable=False)
def RandomUniformLike(
    x: Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> Tensor:
    return _uniform(x.shape, x.dtype if dtype is None else torch_type(dtype), x.device, low, high, seed)


@torch_function("Bernoulli", pure=False, differentiable=False)
def Bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    drawn = torch.rand(x.shape, device=x.device, generator=_generator(seed, x.device)) < x
    return drawn.to(x.dtype if dtype is None else torch_type(dtype))


@torch_function("Multinomial", pure=False, differentiable=False)
def Multinomial(x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> Tensor:
    """x (N, classes) holds logarithms of probabilities."""
    drawn = torch.multinomial(torch.softmax(x.float(), 1), sample_size, True, generator=_generator(seed, x.device))
    return drawn.to(torch_type(dtype))
