"""The front as a table and as a picture: what is left of quality at each size."""

from collections.abc import Sequence

from onnxprune.measure.records import FrontPoint, Report
from onnxprune.report import text

MEASURED, PREDICTED = "measured", "predicted"


def header(points: Sequence[FrontPoint]) -> list[str]:
    """Titles of the columns; those of latency and of quantized files where there are any."""
    metric = text.metric(points[0].metric)
    return [
        "MACs",
        "parameters",
        *(["latency"] if _timed(points) else []),
        f"{metric}, quick recovery",
        "full recovery",
        *(["quantized", "its file"] if _rounded(points) else []),
        "",
        "plan",
    ]


def lines(points: Sequence[FrontPoint]) -> list[list[str]]:
    """A line per size, from large to small; the result's is marked."""
    timed, rounded = _timed(points), _rounded(points)
    return [
        [
            text.times(point.macs),
            text.times(point.params),
            *([text.times(point.latency)] if timed else []),
            text.of_metric(point.metric, point.quick),
            text.of_metric(point.metric, point.value),
            *([_quantized(point), text.times(point.bytes)] if rounded else []),
            f"{MEASURED if point.measured else PREDICTED}{', the result' if point.chosen else ''}",
            point.plan or text.DASH,
        ]
        for point in points
    ]


def table(report: Report) -> str:
    """The front for a terminal, empty where there is none."""
    if not report.front:
        return ""
    return text.columns([header(report.front), *lines(report.front)])


def _timed(points: Sequence[FrontPoint]) -> bool:
    return any(point.latency is not None for point in points)


def _rounded(points: Sequence[FrontPoint]) -> bool:
    return any(point.quantized is not None for point in points)


def _quantized(point: FrontPoint) -> str:
    return text.DASH if point.quantized is None else text.of_metric(point.metric, point.quantized)
