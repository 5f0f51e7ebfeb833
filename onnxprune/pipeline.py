"""The straight line: load, normalize, analyze, score, select, cut, verify, recover, finish, save, measure, report."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune import cost, gates, graph, measuring, plan, report, reporting, shapes, sparse, surgery, verify
from onnxprune.bridge import batchnorm
from onnxprune.checks import check_data_file, check_devices, check_finite, check_paths, file_sha256
from onnxprune.cost import Cost
from onnxprune.coupling import Coupling, Dim, analyze
from onnxprune.data import Samples, batch_size_of, batches, input_infos, load_samples, split
from onnxprune.errors import UsageError
from onnxprune.methods import base
from onnxprune.options import LEVELS, Level, Options, alignment_for, provider_for
from onnxprune.recover import biases
from onnxprune.staging import staged

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History

LOG = logging.getLogger("onnxprune")
HELD_SHARE = 0.2  # of --data, when there is no --val
CHOOSING_SHARE = 0.1  # of the samples to tune on: they choose the epoch to keep
PATIENCE = 3  # epochs without improvement after which fine-tuning stops
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
    check_data_file(source, out)
    check_devices(options.device, provider_for(options) if options.latency else None)
    chosen = base.get(options.method)
    clock = Clock()
    subject = prepare(source, options, clock)
    from onnxprune import schedule, search  # they call back into this module

    subject, outcome = schedule.scored(subject, chosen, options, clock)

    def make(keep: Keep, notes: Sequence[str]) -> Result:
        notes = (*outcome.notes, *notes)
        return produce(subject, keep, out, options, clock, method=options.method, notes=notes, zeros=outcome.zeros)

    return search.first_that_holds(search.choices(subject, outcome, options), make, clock)


def replay(source: str | Path, plan_path: str | Path, target_path: str | Path, options: Options) -> Result:
    """Cuts the model in `source` by a saved plan: another checkpoint of the model that the plan was made for."""
    source, out = Path(source), Path(target_path)
    check_paths(source, out, options, Path(plan_path))
    check_data_file(source, out)
    check_devices(options.device, provider_for(options) if options.latency else None)
    clock = Clock()
    loaded = plan.load(plan_path)
    options = replace(options, recover=options.recover or _level_again(loaded, options), seed=loaded.seed)
    subject = prepare(source, options, clock)
    notes = () if loaded.model_sha256 == subject.sha256 else ("the plan was made for other weights of this model",)
    keep = plan.masks(loaded, subject.coupling)
    return produce(subject, keep, out, options, clock, method=loaded.method, notes=notes)


def _level_again(loaded: plan.Plan, options: Options) -> Level:
    """The recovery that the plan was followed by, as far as the samples at hand allow."""
    names: dict[str, Level] = {level: level for level in LEVELS}
    level = names.get(loaded.recover, "none")
    return level if options.data is not None or level == "none" else "constants"


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
        observed = shapes.observe(model, sample_shapes(model, tune or held))
        coupling = analyze(model, observed)
        check_finite(coupling)
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


def sample_shapes(model: ir.Model, samples: Samples | None) -> dict[str, tuple[int, ...]] | None:
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
    for name, patterns in (("include", options.include), ("exclude", options.exclude)):
        for pattern in patterns:
            if not coupling.matching([pattern]):
                raise UsageError(
                    f"--{name} '{pattern}' matches no node, initializer or dimension; 'onnxprune inspect' lists them"
                )
    found = set(coupling.exact if options.exact_only else coupling.free)
    if options.include:
        found &= coupling.matching(options.include)
    found -= coupling.matching(options.exclude)
    if not found:
        reasons = sorted({str(dim.frozen) for dim in coupling.dims if dim.frozen})[:3]
        raise UsageError(
            f"nothing can be pruned: {len(coupling.free)} of {len(coupling.dims)} dimensions are free, none is chosen"
            f"{'; frozen by: ' + '; '.join(reasons) if reasons and not coupling.free else ''}; see 'onnxprune inspect'"
        )
    return tuple(dim for dim in coupling.dims if dim in found)


def score(subject: Subject, chosen: base.Method, options: Options, clock: Clock) -> base.Outcome:
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
        options.level,
        alignment_for(options.align, provider_for(options)),
    )
    with clock("score"):
        return base.run(chosen, context)


def device(options: Options) -> str:
    """cpu or cuda, for training."""
    if options.device != "auto":
        return options.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
) -> Result:
    """Cuts by `keep`, proves, recovers, proves again, measures, and only then writes."""
    sizes = cost.keep_sizes(keep)
    made = plan.make(
        subject.coupling,
        keep,
        method=method,
        seed=options.seed,
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
        finished = finish(cut_model)
    with clock("verify the result"):
        twin = twin_of(subject.coupling, keep, cut_model)
        proof = verify.require(verify.compare(finished, twin, subject.feeds))
    files = (out, *([options.plan] if options.plan else ()), *options.report)
    with staged(*files) as places:
        graph.save(finished, places[out])
        trained = options.level == "none" and subject.coupling.model is not subject.model
        made = plan.with_recovery(made, "training" if trained else options.level, file_sha256(places[out]))
        before, after, ratios = measuring.measure(subject, made, places[out], out, options, clock)
        gate_notes = gates.check(before, after, ratios, options)
        all_notes = (*notes, *gate_notes)
        made_report = reporting.describe(
            subject, made, (before, after), ratios, proof, history, clock, options, all_notes
        )
        if options.plan is not None:
            plan.save(made, places[options.plan])
        for path in options.report:
            report.write_report(made_report, places[path])
    return Result(made, before, after, made_report)


def finish(model: ir.Model) -> ir.Model:
    """A new model, ready to be written: norms folded, all of onnxsim's fusions."""
    folded = model.clone()
    folded.meta.update(model.meta)
    batchnorm.fold_batchnorm(folded)  # onnxsim would too, but rename the weights, by which 'verify' finds them
    return graph.finish(folded)


def twin_of(coupling: Coupling, keep: Keep, cut_model: ir.Model) -> ir.Model:
    """The masked model with the weights of a recovered `cut_model`, and with the biases that were made in it."""
    twin = surgery.uncut(coupling, keep, cut_model)
    biases.carry(coupling, keep, cut_model, twin)
    return twin


def recover(
    subject: Subject, keep: Keep, cut_model: ir.Model, options: Options, clock: Clock, zeros: Mapping[str, np.ndarray]
) -> "History | None":
    """Carries out the recovery level of the options on `cut_model` in place; the fine-tuning history or None."""
    if options.level == "none":
        return None
    from onnxprune.recover import constants

    with clock("push constants"):
        constants.push(subject.coupling, keep, cut_model, subject.tune)
    if subject.tune is None or options.level == "constants":
        return None
    if not zeros:  # least squares would fill them
        from onnxprune.recover import reconstruct

        with clock("reconstruct"):
            reconstruct.refit(subject.coupling, keep, cut_model, subject.tune, progress=options.progress)
    if options.level == "reconstruct":
        return None
    with clock("finetune"):
        return _finetune(subject, keep, cut_model, options, zeros)


def _finetune(
    subject: Subject, keep: Keep, cut_model: ir.Model, options: Options, zeros: Mapping[str, np.ndarray]
) -> "History":
    from onnxprune.recover import finetune

    assert subject.tune is not None
    given = {"epochs": options.epochs, "lr": options.lr, "batch_size": options.batch_size}
    settings = finetune.Settings(
        **{name: value for name, value in given.items() if value is not None},
        device=device(options),
        seed=options.seed,
        progress=options.progress,
        resume_dir=str(options.resume) if options.resume else None,
        patience=PATIENCE,
    )
    # The epoch to keep is chosen on samples of --data; those that the result is measured on stay unseen.
    tune, chosen = split(subject.tune, CHOOSING_SHARE, options.seed)
    stays = {name: ~mask for name, mask in sparse.cut_zeros(subject.coupling, keep, zeros).items()}
    history = finetune.finetune(cut_model, subject.model, tune, chosen, settings, masks=stays or None)
    LOG.info("  %s", history.settings.described())
    return history
