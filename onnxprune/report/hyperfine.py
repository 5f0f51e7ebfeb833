"""Latencies in the form of `hyperfine --export-json`, for the scripts and actions that read that."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

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
