"""Pictures of points lost against cost: a column for each network, a row for each cost. Up and left is better."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

SIDE, GAP, LEFT, TOP, LEGEND = 170, 34, 44, 34, 140
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#17202b}.soft{fill:#5a6675}.grid{stroke:#dde3ea}"
    "polyline{fill:none;stroke-width:1.5;opacity:.6}"
)


class Dot(NamedTuple):
    """A point of a series: its network, what it costs as shares of the original's by name, points lost.

    solid: drawn full, hollow otherwise.
    """

    network: str
    series: str
    costs: Mapping[str, float | None]
    lost: float
    solid: bool = True


class Look(NamedTuple):
    """inks: color by series, in the order of the legend. levels: points lost that have a line, the last is the edge."""

    inks: Mapping[str, str]
    costs: Sequence[str]
    levels: Sequence[float]


def picture(dots: Sequence[Dot], look: Look) -> str:
    """An SVG; what lost more than the last level is not drawn."""
    networks = list(dict.fromkeys(dot.network for dot in dots))
    width = LEFT + max(len(networks) * (SIDE + GAP), LEGEND * len(look.inks))
    height = TOP + len(look.costs) * (SIDE + GAP) + 24
    parts = [part for column, name in enumerate(networks) for part in _column(column, name, dots, look)]
    legend = [
        f'<text x="{LEFT + LEGEND * k}" y="{height - 6}" style="fill:{ink}">● {series}</text>'
        for k, (series, ink) in enumerate(look.inks.items())
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, *parts, *legend, "</svg>", ""])


def _column(column: int, name: str, dots: Sequence[Dot], look: Look) -> Iterator[str]:
    left = LEFT + column * (SIDE + GAP)
    yield f'<text x="{left}" y="{TOP - 14}">{name}</text>'
    for row, cost in enumerate(look.costs):
        top = TOP + row * (SIDE + GAP)
        yield f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" class="grid"/>'
        for lost in look.levels:
            y = _y(top, lost, look)
            yield f'<line class="grid" x1="{left}" x2="{left + SIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
            if not column:
                yield f'<text class="soft" x="{left - 20}" y="{y + 4:.1f}">{lost:g}</text>'
        yield f'<text class="soft" x="{left}" y="{top + SIDE + 14}">0</text>'
        yield f'<text class="soft" x="{left + SIDE}" y="{top + SIDE + 14}" text-anchor="end">{cost} 1.0</text>'
        for series, ink in look.inks.items():
            own = [dot for dot in dots if (dot.network, dot.series) == (name, series) and dot.lost <= look.levels[-1]]
            yield from _series(left, top, cost, own, ink, look)


def _series(left: float, top: float, cost: str, dots: Sequence[Dot], ink: str, look: Look) -> Iterator[str]:
    shares = sorted((share, dot.lost, dot.solid) for dot in dots if (share := dot.costs.get(cost)) is not None)
    places = [(left + min(share, 1.05) * SIDE, _y(top, lost, look), solid) for share, lost, solid in shares]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    yield f'<polyline points="{joined}" stroke="{ink}"/>'
    for x, y, solid in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" stroke="{ink}" fill="{ink if solid else "#fff"}"/>'


def _y(top: float, lost: float, look: Look) -> float:
    above = look.levels[-1] / 24  # room for what is better than the original
    return top + SIDE * (max(lost, -above) + above) / (look.levels[-1] + above)
