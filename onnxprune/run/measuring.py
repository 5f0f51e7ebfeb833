"""Measurements of the original and the result, on the files themselves: cost, accuracy and latency."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph, report
from onnxprune.coupling import analyze
from onnxprune.data import Samples, batch_axes, fixed_batch, input_infos
from onnxprune.errors import BudgetError, GraphError, ProviderError, UsageError
from onnxprune.graph import extras, sessions, shapes
from onnxprune.graph.apart import apart
from onnxprune.graph.inputs import ONE_BY_ONE, Feeds
from onnxprune.measure import doubts, measure_file, measure_settled
from onnxprune.measure.records import NORMALIZED, ORIGINAL, PRUNED, QUANTIZED
from onnxprune.options import RELATIVE_ERROR
from onnxprune.outputs import accuracies, answers, metrics
from onnxprune.plan import cost, plan
from onnxprune.recover.asked import own_metric
from onnxprune.run import narrowed
from onnxprune.surgery import dead
from onnxprune.system.atomic_files import scratch
from onnxprune.system.isolation import CrashedError, can_copy, isolated

if TYPE_CHECKING:
    from onnxprune.measure.latency import FeedsFor
    from onnxprune.measure.records import LatencyTable
    from onnxprune.run.narrowed import Narrow
    from onnxprune.run.settings import Settings
    from onnxprune.run.subject import Subject
    from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")
LOADS = 5  # of which the fastest counts


def measure(
    subject: Subject,
    made: plan.Plan,
    files: Mapping[str, Path],
    out: Path,
    settings: Settings,
    clock: Clock,
    narrow: Narrow | None = None,
) -> tuple[tuple[report.Measurement, ...], tuple[report.LatencyRatio, ...], tuple[str, ...]]:
    """(the original, the results, and what normalizing alone makes where that may tell something; ratios; notes).

    files: the results by name; "pruned" is in floats, "quantized" the same rounded, and the last will be `out`.
    narrow: what that file becomes in the end, which is what is timed.
    Cost, accuracy on samples that tuning never saw, interleaved latency. The result is proven by now: what cannot be
    measured is noted and left unknown, and never a reason to throw the result away.
    """
    with scratch() as folder:
        return _measured(subject, made, files, out, settings, clock, narrow, Path(folder))


def _normalized(subject: Subject, files: Mapping[str, Path], folder: Path, settings: Settings) -> dict[str, Path]:
    """The file that normalizing alone makes, by its name: where that may be faster, and beside a quantized one.

    onnxruntime takes weights that are listed among the inputs for variable, which is slow.
    """
    if QUANTIZED not in files and not (settings.timing.wanted and _lists_weights(subject.path)):
        return {}
    path = folder / "normalized.onnx"
    graph.save(subject.model, path)
    return {NORMALIZED: path}


def _measured(
    subject: Subject,
    made: plan.Plan,
    files: Mapping[str, Path],
    out: Path,
    settings: Settings,
    clock: Clock,
    narrow: Narrow | None,
    folder: Path,
) -> tuple[tuple[report.Measurement, ...], tuple[report.LatencyRatio, ...], tuple[str, ...]]:
    only = extras.of(subject.model).only_batch
    notes: list[str] = [ONE_BY_ONE] if only else []
    result, normal = list(files)[-1], dict[str, Path]()
    with _noted("what normalizing alone makes could not be measured", notes):
        normal = _normalized(subject, files, folder, settings)
    every = {**files, **normal}
    for path in every.values():
        sessions.hold_file(path, only)
    with clock("measure cost"):
        original = measure_file(ORIGINAL, subject.path, made.before)
        models = {ORIGINAL: replace(original, **_without_zeros(subject.model, subject.whole_cost))}
        totals: dict[str, int] = dict(made.after)
        with _noted("the cost of the file was not counted again", notes):
            totals |= _counted(subject, files[PRUNED], unpack=settings.form.pack)
        for name, path in files.items():
            counted = replace(measure_file(name, path, totals), path=str(out) if name == result else None)
            models[name] = replace(counted, **{key: totals.get(key) for key in ("nonzeros", "nonzero_macs")})
            # Rounding adds no weights, and in some forms its scales look like some.
            models[name] = replace(models[name], params=models[next(iter(files))].params)
        for name, path in normal.items():
            models[name] = replace(measure_file(name, path, made.before), path=None)
    if subject.held is not None:
        with clock("measure accuracy"), _noted("accuracy could not be measured", notes, UsageError):
            found = _accuracies(subject, subject.held, every if QUANTIZED in files else files, settings)
            models |= {name: replace(models[name], accuracy=accuracy) for name, accuracy in found.items()}
    notes += _larger(models[ORIGINAL], models[PRUNED], models[result])
    table = None
    if settings.timing.wanted:
        with clock("measure latency"), _noted("latency could not be measured", notes):
            table = _latencies(subject, every, result, settings, narrow, folder)
            notes += [*doubts(table), *slower_in_integers(table.ratios)]
    if table is None:
        return tuple(models.values()), (), tuple(notes)
    return report.with_latencies(tuple(models.values()), (table,)), table.ratios, tuple(notes)


def slower_in_integers(ratios: Sequence[report.LatencyRatio]) -> list[str]:
    """A note where the quantized file takes longer than the pruned model in floats, beyond the noise of both."""
    own = {ratio.model: ratio for ratio in ratios}
    floats, integers = own.get(PRUNED), own.get(QUANTIZED)
    if floats is None or integers is None or floats.interval95 is None or integers.interval95 is None:
        return []
    if integers.interval95[0] <= floats.interval95[1]:
        return []
    return [
        f"the quantized file takes longer than the pruned model in floats, {integers.median:.2f} of the original's "
        f"time against {floats.median:.2f}: rounding between layers costs more than integers save at these widths"
    ]


def _larger(before: report.Measurement, pruned: report.Measurement, after: report.Measurement) -> list[str]:
    """A note, which is also logged, where the result is larger than the original; pruned: the result in floats."""
    if not before.bytes or not after.bytes or after.bytes <= before.bytes:
        return []
    sizes = f"the result is larger than the original, {after.bytes} bytes where that has {before.bytes}"
    if pruned.bytes is not None and pruned.bytes <= before.bytes:
        why = "quantizing adds more than pruning removed"
    elif after.has_zeros:
        why = "the zeros are stored like other numbers; --pack stores them in less"
    elif after.params is not None and after.params < (before.params or 0) <= before.bytes / 4:
        why = "the nodes that read what is left of the weights take more than was removed"
    else:
        why = "what the original stores once, sparse or packed is stored plainly"
    note = f"{sizes}: {why}"
    LOG.warning("%s", note)
    return [note]


@contextmanager
def _noted(what: str, notes: list[str], *raised: type[Exception]) -> Iterator[None]:
    """Turns an error into a note, but for one that says that memory ran out or a promise was broken."""
    try:
        yield
    except (ProviderError, BudgetError, *raised):  # a metric that is wrong is the user's to mend
        raise
    except Exception as error:
        told = f"onnxruntime ends with {error}" if isinstance(error, CrashedError) else str(error)
        notes.append(f"{what}: {' '.join(told.split())[:300]}")
        LOG.warning("%s", notes[-1])


def _counted(subject: Subject, file: Path, *, unpack: bool) -> dict[str, int]:
    """MACs and parameters of a written file."""
    written = graph.load(file)
    if unpack:  # what is counted are the weights, not the values and bits that they are made of
        written = graph.normalize(written)
    # At the sizes at which the original was counted: those of the samples, where the model leaves them open.
    seen = analyze(written, shapes.observe(written, subject.coupling.shapes.probe))
    costs = cost.of(seen, written)
    totals = costs.totals()
    return {"macs": totals["macs"], "params": totals["params"], **_without_zeros(seen.model, costs)}


def _without_zeros(model: ir.Model, costs: cost.Cost) -> dict[str, int]:
    return {
        "nonzeros": costs.totals()["params"] - dead.zeros_in(model),
        "nonzero_macs": dead.nonzero_macs(model, costs),
    }


def _accuracies(
    subject: Subject, samples: Samples, files: Mapping[str, Path], settings: Settings
) -> Mapping[str, metrics.Accuracy | None]:
    """Accuracy of the original and of the results, by name."""

    def work() -> Mapping[str, metrics.Accuracy | None]:
        judge = yardstick(subject, samples, settings.metric)
        return {ORIGINAL: judge.accuracy, **{name: judge.of(path) for name, path in files.items()}}

    # A function of the user's may keep what it sees, which would be lost with another process.
    return work() if own_metric(settings.metric) is not None else isolated(work)


def _latencies(
    subject: Subject, files: Mapping[str, Path], result: str, settings: Settings, narrow: Narrow | None, folder: Path
) -> LatencyTable:
    """Times of the original and of `files`, of which `result` is what narrow is about.

    Where it can be, or where a provider's libraries are at work, they are measured in another process.
    """
    batch, feeds = latency_feeds(subject)
    setting = settings.timing.at(batch)
    models = {ORIGINAL: subject.path, **files}
    feeds_for: Feeds | FeedsFor = feeds
    if narrow is not None:
        models[result], feeds_for = narrowed.timed(narrow, folder / files[result].name, feeds)
    work = partial(_timed, measure_settled, models, feeds_for, setting)
    on_cpu = sessions.provider_name(settings.timing.provider) == "CPUExecutionProvider"
    return isolated(work) if can_copy() and on_cpu else work() if on_cpu else apart(work, [], fresh=True)


def _timed(
    measured: Callable[..., LatencyTable],
    models: Mapping[str, Path],
    feeds: Feeds | FeedsFor,
    setting: Mapping[str, Any],
) -> LatencyTable:
    return measured(models, feeds, **setting)


def _lists_weights(path: Path) -> bool:
    """Whether the file lists weights among its inputs."""
    model = graph.load(path).graph
    return any(value.name in model.initializers for value in model.inputs)


def packing(dense: ir.Model, packed: Path) -> report.Packing:
    """Bytes and load times of a result before and after packing: `dense` is the model, `packed` the file written."""
    with scratch() as folder:
        file = Path(folder, packed.name)
        graph.save(dense, file)
        sizes = [measure_file("result", path).bytes or 0 for path in (file, packed)]
        return report.Packing(*sizes, *(_load_ms(path) for path in (file, packed)))


def _load_ms(path: Path) -> float:
    """The shortest of some times to open a session."""
    times = []
    for _ in range(LOADS):
        start = perf_counter()
        sessions.open_session(path, threads=1, as_stored=True)
        times.append(1000 * (perf_counter() - start))
    return min(times)


def latency_feeds(subject: Subject) -> tuple[int, Feeds]:
    """(how many samples, inputs): one sample, real or random, where the model runs on one, else the proof's batch."""
    axes = batch_axes(input_infos(subject.model))
    proof = subject.feeds[0]
    fixed = fixed_batch(subject.model)
    samples = subject.tune or subject.held
    if samples is not None:
        one = samples.batch(np.arange(fixed or 1) % len(samples))
    elif fixed is not None:
        return fixed, proof
    else:
        one = {name: array if axes[name] is None else array.take([0], axes[name]) for name, array in proof.items()}
    try:
        sessions.run(sessions.open_session(subject.model, threads=sessions.few_threads()), one)
    except GraphError:  # indices that point outside of a single sample, say
        counts = (proof[name].shape[axis] for name, axis in axes.items() if axis is not None and proof[name].ndim)
        return next(counts, 1), proof
    return fixed or 1, one


@dataclass(frozen=True)
class Yardstick:
    """How models are measured on `samples`; the answers of the original are computed once and kept here.

    accuracy: of the original, where labels or the user's own metric tell it. said: all that it says, for that metric.
    """

    samples: Samples
    metric: Any
    accuracy: metrics.Accuracy | None
    reference: answers.Reference | None = None
    session: Any = None
    said: Mapping[str, Any] | None = None
    batch: int | None = None  # the only one that the models take, where they do not tell

    def of(self, model: ir.Model | Path) -> metrics.Accuracy | None:
        """The accuracy of `model`; None where nothing tells right from wrong."""
        own = own_metric(self.metric)
        if own is not None:
            return metrics.by_user(own, _opened(model, self.batch), self.samples, self.said)
        if self.metric != RELATIVE_ERROR and self.reference is not None:
            said = answers.answers(model, self.reference.samples, self.reference.outputs, self.batch)
            return accuracies.accuracy(accuracies.judged(said, self.reference))
        return self._compared(_opened(model, self.batch))

    def _compared(self, session: Any) -> metrics.Accuracy | None:
        """The accuracy where no part stands for the outputs, as for texts, or the relative error of all of them."""
        errors = self.metric == RELATIVE_ERROR
        labelled = self.samples.labels is not None and not errors
        found = metrics.evaluate(session, self.samples, None if labelled else self.session, regression=errors)
        if not errors or found is None or self.reference is None:
            return found
        return found.against(metrics.null_error(self.reference.said), 0.0)


def yardstick(subject: Subject, samples: Samples, metric: Any = None) -> Yardstick:
    """Chooses how all models of a run are measured: by labels, the user's metric, or the kinds of the outputs."""
    batch = extras.of(subject.model).only_batch
    if (own := own_metric(metric)) is not None:
        session = _opened(subject.path, batch)
        said = metrics.everything(session, samples)
        return Yardstick(samples, metric, metrics.by_user(own, session, samples, said), said=said, batch=batch)
    reference = answers.reference(subject.model, samples, subject.outputs, batch)
    if metric == RELATIVE_ERROR or reference is None:
        plain = Yardstick(samples, metric, None, reference, _opened(subject.path, batch), batch=batch)
        labelled = samples.labels is not None and metric != RELATIVE_ERROR
        return replace(plain, accuracy=plain.of(subject.path)) if labelled else plain
    first = None
    if accuracies.labelled(reference) is not None:
        first = accuracies.accuracy(accuracies.judged(reference.said, reference))
    elif samples.labels is not None:
        LOG.warning(
            "the labels, of shape %s, are answers of no output: results are compared with the original; a --metric of "
            "your own reads them, and --output says what an output is",
            samples.labels.shape,
        )
    return Yardstick(samples, metric, first, reference, batch=batch)


def _opened(model: ir.Model | Path, batch: int | None) -> Any:
    return sessions.hold_batch(sessions.open_session(model), batch)
