"""Accuracy against what remains, one panel per cost, as an SVG file of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from onnxprune.outputs.metrics import LOWER_IS_BETTER
from onnxprune.report.charts import ticks
from onnxprune.studies.compare.summary import Line

PANELS = {"macs": "MACs", "params": "parameters", "nonzeros": "non-zero weights"}
INKS = ("#0b7a75", "#b7791f", "#5c7391", "#b3261e", "#6a4fb3", "#17202b", "#2f7d32", "#c2185b", "#0277bd", "#795548")
MARKS = ("circle", "square", "diamond", "triangle")
WIDTH, HEIGHT, LEFT, GAP, TOP = 390, 300, 56, 24, 40
LEGEND_COLUMNS, LEGEND_ROW = 4, 20
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#17202b}.soft{fill:#5a6675}.grid{stroke:#dde3ea}"
    ".original{stroke:#5a6675;stroke-dasharray:5 4}polyline{fill:none;stroke-width:1.5;opacity:.6}"
)


@dataclass(frozen=True)
class Frame:
    """A panel on the picture: its corner, and the numbers at its ends."""

    left: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across, up = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * WIDTH, TOP + (1 - up) * HEIGHT


def image(head: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """One point per line of the table with its 95 % interval; points of one method are joined."""
    shown = [line for line in lines if line.accuracy is not None]
    methods = list(dict.fromkeys(line.method for line in sorted(shown, key=lambda line: line.method)))
    looks = {m: (INKS[k % len(INKS)], MARKS[k // len(INKS) + k % 2]) for k, m in enumerate(methods)}
    found = head["original"]["accuracy"]
    y = _range([v for line in shown for v in line.interval95 or ()] + ([found["value"]] if found else []))
    parts = []
    for number, (cost, title) in enumerate(PANELS.items()):
        costs = [value for line in shown if (value := line.shares[cost]) is not None]
        frame = Frame(LEFT + number * (WIDTH + GAP + LEFT), (0.0, max([1.0, *costs])), y)
        percent = not shown or shown[0].metric not in LOWER_IS_BETTER
        parts += _axes(frame, f"{title}, share of the original", percent)
        parts += _original(frame, found) if found else []
        for method in methods:
            parts += _series(frame, [line for line in shown if line.method == method], cost, looks[method])
    rows = -(-len(methods) // LEGEND_COLUMNS)
    width, below = len(PANELS) * (WIDTH + GAP + LEFT), TOP + HEIGHT + 60
    parts += _legend(looks, width, below)
    height = below + rows * LEGEND_ROW
    title = f"{escape(head['model']['name'])}: accuracy of {len(methods)} methods, bars are 95 % intervals"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img"><title>{title}</title><style>{STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="22" font-weight="600">{title}</text>{"".join(parts)}</svg>\n'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _axes(frame: Frame, title: str, percent: bool) -> Iterator[str]:
    bottom, right = TOP + HEIGHT, frame.left + WIDTH
    for value in ticks(*frame.y):
        _, y = frame.at(0, value)
        yield f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        label = f"{100 * value:.4g} %" if percent else f"{value:.3g}"
        yield f'<text class="soft" x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for value in ticks(*frame.x):
        x, _ = frame.at(value, 0)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>'
    yield f'<text x="{frame.left + WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">{title}</text>'


def _original(frame: Frame, found: Mapping[str, Any]) -> Iterator[str]:
    _, y = frame.at(0, found["value"])
    told = f"the original: {100 * found['value']:.2f} %"
    yield f'<line class="original" x1="{frame.left}" x2="{frame.left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}">'
    yield f"<title>{told}</title></line>"


def _series(frame: Frame, lines: Sequence[Line], cost: str, look: tuple[str, str]) -> Iterator[str]:
    ink, mark = look
    known = [(share, line) for line in lines if (share := line.shares[cost]) is not None]
    known.sort(key=lambda pair: pair[0])
    points = [frame.at(share, line.accuracy or 0.0) for share, line in known]
    if len(points) > 1:
        yield f'<polyline stroke="{ink}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
    for (share, line), (x, y) in zip(known, points, strict=True):
        low, high = (frame.at(share, value)[1] for value in line.interval95 or (0.0, 0.0))
        told = f"{escape(line.method)} at {escape(line.target)}: {line.accuracy:.4f}, {share:.3f} of the {cost}"
        yield f"<g><title>{told}</title>"
        yield f'<line stroke="{ink}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>{_mark(x, y, ink, mark)}'
        yield "</g>"


def _mark(x: float, y: float, ink: str, mark: str) -> str:
    if mark == "circle":
        return f'<circle fill="{ink}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
        "triangle": ((0, -5), (5, 4), (-5, 4)),
    }[mark]
    return f'<polygon fill="{ink}" points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}"/>'


def _legend(looks: Mapping[str, tuple[str, str]], width: int, top: int) -> Iterator[str]:
    for number, (method, (ink, mark)) in enumerate(looks.items()):
        x = LEFT + number % LEGEND_COLUMNS * (width - LEFT) / LEGEND_COLUMNS
        y = top + number // LEGEND_COLUMNS * LEGEND_ROW
        yield f'{_mark(x, y, ink, mark)}<text x="{x + 12:.1f}" y="{y + 4}">{escape(method)}</text>'
