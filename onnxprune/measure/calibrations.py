"""The multiple that kept sizes are held to, and the calibrations of this machine that may decide it.

Calibrations are kept in the user's cache folder: one JSON file, an entry per machine, provider and form (floats: "",
or what models are quantized as).
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.graph import providers
from onnxprune.graph.sessions import provider_name
from onnxprune.measure.alignment import WIDTHS, Alignment
from onnxprune.measure.host import cpu_name, default_threads, gpus, versions
from onnxprune.options import Align
from onnxprune.system.atomic_files import replace_text

LOG = logging.getLogger("onnxprune")
FORMAT = "onnxprune-alignment/1"


def alignment_for(align: Align, provider: str, form: str = "") -> int:
    """The multiple that kept sizes are held to on `provider`, for models quantized as `form`.

    auto: the same on every machine, so that a command and a seed give one plan. calibrated: what 'onnxprune calibrate'
    measured on this one. Raises: UsageError where it measured nothing for `provider`.
    """
    if align == "auto":
        return providers.of(provider).multiple
    if align != "calibrated":
        return int(align)
    measured = cached_multiple(provider, form)
    if measured is None:
        what, more = (f"{provider} with {form}", f" --quantize {form}") if form else (provider, "")
        raise UsageError(
            f"--align calibrated: {cache_file()} holds no calibration of this machine for {what}; "
            f"run 'onnxprune calibrate --provider {provider}{more}', or give --align auto"
        )
    return measured


def cache_folder() -> Path:
    """Where this user's programs keep what they can measure again."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "onnxprune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onnxprune"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "onnxprune"


def cache_file() -> Path:
    """The file of all calibrations of this user."""
    return cache_folder() / "alignment.json"


def key(provider: str, form: str = "") -> str:
    """The key of an entry: the processor that computes, the provider, onnxruntime's version, and the form."""
    name = provider_name(provider)
    return " | ".join((_processor(name), name, _onnxruntime(), *([form] if form else [])))


@cache
def _processor(provider: str) -> str:
    cards = gpus() if provider != "CPUExecutionProvider" else []
    return str(cards[0].get("name")) if cards else f"{cpu_name()}, {default_threads()} cores"


@cache
def _onnxruntime() -> str:
    found = versions()
    return f"onnxruntime {found.get('onnxruntime-gpu') or found.get('onnxruntime')}"


def cached_multiple(provider: str, form: str = "") -> int | None:
    """The multiple measured on this machine for `provider`, or None where it was not, or the file is damaged."""
    multiple = _entries().get(key(provider, form), {}).get("multiple")
    return multiple if multiple in WIDTHS else None


def store(provider: str, found: Alignment, form: str = "") -> Path:
    """Adds the calibration to the cache file; its path. Raises: UsageError where it cannot be written."""
    path = cache_file()
    rows = {kind: {str(m): round(value, 3) for m, value in row.items()} for kind, row in found.efficiency.items()}
    entry = {"multiple": found.multiple, "efficiency": rows, "measured": date.today().isoformat()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent}: cannot be made ({error.strerror}); set XDG_CACHE_HOME") from error
    whole = {"format": FORMAT, "entries": {**_entries(), key(provider, form): entry}}
    replace_text(path, json.dumps(whole, indent=1) + "\n")
    return path


def _entries() -> Mapping[str, Mapping[str, Any]]:
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOG.warning("%s is not read (%s); 'onnxprune calibrate' writes it again", cache_file(), type(error).__name__)
        return {}
    entries = found.get("entries") if isinstance(found, dict) and found.get("format") == FORMAT else None
    return {k: v for k, v in entries.items() if isinstance(v, dict)} if isinstance(entries, dict) else {}
