"""The straight line: load, normalize, analyze, score, select, cut, verify, recover, finish, save, measure, report."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import cost, graph, metrics, plan, report, runtime, select, shapes, surgery, verify
from onnxprune.bench import QUICK, machine, measure_file, measure_latency, tool
from onnxprune.coupling import Coupling, Dim, analyze
from onnxprune.cost import Cost
from onnxprune.data import InputInfo, Samples, batch_size_of, batches, input_infos, load_samples, split
from onnxprune.errors import BudgetError, OnnxPruneError, UsageError
from onnxprune.methods import base
from onnxprune.options import TARGETS, Options, alignment_for

LOG = logging.getLogger("onnxprune")
HELD_SHARE = 0.2  # of --data, when there is no --val
PROOF_SAMPLES = 32  # real inputs on which cut and mask are compared
Keep = Mapping[Dim, np.ndarray]


@dataclass(frozen=True)
class Result:
    """What a run made: the plan, the original and the pruned model as measured, and the whole report."""

    plan: plan.Plan
    before: report.Measurement
    after: report.Measurement
    report: report.Report


@dataclass(frozen=True)
class Subject:
    """The model at hand, normalized and analysed, with its samples."""

    path: Path
    model: ir.Model
    sha256: str
    coupling: Coupling
    cost: Cost
    tune: Samples | None
    held: Samples | None
    feeds: list[dict[str, np.ndarray]]  # on which the proof runs


class Clock:
    """Wall times of the steps of a run."""

    def __init__(self) -> None:
        self.steps: list[report.Step] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        LOG.info("%s ...", name)
        start = perf_counter()
        yield
        self.steps.append(report.Step(name, perf_counter() - start))


def prune(source: str | Path, target_path: str | Path, options: Options) -> Result:
    """Prunes the model in file `source` into file `target_path`, which appears only when everything held.

    Raises: OnnxPruneError of every kind, see errors.py; nothing is written then.
    """
    source, out = Path(source), Path(target_path)
    check_paths(source, out, options)
    chosen = base.get(options.method)
    clock = Clock()
    subject = prepare(source, options, clock)
    outcome = _score(subject, chosen, options, clock)
    if outcome.model is not None:  # a training method: the same graph with the weights that it learned
        subject = replace(subject, coupling=replace(subject.coupling, model=outcome.model))
    from onnxprune import search  # it calls back into this module

    with clock("select"):
        keep, notes = search.choose(subject, outcome, options)
    return produce(
        subject, keep, out, options, clock, method=options.method, notes=(*outcome.notes, *notes), zeros=outcome.zeros
    )


def replay(source: str | Path, plan_path: str | Path, target_path: str | Path, options: Options) -> Result:
    """Cuts the model in `source` by a saved plan: another checkpoint of the model that the plan was made for."""
    source, out = Path(source), Path(target_path)
    check_paths(source, out, options)
    clock = Clock()
    loaded = plan.load(plan_path)
    subject = prepare(source, options, clock)
    notes = () if loaded.model_sha256 == subject.sha256 else ("the plan was made for other weights of this model",)
    keep = plan.masks(loaded, subject.coupling)
    return produce(subject, keep, out, options, clock, method=loaded.method, notes=notes, seed=loaded.seed)


def check_paths(source: Path, out: Path, options: Options) -> None:
    """Nothing, when `source` can be read and every file asked for can be written. Raises: UsageError, GraphError."""
    if out.resolve() == source.resolve():
        raise UsageError(f"{out}: output and input are the same file; choose another output")
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; give the path of the .onnx file to write")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist; create it or choose another output")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out}: the folder {out.parent} cannot be written; choose another output")
    for path in options.report:
        report.check_report_path(path)
    if options.plan is not None and not options.plan.parent.is_dir():
        raise UsageError(
            f"{options.plan}: the folder {options.plan.parent} does not exist; create it or choose another"
        )


# Preparing --------------------------------------------------------------------------------------------------------


def prepare(path: Path, options: Options, clock: Clock) -> Subject:
    """Loads, normalizes and analyses the model, and loads its samples."""
    with clock("load"):
        loaded = graph.load(path)
    with clock("normalize"):
        model = graph.normalize(loaded)
        sha256 = graph.digest(model)
    with clock("data"):
        tune, held = load_data(model, options)
    with clock("analyze"):
        observed = shapes.observe(model, _sample_shapes(model, tune or held))
        coupling = analyze(model, observed)
        costs = cost.of(coupling)
    feeds = [*real_feeds(model, tune or held), *verify.random_feeds(model, observed, options.seed)]
    return Subject(path, model, sha256, coupling, costs, tune, held, feeds)


def load_data(model: ir.Model, options: Options) -> tuple[Samples | None, Samples | None]:
    """(samples to score and tune on, samples to measure on that tuning never sees)."""
    inputs = input_infos(model)
    common = {**options.preprocess, "seed": options.seed, "classes": _classes(model)}

    def read(spec: Any) -> Samples | None:
        return None if spec is None else load_samples(spec, inputs, **common)

    if options.data is None:
        return None, read(options.val)
    if options.val is not None:
        return read(options.data), read(options.val)
    if options.data == "digits":
        return read("digits"), read("digits:test")
    samples = read(options.data)
    assert samples is not None
    if len(samples) < 2:
        return samples, None
    return split(samples, HELD_SHARE, options.seed)


def _classes(model: ir.Model) -> int | None:
    shape = model.graph.outputs[0].shape if model.graph.outputs else None
    last = shape[-1] if shape is not None and len(shape) == 2 else None
    return last if isinstance(last, int) and last > 1 else None


def _sample_shapes(model: ir.Model, samples: Samples | None) -> dict[str, tuple[int, ...]] | None:
    """Input shapes of a batch of three samples, or of the model's fixed batch."""
    if samples is None or not len(samples):
        return None
    count = batch_size_of(input_infos(model)) or 3
    return {name: array.shape for name, array in samples.batch(np.arange(count) % len(samples)).items()}


def real_feeds(model: ir.Model, samples: Samples | None) -> list[dict[str, np.ndarray]]:
    """The first samples, in batches that the model takes."""
    if samples is None:
        return []
    fixed = batch_size_of(input_infos(model))
    few = samples.subset(np.arange(min(len(samples), PROOF_SAMPLES)))
    return [samples.batch(block) for block in batches(few, fixed or PROOF_SAMPLES, fixed=fixed)]


def scored_dims(coupling: Coupling, options: Options) -> tuple[Dim, ...]:
    """The Dims that the options leave to be pruned. Raises: UsageError when there are none."""
    found = set(coupling.exact if options.exact_only else coupling.free)
    if options.include:
        found &= coupling.matching(options.include)
    found -= coupling.matching(options.exclude)
    if not found:
        reasons = sorted({str(dim.frozen) for dim in coupling.dims if dim.frozen})[:3]
        raise UsageError(
            f"nothing can be pruned: of {len(coupling.dims)} dimensions {len(coupling.free)} are free and none is chosen"
            f"{'; frozen by: ' + '; '.join(reasons) if reasons and not coupling.free else ''}; see 'onnxprune inspect'"
        )
    return tuple(dim for dim in coupling.dims if dim in found)


def _score(subject: Subject, chosen: base.Method, options: Options, clock: Clock) -> base.Outcome:
    remaining = min((f for k, f in options.target.items() if k != "latency"), default=None)
    context = base.Context(
        subject.coupling,
        subject.cost,
        scored_dims(subject.coupling, options),
        subject.tune,
        options.seed,
        device(options) if chosen.needs != base.Needs() else "cpu",  # asking loads torch
        remaining,
        options.method_options,
        options.progress,
        alignment_for(options.align, provider(options)),
    )
    with clock("score"):
        return base.run(chosen, context)


def device(options: Options) -> str:
    """cpu or cuda, for training."""
    if options.device != "auto":
        return options.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def provider(options: Options) -> str:
    """cpu or another provider, for measuring: what trains on CUDA is measured there too."""
    if options.provider != "auto":
        return options.provider
    return "cuda" if options.device == "cuda" else "cpu"


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
    seed: int | None = None,
    zeros: Mapping[str, np.ndarray] | None = None,
) -> Result:
    """Cuts by `keep`, proves, recovers, proves again, measures, and only then writes."""
    sizes = cost.keep_sizes(keep)
    made = plan.make(
        subject.coupling,
        keep,
        method=method,
        seed=options.seed if seed is None else seed,
        sha256=subject.sha256,
        name=subject.path.name,
        before=subject.cost.totals(),
        after=subject.cost.totals(sizes),
    )
    with clock("cut"):
        cut_model = surgery.cut(subject.coupling, keep)
    with clock("verify"):
        verify.require(verify.compare(cut_model, surgery.mask(subject.coupling, keep), subject.feeds))
    history = recover(subject, keep, cut_model, options, clock, zeros or {})
    with clock("finish"):
        finished = graph.finish(cut_model)
    with clock("verify the result"):
        twin = surgery.uncut(subject.coupling, keep, cut_model)
        proof = verify.require(verify.compare(finished, twin, subject.feeds))
    made = plan.with_recovery(made, options.level)
    with staged(out) as temporary:
        graph.save(finished, temporary)
        before, after, ratios = measure(subject, made, temporary, out, options, clock)
        gate_notes = check_gates(before, after, ratios, options)
        made_report = _report(
            subject, made, before, after, ratios, proof, history, clock, options, (*notes, *gate_notes)
        )
        if options.plan is not None:
            plan.save(made, options.plan)
        for path in options.report:
            report.write_report(made_report, path)
    return Result(made, before, after, made_report)


def recover(
    subject: Subject, keep: Keep, cut_model: ir.Model, options: Options, clock: Clock, zeros: Mapping[str, np.ndarray]
) -> Any:
    """Carries out the recovery level of the options on `cut_model` in place; the fine-tuning history or None."""
    level = options.level
    if level == "none":
        return None
    from onnxprune.recover import constants

    with clock("push constants"):
        constants.push(subject.coupling, keep, cut_model, subject.tune)
    if level in ("reconstruct", "finetune") and subject.tune is not None:
        from onnxprune.recover import reconstruct

        with clock("reconstruct"):
            reconstruct.refit(subject.coupling, keep, cut_model, subject.tune, progress=options.progress)
    if level == "finetune" and subject.tune is not None:
        from onnxprune.recover import finetune

        settings = finetune.choose(subject.tune, cut_model, device(options))
        asked = {"epochs": options.epochs, "lr": options.lr, "batch_size": options.batch_size}
        settings = replace(settings, **{k: v for k, v in asked.items() if v is not None})
        settings = replace(settings, seed=options.seed, progress=options.progress, resume_dir=options.resume)
        tune, chosen = split(subject.tune, 0.1, options.seed) if len(subject.tune) >= 20 else (subject.tune,) * 2
        with clock("finetune"):
            return finetune.finetune(cut_model, subject.model, tune, chosen, settings, masks=dict(zeros) or None)
    return None


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A path in a folder beside `out`; what was written there takes the place of `out` when the block ends well."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        yield Path(folder) / out.name
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == out.name):  # the model comes last
            os.replace(file, out.parent / file.name)


# Measuring --------------------------------------------------------------------------------------------------------


def measure(
    subject: Subject, made: plan.Plan, temporary: Path, out: Path, options: Options, clock: Clock
) -> tuple[report.Measurement, report.Measurement, tuple[report.LatencyRatio, ...]]:
    """The original and the written file: cost, accuracy on samples that tuning never saw, interleaved latency."""
    with clock("measure cost"):
        before = measure_file("original", subject.path, made.before)
        written = graph.load(temporary)
        after = measure_file("pruned", temporary, cost.of(analyze(written)).totals())
        after = replace(after, path=str(out))
    if subject.held is not None:
        with clock("measure accuracy"):
            one, two = accuracies(subject.path, temporary, subject.held)
            before, after = replace(before, accuracy=one), replace(after, accuracy=two)
    if not options.latency:
        return before, after, ()
    with clock("measure latency"):
        batch = batch_size_of(input_infos(subject.model)) or 1
        feeds = latency_feeds(subject, batch)
        table = measure_latency(
            {"original": subject.path, "pruned": temporary},
            feeds,
            provider=provider(options),
            threads=options.threads,
            batch=batch,
            rounds=QUICK,
            memory=False,
            sessions=1,
        )
    before, after = report.with_latencies((before, after), (table,))
    return before, after, table.ratios


def latency_feeds(subject: Subject, batch: int) -> dict[str, np.ndarray] | None:
    """One batch of real samples, else random arrays of the size at which the model was observed."""
    samples = subject.tune or subject.held
    if samples is not None:
        return samples.batch(np.arange(batch) % len(samples))
    return None if batch_size_of(input_infos(subject.model)) is None else subject.feeds[0]


def accuracies(
    original: Path | ir.Model, pruned: Path | ir.Model, held: Samples
) -> tuple[metrics.Accuracy | None, metrics.Accuracy | None]:
    """Accuracy of both models; without labels the pruned one's agreement with, or error to, the original."""
    one, two = runtime.open_session(original), runtime.open_session(pruned)
    first = metrics.evaluate(one, held) if held.labels is not None else None
    return first, metrics.evaluate(two, held, None if held.labels is not None else one)


def points_lost(before: report.Measurement, after: report.Measurement) -> float | None:
    """Accuracy points lost; without labels the points of disagreement with the original."""
    return drop(before.accuracy, after.accuracy)


def drop(before: metrics.Accuracy | None, after: metrics.Accuracy | None) -> float | None:
    if after is None:
        return None
    if before is not None:
        return after.drop_from(before)
    return 100 * (after.value if after.metric in metrics.LOWER_IS_BETTER else 1 - after.value)


def check_gates(
    before: report.Measurement, after: report.Measurement, ratios: Sequence[report.LatencyRatio], options: Options
) -> tuple[str, ...]:
    """Notes on the gates that held. Raises: BudgetError for one that did not."""
    notes: list[str] = []
    lost = points_lost(before, after)
    if options.max_drop is not None and lost is not None:
        if lost > options.max_drop:
            raise BudgetError(
                f"--max-drop {options.max_drop:g}: the result loses {lost:.2f} points; nothing was written. "
                "Raise --epochs, give more samples, or a larger --target"
            )
        notes.append(f"lost {lost:.2f} points of {options.max_drop:g} allowed")
    limit = options.target.get("latency")
    speedup = 1 / ratios[0].median if ratios else None
    for option, wanted in (("--target latency", 1 / limit if limit else None), ("--min-speedup", options.min_speedup)):
        if wanted is None:
            continue
        if speedup is None:
            raise BudgetError(f"{option}: latency was not measured; leave --no-latency out")
        if speedup < wanted * 0.995:  # half a percent is within the noise of two runs
            raise BudgetError(
                f"{option}: the result is {speedup:.3f} times as fast, {wanted:.3f} was asked; nothing was written"
            )
    return tuple(notes)


# Reporting --------------------------------------------------------------------------------------------------------


def _report(
    subject: Subject,
    made: plan.Plan,
    before: report.Measurement,
    after: report.Measurement,
    ratios: tuple[report.LatencyRatio, ...],
    proof: verify.Verification,
    history: Any,
    clock: Clock,
    options: Options,
    notes: Sequence[str],
) -> report.Report:
    coupling = subject.coupling
    keep = plan.masks(made, coupling)
    return report.Report(
        options.command,
        (before, after),
        ratios,
        proof,
        layers(coupling, subject.cost, keep),
        tuple(report.Frozen(dim.name, str(dim.frozen), dim.size) for dim in frozen_dims(coupling)),
        tuple(clock.steps),
        tuple(history.points) if history is not None else (),
        plan={"dims": [{"name": d.name, "before": d.size, "after": len(d.keep), "exact": d.exact} for d in made.dims]},
        method=made.method,
        seed=made.seed,
        data=str(options.data) if options.data is not None else None,
        notes=tuple(notes),
        tool=tool(),
        machine=machine(),
    )


def layers(coupling: Coupling, costs: Cost, keep: Keep) -> tuple[report.Layer, ...]:
    """Every node with MACs and a weight, before and after."""
    sizes = cost.keep_sizes(keep)
    before, after = costs.by_node(), costs.by_node(sizes)
    rows: list[report.Layer] = []
    for node in coupling.model.graph:
        weight = next(
            (v for v in node.inputs[1:] if v is not None and len(coupling.axes.get(v.name or "", ())) > 1), None
        )
        if node.name not in before or weight is None:
            continue
        axes = coupling.axes[weight.name or ""]
        names = tuple(d.name for axis in axes for d in dict.fromkeys(cost.dims.leaves(axis)) if d.frozen is None)
        rows.append(
            report.Layer(
                node.name or "",
                node.op_type,
                names,
                tuple(cost.dims.length(axis) for axis in axes),
                tuple(cost.dims.kept_length(axis, sizes) for axis in axes),
                before[node.name or ""],
                after[node.name or ""],
            )
        )
    return tuple(rows)


def frozen_dims(coupling: Coupling) -> list[Dim]:
    """Dims that someone might expect to be pruned: those that a weight produces or consumes."""
    roles = ("produces", "consumes")
    return [d for d in coupling.dims if d.frozen is not None and any(m.role in roles for m in coupling.members[d])]


Progress = Callable[[str], None]
__all__ = ["TARGETS", "InputInfo", "OnnxPruneError", "Options", "Result", "alignment_for", "prune", "replay", "select"]
