"""Samples: a numbered set of inputs for a model, with labels where they are known; how it is split and walked."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import DataError
from onnxprune.graph.inputs import Feeds, fixed_batch
from onnxprune.system.words import counted


class Samples(ABC):
    """A numbered set of model inputs; `labels` (N,) int64 class numbers, masks (N, ...), other targets, or None."""

    labels: np.ndarray | None
    steps: int = 1  # samples in a row that are steps of one sequence

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples, N."""

    @abstractmethod
    def batch(self, indices) -> Feeds:
        """Arrays by input name for the asked samples, in their order; an index may repeat."""

    def subset(self, indices) -> "Samples":
        """The samples at `indices` (ints, slice or boolean mask), renumbered from 0."""
        positions = np.arange(len(self))[indices]
        return Subset(self, positions, None if self.labels is None else self.labels[positions])


@dataclass(frozen=True, eq=False)
class Subset(Samples):
    """Some samples of another set; nothing is copied but their numbers."""

    base: Samples
    positions: np.ndarray
    labels: np.ndarray | None
    steps: int = 1

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices) -> Feeds:
        return self.base.batch(self.positions[indices])

    def subset(self, indices) -> Samples:
        return self.base.subset(self.positions[indices])


@dataclass(frozen=True, eq=False)
class Completed(Samples):
    """Samples with arrays for inputs that they say nothing of: every batch is given the same."""

    base: Samples
    shared: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    steps: int = 1

    def __len__(self) -> int:
        return len(self.base)

    def batch(self, indices) -> Feeds:
        given = self.base.batch(
            indices
        )  # these first: the length of the first array is taken for the number of samples
        return {**given, **{name: array for name, array in self.shared.items() if name not in given}}


@dataclass(frozen=True)
class Scaling:
    """x -> (x * scale - mean) / std with mean and std per channel; `axis` is the channel axis of a batch."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    axis: int = 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        mean, std = (np.asarray(v, np.float32).reshape(shape) for v in (self.mean, self.std))
        return (x.astype(np.float32) * np.float32(self.scale) - mean) / std


@dataclass(frozen=True, eq=False)
class ArraySamples(Samples):
    """Samples held as one array per input, in the dtype they came in; a batch is cast to the model's dtype.

    `axes` gives the sample axis of each array, None for an array that every batch shares.
    """

    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, int | None]
    dtypes: Mapping[str, np.dtype]
    count: int
    labels: np.ndarray | None = None
    scaling: Scaling | None = None
    steps: int = 1

    def __len__(self) -> int:
        return self.count

    def batch(self, indices) -> Feeds:
        positions = np.arange(self.count)[indices]
        return {name: self._part(name, positions) for name in self.arrays}

    def _part(self, name: str, positions: np.ndarray) -> np.ndarray:
        array, axis = self.arrays[name], self.axes[name]
        # Not np.take: of an array that is not contiguous it copies the whole before it takes its part.
        part = array if axis is None else array[(slice(None),) * axis + (positions,)]
        if self.scaling is not None and axis is not None:
            part = self.scaling(part)
        return np.ascontiguousarray(part, self.dtypes[name]).reshape(part.shape)


def split(samples: Samples, fraction: float, seed: int = 0) -> tuple[Samples, Samples]:
    """(tune, held): a random `fraction` of the samples is held out, of every class its share where labels exist.

    The same for the same seed, whatever the version of numpy.

    Sequences stay whole. Raises DataError where fewer than two samples leave nothing to hold out.
    """
    if samples.steps > 1:
        return _split_sequences(samples, fraction, seed)
    count = len(samples)
    if count < 2 or not 0 < fraction < 1:
        raise DataError(
            f"{counted(count, 'sample')} cannot be split into two parts of which one holds {fraction:g}; "
            "give at least 2 samples, or --val for the other part"
        )
    # The streams of numpy's newer generators may change between versions; RandomState's are frozen.
    random = np.random.RandomState(seed)
    labels = samples.labels
    classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub"  # masks and targets are none
    groups = labels if labels is not None and classes else np.zeros(count, np.int64)
    total = min(max(round(count * fraction), 1), count - 1)
    held = np.concatenate(_draw(groups, fraction, total, random))
    chosen = np.zeros(count, bool)
    chosen[held] = True
    return samples.subset(np.flatnonzero(~chosen)), samples.subset(np.flatnonzero(chosen))


def _split_sequences(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """`split`, by sequences of `samples.steps` steps."""
    count, steps = len(samples) // samples.steps, samples.steps
    if count < 2 or not 0 < fraction < 1:
        raise DataError(
            f"{count} sequences cannot be split into two parts; give at least 2, or --val for the other part"
        )
    order = np.random.RandomState(seed).permutation(count)
    held = min(max(round(count * fraction), 1), count - 1)
    parts = []
    for chosen in (order[held:], order[:held]):
        numbers = (np.sort(chosen)[:, None] * steps + np.arange(steps)).ravel()
        labels = None if samples.labels is None else samples.labels[numbers]
        parts.append(Subset(samples, numbers, labels, steps))
    return parts[0], parts[1]


def _draw(groups: np.ndarray, fraction: float, total: int, random: np.random.RandomState) -> list[np.ndarray]:
    """Positions to hold out, one array per group; their lengths add up to `total`."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    shares = np.array([len(m) * fraction for m in members])
    counts = np.floor(shares).astype(int)
    # Largest remainders first; a stable sort keeps ties in the order of the classes.
    order = np.argsort(counts - shares, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return [random.permutation(m)[:k] for m, k in zip(members, counts, strict=True)]


def batches(
    samples: Samples,
    batch_size: int,
    *,
    fixed: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
) -> Iterator[np.ndarray]:
    """Blocks of sample numbers, each sample once; `samples.batch(block)` gives the arrays.

    `fixed` is the batch size of a model that takes no other: then every block has that length, and the last one is
    filled by repeating numbers from the start. So join the outputs and keep the first `len(samples)` rows, or write
    results by number; never count rows.
    """
    size = fixed or batch_size
    if size < 1:
        raise DataError(f"batch size {size} is not positive; give 1 or more")
    order = np.random.default_rng(seed).permutation(len(samples)) if shuffle else np.arange(len(samples))
    for start in range(0, len(order), size):
        block = order[start : start + size]
        if len(block) < size and drop_last:
            return
        if len(block) < size and fixed:
            block = np.concatenate([block, np.resize(order, size - len(block))])
        yield block


def walk(samples: Samples, model: ir.Model, batch_size: int) -> Iterator[tuple[Feeds, np.ndarray]]:
    """(feeds, sample numbers) of all samples in order; a model of fixed batch gets its last one filled up."""
    return ahead(samples, list(batches(samples, batch_size, fixed=fixed_batch(model))))


def ahead(samples: Samples, blocks: Sequence[np.ndarray]) -> Iterator[tuple[Feeds, np.ndarray]]:
    """(feeds, sample numbers) of each block; one thread reads a block ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(samples.batch, block) for block in blocks[:1]]
        for k, block in enumerate(blocks):
            feeds = coming.pop().result()
            if k + 1 < len(blocks):
                coming.append(pool.submit(samples.batch, blocks[k + 1]))
            yield feeds, block
