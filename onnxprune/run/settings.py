"""What every choice became that the options may leave open, and where that came from: recorded in plan and report.

from: 'asked', 'default' (the same on every machine), 'calibrated' (by 'onnxprune calibrate'), 'machine' (what
is there), 'data' (size of the data and kind of the model), 'measured' (timed before the first step of fine-tuning).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnxruntime

from onnxprune.graph.sessions import provider_name
from onnxprune.measure.calibrations import alignment_for
from onnxprune.measure.host import default_threads
from onnxprune.methods import base
from onnxprune.options import TUNING, Options, is_number, provider_for
from onnxprune.plan.plan import Plan
from onnxprune.recover import levels

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History

Recorded = Mapping[str, Mapping[str, Any]]
OWN = ("epochs", "lr", "batch_size")  # options of fine-tuning that have names of their own
TIMED = ("amp", "channels_last")
GIVEN = ("device", "seed", "loss", "metric", "regression", "progress", "resume_dir")  # recorded elsewhere, or no choice


def recorded(options: Options, method: str, history: History | None) -> dict[str, dict[str, Any]]:
    """Name -> {"value", "from"} of every choice of a run that ends with `history`."""
    provider = provider_for(options)
    found = {
        "align": _said(
            alignment_for(options.align, provider), {"auto": "default"}.get(str(options.align), _origin(options))
        ),
        "provider": _said(provider, "asked" if options.provider != "auto" else "default"),
        "recover": _said(options.level, "asked" if options.recover else "data"),
    }
    if options.latency:
        threads = options.threads or default_threads()
        found["threads"] = _said(threads, "asked" if options.threads else "machine")
    if history is not None or (method in base.METHODS and base.METHODS[method].needs != base.Needs()):
        found["device"] = _said(levels.device(options.device), "asked" if options.device != "auto" else "machine")
    return found | (_of_finetuning(options, history) if history is not None else {})


def _origin(options: Options) -> str:
    return "asked" if is_number(options.align) else "calibrated"


def _said(value: Any, origin: str) -> dict[str, Any]:
    return {"value": value, "from": origin}


def _of_finetuning(options: Options, history: History) -> dict[str, dict[str, Any]]:
    asked = {name for name in OWN if getattr(options, name) is not None}
    asked |= {str(name).replace("-", "_") for name, value in options.finetune.items() if value not in (None, "auto")}
    return {
        name: _said(value, "asked" if name in asked else "measured" if name in TIMED else "data")
        for name, value in history.settings.as_json().items()
        if name not in GIVEN
    }


def again(loaded: Plan, options: Options) -> Options:
    """`options` with what the plan recorded wherever they leave a choice open, as far as this machine has it."""
    values = {name: entry["value"] for name, entry in loaded.settings.items() if entry.get("value") is not None}
    provider = provider_name(str(values.get("provider", "")))
    if options.provider == "auto" and options.device == "auto" and provider in onnxruntime.get_available_providers():
        options = replace(options, provider=values["provider"])
    if options.level != "finetune" or "device" not in values:
        return options
    if options.device == "auto" and values["device"] == "cpu":  # where it was cuda, auto takes that if it is there
        options = replace(options, device="cpu")
    own = {name: values[name] for name in OWN if getattr(options, name) is None and name in values}
    other = () if levels.device(options.device) == values["device"] else TIMED
    tuning = {name: values[name] for name in TUNING if name in values and name not in other}
    return replace(options, **own, finetune={**tuning, **options.finetune})
