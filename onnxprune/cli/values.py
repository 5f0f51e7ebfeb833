"""Words of the command line as Python values, and settings as `Options`."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options import PREPROCESS, Options


def options_of(settings: Mapping[str, Any], command: str) -> Options:
    """The record of a run from what a parser or a configuration file gave. Raises: UsageError for what cannot be."""
    known = {field.name for field in fields(Options)}
    values = {key: value for key, value in settings.items() if key in known}
    values["target"] = pairs("--target", settings.get("target", ()), float)
    values["method_options"] = pairs("--option", settings.get("option", ()), literal)
    values["finetune"] = pairs("--finetune", settings.get("finetune", ()), str)
    for name in ("include", "exclude", "report"):
        values[name] = tuple(settings.get(name, ()))
    values["preprocess"] = {key: settings[key] for key in PREPROCESS if key in settings}
    values["progress"] = sys.stderr.isatty() and not settings.get("quiet")
    return Options(**values, command=command)


def pairs(option: str, words: Any, convert: Callable[[str], Any]) -> dict[str, Any]:
    """{key: converted value} of words KEY=VALUE. Raises: UsageError that names `option`."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = str(word).partition("=")
        key = key.strip()
        example = {"--target": "macs=0.5", "--finetune": "mixup=0.2"}.get(option, "NAME=VALUE")
        if not equals or not key:
            raise UsageError(f"{option} '{word}': expected KEY=VALUE, such as {example}")
        if key in found:
            raise UsageError(f"{option} '{word}': {key} was given before; give it once")
        try:
            found[key] = convert(value)
        except ValueError as error:
            raise UsageError(f"{option} '{word}': '{value}' is not a number; give {key}=0.5, say") from error
    return found


def align(text: str) -> int | str:
    """A multiple, or auto."""
    return text if text == "auto" else int(text)


def numbers(text: str) -> Any:
    """One number, or several with commas as a tuple; whole ones as int."""
    values = [float(part) for part in text.split(",")]
    if all(value.is_integer() for value in values):
        values = [int(value) for value in values]
    return values[0] if len(values) == 1 else tuple(values)


numbers.__name__ = "number or list of numbers"  # argparse names the type in its message
align.__name__ = "whole number or auto"


def literal(text: str) -> Any:
    """The number or truth value that `text` reads as, else `text`."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
