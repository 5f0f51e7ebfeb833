"""BatchNormalization of few channels that lie last in memory, as pruning leaves them.

torch's kernels on the CPU work along the channels, 16 or 32 at a time: with 14 of them most of a step is spent on the
rest. Here COPIES positions side by side count as one of COPIES times as many channels, which is a view of the same
memory; statistics and gradients are then put together over the copies. The result is that of torch.batch_norm, but
for the order of sums. Letters: x (N, C, H, W).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

COPIES = 16
NARROW = 32  # channels from which on torch's own kernels are as fast
LARGE = 1 << 18  # numbers in x below which the calls cost more than they save


def is_narrow(x: Tensor) -> bool:
    """Whether `narrow_batch_norm` takes x, and is faster than torch.batch_norm."""
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and 1 < x.shape[1] < NARROW
        and x.numel() >= LARGE
        and x.numel() // x.shape[1] % COPIES == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
        and not torch.compiler.is_compiling()  # it makes kernels of its own
    )


def narrow_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, b: Tensor, training: bool, momentum: float, epsilon: float
) -> Tensor:
    """As torch.nn.functional.batch_norm, for what `is_narrow` accepts: running statistics are updated in place."""
    if not training:
        return _like(_normalized(_wide(x), mean, var, scale, b, epsilon), x)
    y, batch_mean, batch_var = _BatchStatistics.apply(x, scale, b, epsilon)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        mean.lerp_(batch_mean.to(mean.dtype), momentum)
        var.lerp_((batch_var * (count / (count - 1))).to(var.dtype), momentum)
    return y  # type: ignore[no-any-return]


def _wide(x: Tensor) -> Tensor:
    """x as (1, C * COPIES, N * H * W / COPIES, 1), in the same memory."""
    channels = x.shape[1]
    rows = x.permute(0, 2, 3, 1).reshape(1, -1, 1, channels * COPIES)
    return rows.permute(0, 3, 1, 2)


def _like(wide: Tensor, x: Tensor) -> Tensor:
    """The wide tensor in the shape of x."""
    n, c, h, w = x.shape
    return wide.permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


def _normalized(wide: Tensor, mean: Tensor, var: Tensor, scale: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """(wide - mean) / sqrt(var + epsilon) * scale + b, all but `wide` (C,)."""
    scale, b, mean, var = (each.repeat(COPIES) for each in (scale, b, mean, var))
    return torch.native_batch_norm(wide, scale, b, mean, var, False, 0.0, epsilon)[0]


def _put_together(parts: Tensor) -> Tensor:
    """(COPIES, C) of a value (C * COPIES,)."""
    return parts.view(COPIES, -1)


class _BatchStatistics(Function):
    """BatchNormalization by the statistics of the batch, which are returned beside the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(x)
        # Running statistics that nobody reads: without them those of bf16 would be rounded to bf16.
        unused = torch.zeros(2, wide.shape[1], dtype=scale.dtype)
        found = torch.batch_norm_update_stats(wide, unused[0], unused[1], 0.0)
        means, variances = (_put_together(each) for each in found)
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, scale)
        ctx.epsilon = epsilon
        return _like(_normalized(wide, mean, var, scale, b, epsilon), x), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, scale = ctx.saved_tensors
        wide = _wide(x)
        g = _wide(gradients[0].contiguous(memory_format=torch.channels_last))
        zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
        copies = [each.repeat(COPIES) for each in (ones, mean, var)]
        # With fixed statistics the scale's gradient is the sum of g (x - mean) / deviation, and that of b the sum of g.
        _, parts_scale, parts_b = torch.ops.aten.native_batch_norm_backward(
            g, wide, *copies, None, None, False, ctx.epsilon, [False, True, True]
        )
        g_scale, g_b = _put_together(parts_scale).sum(0), _put_together(parts_b).sum(0)
        # dx = factor (g - mean of g - (x - mean) / deviation * mean of g (x - mean) / deviation)
        count = x.numel() // x.shape[1]
        inverse = (var + ctx.epsilon).rsqrt()
        factor = scale * inverse
        slope = (-factor * inverse * g_scale / count).to(x.dtype)
        offset = -factor * g_b / count - slope.to(mean.dtype) * mean
        dx = _normalized(g, zeros, ones, factor, offset, 0.0)
        dx.addcmul_(wide, slope.repeat(COPIES).view(1, -1, 1, 1))
        return _like(dx, x), g_scale, g_b, None
