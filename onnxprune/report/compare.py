"""A report against an earlier one: what became worse by more than the noise of both measurements."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.measure.records import Report
from onnxprune.outputs.metrics import LOWER_IS_BETTER
from onnxprune.report import text
from onnxprune.report.document import COSTS, document

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Regression:
    """One number that became worse; `where` is the model and the setting, `new` is None when it is missing."""

    metric: str
    where: str
    old: float | None
    new: float | None
    message: str


def compare_reports(old: Report | Document, new: Report | Document) -> list[Regression]:
    """Lines on what in report `new` is worse than in `old` beyond noise; [] where nothing is.

    Costs are exact, so any increase counts. Accuracy and latency ratios count when their 95 % intervals do not
    overlap. Absolute latencies are compared on the same machine only, by their quartiles. A number that the old
    report had and the new one lacks counts too, or a check would pass because it was never made.
    """
    before, after = (document(r) if isinstance(r, Report) else r for r in (old, new))
    found = [*_models(before, after), *_verification(before, after)]
    return found


def _models(before: Document, after: Document) -> Iterator[Regression]:
    present = {model["name"]: model for model in after.get("models", [])}
    same_machine = _machine(before) is not None and _machine(before) == _machine(after)
    for model in before.get("models", [])[1:] or before.get("models", []):
        name = model["name"]
        if name not in present:
            yield Regression("model", name, None, None, f"{name}: no longer in the report")
            continue
        yield from _costs(name, model, present[name])
        yield from _accuracy(name, model.get("accuracy"), present[name].get("accuracy"))
        yield from _ratios(name, _latency_ratios(before, model), _latency_ratios(after, present[name]))
        if same_machine:
            yield from _latencies(name, model.get("latency", []), present[name].get("latency", []))


def _machine(report: Document) -> tuple | None:
    """The machine of a report, without which milliseconds are not comparable; None when it is unknown."""
    machine = report.get("machine") or {}
    if not machine.get("cpu"):
        return None
    gpus = tuple(str(gpu.get("name")) for gpu in machine.get("gpus") or [])
    return machine.get("cpu"), machine.get("cores"), gpus


def _latency_ratios(report: Document, model: Document) -> list[Document]:
    """The model's own ratios, or the report's where only one model is compared."""
    own = model.get("ratios")
    if own is None and len(report.get("models", [])) == 2 and report["models"][1] is model:
        own = report.get("ratios")
    return (own or {}).get("latency") or []


def _costs(name: str, old: Document, new: Document) -> Iterator[Regression]:
    for key in COSTS:
        a, b = old.get(key), new.get(key)
        if a is not None and (b is None or b > a):
            yield Regression(key, name, a, b, f"{name}: {key} {_pair(text.count(a), text.count(b))}")


def _accuracy(name: str, old: Document | None, new: Document | None) -> Iterator[Regression]:
    if old is None:
        return
    metric, a = old["metric"], old["value"]
    if new is None or new["metric"] != metric:
        yield Regression(metric, name, a, None, f"{name}: {metric} is no longer measured")
    elif _worse(_interval(old), _interval(new), metric in LOWER_IS_BETTER):
        b = new["value"]
        yield Regression(metric, name, a, b, f"{name}: {metric} {_pair(f'{a:.4f}', f'{b:.4f}')}, intervals apart")


def _interval(accuracy: Document) -> list[float]:
    return accuracy["interval95"] or [accuracy["value"]] * 2


def _ratios(name: str, old: list[Document], new: list[Document]) -> Iterator[Regression]:
    yield from _timed("latency ratio", name, old, new, "median", lambda e: e.get("interval95") or [e["q1"], e["q3"]])


def _latencies(name: str, old: list[Document], new: list[Document]) -> Iterator[Regression]:
    yield from _timed("latency", name, old, new, "median_ms", lambda e: [e["q1_ms"], e["q3_ms"]])


def _timed(
    metric: str, name: str, old: list[Document], new: list[Document], key: str, interval
) -> Iterator[Regression]:
    present = {_setting(entry): entry for entry in new}
    for entry in old:
        other = present.get(_setting(entry))
        where, a = f"{name}, {entry['provider']}, batch {entry['batch']}", entry[key]
        if other is None:
            yield Regression(metric, where, a, None, f"{where}: {metric} is no longer measured")
        elif _worse(interval(entry), interval(other), lower_is_better=True):
            b = other[key]
            yield Regression(
                metric, where, a, b, f"{where}: {metric} {_pair(text.digits(a), text.digits(b))}, intervals apart"
            )


def _setting(entry: Document) -> tuple:
    precision = entry.get("precision") or "as stored"
    flags = bool(entry.get("cuda_graph")), bool(entry.get("prefer_nhwc"))
    return (entry["provider"], entry.get("threads"), entry["batch"], precision, *flags)


def _worse(old, new, lower_is_better: bool) -> bool:
    """True where the whole new interval lies on the wrong side of the old one."""
    return new[0] > old[1] if lower_is_better else new[1] < old[0]


def _verification(before: Document, after: Document) -> Iterator[Regression]:
    if (before.get("verify") or {}).get("ok") and not (after.get("verify") or {}).get("ok"):
        found = "failed" if after.get("verify") else "is missing"
        yield Regression("verify", "report", None, None, f"verification passed before and now {found}")


def _pair(old: str, new: str) -> str:
    return f"was {old}, is {new if new != text.DASH else 'unknown'}"
