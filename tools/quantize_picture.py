"""The picture of tools/quantize_study.py: points lost against size and latency, in floats and quantized."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

SIDE, GAP, LEFT, TOP = 170, 34, 44, 34
MOST = 12.0  # points lost at the lower edge; what lost more is not drawn
INKS = {"floats": "#5c7391", "int8": "#b3261e"}
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#17202b}.soft{fill:#5a6675}.grid{stroke:#dde3ea}"
    "polyline{fill:none;stroke-width:1.5;opacity:.6}"
)


class Dot(NamedTuple):
    """A file: its network, how it is stored, shares of the original's size and latency, points lost."""

    network: str
    form: str
    size: float
    latency: float | None
    lost: float


def picture(dots: Sequence[Dot]) -> str:
    """A column per network, a row for size and one for latency; up is better, left is better."""
    networks = list(dict.fromkeys(dot.network for dot in dots))
    width, height = LEFT + len(networks) * (SIDE + GAP), TOP + 2 * (SIDE + GAP) + 24
    parts = [part for column, name in enumerate(networks) for part in _column(column, name, dots)]
    legend = [
        f'<text x="{LEFT + 90 * k}" y="{height - 6}" style="fill:{ink}">● {form}</text>'
        for k, (form, ink) in enumerate(INKS.items())
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, *parts, *legend, "</svg>", ""])


def _column(column: int, name: str, dots: Sequence[Dot]) -> Iterator[str]:
    left = LEFT + column * (SIDE + GAP)
    yield f'<text x="{left}" y="{TOP - 14}">{name}</text>'
    for row, key in enumerate(("size", "latency")):
        top = TOP + row * (SIDE + GAP)
        yield f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" class="grid"/>'
        for lost in (0, 1, 4, 8, 12):
            y = _y(top, lost)
            yield f'<line class="grid" x1="{left}" x2="{left + SIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
            if not column:
                yield f'<text class="soft" x="{left - 20}" y="{y + 4:.1f}">{lost}</text>'
        yield f'<text class="soft" x="{left}" y="{top + SIDE + 14}">0</text>'
        yield f'<text class="soft" x="{left + SIDE - 50}" y="{top + SIDE + 14}">{key} 1.0</text>'
        for form, ink in INKS.items():
            own = [dot._asdict() for dot in dots if (dot.network, dot.form) == (name, form) and dot.lost <= MOST]
            yield from _series(left, top, [(d[key], d["lost"]) for d in own if d[key] is not None], ink)


def _series(left: float, top: float, points: Sequence[tuple[float, float]], ink: str) -> Iterator[str]:
    places = [(left + min(share, 1.05) * SIDE, _y(top, lost)) for share, lost in sorted(points)]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{joined}" stroke="{ink}"/>'
    for x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{ink}"/>'


def _y(top: float, lost: float) -> float:
    return top + SIDE * (max(lost, -0.5) + 0.5) / (MOST + 0.5)


def dots_of(name: str, models: Mapping[str, dict], lost: Mapping[str, float]) -> Iterator[Dot]:
    """The float and the quantized file of one run."""
    for kind, form in (("pruned", "floats"), ("quantized", "int8")):
        ratios = models[kind]["ratios"]
        latency = ratios["latency"][0]["median"] if ratios["latency"] else None
        yield Dot(name, form, ratios["bytes"], latency, lost[kind])
