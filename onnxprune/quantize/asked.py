"""`--quantize KIND:KEY=VALUE,...` as a record; every key, its values and its default stand in one table."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from onnxprune.errors import UsageError
from onnxprune.graph import providers

OPTION = "--quantize"


class Key(NamedTuple):
    """A key: its default, the values it may have or the smallest and largest number, and what it does."""

    default: Any
    allowed: tuple[Any, ...]
    help: str


SWITCH = (True, False)
EXCLUDE = Key("", (), "nodes that stay as they are: names or globs, joined by +")
FORMS: Mapping[str, Mapping[str, Key]] = {
    "int8": {
        "calibrate": Key("minmax", ("minmax", "percentile", "entropy"), "how ranges follow from what samples reach"),
        "percentile": Key(99.99, (50.0, 100.0), "share of values inside the range, for calibrate=percentile"),
        "samples": Key(256, (1, 1_000_000), "of --data to calibrate on"),
        "per_channel": Key(True, SWITCH, "a scale for each output channel of a weight"),
        "symmetric": Key(False, SWITCH, "values as int8 around zero instead of uint8"),
        "reduce_range": Key(False, SWITCH, "weights in 7 bits, for CPUs whose 8-bit sums saturate"),
        "float": Key("needed", ("needed", "auto", "none"), "which nodes stay in float, found by measuring"),
        "equalize": Key(True, SWITCH, "bring channels to ranges more alike before rounding, where it helps"),
        "biases": Key(True, SWITCH, "take out the mean error that rounded weights make in a channel, where it helps"),
        "finetune": Key(0, (0, 1000), "epochs of training with the rounding in place, the original as teacher"),
        "exclude": EXCLUDE,
    },
    "dynamic": {
        "per_channel": Key(True, SWITCH, "a scale for each column of a matrix"),
        "reduce_range": Key(False, SWITCH, "weights in 7 bits, for CPUs whose 8-bit sums saturate"),
        "exclude": EXCLUDE,
    },
    "int4": {
        "block": Key(32, (16, 32, 64, 128, 256), "rows of a matrix that share a scale"),
        "symmetric": Key(False, SWITCH, "without a zero point for each block"),
        "accuracy_level": Key(4, (0, 1, 2, 3, 4), "what values are computed in: 1 float, 4 int8, 0 as it comes"),
        "exclude": EXCLUDE,
    },
    "fp16": {"exclude": EXCLUDE},
}
KINDS = tuple(FORMS)
NONE = "none"  # for 'apply' of a plan that quantizes


@dataclass(frozen=True)
class Asked:
    """A kind of quantization with a value for each of its keys."""

    kind: str
    options: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.options[key]

    @property
    def excluded(self) -> tuple[str, ...]:
        return tuple(filter(None, self["exclude"].split("+")))

    @property
    def quick(self) -> "Asked":
        """The same without training, for trials."""
        changed = {key: 0 if key == "finetune" else value for key, value in self.options.items()}
        return Asked(self.kind, MappingProxyType(changed))

    def __str__(self) -> str:
        """The text that `parse` reads as this record: the kind, and the keys that differ from their defaults."""
        keys = FORMS[self.kind]
        changed = [f"{key}={_text(value)}" for key, value in self.options.items() if value != keys[key].default]
        return ":".join([self.kind, *([",".join(changed)] if changed else [])])


def parse(text: str | None) -> Asked | None:
    """The record of `text`; None for None and for "none". Raises: UsageError."""
    if text is None or text == NONE:
        return None
    kind, colon, rest = str(text).partition(":")
    if kind not in FORMS:
        raise UsageError(f"{OPTION} {text}: unknown; choose of {', '.join(KINDS)}")
    keys = FORMS[kind]
    found = {name: key.default for name, key in keys.items()}
    given: set[str] = set()
    for word in rest.split(",") if colon else ():
        name, equals, value = word.partition("=")
        if name not in keys:
            raise UsageError(f"{OPTION} {text}: '{name}' is no key of {kind}; choose of {', '.join(keys)}")
        if not equals or name in given:
            wanted = "was given before; give it once" if equals else f"give {name}=VALUE"
            raise UsageError(f"{OPTION} {text}: '{word}': {wanted}")
        given.add(name)
        found[name] = _value(text, name, keys[name], value)
    return Asked(kind, MappingProxyType(found))


def _value(text: str, name: str, key: Key, value: str) -> Any:
    if isinstance(key.default, str) and not key.allowed:
        return value
    for allowed in key.allowed:
        if _text(allowed) == value and not _is_range(key):
            return allowed
    if _is_range(key):
        low, high = key.allowed
        try:
            number = type(key.default)(value)
        except ValueError:
            number = None
        if number is not None and low <= number <= high:  # not-a-number is in no range
            return number
        raise UsageError(f"{OPTION} {text}: {name}={value}: give a number from {_text(low)} to {_text(high)}")
    raise UsageError(f"{OPTION} {text}: {name}={value}: choose of {', '.join(map(_text, key.allowed))}")


def _is_range(key: Key) -> bool:
    return len(key.allowed) == 2 and isinstance(key.default, int | float) and not isinstance(key.default, bool)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def check(asked: Asked | None, provider: str, has_samples: bool, has_ranges: bool = False) -> None:
    """Checks before any work that the quantization asked for can be made. Raises: UsageError otherwise."""
    if asked is None:
        return
    if asked.kind == "int8" and not has_samples and not has_ranges:
        raise UsageError(
            "--quantize int8 calibrates on samples, and there are none; give --data, or --quantize dynamic, which "
            "needs none"
        )
    if asked.kind == "int8" and not providers.of(provider).integers:
        raise UsageError(
            f"--quantize {asked.kind}: onnxruntime's {providers.short_name(provider)} provider has no integer kernels "
            f"and would compute in floats, with conversions between them; give --quantize {providers.of(provider).form}"
            f", or one of --provider {', '.join(providers.computing_integers())}"
        )
