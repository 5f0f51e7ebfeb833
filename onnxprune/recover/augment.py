"""Augmentation of image batches: horizontal flip, shifted crop, zoom, mixup. Letters: N batch, C channels, H, W.

Every draw is a function of the seed, the step and the position in the global batch, so that an interrupted run and
one on several processes see the same images. Where each sample has a few fixed versions, a draw is a function of the
seed, the number of the version and that of the sample.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge import Network
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples
from onnxprune.outputs import parts
from onnxprune.outputs.kinds import SCORES, Part
from onnxprune.outputs.parts import Values
from onnxprune.recover.settings import Settings

LOOKED_AT = 32  # samples
SURE, ALIKE = 0.8, 0.5  # of what scores find in samples as they are; the correlation of other answers


@dataclass(frozen=True)
class Mix:
    """Sample n is weight[n] of itself and the rest of sample partner[n]."""

    partner: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Draws:
    """What is drawn for each of N samples; None where there is no such change.

    flips (N,): whether it is mirrored. shifts (N, 2): pixels down and right. zooms (N,): factors. weights (N,): of
    itself where it is mixed with another.
    """

    flips: np.ndarray | None
    shifts: np.ndarray | None
    zooms: np.ndarray | None
    weights: np.ndarray | None

    def of(self, index: np.ndarray | slice) -> "Draws":
        """Those of some samples."""
        return Draws(*(None if part is None else part[index] for part in vars(self).values()))


def draw(settings: Settings, seed: tuple[int, ...], count: int) -> Draws:
    """For `count` samples, as a function of the seed."""
    rng, crop = np.random.default_rng(seed), settings.crop or 0
    flips = rng.random(count) < 0.5
    shifts = rng.integers(-crop, crop + 1, (count, 2))
    weights = rng.beta(settings.mixup, settings.mixup, count) if settings.mixup else None
    zooms = np.exp(rng.uniform(-settings.zoom, settings.zoom, count)) if settings.zoom else None
    return Draws(flips if settings.flip else None, shifts if crop else None, zooms, weights)


def augment(
    feeds: dict[str, Tensor], settings: Settings, step: int, rank: int = 0, size: int = 1
) -> tuple[dict[str, Tensor], Mix | None]:
    """The batch with its images augmented as drawn for this step, and how samples were mixed."""
    if not settings.augments or not feeds:
        return feeds, None
    count = len(next(iter(feeds.values()))) * size
    return changed(feeds, draw(settings, (settings.seed, step), count).of(slice(rank, None, size)))


def changed(feeds: dict[str, Tensor], draws: Draws) -> tuple[dict[str, Tensor], Mix | None]:
    """The batch with its images changed as drawn, and how samples were mixed.

    Inputs of rank 4 are images; without one nothing is done.
    """
    images = [name for name, x in feeds.items() if x.ndim == 4 and x.is_floating_point()]
    if not images:
        return feeds, None
    feeds = dict(feeds)
    for name in images:
        moved = _moved(feeds[name], draws.flips, draws.shifts)
        feeds[name] = moved if draws.zooms is None else _zoomed(moved, draws.zooms)
    if draws.weights is None:
        return feeds, None
    return _mixed(feeds, np.maximum(draws.weights, 1 - draws.weights))


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


def _zoomed(x: Tensor, zooms: np.ndarray) -> Tensor:
    """Each image enlarged around its center by its factor; where that is below 1, its edges are mirrored around it."""
    scale = torch.from_numpy(1 / zooms).to(x)
    turn = torch.zeros(len(x), 2, 3).to(x)
    turn[:, 0, 0] = turn[:, 1, 1] = scale
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _mixed(feeds: dict[str, Tensor], weights: np.ndarray) -> tuple[dict[str, Tensor], Mix]:
    first = next(x for x in feeds.values() if x.ndim == 4)
    weight = torch.from_numpy(weights).to(first)
    partner = torch.arange(len(first), device=first.device).roll(1)
    for name, x in feeds.items():
        if x.is_floating_point() and len(x) == len(first):
            w = weight.reshape(-1, *([1] * (x.ndim - 1)))
            feeds[name] = w * x + (1 - w) * x[partner]
    return feeds, Mix(partner, weight)


# Pictures in a mirror: a model knows faces there, but no letters ------------------------------------------------------


@torch.no_grad()
def known_in_a_mirror(model: ir.Model, samples: Samples, settings: Settings, device: torch.device, batch: int) -> bool:
    """Whether `model` is about as sure of mirrored samples, where it gives scores, else answers about the same.

    A map is compared with the mirrored map.
    """
    if settings.outputs is None:
        return False
    network = Network(model, trainable=()).to(device).eval()
    inner = [name for name in settings.outputs.inner if name not in network.output_names]
    count = max(batch, LOOKED_AT // batch * batch)
    numbers = np.resize(np.arange(min(len(samples), count)), count)
    both: list[list[dict[str, Tensor]]] = [[], []]
    for k in range(0, count, batch):
        feeds = tensors_of(samples.batch(numbers[k : k + batch]), device)
        for found, x in zip(both, (feeds, {name: x.flip(-1) for name, x in feeds.items()}), strict=True):
            found.append(network(x, capture=inner))
    learned = parts.usable(settings.outputs.learned, both[0][0])
    scores = [part for part in learned if part.kind == SCORES]
    if scores:
        as_is, other = (sum(_sum(part, values) for values in found for part in scores) for found in both)
        return other >= SURE * as_is
    return bool(learned) and min(_alike(part, *both) for part in learned) >= ALIKE


def _sum(part: Part, values: Values) -> float:
    return float(parts.certainty(part, values).sum())


def _alike(part: Part, one: list[dict[str, Tensor]], two: list[dict[str, Tensor]]) -> float:
    y, z = (torch.cat([part.of(values[part.value]).float() for values in found]) for found in (one, two))
    return max(_correlation(y, z), _correlation(y, z.flip(-1)) if y.ndim > 3 else -1.0)


def _correlation(y: Tensor, z: Tensor) -> float:
    """Of what samples have beyond their mean."""
    y, z = (x - x.mean(0) for x in (y, z))
    return float((y * z).sum() / (y.norm() * z.norm()).clamp_min(parts.TINY))
