"""The straight line: load, normalize, analyze, score, select, cut, verify, recover, finish, save, measure, report."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import graph, quantize, report, surgery
from onnxprune.coupling import Keep
from onnxprune.errors import GraphError, UsageError
from onnxprune.graph import extras, qoperator
from onnxprune.measure.calibrations import alignment_for
from onnxprune.measure.records import PRUNED, QUANTIZED, final
from onnxprune.methods import base
from onnxprune.methods import options as method_options
from onnxprune.options import LEVELS, Level, Options, provider_for
from onnxprune.plan import cost, plan
from onnxprune.plan.plan import Plan
from onnxprune.proof import comparison
from onnxprune.recover import asked, levels
from onnxprune.report import build
from onnxprune.run import (
    allocation,
    first_check,
    forecast,
    front,
    measuring,
    narrowed,
    schedule,
    search,
    settings,
    targets,
)
from onnxprune.run.checks import check_devices, check_paths, file_sha256
from onnxprune.run.finish import finish, quantizing
from onnxprune.run.subject import Subject, prepare
from onnxprune.surgery import packing
from onnxprune.system import processes
from onnxprune.system.atomic_files import scratch, staged
from onnxprune.system.clock import Clock
from onnxprune.system.isolation import CrashedError

LOG = logging.getLogger("onnxprune")


@dataclass(frozen=True, repr=False)
class Result:
    """What a run made: the plan, the original and the pruned model as measured, and the whole report."""

    plan: Plan
    before: report.Measurement
    after: report.Measurement
    report: report.Report
    made: onnx.ModelProto | ir.Model | None = None  # the pruned model, where it was written to no file
    plans: tuple[Plan, ...] = ()  # of --front, as in report.front

    @property
    def model(self) -> onnx.ModelProto | ir.Model:
        """The pruned model; read from its file where it was written to one."""
        return self.made if self.made is not None else onnx.load(str(self.after.path))

    def __repr__(self) -> str:
        return f"<onnxprune.Result {self.plan.method}: {report.verdict(self.report)}>"

    def _repr_html_(self) -> str:
        """The table of the terminal, for notebooks."""
        return report.to_table(self.report)


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
    """Nothing, when paths, devices and options can be what they are. Raises: UsageError or ProviderError."""
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
    """Nothing, when the result can be stored as asked. Raises: UsageError, before the work."""
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


# Producing --------------------------------------------------------------------------------------------------------


def produce(
    subject: Subject,
    keep: Keep,
    out: Path,
    options: Options,
    clock: Clock,
    *,
    method: str,
    notes: Sequence[str] = (),
    zeros: Mapping[str, np.ndarray] | None = None,
    look: Callable[[ir.Model], None] | None = None,
    known: Mapping[str, Any] | None = None,
    choice: search.Choice | None = None,
) -> Result:
    """Cuts by `keep`, proves, recovers, proves again, quantizes, measures, and only then writes.

    known: how a plan that is replayed says that its result was quantized. choice: where a search made it: what its
    trial recovered is taken, and the front that it was chosen from is written.
    """
    made = _plan_of(subject, keep, options, method)
    with clock("cut"):
        cut_model = surgery.cut(subject.coupling, keep)
    with clock("verify"):
        _first_proof(cut_model, surgery.mask(subject.coupling, keep), subject)
    if look is not None:
        look(cut_model)
    if choice is not None and choice.recovered is not None:
        cut_model, history = choice.recovered.model, choice.recovered.history
    else:
        history = levels.recover(subject.given, keep, cut_model, asked.recovery_of(options), clock, zeros or {})
    twin = levels.twin_of(subject.coupling, keep, cut_model)
    files = (out, *([options.plan] if options.plan else ()), *options.report)
    points = choice.front.records(choice) if choice is not None and choice.front is not None else ()
    with staged(*files) as places, scratch(places[out].parent) as folder:
        proven = Path(folder) / out.name
        dense, finished, proof, fallen = _finished(cut_model, twin, subject, options, clock, proven)
        stored = _quantized(finished, subject, options, clock, known or {})
        results = _written(stored, proven, places[out])
        trained = options.level == "none" and subject.coupling.model is not subject.model
        made = plan.with_recovery(made, "training" if trained else options.level, file_sha256(places[out]))
        made = replace(made, settings=settings.recorded(options, method, history))
        if stored is not None:
            made = plan.with_quantization(made, stored.record)
        models, ratios, unmeasured = measuring.measure(subject, made, results, out, options, clock)
        if options.states == "narrow":
            made, models, told_states = narrowed.narrowed(made, models, subject, places[out])
            unmeasured = (*unmeasured, *told_states)
        before, after = models[0], final(models) or models[-1]
        ratios_of_result = [ratio for ratio in ratios if ratio.model == after.name]
        packed = measuring.packing(dense, places[out]) if options.pack else None
        written_out = (qoperator.NOTE,) if extras.of(subject.model).written_out else ()
        checked = targets.check(before, after, ratios_of_result, options, zeros)
        rounding = () if stored is None else stored.notes
        tuning = (history.told,) if history is not None else ()
        all_notes = (
            *notes,
            *dict.fromkeys((*build.fallbacks(subject.coupling), *fallen)),
            *written_out,
            *tuning,
            *rounding,
            *unmeasured,
            *checked,
            *_packing_notes(packed, options),
        )
        told = None if stored is None else quantize.told(stored, subject.feeds)
        original = (subject.normalized, subject.cost, subject.outputs)
        made_report = build.describe(
            *original,
            made,
            models,
            ratios,
            proof,
            history,
            clock.steps,
            all_notes,
            packed,
            told,
            command=options.command,
            data=options.data,
        )
        made_report = replace(made_report, front=points)
        if options.plan is not None:
            plan.save(made, places[options.plan])
        for path in options.report:
            report.write_report(made_report, places[path])
        plans = _plans_of(choice, subject, options, method)
        if plans:
            front.write_plans(plans, out)
    return Result(made, before, after, made_report, plans=tuple(plans.values()))


def _plan_of(subject: Subject, keep: Keep, options: Options, method: str) -> Plan:
    sizes = cost.keep_sizes(keep)
    made = plan.make(
        subject.normalized,
        keep,
        method=method,
        seed=options.seed,
        sha256=subject.sha256,
        name=subject.path.name,
        before=subject.cost.totals(),
        after=subject.cost.totals(sizes),
    )
    return replace(made, tokens=subject.tokens.keep if subject.tokens is not None else ())


def _plans_of(choice: search.Choice | None, subject: Subject, options: Options, method: str) -> Mapping[str, Plan]:
    """The plans of the front by the names of their files, with the recovery that 'onnxprune apply' is to repeat."""
    if choice is None or choice.front is None:
        return {}
    found = {}
    for number, point in enumerate(choice.front.points, 1):
        made = plan.with_recovery(_plan_of(subject, point.keep, options, method), options.level, "")
        found[front.name_of(number, point)] = replace(made, settings=settings.recorded(options, method, None))
    return found


def _quantized(
    finished: ir.Model, subject: Subject, options: Options, clock: Clock, known: Mapping[str, Any]
) -> quantize.Quantized | None:
    """`finished` as --quantize asks, None where it stays in floats."""
    if quantize.parse(options.quantize) is None:
        return None
    with clock("quantize"):
        return quantize.quantize(finished, quantizing(subject, options, known))


def _first_proof(cut_model: ir.Model, masked: ir.Model, subject: Subject) -> None:
    """Compares the cut model, before anything is tuned, with the masked one.

    Raises: VerificationError when they differ, GraphError when a native library ends of one of them.
    """
    try:
        comparison.require(comparison.compare_apart(cut_model, masked, subject.feeds))
    except CrashedError as crash:
        raise GraphError(
            f"{subject.path}: onnxruntime ends with {crash} on the cut or on the masked model, so that these cannot be "
            "compared; nothing was written. Please report this model"
        ) from crash


def _written(stored: quantize.Quantized | None, proven: Path, place: Path) -> dict[str, Path]:
    """The files of the result by name, the last of which is at `place`: the file that was proven, or what stands for it
    when it is quantized."""
    if stored is not None:
        graph.save(stored.model, place)
        return {PRUNED: proven, QUANTIZED: place}
    for file in proven.parent.iterdir():
        os.replace(file, place.parent / file.name)
    return {PRUNED: place}


def _finished(
    cut_model: ir.Model, twin: ir.Model, subject: Subject, options: Options, clock: Clock, place: Path
) -> tuple[ir.Model, ir.Model, comparison.Verification, list[str]]:
    """(the result, the same packed if asked, its proof, notes), written to `place` and proven as it is read from there:
    without onnxsim's rewritings where they err, or where a native library ends of them.

    Raises: VerificationError when the result differs from `twin` either way, GraphError when it does not run.
    """

    def attempt(rewrite: bool) -> tuple[ir.Model, ir.Model, comparison.Verification]:
        with clock("finish"):
            dense = finish(cut_model, rewrite=rewrite)
            finished = packing.pack(dense) if options.pack else dense
            graph.save(finished, place)
        with clock("verify the result"):
            return dense, finished, comparison.compare_file(place, twin, subject.feeds)

    try:
        found = attempt(rewrite=True)
        if found[-1].ok:
            return *found, list(extras.of(found[0]).notes)
        why = "onnxsim changes what this model computes"
    except GraphError:
        why = "onnxruntime does not run what onnxsim makes of this model"
    except CrashedError as crash:
        why = f"onnxruntime ends with {crash} on what onnxsim makes of this model"
    LOG.info("  %s: it is written without its rewritings", why)
    for file in place.parent.iterdir():
        file.unlink()
    try:
        dense, finished, proof = attempt(rewrite=False)
    except CrashedError as crash:
        raise GraphError(f"onnxruntime ends with {crash} on the pruned model; nothing was written") from crash
    return dense, finished, comparison.require(proof), [f"{why}: it is written without its rewritings"]


def _packing_notes(found: report.Packing | None, options: Options) -> Iterator[str]:
    if found is None:
        return
    yield (
        f"packed: {found.bytes} bytes instead of {found.bytes_dense}; onnxruntime loads it in {found.load_ms:.1f} ms "
        f"instead of {found.load_ms_dense:.1f} ms. Do not simplify it: that unpacks it"
    )
    if "size" in options.target:
        yield "size counts the packed file"
