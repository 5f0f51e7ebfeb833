"""The straight line: load, normalize, analyze, score, select, cut, verify, recover, finish, save, measure, report."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import graph, quantize
from onnxprune.errors import UsageError
from onnxprune.measure.calibrations import alignment_for
from onnxprune.methods import base
from onnxprune.methods import options as method_options
from onnxprune.options import LEVELS, Level, Options, provider_for
from onnxprune.plan import plan
from onnxprune.plan.plan import Plan
from onnxprune.recover import asked, levels
from onnxprune.run import allocation, first_check, forecast, front, schedule, search, settings
from onnxprune.run.checks import check_devices, check_paths
from onnxprune.run.produce import Result, produce
from onnxprune.run.subject import Subject, prepare
from onnxprune.surgery import packing
from onnxprune.system import processes
from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")


def prune(source: str | Path, target_path: str | Path, options: Options) -> Result:
    """Prunes the model in file `source` into file `target_path`, which appears only when everything held.

    Raises: OnnxPruneError of every kind, see errors.py; nothing is written then.
    """
    source, out = Path(source), Path(target_path)

    def work() -> Result:
        _check(source, out, options)
        method_options.check(base.get(options.method), options.method_options)  # wrong names before the work
        clock = Clock(options.time)
        subject = prepare(source, options, clock)
        with clock("check the original"):
            first_check.check(subject, options.metric)
        return prune_subject(subject, out, options, clock)

    return _in_all_processes(work, source, options)


def _check(source: Path, out: Path, options: Options, *read: Path, ranges: Mapping[str, Any] | None = None) -> None:
    """Checks before any work that paths, devices and options can be used. Raises: UsageError or ProviderError."""
    check_paths(source, out, options, *read)
    if options.front:
        front.check(out, options)
    check_devices(options.device, provider_for(options) if options.latency else None)
    alignment_for(options.align, provider_for(options))  # refuse one that was never measured before the work
    asked.check(options)
    wanted = quantize.parse(options.quantize)
    quantize.check(wanted, provider_for(options), options.data is not None, bool(ranges))
    if wanted is not None and options.pack:
        raise UsageError(
            "--pack stores the zeros of floats small, which --quantize leaves no floats of; give one of them"
        )


def _in_all_processes(work: Callable[[], Result], source: Path, options: Options) -> Result:
    """work(); of several processes the first does it, and the others fine-tune with it."""
    rank, size = processes.launched()
    if size == 1:
        return work()
    from onnxprune.recover import distributed

    with distributed.group(distributed.device_of(levels.device(options.device))):
        if rank == 0:
            return processes.lead(work)
        how = asked.recovery_of(options).quiet
        subject = cache(lambda: prepare(source, options, Clock()))
        return processes.follow(lambda *job: levels.tuned(subject().given, how, *job), graph.load)


def prune_subject(
    subject: Subject, out: Path, options: Options, clock: Clock, look: Callable[[ir.Model], None] | None = None
) -> Result:
    """Scores, selects and produces; `look` is shown the proven cut before recovery changes it."""
    _check_form(subject.model, options)
    forecast.tell(subject, options, clock, method=options.method)
    subject, outcome = schedule.scored(subject, base.get(options.method), options, clock)
    outcome = allocation.allocated(subject, outcome, options, clock)

    def make(choice: search.Choice) -> Result:
        notes = (*outcome.notes, *_without_samples(options), *choice.notes)
        given = {"method": options.method, "notes": notes, "zeros": outcome.zeros, "look": look, "choice": choice}
        return produce(subject, choice.keep, out, options, clock, **given)

    return search.first_that_holds(front.choices(subject, outcome, options, clock), make, clock)


def _check_form(model: ir.Model, options: Options) -> None:
    """Checks before the work that the result can be stored as asked. Raises: UsageError otherwise."""
    if options.pack:
        packing.check(model)
    if quantize.parse(options.quantize) is not None:
        quantize.check_model(model)


def _without_samples(options: Options) -> Iterator[str]:
    if options.data is None and options.method_found:
        yield (
            f"no samples were given, so {options.method} chose by the weights alone and nothing was tuned; samples "
            "bring most of the accuracy back, even without labels: give --data"
        )


def replay(source: str | Path, plan_path: str | Path, target_path: str | Path, options: Options) -> Result:
    """Cuts the model in `source` by a saved plan: another checkpoint of the model that the plan was made for."""
    source, out = Path(source), Path(target_path)
    loaded = plan.load(plan_path)
    options = replace(options, recover=options.recover or _level_again(loaded, options), seed=loaded.seed)
    options = replace(settings.again(loaded, options), tokens=loaded.tokens)
    options = replace(options, states="narrow" if loaded.states else options.states)
    known = loaded.quantize or {}
    options = replace(options, quantize=options.quantize or known.get("options"))

    def work() -> Result:
        _check(source, out, options, Path(plan_path), ranges=known.get("ranges"))
        clock = Clock(options.time)
        subject = prepare(source, options, clock)
        _check_form(subject.model, options)
        forecast.tell(subject, options, clock, method=None)
        notes = () if loaded.model_sha256 == subject.sha256 else ("the plan was made for other weights of this model",)
        keep = plan.masks(loaded, subject.coupling)
        return produce(subject, keep, out, options, clock, method=loaded.method, notes=notes, known=known)

    return _in_all_processes(work, source, options)


def _level_again(loaded: Plan, options: Options) -> Level:
    """Fine-tuning where epochs are asked for; else what the plan was followed by, as far as the samples allow.

    Raises: UsageError for epochs without samples.
    """
    if options.epochs is not None:
        if options.data is None:
            raise UsageError(f"--epochs {options.epochs} needs samples to tune on; give --data")
        return "finetune"
    names: dict[str, Level] = {level: level for level in LEVELS}
    level = names.get(loaded.recover, "none")
    return level if options.data is not None or level == "none" else "constants"
