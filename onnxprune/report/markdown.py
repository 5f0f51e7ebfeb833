"""The report for a pull request: what changed in one table, the proof in one line, details folded away."""

from pathlib import PurePath

from onnxprune.measure.records import Latency, Layer, Report, final
from onnxprune.proof.evidence import KINDS
from onnxprune.report import curves, front, text
from onnxprune.report.document import latency_ratios
from onnxprune.report.terminal import compared, header, rows

MOST_FROZEN = 40
MOST_EVIDENCE = 60
EVIDENCE = ("compared", "what", "where it differs most", "size there", "apart", "allowed", "rows")


def to_markdown(report: Report) -> str:
    """GitHub-flavored Markdown of `report`."""
    parts = [
        f"## {title(report)}",
        summary(report),
        _table([_cells(header(report))] + [[label.strip(), *values, change] for label, values, change in rows(report)]),
        verification(report),
        *(f"> {_escape(note)}" for note in report.notes),
        front_table(report),
        sensitivity(report),
        _folded("Evidence", _table([list(EVIDENCE), *evidence_lines(report)], 3), len(evidence_lines(report))),
        _folded("Layers", _layers(report), len(report.layers)),
        _folded("What the outputs are", _outputs(report), len(report.outputs)),
        _folded("Settings", _settings(report), len(report.settings)),
        _folded("Frozen, and why", _frozen(report), len(report.frozen)),
        _folded("Latency in detail", _latency(report), sum(len(m.latency) for m in report.models)),
        _folded("Steps", _steps(report), len(report.steps)),
        reproduce(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(report: Report) -> str:
    entries = [[name, str(entry["value"]), str(entry["from"])] for name, entry in report.settings.items()]
    return _table([["setting", "is", "from"], *entries], words=3)


def title(report: Report) -> str:
    """The report's heading."""
    names = [model.name for model in report.models]
    if report.sensitivity and len(names) == 1:
        return f"onnxprune: sensitivity of {PurePath(report.models[0].path or names[0]).name}"
    after = final(report.models)
    pair = names[:1] if after is None else [after.name, names[0]]
    return "onnxprune: " + " against ".join(pair) if names else "onnxprune"


def summary(report: Report) -> str:
    """One sentence: what is left, and at what price; nothing where several are compared."""
    after = compared(report.models)
    if after is None:
        return ""
    before = report.models[0]
    kept = [(after.macs, before.macs, "MACs"), (after.params, before.params, "parameters")]
    kept += [(after.bytes, before.bytes, "bytes")] if report.quantize else []
    parts = [f"{text.percent_left(a / b)} of the {what}" for a, b, what in kept if a is not None and b]
    parts += [f"{text.speedup(r.median)} ({text.setting(r)})" for r in latency_ratios(report, after)[:1]]
    change = text.points(before.accuracy, after.accuracy)
    if change != text.DASH and after.accuracy is not None:
        parts.append(f"{change} {text.metric(after.accuracy.metric).lower()}")
    return f"**{', '.join(parts)}.**" if parts else ""


def verification(report: Report) -> str:
    """The line that says whether the cut model computes what the masked one does."""
    proof = report.verify
    if proof is None:
        return ""
    return (
        f"Verification: {'passed' if proof.ok else '**failed**'}. The cut model and the masked original differ "
        f"by at most {text.digits(proof.max_abs)} of a scale of {text.digits(proof.scale)}, "
        f"on {text.count(proof.samples)} samples.{f' {proof.note[:1].upper()}{proof.note[1:]}.' if proof.note else ''}"
        + quantization(report)
    )


def quantization(report: Report) -> str:
    """The lines on a quantized file: what is proven of it, and what its rounding costs."""
    found = report.quantize
    if found is None:
        return ""
    error = f"; rounding moves the outputs by {text.percent_left(found['error'])}" if found["error"] is not None else ""
    return f" Quantized as {found['options']}: {found['proof']}{error}."


def evidence_lines(report: Report) -> list[list[str]]:
    """One line per comparison of the proof: first what could not be tested, then by the share of the tolerance."""
    items = report.verify.evidence if report.verify is not None else ()
    ordered = sorted(items, key=lambda item: (not item.untested, -item.share))
    return [
        [
            item.where,
            KINDS.get(item.kind, item.kind),
            "; ".join(filter(None, (item.place, item.untested))),
            *map(text.digits, (item.size, item.difference, item.allowed)),
            str(item.rows),
        ]
        for item in ordered[:MOST_EVIDENCE]
    ]


def front_table(report: Report) -> str:
    """The table of the front, by size, where one was asked for."""
    if not report.front:
        return ""
    return f"### Front\n\n{_table([front.header(report.front), *front.lines(report.front)], 0)}"


def sensitivity(report: Report) -> str:
    """The table of the metric with a fraction of each dimension removed."""
    fractions = curves.fractions_of(report.sensitivity)
    if not fractions:
        return ""
    table = _table([curves.header(fractions), *curves.lines(report.sensitivity, fractions)])
    return f"What is left when a fraction of one dimension is removed and all others stay whole:\n\n{table}"


def reproduce(report: Report) -> str:
    """The command, the versions and the machine."""
    machine = report.machine
    versions = machine.get("versions") or {}
    gpus = ", ".join(str(gpu.get("name")) for gpu in machine.get("gpus") or [])
    where = [
        f"{machine.get('cpu') or 'unknown CPU'}, {machine.get('cores') or '?'} cores",
        *([gpus] if gpus else []),
        str(machine.get("os") or "unknown system"),
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    lines = ["How to reproduce:", "", "```sh", report.command, "```"]
    return "\n".join(lines + (["", "; ".join(part for part in where if part) + "."] if machine else []))


def _outputs(report: Report) -> str:
    lines = [[entry["name"], text.kind(entry), entry["reason"]] for entry in report.outputs]
    return _table([["output", "is", "because"], *lines], words=3)


def _cells(line: list[str]) -> list[str]:
    return line if len(line) > 1 else [*line, ""]


def _table(lines: list[list[str]], words: int = 1) -> str:
    """A Markdown table; the first line is the header, the first `words` columns stand left and numbers right."""
    width = len(lines[0])
    rule = "|" + "---|" * words + "---:|" * (width - words)
    body = ["| " + " | ".join(_escape(cell) for cell in line[:width]) + " |" for line in lines]
    return "\n".join([body[0], rule, *body[1:]])


def _escape(cell: str) -> str:
    """Names come from models that anyone may have made: they must not end a cell or start a tag."""
    escaped = str(cell).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("|", "\\|").replace("\n", " ").replace("`", "'").replace("*", "\\*").replace("[", "\\[")


def _folded(heading: str, table: str, count: int) -> str:
    return f"<details><summary>{heading} ({count})</summary>\n\n{table}\n\n</details>" if count else ""


def _layers(report: Report) -> str:
    head = ["node", "op", "before", "after", "MACs before", "MACs after"]
    return _table([head, *(_layer(layer) for layer in report.layers)], words=2)


def _layer(layer: Layer) -> list[str]:
    shapes = [text.shape(layer.before), text.shape(layer.after)]
    return [layer.node, layer.op, *shapes, text.count(layer.macs_before), text.count(layer.macs_after)]


def _frozen(report: Report) -> str:
    lines = [[entry.dim, entry.reason] for entry in report.frozen[:MOST_FROZEN]]
    more = len(report.frozen) - len(lines)
    return _table([["dimension", "reason"], *lines], words=2) + (
        f"\n\n... and {more} more in the JSON report" if more else ""
    )


def _latency(report: Report) -> str:
    head = ["model", "setting", "median", "quartiles", "p90", "p99", "samples per s", "load", "peak memory", "runs"]
    lines = [[model.name, *_latency_cells(entry)] for model in report.models for entry in model.latency]
    return _table([head, *lines], words=2)


def _latency_cells(entry: Latency) -> list[str]:
    quartiles = f"{text.digits(entry.q1_ms)} to {text.digits(entry.q3_ms)}"
    tails = [text.milliseconds(v) for v in (entry.p90_ms, entry.p99_ms)]
    rest = [text.milliseconds(entry.load_ms), text.size(entry.peak_memory_bytes), str(entry.runs)]
    return [
        text.setting(entry),
        text.milliseconds(entry.median_ms),
        quartiles,
        *tails,
        text.digits(entry.throughput),
        *rest,
    ]


def _steps(report: Report) -> str:
    return _table([["step", "time"], *([step.name, text.seconds(step.seconds)] for step in report.steps)])
