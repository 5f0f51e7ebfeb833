"""Settings of a method as a frozen dataclass, filled from the options of a run."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from onnxprune.errors import UsageError
from onnxprune.methods.base import Context, Method

T = TypeVar("T")
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read(kind: type[T], context: Context, method: str) -> T:
    """`kind(...)` with every field that the options of `context` name, converted to the type of its default.

    None means not given. Raises: UsageError for a text that is no number, or no yes or no.
    """
    return _filled(kind, context.options, method)


def check(chosen: Method, given: Mapping[str, Any]) -> None:
    """Checks that `chosen` has options of these names and types; raises UsageError otherwise."""
    if chosen.options is None:
        return
    known = [entry.name for entry in fields(chosen.options)]
    for name in given:
        if name not in known:
            others = f"no such option; choose of {', '.join(known)}" if known else "no options; leave it out"
            raise UsageError(f"--option {name}: method {chosen.name} has {others}")
    _filled(chosen.options, given, chosen.name)


def _filled(kind: type[T], options: Mapping[str, Any], method: str) -> T:
    given = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        value = options.get(entry.name)
        if value is not None:
            given[entry.name] = _converted(value, entry.default, f"--method {method}: option {entry.name}={value}")
    return kind(**given)


def _converted(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, bool):
        word = str(value).lower()
        if word not in WORDS:
            raise UsageError(f"{where}: give yes or no")
        return WORDS[word]
    if isinstance(default, int | float):
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: give a number, such as {default:g}") from error
        if isinstance(default, int) and number != int(number):
            raise UsageError(f"{where}: give a whole number, such as {default}")
        return type(default)(number)
    return str(value)


def require(holds: bool, method: str, text: str) -> None:
    """Checks a condition on the options of `method`. Raises: UsageError with `text` unless it `holds`."""
    if not holds:
        raise UsageError(f"--method {method}: {text}")
