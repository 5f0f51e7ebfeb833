"""Sensitivity curves as a table: a line per dimension, a column per fraction removed."""

from collections.abc import Sequence

from onnxprune.measure.records import SensitivityCurve
from onnxprune.outputs.metrics import LOWER_IS_BETTER
from onnxprune.report import text

MOST_FRACTIONS = 5  # columns


def fractions_of(curves: Sequence[SensitivityCurve]) -> list[float]:
    """The fractions removed that the curves share best: the first of those of the curve with the most points."""
    longest = max(curves, key=lambda curve: len(curve.removed), default=None)
    return [f for f in longest.removed if f > 0][:MOST_FRACTIONS] if longest else []


def header(fractions: Sequence[float]) -> list[str]:
    """Titles of the columns."""
    return ["removed", *(f"{100 * f:.0f} %" for f in fractions)]


def lines(curves: Sequence[SensitivityCurve], fractions: Sequence[float]) -> list[list[str]]:
    """The dimension's name and the metric at each of `fractions`."""
    return [[curve.dim, *(_written(curve, f) for f in fractions)] for curve in curves]


def value_at(curve: SensitivityCurve, fraction: float) -> float:
    """The metric at the point measured nearest to `fraction`: whole units are removed, so half a unit off."""
    nearest = min(range(len(curve.removed)), key=lambda k: abs(curve.removed[k] - fraction))
    return curve.value[nearest]


def _written(curve: SensitivityCurve, fraction: float) -> str:
    value = value_at(curve, fraction)
    return text.digits(value) if curve.metric in LOWER_IS_BETTER else f"{100 * value:.2f} %"
