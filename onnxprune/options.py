# ruff: noqa: RUF009 (a field of Options is declared by a call)
"""The options of a run: one table, of which the command line, TOML files and Python's `prune` are made.

To add an option, add one field to `Options`:

    front: bool = option(False, SWITCH, MEASURE, "ten budgets from one scoring: table, plot and plans")

`--front`, `front = true` in a configuration file and `prune(..., front=True)` exist from then on, with the default in
the help text, and whatever does not fit is refused with one message. `low`, `high` and `choices` say which values there
are, `several=True` that it may be given more than once, `flag` that the command line has another name for it than
`options.front`. A command besides prune offers it too where its parser names it: `cli.add(group, "front")`. What
depends on two options is checked in `Options.__post_init__`. `python tools/keywords.py` then tells editors of it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

from onnxprune.errors import UsageError

Level = Literal["none", "constants", "reconstruct", "finetune"]
LEVELS: tuple[Level, ...] = ("none", "constants", "reconstruct", "finetune")
TARGETS = {"macs": "macs", "params": "params", "size": "bytes", "latency": "latency"}

AUTO = "auto"
DATA_FREE = "fpgm"  # the method where there are no samples and none was asked for
RELATIVE_ERROR = "relative_error"  # the metric that --metric knows by name: outputs are numbers, not classes
# KEY of --finetune KEY=VALUE -> the type of its value.
TUNING: Mapping[str, type] = {
    "optimizer": str,
    "weight_decay": float,
    "warmup": float,
    "clip": float,
    "ema": float,
    "labels": float,
    "features": float,
    "temperature": float,
    "flip": bool,
    "crop": int,
    "zoom": float,
    "versions": int,
    "mixup": float,
    "batchnorm": str,
    "statistics": str,
    "amp": str,
    "channels_last": bool,
    "compile": bool,
    "patience": int,
    "checkpoint_seconds": float,
}

# What a value is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """The kind of value that an option holds.

    said: what a user is told to give. fits: whether a value of a file or of Python is one. read: a word of the
    command line as such a value. held: such a value as `Options` holds it. pair: for tables of KEY=VALUE an example,
    then `read` is for the part behind the equals sign.
    """

    said: str
    fits: Callable[[Any], bool]
    read: Callable[[str], Any] = str
    held: Callable[[Any], Any] = lambda value: value
    pair: str = ""


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number, which a truth value is not."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return is_number(value) and float(value).is_integer()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray) and len(value) > 0 and all(map(is_number, value))


def _is_table(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test of what `pairs` reads: a mapping to values that fit, or a list of words."""

    def test(value: Any) -> bool:
        if isinstance(value, Mapping):
            return all(map(fits, value.values()))
        return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)

    return test


ALIGNMENTS = ("auto", "calibrated")
Align = int | Literal["auto", "calibrated"]


def _align(text: str) -> int | str:
    return text if text in ALIGNMENTS else int(text)


def _numbers(text: str) -> Any:
    """One number, or several with commas as a tuple; whole ones as int."""
    values = [float(part) for part in text.split(",")]
    if all(value.is_integer() for value in values):
        values = [int(value) for value in values]
    return values[0] if len(values) == 1 else tuple(values)


def literal(text: str) -> Any:
    """The number or truth value that `text` reads as, else `text`."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def pairs(option: str, words: Any, convert: Callable[[str], Any], example: str = "NAME=VALUE") -> dict[str, Any]:
    """{key: converted value} of words KEY=VALUE. Raises: UsageError that names `option`."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = str(word).partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{option} '{word}': expected KEY=VALUE, such as {example}")
        if key in found:
            raise UsageError(f"{option} '{word}': {key} was given before; give it once")
        try:
            found[key] = convert(value)
        except ValueError as error:
            raise UsageError(f"{option} '{word}': '{value}' is not a number; give {key}=0.5, say") from error
    return found


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> float | None:
    """Seconds of '90s', '20m', '1h30m' or '2h', or of a number of them; None for what is no duration."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", str(value))
    whole = bool(parts) and "".join(number + unit for number, unit in parts) == value
    try:
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts) if whole else float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 < seconds < np.inf and not isinstance(value, bool) else None


SWITCH = Kind("true or false", lambda v: isinstance(v, bool))
WHOLE = Kind("a whole number", _is_whole, int)
NUMBER = Kind("a number", is_number, float)
NUMBERS = Kind(
    "a number or a list of numbers",
    lambda v: is_number(v) or _is_list(v),
    _numbers,
    lambda v: v if is_number(v) else tuple(v),
)
ALIGN = Kind('a whole number, "auto" or "calibrated"', lambda v: v in ALIGNMENTS or _is_whole(v), _align)
TEXT = Kind("text in quotes", lambda v: isinstance(v, str))
PATH = Kind("a path in quotes", lambda v: isinstance(v, str | Path), Path, Path)
SAMPLES = Kind("text in quotes", lambda v: not isinstance(v, bool | int | float))  # or arrays, a loader, an iterable
FUNCTION = Kind("text in quotes", lambda v: isinstance(v, str) or callable(v))
DURATION = Kind("a duration such as 90s, 20m or 2h", lambda v: _seconds(v) is not None, held=_seconds)
SHARES = Kind("a table such as {macs = 0.5}", _is_table(is_number), float, pair="macs=0.5")
VALUES = Kind(
    "a table such as {name = 1}", _is_table(lambda v: isinstance(v, int | float | str)), literal, pair="NAME=VALUE"
)
TUNINGS = Kind(
    "a table such as {mixup = 0.2}", _is_table(lambda v: isinstance(v, int | float | str)), literal, pair="mixup=0.2"
)
OUTPUTS = Kind('a table such as {y = "classes:1"}', _is_table(lambda v: isinstance(v, str)), str, pair="y=classes:1")

# Groups of the help text; each fits a screen.
REMOVE = "what to remove"
DATA = "samples (SPEC: .npz, folder of images, module:function, digits)"
RECOVERY = "recovery, see docs/recovery.md"
MEASURE = "measuring and output"

# An option -------------------------------------------------------------------------------------------------------

TINY = 1e-12


@dataclass(frozen=True)
class Option:
    """One row of the table; see `option` for what is in it."""

    name: str
    default: Any
    kind: Kind
    group: str
    help: str
    metavar: str | None
    shown: str | None
    low: float
    high: float
    wanted: str
    choices: tuple[str, ...]
    several: bool
    flag: str
    type: Any

    @property
    def negative(self) -> bool:
        """Whether the switch is on unless the command line gives `flag`."""
        return self.default is True

    def held(self, value: Any) -> Any:
        """`value`, from the command line, a file or Python, as the record holds it."""
        if self.kind.pair:
            if value is None or isinstance(value, Mapping):
                return dict(value or {})
            if not isinstance(value, list | tuple):  # one word or number is a mistake in Python: target="macs=0.5"
                return value
            return pairs(self.flag, value, self.kind.read, self.kind.pair)
        if self.several:
            return tuple(self._one(item) for item in (value if isinstance(value, list | tuple) else [value]))
        return self._one(value)

    def _one(self, value: Any) -> Any:
        return self.kind.held(value) if value is not None and self.kind.fits(value) else value

    def check(self, value: Any) -> None:
        """Checks that `value` can be; raises UsageError with what to give otherwise."""
        if value is None and self.default is None:
            return
        if self.kind.pair and not isinstance(value, Mapping):
            key, _, number = self.kind.pair.partition("=")
            raise UsageError(f"{self.name}={value!r}: give a mapping such as {{'{key}': {number}}}")
        for item in value if self.several and isinstance(value, tuple) else [value]:
            if self.choices and item not in self.choices:
                raise UsageError(f"{self.flag} {item}: unknown; choose of {', '.join(self.choices)}")
            # Not-a-number is in no range.
            in_range = not is_number(item) or self.low <= item <= self.high
            if not self.kind.pair and not (self.kind.fits(item) and in_range):
                raise UsageError(f"{self.flag} {item}: give {self.wanted or self.kind.said}")


def option(
    default: Any,
    kind: Kind,
    group: str,
    help: str,
    metavar: str | None = None,
    *,
    shown: str | None = None,
    low: float = -np.inf,
    high: float = np.inf,
    wanted: str = "",
    choices: tuple[str, ...] = (),
    several: bool = False,
    flag: str = "",
) -> Any:
    """A field of `Options` that users may give.

    shown: what the help text calls the default, where the value does not say it. low, high: the range of numbers, and
    wanted: how a user is told of it. several: the field is a tuple, and the option repeatable. flag: its name on the
    command line and in files, where that is not the field's.
    """
    row = {"default": default, "kind": kind, "group": group, "help": help, "metavar": metavar, "shown": shown}
    row |= {"low": low, "high": high, "wanted": wanted, "choices": choices, "several": several, "flag": flag}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"option": row})
    return field(default=default, metadata={"option": row})


@dataclass(frozen=True)
class Options:
    """Options of the prune command; the names and defaults are those of the command line."""

    # fmt: off
    method: str = option(
        AUTO, TEXT, REMOVE, "how units are scored; 'onnxprune methods' lists the methods", "NAME",
        shown=f"snacs; without --data {DATA_FREE}")
    target: Mapping[str, float] = option(
        {}, SHARES, REMOVE, f"share of {', '.join(TARGETS)} that may remain; repeatable, all must hold", "KEY=FRACTION",
        shown="snacs decides, else macs=0.5")
    max_drop: float | None = option(
        None, NUMBER, REMOVE,
        "search for the smallest model that loses at most POINTS of the 100 points between a model "
        "that answers all samples alike and the original", "POINTS",
        low=0, wanted="points that may be lost, 0 or more")
    min_speedup: float | None = option(
        None, NUMBER, REMOVE, "fail unless it is X times as fast", "X", low=TINY, wanted="a number above 0")
    steps: int = option(
        1, WHOLE, REMOVE, "reach --target in N steps with recovery between them", "N",
        low=1, high=1000, wanted="1 or more, up to 1000")
    align: Align = option(
        "auto", ALIGN, REMOVE, "keep multiples of N channels; where the target allows, auto: what the provider runs "
        "fastest with (cpu 16, others 8), or calibrated: what 'onnxprune calibrate' measured here", "N",
        low=1, wanted="1 or more, auto or calibrated")
    floor: float = option(
        0.05, NUMBER, REMOVE, "least share of a dimension to keep", "SHARE",
        low=0, high=1, wanted="a share from 0 to 1")
    include: tuple[str, ...] = option(
        (), TEXT, REMOVE, "cut only what these names match", "PATTERN", shown="all", several=True)
    exclude: tuple[str, ...] = option((), TEXT, REMOVE, "leave what these names match", "PATTERN", several=True)
    states: str = option(
        "keep", TEXT, REMOVE, "states in the interface", "NAME",
        choices=("keep", "narrow"))
    keep_tokens: Path | None = option(
        None, PATH, REMOVE, "ids of the vocabulary that stay: one a line, a JSON list or .npy, see docs/decoders.md",
        "FILE", shown="all")
    exact_only: bool = option(False, SWITCH, REMOVE, "cut nothing that statistics run over")
    inner_only: bool = option(
        False, SWITCH, REMOVE, "cut inside residual blocks only")
    allocate: str | None = option(
        None, TEXT, REMOVE, "where widths come from: the method's order, the same share everywhere, what is lost after "
        "least squares (the order of units too), or measured on the whole model", "NAME",
        shown="refit where it is clearly better and no method is given; else method, or the loss",
        choices=("measured", "method", "refit", "uniform"))
    blocks: tuple[str, ...] = option(
        (), TEXT, REMOVE, "blocks that go as a whole: measured, or names that 'onnxprune inspect' lists", "NAME",
        shown="none", several=True)
    method_options: Mapping[str, Any] = option(
        {}, VALUES, REMOVE, "an option of the method, see docs/methods; repeatable", "KEY=VALUE", flag="--option")

    data: Any = option(None, SAMPLES, DATA, "calibration samples: to score and tune on", "SPEC")
    val: Any = option(
        None, SAMPLES, DATA, "held-out set: to measure accuracy on", "SPEC", shown="a held-out part of --data")
    size: Any = option(None, NUMBERS, DATA, "images: shorter side, or height,width", "N", shown="the model's")
    mean: Any = option(None, NUMBERS, DATA, "images: mean of each channel, subtracted after scaling", "M", shown="0")
    std: Any = option(None, NUMBERS, DATA, "images: standard deviation of each channel, to divide by", "S", shown="1")
    scale: float | None = option(None, NUMBER, DATA, "images: multiplies pixels of 0 to 255", "X", shown="1/255")
    layout: str | None = option(
        None, TEXT, DATA, "images: order of the axes", "NAME", shown="the model's", choices=("nchw", "nhwc"))
    labels: Path | None = option(
        None, PATH, DATA, "for folders of images: .csv of file name and label, or the class names, one a line in the "
        "model's order", "FILE")
    kinds: Mapping[str, str] = option(  # see outputs/kinds.py
        {}, OUTPUTS, DATA,
        "what an output is, where 'onnxprune inspect' finds otherwise: classes, sequence, segmentation, scores, boxes, "
        "embedding, signal, state, pass-through, constant; repeatable", "NAME=KIND[:AXIS]", shown="found",
        flag="--output")

    recover: Level | None = option(
        None, TEXT, RECOVERY, "how far to repair the cut model", "LEVEL", shown="the best that the data allows",
        choices=LEVELS)
    epochs: int | None = option(
        None, WHOLE, RECOVERY, "epochs of fine-tuning", "N", shown="chosen by the size of the data", low=1,
        wanted="1 or more")
    lr: float | None = option(
        None, NUMBER, RECOVERY, "learning rate of fine-tuning", "X", shown="chosen", low=TINY,
        wanted="a number above 0")
    batch_size: int | None = option(
        None, WHOLE, RECOVERY, "samples per step of fine-tuning", "N", shown="chosen", low=1, wanted="1 or more")
    device: str = option("auto", TEXT, RECOVERY, "where to train", "NAME", choices=("auto", "cpu", "cuda"))
    finetune: Mapping[str, Any] = option(  # see recover/asked.py
        {}, TUNINGS, RECOVERY, f"how to fine-tune: {', '.join(TUNING)}; repeatable", "KEY=VALUE", shown="chosen")
    loss: str | Callable[..., Any] | None = option(
        None, FUNCTION, RECOVERY, "your own loss, a function of (outputs, the original's outputs, labels or None)",
        "MODULE:FUNCTION",
        shown="distance to the original")
    metric: str | Callable[..., Any] | None = option(
        None, FUNCTION, RECOVERY,
        "your own metric, larger is better, or relative_error; it chooses the epoch, and is the accuracy of --max-drop",
        "MODULE:FUNCTION", shown="by the kind of each output, see docs/tasks.md")
    time: float | None = option(
        None, DURATION, RECOVERY, "time of the whole run, such as 20m or 2h; fine-tuning takes what is left",
        "DURATION",
        shown="fine-tuning at most 20m")
    resume: Path | None = option(
        None, PATH, RECOVERY, "folder of checkpoints; an interrupted run goes on from there", "DIR")

    provider: str = option("auto", TEXT, MEASURE, "where to measure: cpu, cuda, tensorrt, openvino, ...", "NAME")
    threads: int | None = option(
        None, WHOLE, MEASURE, "threads to measure with", "N", shown="OMP_NUM_THREADS, else cores",
        low=1, high=1e6, wanted="1 or more")
    latency: bool = option(True, SWITCH, MEASURE, "do not measure latency", flag="--no-latency")
    front: bool = option(
        False, SWITCH, MEASURE, "ten budgets or more from one scoring: table, plot, and plans in the folder OUT.front")
    pack: bool = option(False, SWITCH, MEASURE, "store zeros small; standard operators unpack them at load")
    quantize: str | None = option(
        None, TEXT, MEASURE, "quantize after pruning and recovery: int8, dynamic, int4 or fp16, see docs/quantize.md",
        "KIND[:KEY=VALUE,...]")
    plan: Path | None = option(None, PATH, MEASURE, "write the plan of what was removed", "FILE")
    report: tuple[Path, ...] = option(
        (), PATH, MEASURE, "write a report, .json, .md or .html by its suffix; repeatable", "FILE",
        shown="the terminal only", several=True)
    seed: int = option(
        0, WHOLE, MEASURE, "seed of all random choices", "N",
        low=0, high=2**32 - 1, wanted="a whole number from 0 to 4294967295")
    # fmt: on

    progress: bool = False  # bars on a terminal
    command: str = ""  # as it was given, for the report
    method_found: bool = False  # none was asked for

    def __post_init__(self) -> None:
        for row in TABLE.values():
            row.check(getattr(self, row.name))
        if self.method == AUTO:
            object.__setattr__(self, "method", "snacs" if self.data is not None else DATA_FREE)
            object.__setattr__(self, "method_found", True)
        for key, fraction in self.target.items():
            if key not in TARGETS:
                raise UsageError(f"--target {key}: unknown; choose of {', '.join(TARGETS)}")
            if not is_number(fraction) or not 0 < fraction <= 1:
                raise UsageError(f"--target {key}={fraction}: give the fraction that may remain, above 0 and up to 1")
        if self.recover in ("reconstruct", "finetune") and self.data is None:
            raise UsageError(f"--recover {self.recover} needs samples; give --data, or --recover constants")
        if self.max_drop is not None and self.data is None and self.val is None:
            raise UsageError("--max-drop needs samples to measure on; give --data or --val")
        if self.front and self.steps > 1:
            raise UsageError("--front and --steps: a front has many targets, and steps approach one; give one of them")
        if not self.latency and (self.min_speedup is not None or "latency" in self.target):
            raise UsageError("--no-latency: a speed was asked for, which has to be measured; leave --no-latency out")
        if self.steps > 1 and not set(self.target) - {"latency"}:
            raise UsageError(f"--steps {self.steps} needs a --target of macs, params or size to approach; give one")

    @property
    def level(self) -> Level:
        """The recovery asked for, else the best that the data allows."""
        return self.recover or ("finetune" if self.data is not None else "constants")

    @property
    def preprocess(self) -> dict[str, Any]:
        """The options about images, by the names that `data` knows."""
        return {name: getattr(self, name) for name in PREPROCESS if getattr(self, name) is not None}


PREPROCESS = ("size", "mean", "std", "scale", "layout")
TABLE: Mapping[str, Option] = {
    entry.name: Option(
        entry.name, **{**row, "flag": row["flag"] or f"--{entry.name.replace('_', '-')}", "type": entry.type}
    )
    for entry in fields(Options)
    if (row := entry.metadata.get("option"))
}


def options_of(given: Mapping[str, Any], command: str = "", *, progress: bool = False) -> Options:
    """The record of a run from values by name, as a parser, a file or Python gives them; other names are left alone.

    Raises: UsageError for what cannot be.
    """
    values = {name: row.held(given[name]) for name, row in TABLE.items() if given.get(name) is not None}
    return Options(**values, command=command, progress=progress)


def provider_for(options: Options) -> str:
    """cpu or another provider, for measuring: what trains on CUDA is measured there too."""
    if options.provider != "auto":
        return options.provider
    return "cuda" if options.device == "cuda" else "cpu"
