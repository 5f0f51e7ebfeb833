"""Reductions: axes as an attribute in old opsets, as an input since 18 (ReduceSum: 13)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import register, torch_function
from onnxprune.bridge.tensors import ints, number

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(_sum(x, axes, keep), count, rounding_mode="floor").to(x.dtype)


def _extreme(x: Tensor, axes: list[int], keep: bool, *, largest: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        y = x.new_full(shape, _limit(x.dtype, low=largest))
        return y if keep else y.squeeze(axes)
    return x.amax(axes, keepdim=keep) if largest else x.amin(axes, keepdim=keep)


def _limit(dtype: torch.dtype, *, low: bool) -> Any:
    if dtype == torch.bool:
        return not low
    if dtype.is_floating_point:
        return float("-inf") if low else float("inf")
    return torch.iinfo(dtype).min if low else torch.iinfo(dtype).max


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _norm(x: Tensor, axes: list[int], keep: bool, *, p: int) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, p, axes, keepdim=keep)
    return torch.linalg.vector_norm(x.double(), p, axes, keepdim=keep).to(x.dtype)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (
        torch.logsumexp(x, axes, keep) if x.is_floating_point() else torch.logsumexp(x.double(), axes, keep).to(x.dtype)
    )


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.square(), axes, keep)


_REDUCTIONS: dict[str, tuple[Reduce, int]] = {
    "ReduceSum": (_sum, 13),
    "ReduceMean": (_mean, 18),
    "ReduceMax": (partial(_extreme, largest=True), 18),
    "ReduceMin": (partial(_extreme, largest=False), 18),
    "ReduceProd": (_prod, 18),
    "ReduceL1": (partial(_norm, p=1), 18),
    "ReduceL2": (partial(_norm, p=2), 18),
    "ReduceLogSum": (_log_sum, 18),
    "ReduceLogSumExp": (_log_sum_exp, 18),
    "ReduceSumSquare": (_sum_square, 18),
}


def _by_attribute(x: Tensor, *, reduce: Reduce, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
    return reduce(x, _positive(x, axes), bool(keepdims))


def _by_input(
    x: Tensor, axes: Any = None, *, reduce: Reduce, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """No axes, or an empty list of them, means all; with noop_with_empty_axes it means none."""
    listed = [] if axes is None else ints(axes)
    if not listed and noop_with_empty_axes:
        return _each(x, reduce)
    return reduce(x, _positive(x, listed or None), bool(keepdims))


def _each(x: Tensor, reduce: Reduce) -> Tensor:
    """The reduction of every element alone: only the element-wise parts, such as the square, are left."""
    return reduce(x.unsqueeze(-1), [x.ndim], False)


def _positive(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]


for _name, (_reduce, _since) in _REDUCTIONS.items():
    register(_name, partial(_by_attribute, reduce=_reduce))
    register(_name, partial(_by_input, reduce=_reduce), since=_since, host=(1,))


ReduceMean_1 = partial(_by_attribute, reduce=_mean)


@torch_function("ArgMax", differentiable=False)
def ArgMax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, bool(keepdims), bool(select_last_index), largest=True)


@torch_function("ArgMin", differentiable=False)
def ArgMin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, bool(keepdims), bool(select_last_index), largest=False)


def _arg(x: Tensor, axis: int, keep: bool, last: bool, *, largest: bool) -> Tensor:
    """The first or last position of the extreme value; torch leaves open which of equals it gives, so mark them."""
    if x.numel() == 0:
        return x.sum(axis, keepdim=keep).long()
    extreme = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
    equal = (x == extreme).to(torch.uint8)
    if last:
        return x.shape[axis] - 1 - equal.flip(axis).argmax(axis, keepdim=keep)
    return equal.argmax(axis, keepdim=keep)


@torch_function("CumSum", host=(1,))
def CumSum(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(x, number(axis), torch.cumsum, 0, exclusive, reverse)


@torch_function("CumProd", host=(1,))
def CumProd(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(x, number(axis), torch.cumprod, 1, exclusive, reverse)


def _cumulated(
    x: Tensor, axis: int, function: Callable[..., Tensor], start: int, exclusive: int, reverse: int
) -> Tensor:
    x = x.flip(axis) if reverse else x
    y = function(x, axis, dtype=x.dtype)
    if exclusive:
        y = torch.cat([torch.full_like(y.narrow(axis, 0, 1), start), y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


# Losses: x (N, C, *D) scores or logarithms, target (N, *D) class indices, weight (C,) -----------------------------


@torch_function("NegativeLogLikelihoodLoss", fixed=(1, 2))
def NegativeLogLikelihoodLoss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    wanted = target.to(torch.int64)
    valid = torch.ones_like(wanted, dtype=torch.bool) if ignore_index is None else wanted != ignore_index
    safe = torch.where(valid, wanted, torch.zeros_like(wanted))
    factor = valid.to(x.dtype) if weight is None else weight[safe] * valid
    loss = -x.gather(1, safe.unsqueeze(1)).squeeze(1) * factor
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / factor.sum()


@torch_function("SoftmaxCrossEntropyLoss", fixed=(1, 2))
def SoftmaxCrossEntropyLoss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    logarithms = F.log_softmax(x, 1)
    loss = NegativeLogLikelihoodLoss(logarithms, target, weight, ignore_index=ignore_index, reduction=reduction)
    return loss, logarithms
