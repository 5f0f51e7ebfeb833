"""Losses. Letters: x (N, C, *D) scores or logarithms, target (N, *D) class indices, weight (C,)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import torch_function


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
