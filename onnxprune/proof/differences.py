"""How far two arrays are apart, and whether an array can show that at all."""

from collections.abc import Iterable, Sequence

import numpy as np

TOLERANCE = 1e-4  # of the largest masked number, as |cut - mask| <= TOLERANCE * max|mask|
HALF_TOLERANCE = 2e-3  # of models stored in half precision: a weight that a fusion computes is rounded by up to 2^-11
STEP = 1e-3  # of the largest number: what is closer is one level
MASKING, GAP = 1e3, 50.0  # numbers that mask others are at least that large, and that much larger than the others
LEVELS = 3  # an output with fewer (all zero; only zeros and ones) shows little
LOOKED_AT = 100_000  # numbers of an array whose levels are counted


class Worst:
    """The largest difference seen, relative to the largest number of its output."""

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self.tolerance = tolerance
        self.max_abs, self.scale, self.ratio, self.name, self.ok = 0.0, 0.0, -1.0, "", True

    def add(self, name: str, cut: object, masked: object) -> None:
        difference, scale = difference_of(cut, masked)
        ratio = difference / scale if scale else (np.inf if difference else 0.0)
        if ratio > self.ratio:
            self.max_abs, self.scale, self.ratio, self.name = difference, scale, ratio, name
        self.ok = self.ok and ratio <= self.tolerance


def difference_of(a: object, b: object) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value of b); not-a-number equals itself."""
    if isinstance(b, (list, tuple, dict)) or isinstance(a, (list, tuple, dict)):
        return _difference_of_parts(a, b)
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return float("inf"), 1.0
    if x.size == 0:
        return 0.0, 1.0
    if y.dtype.kind not in "fiub":
        return (0.0 if np.array_equal(x, y) else float("inf")), 1.0
    x, y = x.astype(np.float64), y.astype(np.float64)
    equal = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        difference = np.where(equal, 0.0, np.abs(x - y))
    difference = np.where(np.isnan(difference), np.inf, difference)
    finite = np.abs(y[np.isfinite(y)])
    return float(difference.max()), float(finite.max()) if finite.size else 1.0


def _difference_of_parts(a: object, b: object) -> tuple[float, float]:
    def parts(x: object) -> Sequence[object]:
        if isinstance(x, dict):
            return list(x.values())
        return list(x) if isinstance(x, (list, tuple)) else [x]

    left, right = parts(a), parts(b)
    if len(left) != len(right):
        return float("inf"), 1.0
    pairs = [difference_of(x, y) for x, y in zip(left, right, strict=True)]
    return max((d for d, _ in pairs), default=0.0), max((s for _, s in pairs), default=1.0)


def same(cut: np.ndarray, masked: np.ndarray) -> bool:
    """Whether they are equal within the tolerance; numbers that mask others (-1e9) are measured by themselves."""
    far = _far(masked) if np.shape(cut) == np.shape(masked) else None
    parts = [(cut, masked)] if far is None else [(cut[far], masked[far]), (cut[~far], masked[~far])]
    return all(difference <= TOLERANCE * scale for difference, scale in (difference_of(*part) for part in parts))


def _far(array: np.ndarray) -> np.ndarray | None:
    """Where the numbers stand that are far larger than all others, by a gap; None where there are none."""
    sizes = np.abs(array.astype(np.float64)) if array.dtype.kind == "f" else np.zeros(0)
    if not sizes.max(initial=0.0, where=np.isfinite(sizes)) >= MASKING:
        return None
    ordered = np.unique(sizes[np.isfinite(sizes)])
    gaps = np.flatnonzero((ordered[1:] >= MASKING) & (ordered[1:] > GAP * ordered[:-1]))
    return sizes >= ordered[gaps[0] + 1] if len(gaps) and ordered[gaps[0]] > 0 else None


def telling(arrays: Iterable[object]) -> bool:
    """Whether the numbers of one value vary enough for an error in front of it to be seen.

    Decisions (classes, indices) and saturated numbers hide small errors; no numbers, or one and the same, hide all.
    """
    found = [_some(array) for array in arrays if isinstance(array, np.ndarray) and array.dtype.kind == "f"]
    numbers = np.concatenate([*found, np.zeros(0)])
    largest = np.abs(numbers).max(initial=0.0)
    return largest > 0 and len(np.unique(np.round(numbers / (largest * STEP)))) >= LEVELS


def _some(array: np.ndarray) -> np.ndarray:
    some = array.ravel()[:: max(1, array.size // LOOKED_AT)].astype(np.float64)
    return some[np.isfinite(some)]
