"""The report as one HTML file that needs nothing else: no network, no script, pictures inline."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxprune.measure.records import Frozen, LatencyRatio, Report, final, ratio
from onnxprune.report import charts, curves, front, text
from onnxprune.report.markdown import EVIDENCE, evidence_lines, title
from onnxprune.report.sections import (
    COSTS,
    accuracy_charts,
    cost_lines,
    front_plots,
    latency_charts,
    operator_charts,
    profile_chart,
    sensitivity_plot,
    step_lines,
    tuning_plots,
    width_lines,
)


@dataclass(frozen=True)
class Card:
    """One number of the summary; `mood` is good, bad or empty."""

    label: str
    value: str
    detail: str
    mood: str = ""


def to_html(report: Report) -> str:
    """The whole page."""
    return render("report.html", report=report, **context(report))


def render(template: str, **values: Any) -> str:
    """A template of this package with the style sheet inlined; everything else is escaped."""
    env = Environment(
        loader=PackageLoader("onnxprune.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    env.globals.update(text=text)
    css = (files("onnxprune.report") / "report.css").read_text(encoding="utf-8")
    return env.get_template(template).render(css=Markup(css), **values)


def context(report: Report) -> dict[str, Any]:
    """The variables of the template, by section; an empty section is left out."""
    return {
        "title": title(report),
        "names": [model.name for model in report.models],
        "cards": cards(report),
        "accuracy": accuracy_charts(report),
        "costs": cost_lines(report),
        "latency": latency_charts(report),
        "columns": charts.columns(report.layers) if report.layers else None,
        "widths": width_lines(report.layers),
        "front": front_plots(report.front),
        "front_table": [front.header(report.front), *front.lines(report.front)] if report.front else [],
        "sensitivity": [sensitivity_plot(curve) for curve in report.sensitivity],
        "sensitivity_table": sensitivity_table(report),
        "frozen": by_reason(report.frozen),
        "tuning": tuning_plots(report.finetune),
        "operators": operator_charts(report.profile),
        "profiles": [profile_chart(entry) for entry in report.profile],
        "evidence": [EVIDENCE, *evidence_lines(report)],
        "steps": step_lines(report),
        "machine": machine_lines(report),
    }


def cards(report: Report) -> list[Card]:
    """The summary: what is left of each cost, how much faster, what it did to accuracy, and whether it is proven."""
    found = []
    after = final(report.models)
    if after is not None:
        before = report.models[0]
        for key, label, write in COSTS:
            left = ratio(getattr(before, key), getattr(after, key))
            detail = f"{write(getattr(before, key))} → {write(getattr(after, key))}"
            found += [Card(label, text.percent_left(left), detail)] if left is not None else []
        found += [_speed_card(entry) for entry in report.latency_ratios if entry.model == after.name][:1]
        change = text.points(before.accuracy, after.accuracy)
        if after.accuracy is not None:
            value = text.accuracy(after.accuracy)
            detail = change if change != text.DASH else f"95 %: {text.accuracy_interval(after.accuracy)}"
            found.append(Card(text.metric(after.accuracy.metric), value, detail))
    if report.verify is not None:
        off = f"off by {text.digits(report.verify.max_abs)} at most"
        found.append(Card("Verified", "yes" if report.verify.ok else "NO", off, "good" if report.verify.ok else "bad"))
    return found


def _speed_card(entry: LatencyRatio) -> Card:
    word = "Faster" if entry.median <= 1 else "Slower"
    value = f"{1 / entry.median if entry.median <= 1 else entry.median:.2f}×"
    return Card(word, value, text.setting(entry), "" if entry.median <= 1 else "bad")


def sensitivity_table(report: Report) -> list[list[str]]:
    """The curves as numbers: the header, and a line per dimension."""
    fractions = curves.fractions_of(report.sensitivity)
    return [curves.header(fractions), *curves.lines(report.sensitivity, fractions)]


def by_reason(frozen: Sequence[Frozen]) -> list[tuple[str, list[Frozen]]]:
    """Frozen dimensions by reason, the most frequent first."""
    groups: dict[str, list[Frozen]] = defaultdict(list)
    for entry in frozen:
        groups[entry.reason].append(entry)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def machine_lines(report: Report) -> list[tuple[str, str]]:
    """(what, value) of the machine and the versions, for those that are known."""
    machine = report.machine
    gpus = [_gpu(gpu) for gpu in machine.get("gpus") or []]
    versions = ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items())
    clock = f" at {machine['cpu_clock_mhz']:.0f} MHz" if machine.get("cpu_clock_mhz") else ""
    found = [
        ("CPU", f"{machine['cpu']}, {machine.get('cores', '?')} cores{clock}" if machine.get("cpu") else None),
        ("GPU", "; ".join(gpus) or None),
        ("Memory", text.size(machine["memory_bytes"]) if machine.get("memory_bytes") else None),
        ("System", machine.get("os")),
        ("Python", machine.get("python")),
        ("Packages", versions or None),
    ]
    return [(what, str(value)) for what, value in found if value]


def _gpu(gpu) -> str:
    clock = f" at {gpu['sm_clock_mhz']} of {gpu.get('max_sm_clock_mhz')} MHz" if gpu.get("sm_clock_mhz") else ""
    return f"{gpu.get('name')}{clock}, driver {gpu.get('driver')}"
