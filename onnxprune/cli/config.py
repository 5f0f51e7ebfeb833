"""Options from a TOML file: the names of the command line without their dashes, checked as strictly."""

import tomllib
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options import SWITCH, TABLE, VALUES, Option

BY_NAME = {row.flag.removeprefix("--"): row for row in TABLE.values()}
SWITCHES = {"quiet", "verbose"}


def read(path: Path) -> dict[str, Any]:
    """Options from the file at `path`, by the names of the table.

    Raises: UsageError for a file that is no TOML, an unknown option, or a value of another type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such configuration file; give the path of a .toml file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file ({error}); write lines such as: target = {{macs = 0.5}}") from error
    found: dict[str, Any] = {}
    for key, value in data.items():
        where, name = f"{path}: option '{key}'", key.replace("_", "-")
        if name in SWITCHES:
            found[name] = _switch(value, where)
            continue
        row = BY_NAME.get(name)
        if row is None:
            raise UsageError(f"{path}: unknown option '{key}'; 'onnxprune -h' lists them")
        found[row.name] = _value(row, value, where)
    return found


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where} is {value!r}; give true or false")
    return value


def _value(row: Option, value: Any, where: str) -> Any:
    if row.kind is SWITCH:
        return _switch(value, where) != row.negative
    for item in value if row.several and isinstance(value, list) else [value]:
        # A word alone is one pair, except of a method's options, whose values have types in a table only.
        table = [item] if row.kind.pair and row.kind is not VALUES and isinstance(item, str) else item
        if not row.kind.fits(table) or (row.kind is VALUES and not isinstance(item, dict)):
            raise UsageError(f"{where} is {item!r}; give {row.kind.said}")
        if row.choices and item not in row.choices:
            raise UsageError(f"{where} is {item!r}; choose of {', '.join(row.choices)}")
    if row.kind.pair and row.kind is not VALUES and isinstance(value, str):
        return [value]
    return value
