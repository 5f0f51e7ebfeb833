"""Runs that differ by their seed only, as one line with a 95 % interval.

Two things make a measured accuracy uncertain, and both are told: chance in the method (other seeds), and chance in
which samples were held out. All runs share these samples, so that more seeds do not make the second smaller.

    seeds     mean +- t(n - 1) s / sqrt(n), Student's t over n seeds; unknown for one seed
    samples   Wilson's interval of a proportion on N samples, of the single runs, averaged
    together  the square roots of the sums of squares of both half-widths, below and above (MOVER)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from onnxprune.outputs.metrics import LOWER_IS_BETTER

Interval = tuple[float, float]
COSTS = ("macs", "nonzero_macs", "params", "nonzeros", "bytes", "latency", "seconds")


@dataclass(frozen=True)
class Line:
    """Means over the seeds at which a method met a budget; `failed` are the reasons of seeds at which it did not."""

    method: str
    target: str
    seeds: tuple[int, ...]
    failed: tuple[str, ...]
    metric: str | None = None
    accuracy: float | None = None
    samples: int | None = None
    interval95: Interval | None = None
    seeds95: Interval | None = None
    samples95: Interval | None = None
    cut: float | None = None
    shares: Mapping[str, float | None] = field(default_factory=dict)


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line per method and budget; budgets in order of their name, methods best first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["method"]), []).append(row)
    lines = [_line(method, target, found) for (target, method), found in groups.items()]
    return sorted(lines, key=lambda line: (line.target, line.accuracy is None, -(line.accuracy or 0), line.method))


def _line(method: str, target: str, rows: Sequence[Mapping[str, Any]]) -> Line:
    good = sorted((row for row in rows if not row.get("error")), key=lambda row: row["seed"])
    failed = tuple(str(row["error"]) for row in rows if row.get("error"))
    shares = {name: _mean([row.get(name) for row in good]) for name in COSTS}
    line = Line(method, target, tuple(row["seed"] for row in good), failed, shares=shares)
    measured = [row["accuracy"] for row in good if row.get("accuracy")]
    if not measured:
        return line
    values = [found["value"] for found in measured]
    mean = fmean(values)
    below = fmean(found["value"] - found["interval95"][0] for found in measured)
    above = fmean(found["interval95"][1] - found["value"] for found in measured)
    half = seeds_half_width(values)
    known = measured[0]["metric"] not in LOWER_IS_BETTER

    def around(low: float, high: float) -> Interval:
        return max(0.0, mean - low), min(1.0, mean + high) if known else mean + high

    return replace(
        line,
        metric=measured[0]["metric"],
        accuracy=mean,
        samples=measured[0]["samples"],
        interval95=around(sqrt(below**2 + (half or 0) ** 2), sqrt(above**2 + (half or 0) ** 2)),
        seeds95=None if half is None else around(half, half),
        samples95=around(below, above),
        cut=_mean([row.get("cut") for row in good]),
    )


def seeds_half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean of `values`, one per seed; None for a single one."""
    count = len(values)
    return float(stdtrit(count - 1, 0.975)) * stdev(values) / sqrt(count) if count > 1 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
