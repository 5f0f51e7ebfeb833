"""Every choice of a run, made once before its work begins, and where it came from: recorded in plan and report.

`Options` are what a user may leave open; `resolved` turns them into `Settings`, which the steps of a run take whole or
by the part that they read. Nothing behind `resolved` sees options, or changes what was chosen.

Where a choice came from: 'asked', 'default' (the same on every machine), 'calibrated' (by 'onnxprune calibrate'),
'machine' (what is there), 'data' (size of the data and kind of the model), 'measured' (timed before the first step of
fine-tuning).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnxruntime

from onnxprune import quantize
from onnxprune.errors import UsageError
from onnxprune.graph.sessions import provider_name
from onnxprune.measure.calibrations import alignment_for
from onnxprune.measure.host import default_threads
from onnxprune.methods import base
from onnxprune.methods.zeros import DENSITY_OPTIONS
from onnxprune.options import LEVELS, TARGETS, TUNING, Level, Options, is_number, provider_for
from onnxprune.plan.cost import Kind
from onnxprune.plan.plan import Plan
from onnxprune.recover import asked, levels

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History

OWN = ("epochs", "lr", "batch_size")  # options of fine-tuning that have names of their own
TIMED = ("amp", "channels_last")
GIVEN = ("device", "seed", "loss", "metric", "regression", "progress", "resume_dir")  # recorded elsewhere, or no choice
NONZEROS = {"macs": "nonzero_macs", "params": "nonzeros"}  # what of a measurement counts without zeros


def kinds_of(target: Mapping[str, float]) -> dict[Kind, float]:
    """The targets that are counted, by kind of cost where `target` has the words of --target."""
    return {cast("Kind", TARGETS[key]): share for key, share in target.items() if key != "latency"}


@dataclass(frozen=True)
class Goal:
    """What is asked of the result.

    target: share of the original that may remain, by the words of --target. counts_zeros: whether zeros that a sparse
    method makes count as removed; they do not where a density was named beside the target, which then means both.
    """

    target: Mapping[str, float] = field(default_factory=dict[str, float])
    max_drop: float | None = None
    min_speedup: float | None = None
    front: bool = False
    steps: int = 1
    counts_zeros: bool = False

    @property
    def shares(self) -> dict[str, float]:
        """The targets that are counted, not measured."""
        return {key: share for key, share in self.target.items() if key != "latency"}

    @property
    def searched(self) -> bool:
        """Whether trials decide how small the result is, so that nobody knows it before."""
        return self.front or self.max_drop is not None or "latency" in self.target


@dataclass(frozen=True)
class Widths:
    """Which dimensions may lose units, and how many at most.

    align: the multiple that kept sizes are held to; strict where it was asked for as a number, so without exception.
    allocate: where widths come from, None where the method and the samples decide. blocks: which go as a whole.
    """

    align: int = 1
    strict: bool = False
    floor: float = 0.05
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exact_only: bool = False
    inner_only: bool = False
    allocate: str | None = None
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """Where latencies are measured, and whether; threads: None for as many as the machine has cores."""

    wanted: bool
    provider: str
    threads: int | None = None

    def at(self, batch: int) -> dict[str, Any]:
        """The keywords of `measure_settled` and `profile`."""
        return {"provider": self.provider, "threads": self.threads, "batch": batch}


@dataclass(frozen=True)
class Form:
    """How the result is stored: rounded, zeros stored small, states of the interface as narrow as they became.

    replayed: how the result of a plan that is replayed was quantized, as the plan recorded it.
    """

    quantize: quantize.Asked | None = None
    pack: bool = False
    narrow_states: bool = False
    replayed: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Papers:
    """Where the plan and the reports go, and what these say of the command: as it was given, with its samples."""

    plan: Path | None = None
    reports: tuple[Path, ...] = ()
    command: str = ""
    data: Any = None
    held_given: bool = False  # whether samples to measure on were given, rather than held out


@dataclass(frozen=True)
class Settings:
    """All choices of a run.

    seconds: that the whole run may take. metric: the user's own, or the name of one. method_found: whether nobody asked
    for the method. origins: where choices came from, by their name in plan and report.
    """

    method: base.Method
    method_options: Mapping[str, Any]
    goal: Goal
    widths: Widths
    recovery: levels.Recovery
    timing: Timing
    form: Form
    papers: Papers
    seed: int = 0
    metric: Any = None
    seconds: float | None = None
    progress: bool = False
    method_found: bool = False
    origins: Mapping[str, str] = field(default_factory=dict[str, str])


def resolved(options: Options, replayed: Plan | None = None) -> Settings:
    """The settings of a run, everything resolved that the options leave open; replayed: the plan that is cut by.

    Only the device of training may stay 'auto': to see what there is loads torch, which many runs never need.
    Raises: UsageError for names and values that cannot be.
    """
    method, provider = base.get(options.method), provider_for(options)
    return Settings(
        method,
        options.method_options,
        goal_of(options),
        widths_of(options),
        asked.recovery_of(options),
        Timing(options.latency, provider, options.threads),
        Form(quantize.parse(options.quantize), options.pack, options.states == "narrow", _stored(replayed)),
        Papers(options.plan, options.report, options.command, options.data, options.val is not None),
        options.seed,
        options.metric,
        options.time,
        options.progress,
        options.method_found,
        dict(_origins(options)),
    )


def _stored(replayed: Plan | None) -> Mapping[str, Any]:
    return {} if replayed is None or replayed.quantize is None else replayed.quantize


def goal_of(options: Options) -> Goal:
    """What is asked of the result."""
    density = any(options.method_options.get(name) for name in DENSITY_OPTIONS)
    zeros = not density and bool(options.target) and set(options.target) <= set(NONZEROS)
    return Goal(options.target, options.max_drop, options.min_speedup, options.front, options.steps, zeros)


def widths_of(options: Options) -> Widths:
    """Which dimensions may lose units, and how many. Raises: UsageError for an alignment that was never measured."""
    stored = quantize.parse(options.quantize)
    form = "int8" if stored is not None and stored.kind == "int8" else ""
    return Widths(
        alignment_for(options.align, provider_for(options), form),
        is_number(options.align),
        options.floor,
        options.include,
        options.exclude,
        options.exact_only,
        options.inner_only,
        options.allocate,
        options.blocks,
    )


def _origins(options: Options) -> Iterator[tuple[str, str]]:
    """(name, where it came from) of every choice that options make or leave open."""
    yield "align", "asked" if is_number(options.align) else "default" if options.align == "auto" else "calibrated"
    yield "provider", "asked" if options.provider != "auto" else "default"
    yield "recover", "asked" if options.recover else "data"
    yield "threads", "asked" if options.threads else "machine"
    yield "device", "asked" if options.device != "auto" else "machine"
    given = [name for name in OWN if getattr(options, name) is not None]
    given += [str(name).replace("-", "_") for name, value in options.finetune.items() if value not in (None, "auto")]
    yield from ((name, "asked") for name in given)


def recorded(settings: Settings, method: str, history: History | None) -> dict[str, dict[str, Any]]:
    """Name -> {"value", "from"} of every choice of a run that ends with `history`; method: whose scores chose."""
    found: dict[str, Any] = {
        "align": settings.widths.align,
        "provider": settings.timing.provider,
        "recover": settings.recovery.level,
    }
    if settings.timing.wanted:
        found["threads"] = settings.timing.threads or default_threads()
    if history is not None or (method in base.METHODS and base.METHODS[method].needs != base.Needs()):
        found["device"] = levels.device(settings.recovery.device)
    if history is not None:
        tuned = history.settings.as_json().items()
        found |= {name: value for name, value in tuned if name not in GIVEN}
    return {name: {"value": value, "from": _origin(settings, name)} for name, value in found.items()}


def _origin(settings: Settings, name: str) -> str:
    return settings.origins.get(name, "measured" if name in TIMED else "data")


# What a plan recorded ---------------------------------------------------------------------------------------------


def again(loaded: Plan, options: Options) -> Options:
    """`options` with what the plan recorded wherever they leave a choice open, as far as this machine has it.

    Raises: UsageError for epochs without samples.
    """
    stored = loaded.quantize or {}
    options = replace(
        options,
        recover=options.recover or _level_again(loaded, options),
        seed=loaded.seed,
        states="narrow" if loaded.states else options.states,
        quantize=options.quantize or stored.get("options"),
    )
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


def _level_again(loaded: Plan, options: Options) -> Level:
    """Fine-tuning where epochs are asked for; else what the plan was followed by, as far as the samples allow."""
    if options.epochs is not None:
        if options.data is None:
            raise UsageError(f"--epochs {options.epochs} needs samples to tune on; give --data")
        return "finetune"
    names: dict[str, Level] = {level: level for level in LEVELS}
    level = names.get(loaded.recover, "none")
    return level if options.data is not None or level == "none" else "constants"
