"""Options from a TOML file: the names of the command line without their dashes, checked as strictly."""

import argparse
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from onnxprune.cli import values
from onnxprune.errors import UsageError

NOT_IN_FILES = ("help", "config", "input", "output")


class Kind(NamedTuple):
    """What an option may hold in a file: how to say it, a test, and the form that the command line gives it."""

    name: str
    fits: Callable[[Any], bool]
    convert: Callable[[Any], Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list) and bool(value) and all(map(_is_number, value)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _pairs(value: Any) -> list[str]:
    return [f"{key}={held}" for key, held in value.items()] if isinstance(value, dict) else _listed(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


TEXT = Kind("text in quotes", _is_text, str)
PAIRS: dict[str, Kind] = {
    "target": Kind(
        "a table such as {macs = 0.5}",
        lambda v: all(map(_is_number, v.values())) if isinstance(v, dict) else _is_texts(v),
        _pairs,
    ),
    "option": Kind(
        "a table such as {name = 1}",
        lambda v: isinstance(v, dict) and all(isinstance(x, int | float | str) for x in v.values()),
        _pairs,
    ),
    "finetune": Kind(
        "a table such as {mixup = 0.2}",
        lambda v: all(isinstance(x, int | float | str) for x in v.values()) if isinstance(v, dict) else _is_texts(v),
        _pairs,
    ),
}
BY_TYPE: dict[Any, Kind] = {
    int: Kind("a whole number", _is_int, int),
    float: Kind("a number", _is_number, float),
    Path: Kind("a path in quotes", _is_text, Path),
    values.align: Kind('a whole number or "auto"', lambda v: _is_int(v) or v == "auto", lambda v: v),
    values.numbers: Kind(
        "a number or a list of numbers", _is_numbers, lambda v: tuple(v) if isinstance(v, list) else v
    ),
    None: TEXT,
}


def read(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Options from the file at `path`, in the form that `parser` gives them.

    Raises: UsageError for a file that is no TOML, an unknown option, or a value of another type.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such configuration file; give the path of a .toml file") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a TOML file ({error}); write lines such as: target = {{macs = 0.5}}") from error
    actions = {word[2:]: a for a in parser._actions for word in a.option_strings if word.startswith("--")}
    found: dict[str, Any] = {}
    for key, value in data.items():
        action = actions.get(key.replace("_", "-"))
        if action is None or action.dest in NOT_IN_FILES:
            raise UsageError(f"{path}: unknown option '{key}'; 'onnxprune -h' lists them")
        found[action.dest] = _value(action, value, f"{path}: option '{key}'")
    return found


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise UsageError(f"{where} is {value!r}; give true or false")
        return value == bool(action.const)
    kind = PAIRS.get(action.dest) or BY_TYPE[action.type]
    many = isinstance(action, argparse._AppendAction) and action.dest not in PAIRS
    items = _listed(value) if many else [value]
    for item in items:
        if not kind.fits(item):
            raise UsageError(f"{where} is {item!r}; give {kind.name}")
        if action.choices is not None and item not in action.choices:
            raise UsageError(f"{where} is {item!r}; choose of {', '.join(map(str, action.choices))}")
    return [kind.convert(item) for item in items] if many else kind.convert(value)
