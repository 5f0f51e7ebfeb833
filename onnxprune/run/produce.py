"""From kept positions to files: cut, prove, recover, prove again, quantize, measure, report, and only then write."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from onnxprune import graph, quantize, report, surgery
from onnxprune.errors import GraphError
from onnxprune.graph import extras, qoperator
from onnxprune.measure.records import PRUNED, QUANTIZED, final
from onnxprune.plan import cost, plan
from onnxprune.plan.plan import Plan
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover import levels
from onnxprune.report import build
from onnxprune.run import front, measuring, narrowed, replay, targets
from onnxprune.run.checks import file_sha256
from onnxprune.run.finish import Rounded, finish, quantized
from onnxprune.run.front import Choice
from onnxprune.run.settings import Settings, recorded
from onnxprune.run.subject import Subject
from onnxprune.run.trials import Recovered
from onnxprune.surgery import packing
from onnxprune.system.atomic_files import rescued, scratch, staged
from onnxprune.system.clock import Clock
from onnxprune.system.isolation import CrashedError

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History

LOG = logging.getLogger("onnxprune")
PLAN = "plan.json"  # beside a result that was proven but not measured


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run: the plan, the original and the pruned model as measured, and the whole report."""

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


def produce(
    subject: Subject,
    choice: Choice,
    out: Path,
    settings: Settings,
    clock: Clock,
    look: Callable[[ir.Model], None] | None = None,
) -> Result:
    """Cuts by what was chosen, proves, recovers, proves again, quantizes, measures, and only then writes.

    What a trial of the search recovered is taken, and the front that it was chosen from is written. look: is shown the
    proven cut before recovery changes it.
    """
    # The cut is proven before anything is tuned: afterwards only a twin with the tuned weights can be compared.
    selection, papers = choice.selection, settings.papers
    cut_model = _proven_cut(subject, selection, clock)
    if look is not None:
        look(cut_model)
    recovered = choice.recovered or Recovered(
        cut_model, levels.recover(subject.given, selection, cut_model, settings.recovery, clock)
    )
    twin = levels.twin_of(selection, recovered.model)
    files = (out, *([papers.plan] if papers.plan else ()), *papers.reports)
    # Files take their places together at the end of the block, so that nothing half done is ever left behind.
    with staged(*files) as places, scratch(places[out].parent) as folder:
        proven = Path(folder) / out.name
        finished = _finished(recovered.model, twin, subject, clock, proven, pack=settings.form.pack)
        planned = _plan_of(subject, selection, settings)
        floats = _as_it_ended(planned, subject, settings, recovered.history, None, proven)
        # From here on the result is proven: nothing that ends the process may lose it.
        with rescued(proven, out, {PLAN: json.dumps(floats.to_json(), indent=1)}):
            with clock("quantize") if settings.form.quantize is not None else nullcontext():
                rounded = quantized(finished.model, subject, settings)
                stored = rounded.made
            if stored is not None and stored.trained:
                with clock("verify the trained weights"):
                    alike = partial(quantize.begun, like=stored.float_model)
                    replay.check_recovered(subject, selection, stored.float_model, out, alike)
            results = _written(stored, proven, places[out])
            made = _as_it_ended(planned, subject, settings, recovered.history, stored, places[out])
            narrow = narrowed.of(subject, places[out]) if settings.form.narrow_states else None
            models, ratios, unmeasured = measuring.measure(subject, made, results, out, settings, clock, narrow)
            if narrow is not None:
                made, models, told_states = narrowed.narrowed(made, models, subject, narrow, places[out])
                unmeasured = (*unmeasured, *told_states)
            packed = measuring.packing(finished.dense, places[out]) if settings.form.pack else None
        before, after = models[0], final(models) or models[-1]
        final_ratios = [ratio for ratio in ratios if ratio.model == after.name]
        held = targets.check(before, after, final_ratios, settings.goal, has_zeros=bool(selection.zeros))
        told = (*selection.notes, *_notes(subject, finished, recovered.history, rounded), *unmeasured, *held)
        described = build.describe(
            *(subject.normalized, subject.cost, subject.outputs),
            *(made, models, ratios, finished.proof, recovered.history, clock.steps),
            (*told, *_packing_notes(packed, counted="size" in settings.goal.target)),
            packed,
            rounded.told,
            gone=_layers_gone(subject),
            command=papers.command,
            data=papers.data,
        )
        described = replace(described, front=choice.front.records(selection) if choice.front is not None else ())
        if papers.plan is not None:
            plan.save(made, places[papers.plan])
        for path in papers.reports:
            report.write_report(described, places[path])
        plans = _plans_of(choice, subject, settings)
        if plans:
            front.write_plans(plans, out)
    return Result(made, before, after, described, plans=tuple(plans.values()))


def _proven_cut(subject: Subject, selection: Selection, clock: Clock) -> ir.Model:
    """The model without what was not selected. Raises: VerificationError where it differs from the masked one."""
    with clock("cut"):
        cut_model = surgery.cut(selection)
    with clock("verify"):
        _first_proof(cut_model, surgery.mask(selection), subject)
    return cut_model


def _first_proof(cut_model: ir.Model, masked: ir.Model, subject: Subject) -> None:
    """Compares the cut model, before anything is tuned, with the masked one.

    Raises: VerificationError when they differ, GraphError when a native library ends of one of them.
    """
    comparison.require(comparison.compare_or_tell(cut_model, masked, subject.feeds, str(subject.path)))


def _as_it_ended(
    made: Plan,
    subject: Subject,
    settings: Settings,
    history: History | None,
    stored: quantize.Quantized | None,
    file: Path,
) -> Plan:
    """The plan with how the result in `file` recovered, what every choice became, and how it is stored."""
    level = settings.recovery.level
    trained = level == "none" and subject.coupling.model is not subject.base
    made = plan.with_recovery(made, "training" if trained else level, file_sha256(file))
    made = replace(made, settings=recorded(settings, made.method, history))
    return made if stored is None else plan.with_quantization(made, stored.record)


def _notes(subject: Subject, finished: _Finished, history: History | None, rounded: Rounded) -> Iterator[str]:
    """The notes of the steps before measuring, for the reader of the report."""
    yield from dict.fromkeys((*build.fallbacks(subject.coupling), *finished.notes))
    if extras.of(subject.model).written_out:
        yield qoperator.NOTE
    if history is not None:
        yield history.told
    yield from rounded.notes


def _layers_gone(subject: Subject) -> tuple[report.Layer, ...]:
    """The layers of blocks that went as a whole."""
    short = subject.short
    return () if short is None else build.layers_gone(short.coupling, short.cost, short.model)


def _plan_of(subject: Subject, selection: Selection, settings: Settings) -> Plan:
    """The plan of a selection, as far as it is known before the result is made."""
    sizes = cost.keep_sizes(selection.keep)
    made = plan.make(
        selection.of(subject.normalized),  # a plan names what the original has, not the biases that training made
        seed=settings.seed,
        sha256=subject.sha256,
        name=subject.path.name,
        before=subject.cost.totals(),
        after=subject.cost.totals(sizes),
    )
    made = replace(made, tokens=subject.tokens.keep if subject.tokens is not None else ())
    return (
        made if subject.short is None else replace(made, blocks=subject.short.blocks, silenced=subject.short.silenced)
    )


def _plans_of(choice: Choice, subject: Subject, settings: Settings) -> Mapping[str, Plan]:
    """The plans of the front by the names of their files, with the recovery that 'onnxprune apply' is to repeat."""
    found = {}
    for number, point in enumerate(choice.front.points if choice.front is not None else (), 1):
        made = plan.with_recovery(_plan_of(subject, point.selection, settings), settings.recovery.level)
        found[front.name_of(number, point)] = replace(made, settings=recorded(settings, made.method, None))
    return found


def _written(stored: quantize.Quantized | None, proven: Path, place: Path) -> dict[str, Path]:
    """The files of the result by name, the last of which is at `place`: the file that was proven, or what stands for it
    when it is quantized."""
    if stored is not None:
        graph.save(stored.model, place)
        return {PRUNED: proven, QUANTIZED: place}
    for file in proven.parent.iterdir():
        os.replace(file, place.parent / file.name)
    return {PRUNED: place}


@dataclass(frozen=True)
class _Finished:
    """The result as it is written, the same before it was packed, its proof, and notes on what was done otherwise."""

    dense: ir.Model
    model: ir.Model
    proof: comparison.Verification
    notes: tuple[str, ...] = ()


def _finished(
    cut_model: ir.Model, twin: ir.Model, subject: Subject, clock: Clock, place: Path, *, pack: bool
) -> _Finished:
    """The result, written to `place` and proven as it is read from there: without onnxsim's rewritings where they err,
    or where a native library ends of them.

    Raises: VerificationError when the result differs from `twin` either way, GraphError when it does not run.
    """

    def attempt(rewrite: bool) -> _Finished:
        with clock("finish"):
            dense = finish(cut_model, rewrite=rewrite)
            finished = packing.pack(dense) if pack else dense
            graph.save(finished, place)
        with clock("verify the result"):
            return _Finished(dense, finished, comparison.compare_file(place, twin, subject.feeds))

    try:
        found = attempt(rewrite=True)
        if found.proof.ok:
            return replace(found, notes=extras.of(found.dense).notes)
        why = "onnxsim changes what this model computes"
    except GraphError:
        why = "onnxruntime does not run what onnxsim makes of this model"
    except CrashedError as crash:
        why = f"onnxruntime ends with {crash} on what onnxsim makes of this model"
    LOG.info("  %s: it is written without its rewritings", why)
    for file in place.parent.iterdir():
        file.unlink()
    try:
        found = attempt(rewrite=False)
    except CrashedError as crash:
        raise GraphError(f"onnxruntime ends with {crash} on the pruned model; nothing was written") from crash
    comparison.require(found.proof)
    return replace(found, notes=(*extras.of(found.dense).notes, f"{why}: it is written without its rewritings"))


def _packing_notes(found: report.Packing | None, *, counted: bool) -> Iterator[str]:
    """A note on what packing saved; counted: whether a target of the size was met by the packed file."""
    if found is None:
        return
    yield (
        f"packed: {found.bytes} bytes instead of {found.bytes_dense}; onnxruntime loads it in {found.load_ms:.1f} ms "
        f"instead of {found.load_ms_dense:.1f} ms. Do not simplify it: that unpacks it"
    )
    if counted:
        yield "size counts the packed file"
