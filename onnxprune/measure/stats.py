"""Quantiles and intervals of measured times. Legend: R rounds, B resamples."""

import numpy as np

RESAMPLES = 1000


def quantiles(values: np.ndarray, *points: float) -> tuple[float, ...]:
    """The quantiles of `values` (R,) at `points` in 0 to 1, linearly interpolated."""
    return tuple(float(q) for q in np.quantile(values, points))


def median_interval(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % bootstrap interval of the median of `values` (R,), which stand in the order of their measurement.

    Blocks of neighbors are drawn, not single values (Künsch, Annals of Statistics 1989, with blocks around a circle):
    a burst of noise spoils several rounds in a row, and single draws would call that many independent proofs.
    """
    count = len(values)
    block = max(1, round(count ** (1 / 3)))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, count, (resamples, -(-count // block)))
    medians = [_block_median(values, row, block, count) for row in starts]
    low, high = quantiles(np.asarray(medians), 0.025, 0.975)
    return low, high


def _block_median(values: np.ndarray, starts: np.ndarray, block: int, count: int) -> float:
    positions = (starts[:, None] + np.arange(block)).ravel()[:count] % count
    return float(np.median(values[positions]))


def thin(values: np.ndarray, most: int = 200) -> tuple[float, ...]:
    """At most `most` of `values` at equal distances, in order: enough to draw a distribution."""
    picks = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return tuple(float(v) for v in values[picks])
