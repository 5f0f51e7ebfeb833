"""Augmentation of image batches: horizontal flip, shifted crop, mixup. Letters: N batch, C channels, H, W.

Every draw is a function of the seed, the step and the position in the global batch, so that an interrupted run and
one on several processes see the same images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxprune.recover.settings import Settings


@dataclass(frozen=True)
class Mix:
    """Sample n is weight[n] of itself and the rest of sample partner[n]."""

    partner: Tensor
    weight: Tensor


def augment(
    feeds: dict[str, Tensor], settings: Settings, step: int, rank: int = 0, size: int = 1
) -> tuple[dict[str, Tensor], Mix | None]:
    """The batch with its images augmented, and how samples were mixed.

    Inputs of rank 4 are images; without one nothing is done.
    """
    images = [name for name, x in feeds.items() if x.ndim == 4 and x.is_floating_point()]
    if not images or not settings.augments:
        return feeds, None
    rng = np.random.default_rng((settings.seed, step))
    count = len(feeds[images[0]])
    flips = rng.random(count * size)[rank::size] < 0.5
    crop = settings.crop or 0
    shifts = rng.integers(-crop, crop + 1, (count * size, 2))[rank::size]
    weights = rng.beta(settings.mixup, settings.mixup, count * size)[rank::size] if settings.mixup else None
    feeds = dict(feeds)
    for name in images:
        feeds[name] = _moved(feeds[name], flips if settings.flip else None, shifts if settings.crop else None)
    if weights is None:
        return feeds, None
    return _mixed(feeds, np.maximum(weights, 1 - weights))


def _moved(x: Tensor, flips: np.ndarray | None, shifts: np.ndarray | None) -> Tensor:
    if flips is not None:
        chosen = torch.from_numpy(flips).to(x.device)[:, None, None, None]
        x = torch.where(chosen, x.flip(-1), x)
    return x if shifts is None else _shifted(x, shifts)


def _shifted(x: Tensor, shifts: np.ndarray) -> Tensor:
    """Each image moved by its (rows, columns); what comes in from outside repeats the border."""
    moved = torch.from_numpy(shifts).to(x.device)
    rows, columns = (
        (moved[:, axis, None] + torch.arange(size, device=x.device)).clamp(0, size - 1)
        for axis, size in enumerate(x.shape[-2:])
    )  # of the batch (N, H) and (N, W): where each pixel comes from
    height, width = x.shape[-2:]
    x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, width))
    return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], height, -1))


def _mixed(feeds: dict[str, Tensor], weights: np.ndarray) -> tuple[dict[str, Tensor], Mix]:
    first = next(x for x in feeds.values() if x.ndim == 4)
    weight = torch.from_numpy(weights).to(first)
    partner = torch.arange(len(first), device=first.device).roll(1)
    for name, x in feeds.items():
        if x.is_floating_point() and len(x) == len(first):
            w = weight.reshape(-1, *([1] * (x.ndim - 1)))
            feeds[name] = w * x + (1 - w) * x[partner]
    return feeds, Mix(partner, weight)
