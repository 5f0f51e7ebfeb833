"""A report as the JSON document of format onnxprune-report/1, and back from a file.

`schema.json` beside this file describes it; unknown is null.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.measure.records import LatencyRatio, Measurement, Report, final, ratio

FORMAT = "onnxprune-report/1"
COSTS = ("macs", "params", "bytes")


def document(report: Report) -> dict[str, Any]:
    """The JSON document of `report`, made of dicts, lists, strings, numbers and None only."""
    fields = {key: getattr(report, key) for key in ("command", "tool", "machine", "models")}
    after = final(report.models)
    rest = {
        "verify": report.verify,
        "layers": report.layers,
        "frozen": report.frozen,
        "steps": report.steps,
        "method": report.method,
        "seed": report.seed,
        "settings": report.settings,
        "data": report.data,
        "notes": report.notes,
        "finetune": report.finetune,
        "sensitivity": report.sensitivity,
        "front": report.front,
        "profile": report.profile,
        "plan": report.plan,
        "pack": report.pack,
        "outputs": report.outputs,
        "quantize": report.quantize,
    }
    whole = plain({"format": FORMAT, **fields, "ratios": ratios(report, after), **rest})
    for entry, model in zip(whole["models"][1:], report.models[1:], strict=True):
        entry["ratios"] = plain(ratios(report, model))
    return whole


def ratios(report: Report, model: Measurement | None) -> dict[str, Any]:
    """`model`'s costs and times divided by those of the report's first model; None where one is unknown."""
    first = report.models[0] if report.models else None
    if model is None or first is None:
        return {**dict.fromkeys(COSTS), "latency": []}
    costs = {key: ratio(getattr(first, key), getattr(model, key)) for key in COSTS}
    return {**costs, "latency": latency_ratios(report, model)}


def latency_ratios(report: Report, model: Measurement) -> list[LatencyRatio]:
    """The report's latency ratios that are `model`'s."""
    return [entry for entry in report.latency_ratios if entry.model == model.name]


def plain(value: Any) -> Any:
    """`value` in JSON's own types; records become dicts, what is not finite becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def to_json(report: Report) -> str:
    """The text of a report file."""
    return json.dumps(document(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of report files."""
    return json.loads((files("onnxprune.report") / "schema.json").read_text(encoding="utf-8"))


def read_report(path: str | Path) -> dict[str, Any]:
    """The document in a report file.

    Raises: UsageError when the file is missing, is no JSON, or has another format.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a report that --report wrote") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON ({error}); give a report written as .json") from error
    seen = found.get("format") if isinstance(found, dict) else type(found).__name__
    if seen != FORMAT:
        raise UsageError(f"{path}: format is {seen!r}, not {FORMAT!r}; give a report that --report wrote")
    return found
