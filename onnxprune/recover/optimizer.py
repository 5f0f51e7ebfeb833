"""The optimizer, its schedule and the moving average of weights."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from onnxprune.recover.settings import Settings


def make_optimizer(parameters: Mapping[str, Tensor], settings: Settings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; biases and norms do not decay."""
    assert settings.lr is not None
    assert settings.weight_decay is not None
    kernels = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.lr)


def rate(step: int, total: int, settings: Settings) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine down to a hundredth of the peak."""
    assert settings.lr is not None
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return settings.lr * (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    return settings.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Average:
    """An exponential moving average of tensors; young averages forget faster, so that the start leaves no trace."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        now = [tensors[name].detach() for name in self.tensors]
        # One kernel on a GPU instead of hundreds.
        torch._foreach_lerp_(list(self.tensors.values()), now, 1 - decay)  # type: ignore[attr-defined]


def clip(parameters: Iterable[Tensor], largest: float) -> None:
    """Scales gradients down to a norm of `largest`; 0 leaves them."""
    if largest > 0:
        torch.nn.utils.clip_grad_norm_(list(parameters), largest)
