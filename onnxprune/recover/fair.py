"""Inputs that the original does not know by heart, made of samples that it may have been trained on.

On its training samples a trained model is nearly always right and very sure. Who agrees with it there has kept its
memory; whether it has kept its judgement shows on inputs that neither has seen: pairs of samples, mixed.

    numbers     0.7 a + 0.3 b
    tokens      those of a, at three places of ten those of b: the same places in all inputs of a sample

And more inputs of the kind that samples are: small photographs mirrored. What least squares fit is what the original
says, and that it says of any image: a mirrored one tells about as much as another photograph does. Images that are
shifted tell less: what comes in from outside is made up (docs/results/recovery.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples
from onnxprune.data.samples import Feeds
from onnxprune.recover.settings import Settings, small_images

SHARE = 0.7  # of the first of a pair
FEWEST, ENOUGH = 64, 1024  # mixed inputs that tell two models apart; of few samples each is mixed with several others
MOST_PARTNERS = 8


@dataclass(frozen=True, eq=False)
class Mixed(Samples):
    """Samples of `base`, each mixed with `partners` others: number k + N p is sample k with its p-th partner.

    axes: input -> the axis along which its samples are stacked, None for one that every batch shares.
    """

    base: Samples
    axes: Mapping[str, int | None]
    seed: int = 0
    partners: int = 1
    labels: None = field(default=None, init=False)  # a mixture has none

    def __len__(self) -> int:
        return len(self.base) * self.partners

    def batch(self, indices) -> Feeds:
        """Mixtures by input name; `indices` count the samples once for each round of partners."""
        numbers = np.arange(len(self))[indices]
        own = numbers % len(self.base)
        first, second = self.base.batch(own), self.base.batch(self._partner(own, numbers // len(self.base)))
        rng = np.random.RandomState(self.seed)
        drawn: dict[int, np.ndarray] = {}  # length of a sequence -> the places that are exchanged
        mixed = {name: self._mixed(name, x, second[name], drawn, rng) for name, x in first.items()}
        return {name: np.ascontiguousarray(x, first[name].dtype) for name, x in mixed.items()}

    def _partner(self, own: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Another sample for each, by a step that differs from turn to turn."""
        count = len(self.base)
        order = np.random.RandomState(self.seed).permutation(max(1, count - 1)) + 1
        return (own + order[turn % len(order)]) % count

    def _mixed(self, name: str, a: np.ndarray, b: np.ndarray, drawn: dict[int, np.ndarray], rng) -> np.ndarray:
        axis = self.axes.get(name)
        if axis is None or a.shape != b.shape or a.ndim < 2:  # a number per sample is a length or a size: it stays
            return a
        if a.dtype.kind == "f" or (a.dtype.kind in "iu" and a.ndim > 3):
            both = SHARE * a.astype(np.float32) + (1 - SHARE) * b.astype(np.float32)
            return np.rint(both) if a.dtype.kind in "iu" else both
        places = a.shape[-1]
        if places not in drawn:
            drawn[places] = rng.permutation(places)[: round((1 - SHARE) * places)]
        a = a.copy()
        a[..., drawn[places]] = b[..., drawn[places]]
        return a


def mixed(samples: Samples, axes: Mapping[str, int | None], most: int = ENOUGH, seed: int = 0) -> Mixed:
    """`samples` as mixtures: about `most` of them, of each sample with up to eight others."""
    wanted = max(FEWEST, min(most, ENOUGH)) // max(1, len(samples))
    return Mixed(samples, axes, seed, max(1, min(wanted, MOST_PARTNERS, len(samples) - 1)))


# More samples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mirrored(Samples):
    """`base`, and as many samples again: number N + k is sample k, left and right exchanged."""

    base: Samples
    labels: None = field(default=None, init=False)  # not every label holds for what was mirrored

    def __len__(self) -> int:
        return 2 * len(self.base)

    def batch(self, indices) -> Feeds:
        """Arrays by input name; the first half of all numbers are those of `base`."""
        numbers = np.arange(len(self))[indices]
        turned = numbers >= len(self.base)
        feeds = self.base.batch(numbers % len(self.base))
        return {name: _turned(x, turned) for name, x in feeds.items()}


def _turned(x: np.ndarray, turned: np.ndarray) -> np.ndarray:
    return np.where(turned[:, None, None, None], x[..., ::-1], x) if x.ndim == 4 else x


def grown(samples: Samples, model: ir.Model, settings: Settings) -> Samples:
    """`samples`, mirrored as well where `model` reads small images, unless settings (of fine-tuning) forbid a flip."""
    return Mirrored(samples) if small_images(model) and settings.flip is not False else samples
