"""The sections of the page that are pictures: accuracy, costs, latency, widths, curves, profile, steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from onnxprune.measure.records import (
    FrontPoint,
    Latency,
    LatencyRatio,
    Layer,
    Profile,
    Report,
    SensitivityCurve,
    TuningPoint,
)
from onnxprune.outputs.metrics import LOWER_IS_BETTER, Accuracy
from onnxprune.report import charts, text

NOTHING = Markup()
MOST_NODES = 15
MOST_OPERATORS = 8
COSTS = (("macs", "MACs", text.count), ("params", "Parameters", text.count), ("bytes", "File size", text.size))


@dataclass(frozen=True)
class Line:
    """One labeled picture with its numbers."""

    label: str
    numbers: str
    picture: Markup


@dataclass(frozen=True)
class Chart:
    """Labeled pictures above one common scale."""

    title: str
    lines: tuple[Line, ...]
    scale: Markup = NOTHING
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A curve in a frame, and what stands at the ends of its axes."""

    title: str
    picture: Markup
    top: str
    bottom: str
    left: str
    right: str


def accuracy_charts(report: Report) -> list[Chart]:
    """One chart per metric, a line per model."""
    known = [(model.name, model.accuracy) for model in report.models if model.accuracy and model.accuracy.interval95]
    metrics = dict.fromkeys(accuracy.metric for _, accuracy in known)
    return [_accuracy_chart(metric, [(n, a) for n, a in known if a.metric == metric], report) for metric in metrics]


def _accuracy_chart(metric: str, known: Sequence[tuple[str, Accuracy]], report: Report) -> Chart:
    ends = {name: a.interval95 or (a.value, a.value) for name, a in known}
    low, high = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
    margin = 0.15 * (high - low) or 0.01
    share = text.is_share(metric)
    scale = (max(0.0, low - margin) if low >= 0 else low - margin, min(1.0, high + margin) if share else high + margin)
    lines = tuple(
        Line(
            name,
            f"{text.accuracy(a)}, 95 % within {text.accuracy_interval(a)}",
            charts.interval(ends[name][0], a.value, ends[name][1], scale, _class(report, name)),
        )
        for name, a in known
    )
    count = (lambda v: f"{100 * v:g} %") if share else "{:g}".format
    axis = charts.scale_line(scale, [(at, count(round(at, 6))) for at in charts.ticks(*scale)])
    last = known[-1][1]
    told = [f"{known[0][1].samples} samples"]
    if last.null is not None:
        told.append(f"from guessing to the original: {text.scale(last)}; kept of that: {text.kept(last)}")
    told += [f"{part} {name} {value} ({share} kept)" for part, name, value, share in text.parts(last)]
    return Chart(text.metric(metric), lines, axis, "; ".join(told))


def cost_lines(report: Report) -> list[Line]:
    """MACs, parameters and bytes of every model beside those of the first."""
    if not report.models:
        return []
    first, lines = report.models[0], []
    for key, label, write in COSTS:
        before = getattr(first, key)
        for model in report.models[1:]:
            after = getattr(model, key)
            if before and after is not None:
                name = label if len(report.models) == 2 else f"{label}, {model.name}"
                numbers = f"{write(before)} → {write(after)} ({text.percent_left(after / before)})"
                lines.append(Line(name, numbers, charts.bar(before, after, max(before, after), f"{name} {numbers}")))
    return lines


def latency_charts(report: Report) -> list[Chart]:
    """One chart per setting, a box per model, all from 0: lengths can be compared."""
    settings = dict.fromkeys(entry.setting for model in report.models for entry in model.latency)
    return [_latency_chart(report, setting) for setting in settings]


def _latency_chart(report: Report, setting: tuple) -> Chart:
    own = [(m.name, e) for m in report.models for e in m.latency if e.setting == setting]
    # A rare pause of the machine must not squeeze the boxes: what lies beyond is cut off.
    scale = (0.0, 1.05 * max(min(e.p99_ms or e.q3_ms, 3 * e.q3_ms) for _, e in own))
    lines = tuple(Line(name, _latency_numbers(e), charts.box(e, scale, _class(report, name))) for name, e in own)
    marks = charts.ticks(*scale)
    axis = charts.scale_line(scale, [(at, f"{at:g} ms" if at == marks[-1] else f"{at:g}") for at in marks])
    pairs = [r for r in report.latency_ratios if r.setting == setting]
    return Chart(text.setting(own[0][1]), lines, axis, "; ".join(_ratio_text(r, len(report.models)) for r in pairs))


def _ratio_text(entry: LatencyRatio, models: int) -> str:
    name = f"{entry.model}: " if models > 2 else ""
    interval = f", 95 % within {entry.interval95[0]:.3f} to {entry.interval95[1]:.3f}" if entry.interval95 else ""
    pairs = f" over {entry.pairs} pairs" if entry.pairs else ""
    return f"{name}{text.speedup(entry.median)}: ratio {entry.median:.3f}{interval}{pairs}"


def _latency_numbers(e: Latency) -> str:
    parts = [f"{text.milliseconds(e.median_ms)} (quartiles {text.digits(e.q1_ms)} to {text.digits(e.q3_ms)})"]
    parts += [f"p99 {text.milliseconds(e.p99_ms)}"] if e.p99_ms is not None else []
    parts += [f"{text.digits(e.throughput)} samples/s"] if e.throughput is not None else []
    parts += [f"loads in {text.milliseconds(e.load_ms)}"] if e.load_ms is not None else []
    parts += [f"peak {text.size(e.peak_memory_bytes)}"] if e.peak_memory_bytes is not None else []
    return ", ".join(parts)


def width_lines(layers: Sequence[Layer]) -> list[Line]:
    """Output channels of each layer before and after."""
    most = max((max(layer.widths) for layer in layers), default=1)
    return [
        Line(f"{layer.node} · {layer.op}", "{} → {}".format(*layer.widths), charts.bar(*layer.widths, most))
        for layer in layers
    ]


def sensitivity_plot(curve: SensitivityCurve) -> Plot:
    """Accuracy against the fraction of the dimension that was removed."""
    points = list(zip(curve.removed, curve.value, strict=True))
    high = max([*curve.value, 1.0 if curve.metric not in LOWER_IS_BETTER else 0.0])
    picture = charts.curves([("after", points)], (0.0, max(curve.removed, default=1.0)), (0.0, high or 1.0), 100)
    write = (lambda v: f"{v:.3g}") if curve.metric in LOWER_IS_BETTER else (lambda v: f"{100 * v:.0f} %")
    last = f"{100 * max(curve.removed, default=1.0):.0f} % removed"
    return Plot(curve.dim, picture, f"{write(high)} {curve.metric}", write(0.0), "none", last)


def front_plots(points: Sequence[FrontPoint]) -> list[Plot]:
    """The metric against each cost: pale after the quick recovery, strong after the full one."""
    costs = (("MACs", "macs"), ("Parameters", "params"), ("Latency", "latency"))
    return [
        _front_plot(name, [(getattr(p, key), p) for p in points if getattr(p, key) is not None])
        for name, key in costs
        if any(getattr(p, key) is not None for p in points)
    ]


def _front_plot(name: str, points: Sequence[tuple[float, FrontPoint]]) -> Plot:
    points = sorted(points, key=lambda item: item[0])
    values = [value for _, p in points for value in (p.quick, p.value)]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.01
    scale, metric = (low - margin, high + margin), points[0][1].metric
    ends = (0.0, max(1.0, points[-1][0]))
    series = [
        ("before", [(x, p.quick) for x, p in points]),
        ("after", [(x, p.value) for x, p in points]),
        ("chosen", [(x, p.value) for x, p in points if p.chosen]),
    ]
    top, bottom = (text.of_metric(metric, value) for value in (high, low))
    return Plot(
        f"{text.metric(metric)} against {name}", charts.curves(series, ends, scale), top, bottom, "0", f"{ends[1]:g}"
    )


def tuning_plots(points: Sequence[TuningPoint]) -> list[Plot]:
    """Loss and accuracy over the epochs, those that were recorded."""
    losses = [(p.epoch, p.loss) for p in points if p.loss is not None]
    accuracies = [(p.epoch, p.accuracy) for p in points if p.accuracy is not None]
    plots = []
    if losses:
        high = max(value for _, value in losses)
        plots.append(_tuning_plot("Loss", losses, (0.0, high or 1.0), lambda v: text.digits(v)))
    if accuracies:
        low, high = min(v for _, v in accuracies), max(v for _, v in accuracies)
        margin = 0.1 * (high - low) or 0.01
        scale = (max(0.0, low - margin), min(1.0, high + margin))
        plots.append(_tuning_plot("Accuracy", accuracies, scale, lambda v: f"{100 * v:.1f} %"))
    return plots


def _tuning_plot(name: str, points: charts.Points, scale: tuple[float, float], write: Callable[[float], str]) -> Plot:
    first, last = points[0][0], points[-1][0]
    picture = charts.curves([("after", points)], (first, last), scale)
    return Plot(name, picture, write(scale[1]), write(scale[0]), f"epoch {first:g}", f"{last:g}")


def profile_chart(entry: Profile) -> Chart:
    """The slowest nodes of one model, and how much they are of the whole."""
    total = sum(node.microseconds for node in entry.nodes)
    top = entry.nodes[:MOST_NODES]
    most = max((node.microseconds for node in top), default=0.0)
    lines = tuple(
        Line(
            f"{n.node} · {n.op}",
            f"{n.microseconds:.0f} µs, {100 * n.microseconds / (total or 1):.1f} %",
            charts.single_bar(n.microseconds, most),
        )
        for n in top
    )
    setting = f"{entry.model}: {text.provider(entry.provider)}, batch {entry.batch}"
    note = f"{len(entry.nodes)} nodes, {total / 1000:.2f} ms in all" + (
        f"; the {len(top)} slowest are shown" if len(top) < len(entry.nodes) else ""
    )
    return Chart(setting, lines, note=note)


def operator_charts(profiles: Sequence[Profile]) -> list[Chart]:
    """Time by operator in the first model and in another, one chart per other model and setting."""
    firsts = {(p.provider, p.batch): p for p in reversed(profiles)}
    pairs = [(firsts[p.provider, p.batch], p) for p in profiles]
    return [_operator_chart(before, after) for before, after in pairs if before.model != after.model]


def _operator_chart(before: Profile, after: Profile) -> Chart:
    sums = [_by_operator(profile) for profile in (before, after)]
    ops = sorted(sums[0].keys() | sums[1].keys(), key=lambda op: (-sums[0].get(op, 0.0), op))[:MOST_OPERATORS]
    most = max([t for own in sums for t in own.values()], default=0.0)
    pairs = [(op, *(own.get(op, 0.0) for own in sums)) for op in ops]
    lines = tuple(Line(op, f"{a:.0f} → {b:.0f} µs", charts.bar(a, b, most)) for op, a, b in pairs)
    title = f"{before.model} → {after.model}: {text.provider(after.provider)}, batch {after.batch}"
    return Chart(title, lines, note="time per run by operator")


def _by_operator(profile: Profile) -> dict[str, float]:
    sums: dict[str, float] = {}
    for node in profile.nodes:
        sums[node.op] = sums.get(node.op, 0.0) + node.microseconds
    return sums


def step_lines(report: Report) -> list[Line]:
    """The steps and their wall times."""
    most = max((step.seconds for step in report.steps), default=0.0)
    return [Line(s.name, text.seconds(s.seconds), charts.single_bar(s.seconds, most)) for s in report.steps]


def _class(report: Report, name: str) -> str:
    return "before" if name == report.models[0].name else "after"
