"""What a comparison runs: every method at every budget with every seed, in floats and quantized, as options of the
pipeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.methods import base
from onnxprune.methods import options as method_options
from onnxprune.options import Options
from onnxprune.quantize import NONE

OWN = "own"  # a budget: the method decides, or one of its own options does
NONZEROS = "nonzeros"  # a budget that sparse methods meet by zeros, others by parameters
DENSITY_OPTIONS = ("density", "kept")  # with which sparse methods are told how much stays
GROUPS = {"output": 16, "input": 4}  # of cci where none is given


@dataclass(frozen=True)
class Entry:
    """A method with its options, and how both were written."""

    text: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sparse(self) -> bool:
        """Whether the method leaves zeros in place, so that sizes stay."""
        return self.method in ("aswl", "cci") or (self.method == "snacs" and self.options.get("mode") == "connection")

    @property
    def decides(self) -> bool:
        """Whether the method's own options say how much stays, so that no target is needed."""
        return self.sparse and any(self.options.get(name) for name in DENSITY_OPTIONS)


@dataclass(frozen=True)
class Run:
    """One method at one budget with one seed; quantize: how its result is stored, None as floats."""

    entry: Entry
    target: str
    seed: int
    quantize: str | None = None

    @property
    def key(self) -> str:
        """The name that tells this run from all others of a folder."""
        return f"{self.method} {self.target} seed {self.seed}"

    @property
    def method(self) -> str:
        """The method as tables show it, with how its result is stored."""
        return self.entry.text if self.quantize is None else f"{self.entry.text} + {self.quantize}"

    def options(self, common: Options) -> Options:
        """The pipeline's options. Raises: UsageError for a budget that is none."""
        target, more = _budget(self.entry, self.target)
        return replace(
            common,
            method=self.entry.method,
            method_found=False,
            method_options={**self.entry.options, **more},
            target=target,
            seed=self.seed,
            quantize=self.quantize,
        )


def entry_of(text: str, options: Mapping[str, Any]) -> Entry:
    """The entry of a method as it was written. Raises: UsageError when there is no such method."""
    name = text.partition(":")[0]
    method_options.check(base.get(name), options)
    return Entry(text, name, options)


def runs(
    entries: Sequence[Entry], targets: Sequence[str], seeds: Sequence[int], forms: Sequence[str] = (NONE,)
) -> tuple[Run, ...]:
    """All runs, seed by seed, so that a first table is whole early; what decides by itself runs once per seed.

    forms: how results are stored, as for --quantize; NONE is as floats.
    """
    found = [
        Run(entry, OWN if entry.decides else target, seed, None if form == NONE else form)
        for seed in seeds
        for target in targets
        for entry in entries
        for form in forms
    ]
    return tuple({run.key: run for run in found}.values())


def _budget(entry: Entry, text: str) -> tuple[dict[str, float], dict[str, Any]]:
    """(target, method options) of a budget such as 'macs=0.5,params=0.6', 'nonzeros=0.3' or 'own'."""
    if text == OWN:
        return {}, {}
    target: dict[str, float] = {}
    for word in text.split(","):
        key, _, number = word.partition("=")
        try:
            target[key.strip()] = float(number)
        except ValueError as error:
            raise UsageError(f"--targets '{text}': give KEY=FRACTION such as macs=0.5, or '{OWN}'") from error
    if NONZEROS not in target:
        return target, {}
    share = target.pop(NONZEROS)
    if target or not 0 < share <= 1:
        raise UsageError(f"--targets '{text}': {NONZEROS} stands alone, with a fraction above 0 and up to 1")
    return ({}, _density(entry, share)) if entry.sparse else ({"params": share}, {})


def _density(entry: Entry, share: float) -> dict[str, Any]:
    if entry.method != "cci":
        return {"density": share}
    axis = str(entry.options.get("axis", "output"))
    size = int(entry.options.get("group") or GROUPS.get(axis, GROUPS["output"]))
    return {"group": size, "kept": max(1, round(share * size))}
