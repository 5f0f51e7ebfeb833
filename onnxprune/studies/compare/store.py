"""The folder of a comparison: settings.json, and a file for every finished run in runs/.

Rows are dicts as they stand in the files. What other programs measured on the same samples can lie in runs/, too:
a row needs `key`, `method`, `target`, `seed`, and what `loop.row_of` writes as far as it is known.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.system.atomic_files import replace_text

Row = dict[str, Any]
SETTINGS_FORMAT, ROW_FORMAT = "onnxprune-compare-settings/1", "onnxprune-compare-row/1"
FREE = ("original", "command", "machine")  # entries of the settings that may differ from one session to the next


class Store:
    """A comparison's folder. Raises: UsageError when it belongs to a comparison with other settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.runs = folder, folder / "runs"
        settings = json.loads(json.dumps({"format": SETTINGS_FORMAT, **settings}))
        path = folder / "settings.json"
        if path.exists():
            _check_same(path, _read(path), settings)
        elif folder.exists() and any(folder.iterdir()):
            raise UsageError(f"--out {folder}: holds other files and no settings.json; give a new or an empty folder")
        self.runs.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            replace_text(path, json.dumps(settings, indent=1) + "\n")

    def rows(self) -> list[Row]:
        """All rows that were stored, in the order of their files' names."""
        return [_read(path) for path in sorted(self.runs.glob("*.json"))]

    def add(self, row: Mapping[str, Any]) -> None:
        """Stores one row: whole, or not at all."""
        path = self.runs / f"{file_name(row['key'])}.json"
        replace_text(path, json.dumps({"format": ROW_FORMAT, **row}, indent=1) + "\n")


def settings_in(folder: Path) -> Row:
    """The settings of the comparison in `folder`. Raises: UsageError when there is none."""
    return _read(folder / "settings.json")


def file_name(key: str) -> str:
    """A name for files of the run `key`, readable and its own."""
    return f"{re.sub('[^A-Za-z0-9.=]+', '-', key).strip('-')}-{sha256(key.encode()).hexdigest()[:6]}"


def _read(path: Path) -> Row:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); remove it and its run is made again") from error
    if not isinstance(found, dict) or found.get("format") not in (SETTINGS_FORMAT, ROW_FORMAT):
        raise UsageError(f"{path}: is no file of a comparison; give another folder with --out")
    return found


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    for name in [*before, *after]:
        if name.split(".")[0] not in FREE and before.get(name) != after.get(name):
            raise UsageError(
                f"{path.parent}: was made with {name} {before.get(name)}, and now it is {after.get(name)}; "
                "rows would not compare. Give the same settings, or another folder with --out"
            )


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found
