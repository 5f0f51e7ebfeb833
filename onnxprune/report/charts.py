"""Pictures of a report as inline SVG. x stands in percent of the page's width, so text never shrinks on a phone.

Every function gives Markup: numbers are formatted here, and names are escaped.
"""

from collections.abc import Sequence
from math import floor, log10

from markupsafe import Markup, escape

from onnxprune.measure.records import Latency, Layer

Points = Sequence[tuple[float, float]]
ROW = 34  # pixels of a box or an interval


def svg(height: int, *parts: str, label: str = "", cls: str = "") -> Markup:
    """An image as wide as its place and `height` pixels high; `label` is for those who cannot see it."""
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(f'<svg class="{cls}" width="100%" height="{height}" {role}>{"".join(parts)}</svg>')


def bar(before: float, after: float, most: float, label: str = "") -> Markup:
    """The value before, pale, and in front of it the value after; `most` fills the width."""
    pale = _rect(0, before / most, 3, 18, "before") if most else ""
    strong = _rect(0, after / most, 7, 10, "after") if most else ""
    return svg(24, '<rect class="track" x="0" y="3" width="100%" height="18" rx="3"/>', pale, strong, label=label)


def single_bar(value: float, most: float) -> Markup:
    """One bar; `most` fills the width."""
    return svg(16, _rect(0, value / most if most else 0, 3, 10, "after"))


def interval(low: float, value: float, high: float, scale: tuple[float, float], cls: str) -> Markup:
    """A value with its interval on a scale from scale[0] to scale[1]."""
    left, at, right = (_percent(v, scale) for v in (low, value, high))
    y = ROW // 2
    whisker = f'<line class="{cls} whisker" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
    ends = "".join(f'<line class="{cls} whisker" x1="{x}" x2="{x}" y1="{y - 6}" y2="{y + 6}"/>' for x in (left, right))
    return svg(ROW, _grid(scale, ROW), whisker, ends, f'<circle class="{cls} dot" cx="{at}" cy="{y}" r="5"/>')


def box(latency: Latency, scale: tuple[float, float], cls: str) -> Markup:
    """Every kept time as a point, the quartiles as a box, the median as its line, the 99th percentile as whisker."""
    q1, median, q3 = (_percent(v, scale) for v in (latency.q1_ms, latency.median_ms, latency.q3_ms))
    width = f"{100 * (latency.q3_ms - latency.q1_ms) / (scale[1] - scale[0]):.3f}%"
    low = _percent(latency.min_ms if latency.min_ms is not None else latency.q1_ms, scale)
    high = _percent(min(latency.p99_ms if latency.p99_ms is not None else latency.q3_ms, scale[1]), scale)
    y, half = ROW // 2, 8
    return svg(
        ROW,
        _grid(scale, ROW),
        *_strip(latency.samples_ms, scale, cls),
        f'<line class="{cls} whisker" x1="{low}" x2="{q1}" y1="{y}" y2="{y}"/>',
        f'<line class="{cls} whisker" x1="{q3}" x2="{high}" y1="{y}" y2="{y}"/>',
        f'<rect class="{cls} box" x="{q1}" y="{y - half}" width="{width}" height="{2 * half}" rx="2"/>',
        f'<line class="{cls} median" x1="{median}" x2="{median}" y1="{y - half - 2}" y2="{y + half + 2}"/>',
    )


def _strip(times: Sequence[float], scale: tuple[float, float], cls: str) -> list[str]:
    # Golden-ratio steps spread neighbors over the height without chance.
    inside = [(k, t) for k, t in enumerate(times) if scale[0] <= t <= scale[1]]
    return [
        f'<circle class="{cls} point" cx="{_percent(t, scale)}" cy="{5 + (k * 0.618 % 1) * (ROW - 10):.1f}" r="1.6"/>'
        for k, t in inside
    ]


def columns(layers: Sequence[Layer], height: int = 150) -> Markup:
    """One column per layer in the order of the graph: width before, pale, and after, in front of it."""
    most = max((max(layer.widths) for layer in layers), default=1)
    step = 100 / max(1, len(layers))
    parts = [_column(k * step, step, layer, most, height) for k, layer in enumerate(layers)]
    return svg(height, *parts, label=f"output channels of {len(layers)} layers before and after", cls="columns")


def _column(x: float, step: float, layer: Layer, most: int, height: int) -> str:
    before, after = layer.widths
    rects = [
        f'<rect class="{cls}" x="{x + step * (0.08 + inset):.3f}%" width="{step * (0.84 - 2 * inset):.3f}%" '
        f'y="{height - tall:.1f}" height="{tall:.1f}"/>'
        for cls, inset, tall in (("before", 0, height * before / most), ("after", 0.12, height * after / most))
    ]
    return f"<g><title>{escape(layer.node)} ({escape(layer.op)}): {before} to {after}</title>{''.join(rects)}</g>"


def curves(
    series: Sequence[tuple[str, Points]], x: tuple[float, float], y: tuple[float, float], height: int = 140
) -> Markup:
    """Lines (class, points) in a frame; the line's width does not stretch with the picture."""
    lines = "".join(_polyline(cls, points, x, y) for cls, points in series)
    inner = f'<svg width="100%" height="{height}" viewBox="0 0 100 100" preserveAspectRatio="none">{lines}</svg>'
    dots = "".join(
        f'<circle class="{cls} dot" cx="{_percent(a, x)}" cy="{height * (1 - _part(b, y)):.1f}" r="2.5"/>'
        for cls, points in series
        for a, b in points
        if len(points) <= 40
    )
    levels = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{height * k / 4:.1f}" y2="{height * k / 4:.1f}"/>' for k in range(5)
    )
    return svg(height, levels, inner, dots, cls="curves")


def _polyline(cls: str, points: Points, x: tuple[float, float], y: tuple[float, float]) -> str:
    path = " ".join(f"{100 * _part(a, x):.3f},{100 * (1 - _part(b, y)):.3f}" for a, b in points)
    return f'<polyline class="{cls} line" points="{path}" vector-effect="non-scaling-stroke"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** floor(log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = -int(-low // step)
    found = [step * k for k in range(first, first + 12) if low - 1e-9 <= step * k <= high + step * 1e-9]
    return found or [low]


def scale_line(scale: tuple[float, float], labels: Sequence[tuple[float, str]]) -> Markup:
    """The numbers under rows of boxes or intervals."""
    parts = [
        f'<text class="tick" x="{_percent(at, scale)}" y="12" text-anchor="{_anchor(at, scale)}">{escape(label)}</text>'
        for at, label in labels
    ]
    return svg(16, *parts)


def _anchor(at: float, scale: tuple[float, float]) -> str:
    part = _part(at, scale)
    return "start" if part < 0.04 else "end" if part > 0.96 else "middle"


def _grid(scale: tuple[float, float], height: int) -> str:
    return "".join(
        f'<line class="grid" x1="{_percent(at, scale)}" x2="{_percent(at, scale)}" y1="0" y2="{height}"/>'
        for at in ticks(*scale)
    )


def _rect(x: float, width: float, y: int, height: int, cls: str) -> str:
    return f'<rect class="{cls}" x="{100 * x:.3f}%" y="{y}" width="{100 * width:.3f}%" height="{height}" rx="2"/>'


def _percent(value: float, scale: tuple[float, float]) -> str:
    return f"{100 * _part(value, scale):.3f}%"


def _part(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5
