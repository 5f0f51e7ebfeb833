"""How far two arrays are apart, every position measured against its own size and against its own noise.

What is allowed at a position is derived from the model itself: how far its twin moves there when its inputs and its
weights are moved by a rounding error, times MARGIN, and a small share of the size of that position.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

import numpy as np

TOLERANCE = 1e-4  # of numbers that mask others, and of quantized operators that were written out
FLOOR = 1e-5  # share of its size that every position may differ by
HALF_FLOOR = 2e-3  # the same of models stored in half precision: a weight that a fusion computes is off by 2^-11
TINY = 3e-7  # share of the largest number around it that every position may differ by
MARGIN = 30.0  # times the noise that was seen at a position is allowed there
TYPICAL = 4.0  # times the noise that most positions show is allowed everywhere: some happen not to move
STEP = 1e-3  # of the largest number: what is closer is one level
MASKING, GAP = 1e3, 50.0  # numbers that mask others are at least that large, and that much larger than the others
LEVELS = 3  # a value with fewer (all zero; only zeros and ones) shows little
LOOKED_AT = 20_000  # numbers of an array whose levels are counted


@dataclass(frozen=True)
class Place:
    """The position at which two values differ most, by what is allowed there."""

    difference: float
    size: float
    allowed: float
    noise: float
    place: str = ""

    @property
    def share(self) -> float:
        """The difference divided by the allowed one; above 1 the models differ."""
        if self.difference <= self.allowed:
            return self.difference / self.allowed if self.allowed else 0.0
        return self.difference / self.allowed if self.allowed else np.inf


Arrays = Mapping[str, np.ndarray]  # what a model gives, by the names of its outputs


def is_array(value: object) -> TypeGuard[np.ndarray]:
    """Whether a value of a model is an array, and no sequence or map of some."""
    return isinstance(value, np.ndarray)


class Tally:
    """Sizes, differences and noise of one value, by position of each of its axes but the first, over all batches."""

    def __init__(self, floor: float = FLOOR, grain: float = 0.0) -> None:
        """grain: what numbers may differ by however small they are, see noise.py."""
        self.floor, self.grain = floor, grain
        self.rows, self.exact, self.moves = 0, True, 0.0
        self.by_axis: dict[tuple[int, int, int], np.ndarray] = {}  # (rank, axis, length) -> (3, length)
        self.whole = np.zeros((3, 1))
        self._worst: Place | None = None  # as long as nothing is added

    def add(self, ours: object, theirs: object, noisy: Sequence[object] = ()) -> None:
        """Takes in one batch: what the cut model gave, its twin, and its twin when moved by rounding errors."""
        self._worst = None
        for a, b, others in _parts(ours, theirs, noisy):
            self._add(a, b, others)

    def _add(self, ours: np.ndarray, theirs: np.ndarray, noisy: Sequence[np.ndarray]) -> None:
        """Takes in the numbers of one batch, and other results of the same model, which show its noise."""
        self.rows += theirs.shape[0] if theirs.ndim else 1
        self.exact = self.exact and theirs.dtype.kind in "iubOSU"
        if ours.shape != theirs.shape:
            self.whole[1] = np.inf
            return
        if theirs.size == 0:
            return
        if theirs.dtype.kind in "OSU":
            self.whole[1] = max(self.whole[1, 0], 0.0 if np.array_equal(ours, theirs) else np.inf)
            return
        kind = np.float32 if ours.dtype == theirs.dtype == np.float32 else np.float64
        b = theirs.astype(kind, copy=False)
        size = _sizes(b)
        difference = deviation(ours.astype(kind, copy=False), b)
        moved = [deviation(n.astype(kind, copy=False), b) for n in noisy if n.shape == b.shape]
        noise = np.maximum.reduce(moved) if moved else None
        far = _far(size)
        if far is not None:  # -1e9 beside logits says nothing of these
            off = far & (difference > TOLERANCE * size)
            difference, size = (np.where(far, 0, x) for x in (difference, size))
            noise = None if noise is None else np.where(far, 0, noise)
            difference[off] = np.inf
        found = [_by_axis(x) for x in (size, difference)]
        found.append([np.zeros_like(x) for x in found[0]] if noise is None else _by_axis(noise))
        for axis, largest in enumerate(zip(*found, strict=True)):
            stacked = np.stack(largest).astype(np.float64)
            if axis == 0:
                self.whole = np.maximum(self.whole, stacked.max(axis=1, keepdims=True))
                continue
            key = (b.ndim, axis, b.shape[axis])
            self.by_axis[key] = np.maximum(self.by_axis[key], stacked) if key in self.by_axis else stacked

    def noise_as(self, other: "Tally") -> None:
        """Takes over the noise that was seen where `other` was tallied."""
        self._worst = None
        self.whole[2] = np.maximum(self.whole[2], other.whole[2])
        for key, found in other.by_axis.items():
            if key in self.by_axis:
                self.by_axis[key][2] = np.maximum(self.by_axis[key][2], found[2])

    def worst(self) -> Place:
        """The place that uses most of what is allowed."""
        if self._worst is None:
            self._worst = self._find_worst()
        return self._worst

    def _find_worst(self) -> Place:
        places = [self.of_whole()]
        for (_, axis, _), found in self.by_axis.items():
            places.append(self._worst_of(found, f" of axis {axis}", self.grain))
        return max(places, key=lambda place: place.share)

    def of_whole(self) -> Place:
        """The value as a whole: its largest number, its largest difference."""
        return self._worst_of(self.whole, "", self.grain)

    def part(self, axis: int, start: int, stop: int, grain: float = 0.0) -> Place | None:
        """The same among the positions `start` to `stop` of an axis, which have a grain of their own; None where that
        axis was not seen."""
        places = [
            self._worst_of(found[:, start:stop], f" of axis {axis}", grain, start)
            for (_, k, _), found in self.by_axis.items()
            if k == axis
        ]
        return max(places, key=lambda place: place.share, default=None)

    def _worst_of(self, found: np.ndarray, axis: str, grain: float, start: int = 0) -> Place:
        """The position that uses most of its tolerance; found (3, positions): sizes, differences and noise."""
        size, difference, noise = found
        if self.exact or not size.size:
            allowed = np.zeros_like(size)
        else:
            typical = float(np.quantile(np.nan_to_num(noise, posinf=0.0), 0.25)) if noise.any() else 0.0
            allowed = self.floor * size + MARGIN * noise + TYPICAL * typical + TINY * size.max() + grain
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(difference > 0, difference / allowed, 0.0)
        at = int(np.nanargmax(share)) if share.size else 0
        if not share.size:
            return Place(0.0, 0.0, 0.0, 0.0)
        place = f"position {at + start}{axis}" if axis else ""
        return Place(float(difference[at]), float(size[at]), float(allowed[at]), float(noise[at]), place)


def _sizes(numbers: np.ndarray) -> np.ndarray:
    """|numbers|, 0 where they are not finite."""
    sizes = np.abs(numbers)
    return sizes if np.isfinite(sizes.max()) else np.where(np.isfinite(sizes), sizes, 0)


def _by_axis(numbers: np.ndarray) -> list[np.ndarray]:
    """The largest number at each position of each axis; of a scalar, the scalar as the one position of axis 0."""
    if numbers.ndim < 2:
        return [numbers.reshape(-1)]
    found = [numbers.reshape(len(numbers), -1).max(axis=1)]
    for _ in range(1, numbers.ndim):
        numbers = numbers.max(axis=0)  # what is left to look at shrinks with every axis
        found.append(numbers.reshape(len(numbers), -1).max(axis=1))
    return found


def deviation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|, of one shape; not-a-number and infinities equal themselves only."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(a - b)
    if not np.isfinite(difference.max(initial=0.0)):
        unclear = ~np.isfinite(difference)
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        difference[unclear] = np.where(equal, 0.0, np.inf)[unclear]
    return difference


def _parts(
    ours: object, theirs: object, noisy: Sequence[object]
) -> Iterator[tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]]:
    """Arrays side by side; sequences and maps are taken apart."""
    if any(isinstance(value, (dict, list, tuple)) for value in (ours, theirs)):
        left, right = _listed(ours), _listed(theirs)
        if len(left) != len(right):
            yield np.zeros(0), np.zeros(1), ()
            return
        others = [_listed(n) for n in noisy if len(_listed(n)) == len(right)]
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _parts(a, b, [n[k] for n in others])
        return
    yield np.asarray(ours), np.asarray(theirs), [np.asarray(n) for n in noisy]


def _listed(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return list(cast("Sequence[object]", value)) if isinstance(value, (list, tuple)) else [value]


def _far(sizes: np.ndarray) -> np.ndarray | None:
    """Where the numbers stand that are far larger than all others, by a gap; None where there are none."""
    if not sizes.max(initial=0.0) >= MASKING:
        return None
    ordered = np.unique(sizes)
    gaps = np.flatnonzero((ordered[1:] >= MASKING) & (ordered[1:] > GAP * ordered[:-1]))
    return sizes >= ordered[gaps[0] + 1] if len(gaps) and ordered[gaps[0]] > 0 else None


def telling(arrays: Sequence[object]) -> bool:
    """Whether the numbers of one value vary enough for an error in front of it to be seen.

    Decisions (classes, indices) and saturated numbers hide small errors; no numbers, or one and the same, hide all.
    """
    found = [_some(array) for array in arrays if is_array(array) and array.dtype.kind == "f"]
    numbers: np.ndarray = np.concatenate([*found, np.zeros(0)])
    largest = np.abs(numbers).max(initial=0.0)
    return largest > 0 and len(np.unique(np.rint(numbers / (largest * STEP)))) >= LEVELS


def _some(array: np.ndarray) -> np.ndarray:
    some = array.ravel()[:: max(1, array.size // LOOKED_AT)].astype(np.float64)
    return some[np.isfinite(some)]
