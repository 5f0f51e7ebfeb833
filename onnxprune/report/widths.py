"""The widths of a graph as a picture: a bar per layer in the order of the graph, free, reduced or frozen.

It is drawn from what `onnxprune inspect --json` gives, into a page of its own (.html) or an image (.svg).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from onnxprune.coupling import Coupling, dims
from onnxprune.coupling.layers import layer_of
from onnxprune.report import charts
from onnxprune.report.write import check_suffix
from onnxprune.system.atomic_files import replace_text

SUFFIXES = (".html", ".svg")
STATES = {
    "free": "can shrink, exactly",
    "reduced": "can shrink, but changes statistics",
    "frozen": "must stay",
}
COLORS = {"free": "#0b7a75", "reduced": "#b7791f", "frozen": "#9fb0c6"}  # of the image, which has no dark form
IMAGE = (1200, 300)  # pixels


@dataclass(frozen=True)
class Bar:
    """One layer: its output channels, whether they can shrink, and why or why not."""

    node: str
    op: str
    width: int
    state: str
    why: str

    @property
    def told(self) -> str:
        """The text that is shown when the pointer is over a bar."""
        return f"{self.node} ({self.op}): {self.width} channels, {STATES[self.state]}. {self.why}".strip()


def outputs(coupling: Coupling) -> dict[str, dict[str, Any]]:
    """By node: the `width` of its output's channels, and what they are made of: `output`, a list of dimensions."""
    found = {}
    for node in coupling.model.graph:
        axes = coupling.axes.get(node.outputs[0].name or "") if node.outputs else None
        if axes:
            layer = layer_of(node)
            usual = 1 if "Conv" in node.op_type and len(axes) > 1 else -1
            axis = axes[usual if layer is None else layer.y_axis]
            parts = [_part(dim) for dim in dict.fromkeys(dims.leaves(axis)) if dim.size > 1]
            found[node.name or ""] = {"width": dims.length(axis), "output": parts}
    return found


def _part(dim: dims.Dim) -> dict[str, Any]:
    state = "frozen" if dim.frozen else "reduced" if dim.reduced else "free"
    why = dim.frozen or dim.reduced
    return {"dim": dim.name, "size": dim.size, "state": state, "why": str(why) if why is not None else ""}


def bars(found: Mapping[str, Any]) -> tuple[Bar, ...]:
    """The layers of an inspection that say how wide they are."""
    return tuple(_bar(layer) for layer in found["layers"] if layer.get("output"))


def _bar(layer: Mapping[str, Any]) -> Bar:
    parts = layer["output"]
    states = [part["state"] for part in parts]
    state = next((s for s in ("free", "reduced") if s in states), "frozen")
    told = dict.fromkeys(f"{p['dim']} [{p['size']}]{': ' + p['why'] if p['why'] else ''}" for p in parts)
    return Bar(layer["node"], layer["op"], layer["width"], state, "; ".join(told))


def check_path(path: str | Path) -> Path:
    """`path`, when the picture can be written there. Raises: UsageError for another suffix or a missing folder."""
    return check_suffix(path, SUFFIXES)


def write_widths(found: Mapping[str, Any], model: str | Path, path: str | Path) -> None:
    """Writes the picture of an inspection of `model` into `path`, .html or .svg."""
    path = check_path(path)
    name = Path(model).name
    replace_text(path, image(found, name) if path.suffix.lower() == ".svg" else page(found, name))


def picture(layers: Sequence[Bar], height: int = 180) -> Markup:
    """One bar per layer, as wide as its place, as high as its channels."""
    most = max((layer.width for layer in layers), default=1)
    step = 100 / max(1, len(layers))
    parts = [_column(k * step, step, layer, height * layer.width / most, height) for k, layer in enumerate(layers)]
    return charts.svg(height, *parts, label=f"output channels of {len(layers)} layers", cls="columns")


def _column(x: float, step: float, layer: Bar, tall: float, height: int) -> str:
    place = f'x="{x + 0.06 * step:.3f}%" width="{0.88 * step:.3f}%"'
    # Invisible and as high as the picture: a thin bar is as easy to hit as a tall one.
    hit = f'<rect class="hit" {place} y="0" height="{height}"/>'
    rect = f'<rect class="{layer.state}" {place} y="{height - max(tall, 1):.1f}" height="{max(tall, 1):.1f}"/>'
    return f"<g><title>{escape(layer.told)}</title>{hit}{rect}</g>"


def image(found: Mapping[str, Any], name: str) -> str:
    """The picture as an SVG file of its own."""
    layers, (width, height) = bars(found), IMAGE
    style = "".join(f".{state}{{fill:{color}}}" for state, color in COLORS.items())
    style += ".hit{fill:transparent}text{font:14px system-ui,sans-serif;fill:#17202b}.soft{fill:#5a6675;font-size:12px}"
    counts = {state: sum(layer.state == state for layer in layers) for state in STATES}
    legend, x = [], 16
    for state, count in counts.items():
        label = f"{state}: {count} layers"
        legend.append(f'<rect class="{state}" x="{x}" y="38" width="11" height="11" rx="2"/>')
        legend.append(f'<text class="soft" x="{x + 16}" y="48">{label}</text>')
        x += 40 + 7 * len(label)
    most = max((layer.width for layer in layers), default=0)
    ends = f'<text class="soft" x="16" y="{height - 8}">first layer</text>'
    ends += f'<text class="soft" x="{width - 16}" y="{height - 8}" text-anchor="end">last layer; widest: {most}</text>'
    inner = f'<svg x="16" y="64" width="{width - 32}" height="{height - 90}">{picture(layers, height - 90)}</svg>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    title = f'<text x="16" y="24" font-weight="600">Widths of {escape(name)}</text>'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{head}<style>{style}</style>{ground}{title}{''.join(legend)}{inner}{ends}</svg>\n"


def page(found: Mapping[str, Any], name: str) -> str:
    """The picture with every dimension explained, as one HTML file."""
    from onnxprune.report.html import render

    layers = bars(found)
    return render(
        "widths.html",
        title=f"Widths of {name}",
        found=found,
        layers=layers,
        picture=picture(layers),
        states=STATES,
        counts={state: sum(layer.state == state for layer in layers) for state in STATES},
        frozen=_by_reason(found["frozen"]),
    )


def _by_reason(frozen: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in frozen:
        reason = entry["reason"].removesuffix(f" ({entry['node']})")  # the node is named with each
        groups.setdefault(reason, []).append(entry)
    return sorted(groups.items(), key=lambda item: -len(item[1]))
