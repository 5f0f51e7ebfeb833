"""What is lost at each size of a model, from a few measurements of a dear recovery and more of a cheap one.

    cheap(s)   points lost at share s of the MACs after a quick recovery, measured at many sizes
    full(s)    the same after the full recovery, measured at a few

    full(s) + E = (cheap(s) + E) exp(r(s)),    r: a straight line between the sizes at which both are known

A smaller model loses no less: where the noise of few samples says otherwise, neighbors are averaged until it does
not (pool adjacent violators; Barlow et al., Statistical Inference under Order Restrictions, 1972).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 0.3  # E, in points: below it ratios of losses are noise
STEPS = 400  # of the grid on which a size is looked for
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Points lost by share of the MACs; the original, share 1, loses nothing."""

    cheap: Points
    full: Points = ()

    def lost(self, share: float) -> float:
        """Points that the full recovery is expected to lose at `share`."""
        quick = self._quick(share) + LEAST
        if not self.full:
            return quick - LEAST
        known = sorted(self.full)
        ratios = [np.log((max(lost, 0.0) + LEAST) / (self._quick(at) + LEAST)) for at, lost in known]
        return max(0.0, float(quick * np.exp(np.interp(share, [at for at, _ in known], ratios))) - LEAST)

    def smallest(self, allowed: float, low: float, high: float) -> float | None:
        """The smallest share from which on, up to `high`, at most `allowed` points are lost; None where `high` is
        too small."""
        found = None
        for share in np.linspace(high, low, STEPS):
            if self.lost(float(share)) > allowed:
                break
            found = float(share)
        return found

    def _quick(self, share: float) -> float:
        """The losses after the quick recovery, made monotone, between the sizes that were measured."""
        known = sorted({**dict(self.cheap), 1.0: 0.0}.items())
        losses = falling([max(lost, 0.0) for _, lost in known])
        return float(np.interp(share, [at for at, _ in known], losses))


def falling(values: Sequence[float]) -> list[float]:
    """The values nearest to `values` (N,), in squares, that never rise."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] < mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def knee(points: Points) -> int:
    """The number of the point (share, points lost) at which most is saved for what is lost.

    Both axes are stretched to 0..1 between the original and the smallest; the knee lies farthest above the straight
    line between these two (Satopaa et al., Finding a Kneedle in a Haystack, 2011).
    """
    shares, losses = (np.array(column, np.float64) for column in zip(*points, strict=True))
    saved = (1 - shares) / max(1 - shares.min(), 1e-9)
    lost = losses / max(losses.max(), 1e-9)
    return int(np.argmax(saved - lost))
