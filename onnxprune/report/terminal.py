"""The table at the end of a run: one line per number, a column per model and one for the ratio."""

import sys
from collections.abc import Iterator, Sequence
from typing import IO

from markupsafe import escape
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.measure.records import FEW_ZEROS, NORMALIZED, QUANTIZED, Measurement, Report, final, ratio
from onnxprune.outputs.metrics import LOWER_IS_BETTER, Accuracy
from onnxprune.report import front, text
from onnxprune.report.document import latency_ratios

Row = tuple[str, list[str], str]
COMPARED_WITH_THE_ORIGINAL = ("agreement", "text_agreement", "relative_error")  # of which its own value says nothing


def print_report(report: Report, file: IO[str] | None = None) -> None:
    """Writes the table to `file`, by default stdout: colored on a terminal, plain lines of fixed columns elsewhere."""
    stream = file or sys.stdout
    if stream.isatty():
        Console(file=stream, highlight=False).print(rich_table(report))
    else:
        stream.write(plain_table(report))
    if report.front:
        stream.write(f"\n{front.table(report)}")


def rich_table(report: Report) -> Table:
    """The table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    head = header(report)
    table.add_column(head[0], overflow="fold")
    for name in head[1:]:
        table.add_column(Text(name), justify="right", overflow="fold")
    for label, values, change in rows(report):
        # Names come from files and must not be read as rich's markup.
        cells = [Text(cell) for cell in (label, *values)]
        table.add_row(*cells, *([Text(change, style="bold")] if len(head) > len(cells) else []))
    return table


def plain_table(report: Report) -> str:
    """The table as text, columns padded with spaces; not wider than its contents."""
    head = header(report)
    lines = [head, *([label, *values, change][: len(head)] for label, values, change in rows(report))]
    return text.columns(lines)


def to_table(report: Report) -> str:
    """The table as HTML, for notebooks, and the verdict below it."""
    lines = [f"<th>{escape(cell)}</th>" for cell in header(report)]
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(label)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in [*values, change][: len(lines) - 1])
        + "</tr>"
        for label, values, change in rows(report)
    )
    return f"<table><tr>{''.join(lines)}</tr>{body}</table><p>{escape(verdict(report))}</p>"


def verdict(report: Report) -> str:
    """The result of a run in one line: how fast, how much smaller, how good."""
    if len(report.models) < 2:
        return "nothing to compare"
    before, after = report.models[0], final(report.models) or report.models[-1]
    parts = [*_speeds(report, after), *_sizes(before, after), *_quality(before, after)]
    return ", ".join(parts) or "nothing was measured"


def _speeds(report: Report, after: Measurement) -> Iterator[str]:
    for found in latency_ratios(report, after)[:1]:
        where = f"on this machine ({text.setting(found)})"
        low, high = found.interval95 or (found.median, found.median)
        if low <= 1 <= high:
            yield f"as fast as the original {where}, within the noise"
        else:
            yield f"{text.speedup(found.median).replace('x ', ' times ')} {where}"
        if next((entry.stable is False for entry in after.latency if entry.setting == found.setting), False):
            yield "but the machine was too busy to trust that time"


def _sizes(before: Measurement, after: Measurement) -> Iterator[str]:
    for key, name in (("macs", "MACs"), ("bytes", "file size")):
        share = ratio(getattr(before, key), getattr(after, key))
        if share is not None:
            yield f"{text.percent_left(share)} of the {name}"
    if after.has_zeros:
        yield f"{text.percent_left(ratio(before.params, after.nonzeros))} of the parameters are not zero"


def _quality(before: Measurement, after: Measurement) -> Iterator[str]:
    if after.accuracy is None:
        yield "accuracy not measured: no samples"
        return
    name, value = text.metric(after.accuracy.metric), text.accuracy(after.accuracy)
    if before.accuracy is None or after.accuracy.metric in COMPARED_WITH_THE_ORIGINAL:
        interval = text.accuracy_interval(after.accuracy)
        noise = f" (95 % interval {interval}, {after.accuracy.samples} samples)" if interval != text.DASH else ""
        yield f"{name} {value}{noise}"
        return
    yield f"{name} {value}, {text.accuracy(before.accuracy)} before{_noise(before.accuracy, after.accuracy)}"


def _noise(before: Accuracy, after: Accuracy) -> str:
    """Whether chance alone explains the change, at 95 %: the interval of a difference by Newcombe's method (Statistics
    in Medicine 1998, method 10), of the two intervals. It takes the samples as different ones, which is cautious."""
    if after.interval95 is None or before.interval95 is None or before.metric != after.metric:
        return ""
    high, low = (before, after) if before.value >= after.value else (after, before)
    assert high.interval95 is not None
    assert low.interval95 is not None
    chance = ((high.value - high.interval95[0]) ** 2 + (low.interval95[1] - low.value) ** 2) ** 0.5
    if high.value - low.value <= chance:
        return f": within the noise of {after.samples} samples"
    worse = (high is before) != (after.metric in LOWER_IS_BETTER)
    return f": {'worse' if worse else 'better'} by more than the noise of {after.samples} samples"


def header(report: Report) -> list[str]:
    """The column titles; a ratio is of two models, or of what pruning made, whatever else was measured."""
    names = [model.name for model in report.models]
    return ["", *names, *(["ratio"] if compared(report.models) is not None else [])]


def compared(models: Sequence[Measurement]) -> Measurement | None:
    """The model that the ratios are of, None where there are several."""
    known = len(models) == 2 or {model.name for model in models[2:]} <= {QUANTIZED, NORMALIZED}
    return final(models) if known else None


def _position(models: Sequence[Measurement]) -> int:
    """The place of the model that differences are told of."""
    told = final(models)
    return 0 if told is None else list(models).index(told)


def rows(report: Report) -> list[Row]:
    """(label, a value per model, the ratio) for every number that is known of any model."""
    models = report.models
    found = [*_accuracy(models), *_costs(models), *_latencies(report)]
    return [row for row in found if any(value != text.DASH for value in row[1])]


def _accuracy(models: tuple[Measurement, ...]) -> list[Row]:
    metrics = list(dict.fromkeys(m.accuracy.metric for m in models if m.accuracy))
    found: list[Row] = []
    for name in metrics:
        own = [m.accuracy if m.accuracy and m.accuracy.metric == name else None for m in models]
        count = next(a.samples for a in own if a)
        found.append(
            (
                f"{name} ({count} samples)",
                [text.accuracy(a) for a in own],
                text.points(own[0], own[_position(models)]),
            )
        )
        found.append(("  95 % interval", [text.accuracy_interval(a) for a in own], ""))
        found.append(("  from guessing to original", [text.scale(a) for a in own], ""))
        found.append(("  kept of that", [text.kept(a) for a in own], ""))
        told = _position(models)
        for part, metric, value, share in text.parts(own[told]):
            cells = [value if place == told else text.DASH for place in range(len(own))]
            found.append((f"  {part}: {metric}", cells, f"{share} kept"))
    return found


def _costs(models: tuple[Measurement, ...]) -> list[Row]:
    parts = {"macs": ("MACs", text.count), "params": ("parameters", text.count), "bytes": ("file size", text.size)}
    found: list[Row] = []
    for key, (label, write) in parts.items():
        values = [getattr(m, key) for m in models]
        found.append((label, [write(v) for v in values], text.times(ratio(values[0], values[_position(models)]))))
    return [*found, *_nonzeros(models)]


def _nonzeros(models: tuple[Measurement, ...]) -> list[Row]:
    """Rows of the table on weights that are not zero, where a model has so many zeros that it matters."""
    found: list[Row] = []
    counts = (("nonzero_macs", "macs", "MACs without zeros"), ("nonzeros", "params", "parameters without zeros"))
    for key, whole, label in counts:
        values, all_of = ([getattr(m, name) for m in models] for name in (key, whole))
        if any(v is not None and a and v < FEW_ZEROS * a for v, a in zip(values, all_of, strict=True)):
            shown = [text.count(v) for v in values]
            found.append((label, shown, text.times(ratio(all_of[0], values[_position(models)]))))
    return found


def _latencies(report: Report) -> list[Row]:
    models = report.models
    settings = {entry.setting: entry for model in models for entry in model.latency}
    found: list[Row] = []
    for key, entry in settings.items():
        own = [next((e for e in m.latency if e.setting == key), None) for m in models]
        told = compared(models)
        pairs = next((r for r in latency_ratios(report, told) if r.setting == key), None) if told else None
        values = [text.milliseconds(e.median_ms if e else None) for e in own]
        found.append((f"latency, {text.setting(entry)}", values, text.times(pairs.median if pairs else None)))
        quartiles = [f"{text.digits(e.q1_ms)} to {text.digits(e.q3_ms)}" if e else text.DASH for e in own]
        interval = pairs.interval95 if pairs else None
        found.append(
            ("  quartiles; ratio at 95 %", quartiles, f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "")
        )
        if len(report.models) > 2:
            found.append((f"  ratio to {report.models[0].name}", [_paired(report, m, key) for m in report.models], ""))
    return found


def _paired(report: Report, model: Measurement, setting: tuple) -> str:
    entry = next((r for r in latency_ratios(report, model) if r.setting == setting), None)
    return text.times(entry.median if entry else None)
