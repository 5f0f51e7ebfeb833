"""The straight line: load, normalize, analyze, score, select, cut, verify, recover, finish, save, measure, report."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx_ir as ir

from onnxprune import graph, quantize
from onnxprune.errors import UsageError
from onnxprune.methods import options as method_options
from onnxprune.options import Options, provider_for
from onnxprune.plan import plan
from onnxprune.recover import asked, levels
from onnxprune.run import allocation, depth, first_check, forecast, front, schedule, settings
from onnxprune.run.checks import check_devices, check_paths
from onnxprune.run.produce import Result, produce
from onnxprune.run.settings import Form, Settings
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
        found = _checked(source, out, options)
        method_options.check(found.method, found.method_options)  # wrong names before the work
        clock = Clock(options.time)
        subject = prepare(source, options, clock)
        with clock("check the original"):
            first_check.check(subject, found.metric)
        return prune_subject(subject, out, found, clock)

    return _in_all_processes(work, source, options)


def _checked(source: Path, out: Path, options: Options, *read: Path, replayed: plan.Plan | None = None) -> Settings:
    """The settings of the run, after checks before any work that paths, devices and options can be used.

    read: files that are read beside those that options name. Raises: UsageError or ProviderError.
    """
    check_paths(source, out, options, *read)
    if options.front:
        front.check(out, has_samples=options.data is not None or options.val is not None)
    check_devices(options.device, provider_for(options) if options.latency else None)
    asked.check(options)
    found = settings.resolved(options, replayed)
    form = found.form
    quantize.check(form.quantize, found.timing.provider, options.data is not None, bool(form.replayed.get("ranges")))
    if form.quantize is not None and form.pack:
        raise UsageError(
            "--pack stores the zeros of floats small, which --quantize leaves no floats of; give one of them"
        )
    return found


def _in_all_processes(
    work: Callable[[], Result], source: Path, options: Options, tokens: tuple[int, ...] = ()
) -> Result:
    """work(); of several processes the first does it, and the others fine-tune with it."""
    rank, size = processes.launched()
    if size == 1:
        return work()
    # Scoring, cutting and proving are not worth sharing out; fine-tuning is, sample by sample.
    from onnxprune.recover import distributed

    with distributed.group(distributed.device_of(levels.device(options.device))):
        if rank == 0:
            return processes.lead(work)
        how = asked.recovery_of(options).quiet
        subject = cache(lambda: prepare(source, options, Clock(), tokens))
        return processes.follow(lambda *job: levels.tuned(subject().given, how, *job), graph.load)


def prune_subject(
    subject: Subject, out: Path, settings: Settings, clock: Clock, look: Callable[[ir.Model], None] | None = None
) -> Result:
    """Scores, selects and produces; `look` is shown the proven cut before recovery changes it."""
    _check_form(subject.model, settings.form)
    forecast.tell(subject, settings, clock, method=settings.method.name)
    subject, outcome = schedule.scored(subject, settings, clock)
    outcome = allocation.allocated(subject, outcome, settings, clock)
    subject, outcome = depth.chosen(subject, outcome, settings, clock)

    def make(choice: front.Choice) -> Result:
        notes = (*outcome.notes, *_without_samples(subject, settings), *choice.selection.notes)
        noted = replace(choice, selection=replace(choice.selection, notes=notes))
        return produce(subject, noted, out, settings, clock, look)

    return front.first_that_holds(front.choices(subject, outcome, settings, clock), make, clock)


def _check_form(model: ir.Model, form: Form) -> None:
    """Checks before the work that the result can be stored as asked. Raises: UsageError otherwise."""
    if form.pack:
        packing.check(model)
    if form.quantize is not None:
        quantize.check_model(model, form.quantize.kind)


def _without_samples(subject: Subject, settings: Settings) -> Iterator[str]:
    if subject.tune is None and settings.method_found:
        yield (
            f"no samples were given, so {settings.method.name} chose by the weights alone and nothing was tuned; "
            "samples bring most of the accuracy back, even without labels: give --data"
        )


def replay(source: str | Path, plan_path: str | Path, target_path: str | Path, options: Options) -> Result:
    """Cuts the model in `source` by a saved plan: another checkpoint of the model that the plan was made for."""
    source, out = Path(source), Path(target_path)
    loaded = plan.load(plan_path)
    options = settings.again(loaded, options)

    def work() -> Result:
        found = _checked(source, out, options, Path(plan_path), replayed=loaded)
        clock = Clock(options.time)
        subject = depth.again(prepare(source, options, clock, loaded.tokens), loaded)
        _check_form(subject.model, found.form)
        forecast.tell(subject, found, clock, method=None)
        notes = () if loaded.model_sha256 == subject.sha256 else ("the plan was made for other weights of this model",)
        selection = plan.selection_of(loaded, subject.coupling).noted(*notes)
        return produce(subject, front.Choice(selection), out, found, clock)

    return _in_all_processes(work, source, options, loaded.tokens)
