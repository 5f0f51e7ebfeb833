"""How much of each dimension can go: accuracy against the fraction removed, one Dim at a time, all others whole.

A trial cuts one Dim by the method's scores and pushes the constants of what was removed, as any run does at least;
nothing is tuned, so curves show what a dimension is worth before recovery.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxprune import report, surgery
from onnxprune.coupling import Dim
from onnxprune.errors import UsageError, no_samples
from onnxprune.measure import machine, measure_file, tool
from onnxprune.methods import base
from onnxprune.options import Options
from onnxprune.outputs import metrics
from onnxprune.plan.select import Selection
from onnxprune.recover import constants
from onnxprune.recover.levels import device
from onnxprune.report import build
from onnxprune.run import first_check, measuring
from onnxprune.run.settings import widths_of
from onnxprune.run.subject import Subject, prepare, scored_dims
from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")
FRACTIONS = (0.25, 0.5, 0.75)
MOST_SAMPLES = 1000  # to measure on, unless asked for otherwise
PUSHED_SAMPLES = 64  # over which the means of removed units are taken


@dataclass(frozen=True)
class Reference:
    """The judge that measures trials, and the original's accuracy by it."""

    judge: measuring.Yardstick
    accuracy: metrics.Accuracy


def sensitivity(
    path: str | Path, options: Options, fractions: Sequence[float] = FRACTIONS, most: int = MOST_SAMPLES
) -> report.Report:
    """A report with one curve per Dim that the options choose, and the original's accuracy.

    Raises: UsageError without samples, for fractions outside (0, 1), and for methods that train.
    """
    check_fractions(fractions)
    path = Path(path)
    chosen = base.get(options.method)
    if chosen.needs.training:
        raise UsageError(
            f"--method {options.method} trains, and sensitivity looks at the model as it is; choose another, such as l2"
        )
    clock = Clock()
    subject = prepare(path, options, clock)
    with clock("check the original"):
        first_check.check(subject)
    with clock("score"):
        outcome = base.run(chosen, context(subject, options, chosen))
    with clock("measure the original"):
        reference = reference_of(subject, most)
    with clock("sensitivity"):
        curves = tuple(_curves(subject, outcome.scores, reference, sorted(fractions)))
    original = replace(measure_file("original", path), macs=subject.cost.totals()["macs"], accuracy=reference.accuracy)
    frozen = tuple(report.Frozen(d.name, str(d.frozen), d.size) for d in build.frozen_dims(subject.coupling))
    return report.Report(
        options.command,
        (original,),
        frozen=frozen,
        steps=tuple(clock.steps),
        sensitivity=curves,
        method=options.method,
        seed=options.seed,
        data=str(options.data or options.val),
        tool=tool(),
        machine=machine(),
    )


def check_fractions(fractions: Sequence[float]) -> None:
    """Checks that every fraction lies between 0 and 1, so that it can be removed. Raises: UsageError otherwise."""
    wrong = [f for f in fractions if not 0 < f < 1]
    if wrong or not fractions:
        shown = f"{wrong[0]:g}" if wrong else "none"
        raise UsageError(f"--fractions: {shown} given; fractions to remove lie between 0 and 1, such as 0.25,0.5,0.75")


def context(subject: Subject, options: Options, chosen: base.Method) -> base.Context:
    """The context that the scoring method gets."""
    learns = chosen.needs.data or chosen.needs.gradients  # torch is not even imported for those that read weights
    return base.Context(
        coupling=subject.coupling,
        cost=subject.cost,
        dims=scored_dims(subject.coupling, widths_of(options)),
        samples=subject.tune,
        seed=options.seed,
        device=device(options.device) if learns else "cpu",
        options=options.method_options,
        progress=options.progress,
        described=subject.outputs,
    )


def reference_of(subject: Subject, most: int = MOST_SAMPLES) -> Reference:
    """The original on at most `most` of the samples that scoring did not see. Raises: UsageError without samples."""
    samples = subject.held or subject.tune
    if samples is None or not len(samples):
        raise no_samples("sensitivity")
    samples = samples.subset(np.arange(min(most, len(samples))))
    judge = measuring.yardstick(subject, samples)
    accuracy = judge.accuracy or judge.of(subject.model)
    if accuracy is None:
        raise UsageError("sensitivity: no output can be compared from sample to sample; prune with a --metric instead")
    return Reference(judge, accuracy)


def _curves(
    subject: Subject, scores: Mapping[Dim, np.ndarray], reference: Reference, fractions: Sequence[float]
) -> Iterator[report.SensitivityCurve]:
    for number, (dim, values) in enumerate(scores.items(), 1):
        curve = curve_of(subject, dim, np.asarray(values), reference, fractions)
        LOG.info("  %d of %d: %s: %s", number, len(scores), dim.name, " ".join(f"{v:.3f}" for v in curve.value))
        yield curve


def curve_of(
    subject: Subject, dim: Dim, scores: np.ndarray, reference: Reference, fractions: Sequence[float]
) -> report.SensitivityCurve:
    """The metric with each of `fractions` of `dim` removed, lowest scores (size,) first; its first point is 0."""
    points = {0.0: reference.accuracy}
    for count in removable(dim.size, fractions):
        keep = np.ones(dim.size, bool)
        keep[np.argsort(scores, kind="stable")[:count]] = False
        points[count / dim.size] = trial(subject, Selection(subject.coupling, {dim: keep}), reference)
    removed, found = tuple(points), tuple(points.values())
    return report.SensitivityCurve(
        dim.name,
        removed,
        tuple(a.value for a in found),
        found[0].metric,
        tuple(a.interval95 or (a.value, a.value) for a in found),
    )


def removable(size: int, fractions: Sequence[float]) -> list[int]:
    """How many of `size` units each fraction removes; one always stays, and equal numbers are tried once."""
    return sorted({min(size - 1, round(f * size)) for f in fractions} - {0})


def trial(subject: Subject, selection: Selection, reference: Reference) -> metrics.Accuracy:
    """The accuracy of the model cut by a selection, constants pushed."""
    model = surgery.cut(selection)
    constants.push(selection, model, subject.tune, limit=PUSHED_SAMPLES)
    accuracy = reference.judge.of(model)
    assert accuracy is not None
    return accuracy
