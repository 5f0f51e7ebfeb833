"""Normalizations. Letters: x (N, C, *D), scale and b per channel or per normalized axis."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.narrow_norm import is_narrow, narrow_batch_norm
from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import REDUCED_TYPES, torch_type


@torch_function("BatchNormalization", fixed=(3, 4))
def BatchNormalization_1(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    context: Any,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    is_test: int = 1,
    spatial: int = 1,
) -> Tensor:
    """Before opset 14 the attribute is_test (gone at 7) says nothing that an exported file means."""
    if not spatial:  # statistics for each position: (C, *D)
        return (x - mean) / torch.sqrt(var + epsilon) * scale + b
    return batch_norm(x, scale, b, mean, var, context.batch_statistics, epsilon, momentum)


@torch_function("BatchNormalization", since=14, fixed=(3, 4))
def BatchNormalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    context: Any,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, ...]:
    """Inference form; in train mode as torch.nn.BatchNorm: batch statistics, running ones updated in place."""
    if training_mode:
        return _training_form(x, scale, b, mean, var, epsilon, momentum)
    return batch_norm(x, scale, b, mean, var, context.batch_statistics, epsilon, momentum)


def batch_norm(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, training: bool, epsilon: float, momentum: float
) -> Tensor:
    # One value per channel has no variance: a sequence of one step, one at a time.
    training = training and not mean.requires_grad and mean.is_leaf and x.numel() > x.shape[1]
    if x.dtype in REDUCED_TYPES or scale.dtype != x.dtype or mean.dtype != scale.dtype:
        scale, b = scale.float(), b.float()
        if not training:  # in training the running statistics must be those held, or the update would be lost
            mean, var = mean.float(), var.float()
    compute = narrow_batch_norm if is_narrow(x) else F.batch_norm
    # ONNX: running = running * momentum + batch * (1 - momentum); torch counts the other way.
    return compute(x, mean, var, scale, b, training, 1 - momentum, epsilon)


def _training_form(
    x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, epsilon: float, momentum: float
) -> tuple[Tensor, ...]:
    """The op's own training mode: population variance, new running statistics as outputs."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    batch_var, batch_mean = torch.var_mean(x.float(), axes, correction=0)
    y = F.batch_norm(x, None, None, scale.to(x.dtype), b.to(x.dtype), True, 0.0, epsilon)
    running_mean = mean * momentum + batch_mean.to(mean.dtype) * (1 - momentum)
    return y, running_mean, var * momentum + batch_var.to(var.dtype) * (1 - momentum)


@torch_function("InstanceNormalization")
def InstanceNormalization(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    if x.ndim > 2 and x[0, 0].numel() > 1:
        return F.instance_norm(x, weight=scale, bias=b, eps=epsilon)
    shape = (-1, *([1] * (x.ndim - 2)))
    axes = list(range(2, x.ndim))
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + epsilon) * scale.reshape(shape) + b.reshape(shape)


@torch_function("LayerNormalization")
@torch_function("LayerNormalization", domain="com.microsoft")
def LayerNormalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Normalized over the axes from `axis` on; with more outputs also mean and inverse deviation."""
    shape = x.shape[axis % x.ndim :]
    if outputs == 1:
        if scale.shape == shape and (b is None or b.shape == shape):
            return F.layer_norm(x, shape, scale, b, epsilon)
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        return y if b is None else y + b
    stash = x.to(torch_type(stash_type))
    axes = list(range(axis % x.ndim, x.ndim))
    var, mean = torch.var_mean(stash, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    y = ((stash - mean) * inverse).to(x.dtype) * scale
    return y if b is None else y + b, mean, inverse


@torch_function("RMSNormalization")
def RMSNormalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    stash = x.to(torch_type(stash_type))
    axes = list(range(axis % x.ndim, x.ndim))
    inverse = torch.rsqrt(stash.square().mean(axes, keepdim=True) + epsilon)
    return (stash * inverse).to(x.dtype) * scale


@torch_function("GroupNormalization", since=18)
def GroupNormalization_18(x: Tensor, scale: Tensor, b: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """scale and b hold one number for each group."""
    repeat = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(repeat), b.repeat_interleave(repeat), epsilon)


@torch_function("GroupNormalization", since=21)
def GroupNormalization(
    x: Tensor, scale: Tensor, b: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.group_norm(x, num_groups, scale, b, epsilon)


@torch_function("LRN")
def LRN(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """x / (bias + alpha / size * sum of squares over `size` channels around) ** beta; an even window leans forward."""
    before = (size - 1) // 2
    squares = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, before, size - 1 - before))
    mean = F.avg_pool2d(squares, (size, 1), 1).squeeze(1).reshape(x.shape)
    return x / (bias + alpha * mean) ** beta


@torch_function("LpNormalization")
def LpNormalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1, norm))


@torch_function("MeanVarianceNormalization")
def MeanVarianceNormalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    var, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(var) + 1e-9)
