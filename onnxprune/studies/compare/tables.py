"""A comparison as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onnxprune.outputs.metrics import LOWER_IS_BETTER
from onnxprune.report import text
from onnxprune.studies.compare.store import Row
from onnxprune.studies.compare.summary import Line
from onnxprune.system.words import counted

FORMAT = "onnxprune-compare/1"
SHARES = {
    "macs": "MACs",
    "nonzero_macs": "MACs by non-zeros",
    "params": "parameters",
    "nonzeros": "non-zeros",
    "bytes": "file",
}
CSV_COLUMNS = (
    "method", "target", "seed", "metric", "accuracy", "low95", "high95", "samples", "cut", *SHARES, "latency",
    "seconds", "tool", "error",
)  # fmt: skip
HOW = """Accuracy is the mean over seeds; the interval joins the chance of seeds (Student's t, where there are several)
with that of the held samples (Wilson), which are the same for all runs. MACs (by non-zeros: those that multiply by zero
left out, which no runtime here does), parameters, non-zeros (weights of two axes or more that are not zero) and file
size are shares of the original."""


def to_json(head: Mapping[str, Any], rows: Sequence[Row], lines: Sequence[Line]) -> str:
    """Everything: settings, the original, all rows and the lines of the table."""
    found = {"format": FORMAT, **head, "lines": [asdict(line) for line in lines], "rows": list(rows)}
    return json.dumps(found, indent=1) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """One line per run; unknown is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        found = row.get("accuracy") or {}
        low, high = found.get("interval95") or (None, None)
        flat = {"metric": found.get("metric"), "samples": found.get("samples"), "low95": low, "high95": high}
        writer.writerow({**row, **flat, "accuracy": found.get("value")})
    return out.getvalue()


def header(lines: Sequence[Line]) -> list[str]:
    """Titles of the columns; latency only where it was measured."""
    timed = ["latency"] if any(line.shares["latency"] for line in lines) else []
    return ["method", "budget", "seeds", "cut only", "result", "95 % interval", *SHARES.values(), *timed, "seconds"]


def cells(line: Line, timed: bool) -> list[str]:
    """One line of the table as text."""
    if line.accuracy is None and not line.seeds:
        return [line.method, line.target, "0", "refused", *[text.DASH] * (len(SHARES) + 3 + timed)]
    shares = [text.times(line.shares[name]) for name in (*SHARES, *(["latency"] if timed else []))]
    low, high = line.interval95 or (None, None)
    interval = text.DASH if low is None or high is None else f"{_value(line, low)} to {_value(line, high)}"
    seconds = line.shares["seconds"]
    return [
        line.method,
        line.target,
        str(len(line.seeds)),
        _value(line, line.cut),
        _value(line, line.accuracy),
        interval,
        *shares,
        text.DASH if seconds is None else f"{seconds:.0f}",
    ]


def _value(line: Line, value: float | None) -> str:
    if value is None:
        return text.DASH
    return text.digits(value) if line.metric in LOWER_IS_BETTER else f"{100 * value:.2f} %"


def plain(lines: Sequence[Line]) -> str:
    """The table for a terminal."""
    head = header(lines)
    return text.columns([head, *(cells(line, "latency" in head) for line in lines)])


def to_markdown(head: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """The table with what it takes to read and to repeat it."""
    titles = header(lines)
    timed = "latency" in titles
    table = [titles, ["---", "---", *["---:"] * (len(titles) - 2)], *(cells(line, timed) for line in lines)]
    parts = [
        f"# Methods on {head['model']['name']}\n",
        _about(head),
        "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in table),
        f"{HOW}\n",
        "![accuracy against what remains](compare.svg)\n",
    ]
    refused = [(line, reason) for line in lines for reason in dict.fromkeys(line.failed)]
    if refused:
        told = "".join(f"- `{line.method}` at {line.target}: {reason}\n" for line, reason in refused)
        parts.append(f"## Refused\n\n{told}")
    return "\n".join(parts)


def _about(head: Mapping[str, Any]) -> str:
    found, samples, options = head["original"]["accuracy"], head["samples"], head["options"]
    held = samples["held"]["count"]
    if found is None:
        told = f"Agreement with the original, or error to it, on {held} samples."
    else:
        low, high = found["interval95"]
        told = f"The original answers {100 * found['value']:.2f} % right ({100 * low:.2f} to {100 * high:.2f} %) "
        told += f"of {counted(held, 'held sample')}."
    tune = samples["tune"]
    tuned = f"Recovery: {options['recover']}" + (f", on {counted(tune['count'], 'sample')}" if tune else "")
    given = [f"{name} {options[name]}" for name in ("epochs", "lr", "batch_size") if options[name] is not None]
    return f"{told} {', '.join([tuned, *given])}.\n\n    {head['command']}\n"
