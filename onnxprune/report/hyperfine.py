"""Latencies in the form of `hyperfine --export-json`: written for scripts that read it, and read to be compared."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.measure.records import Latency, Measurement, Report
from onnxprune.report import text
from onnxprune.system.atomic_files import replace_text


def document(report: Report) -> dict[str, Any]:
    """One result per model and setting; all times in seconds.

    `times` are the single times that a report keeps, and mean and deviation are theirs; median and min are of all.
    What a run of a model has no part in is null: hyperfine's times of the processor, and exit codes.
    """
    results = [_result(model, entry) for model in report.models for entry in model.latency]
    return {"results": results}


def _result(model: Measurement, entry: Latency) -> dict[str, Any]:
    times = [ms / 1e3 for ms in entry.samples_ms] or [entry.median_ms / 1e3]
    return {
        "command": f"{model.name} ({text.setting(entry)})",
        "mean": fmean(times),
        "stddev": stdev(times) if len(times) > 1 else None,
        "median": entry.median_ms / 1e3,
        "user": None,
        "system": None,
        "min": min([*times, *([entry.min_ms / 1e3] if entry.min_ms is not None else [])]),
        "max": max(times),
        "times": times,
        "exit_codes": None,
        "parameters": {"model": model.name, "batch": str(entry.batch), "threads": str(entry.threads)},
    }


def write(report: Report, path: Path) -> None:
    """Writes `document` to `path`, whole or not at all."""
    replace_text(path, json.dumps(document(report), indent=2) + "\n")


def read(path: str | Path) -> dict[str, Any] | None:
    """The times in a file of hyperfine's, as a report has them; None where the file is no such one.

    Raises: UsageError where a result has no times.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "format" in found or not isinstance(found.get("results"), list):
        return None
    return _as_report(found, path)


def _as_report(found: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """A model per command, with times in milliseconds and nothing else.

    hyperfine does not tell the machine; all its files count as of one.
    """
    models = []
    for number, result in enumerate(found["results"]):
        try:
            models.append({"name": str(result["command"]), "latency": [_latency(result)]})
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(
                f"{where}: result {number} is none of hyperfine's ({type(error).__name__}: {error}); write it again "
                "with --export-json"
            ) from error
    # A report begins with the original, which is not judged: of hyperfine's commands all are.
    return {"machine": {"cpu": "hyperfine's"}, "models": [{"name": "", "latency": []}, *models]}


def _latency(result: Mapping[str, Any]) -> dict[str, Any]:
    times = [1e3 * float(second) for second in result.get("times") or [result["median"]]]
    first, _, third = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    given = result.get("parameters") or {}
    return {
        "provider": "command",
        "batch": given.get("batch"),
        "threads": given.get("threads"),
        "runs": len(times),
        "median_ms": 1e3 * float(result["median"]),
        "q1_ms": first,
        "q3_ms": third,
    }
