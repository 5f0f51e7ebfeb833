"""What the original and the result cost, how good they are, and how fast, measured on the files themselves."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph, report
from onnxprune.coupling import analyze
from onnxprune.data import Samples, fixed_batch
from onnxprune.graph import sessions, shapes
from onnxprune.measure import QUICK, measure_file, measure_latency
from onnxprune.options import RELATIVE_ERROR, Options, provider_for
from onnxprune.outputs import metrics
from onnxprune.plan import cost, plan
from onnxprune.recover.asked import own_metric

if TYPE_CHECKING:
    from onnxprune.run.subject import Clock, Subject

LOADS = 5  # of which the fastest counts


def measure(
    subject: Subject, made: plan.Plan, temporary: Path, out: Path, options: Options, clock: Clock
) -> tuple[report.Measurement, report.Measurement, tuple[report.LatencyRatio, ...]]:
    """The original and the written file: cost, accuracy on samples that tuning never saw, interleaved latency."""
    with clock("measure cost"):
        before = measure_file("original", subject.path, made.before)
        written = graph.load(temporary)
        if options.pack:  # what is counted are the weights, not the values and bits that they are made of
            written = graph.normalize(written)
        # At the sizes at which the original was counted: those of the samples, where the model leaves them open.
        seen = analyze(written, shapes.observe(written, subject.coupling.shapes.probe))
        after = measure_file("pruned", temporary, cost.of(seen).totals())
        after = replace(after, path=str(out))
    if subject.held is not None:
        with clock("measure accuracy"):
            one, two = accuracies(subject.path, temporary, subject.held, options.metric, subject.accuracy)
            before, after = replace(before, accuracy=one), replace(after, accuracy=two)
    if not options.latency:
        return before, after, ()
    with clock("measure latency"):
        batch = fixed_batch(subject.model) or 1
        feeds = latency_feeds(subject, batch)
        table = measure_latency(
            {"original": subject.path, "pruned": temporary},
            feeds,
            provider=provider_for(options),
            threads=options.threads,
            batch=batch,
            rounds=QUICK,
            memory=False,
            sessions=1,
        )
    before, after = report.with_latencies((before, after), (table,))
    return before, after, table.ratios


def packing(dense: ir.Model, packed: Path) -> report.Packing:
    """What storing zeros small made of a result: `dense` is the model, `packed` the file that was written."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, packed.name)
        graph.save(dense, file)
        sizes = [measure_file("result", path).bytes or 0 for path in (file, packed)]
        return report.Packing(*sizes, *(_load_ms(path) for path in (file, packed)))


def _load_ms(path: Path) -> float:
    """The shortest of some times to open a session."""
    times = []
    for _ in range(LOADS):
        start = perf_counter()
        sessions.open_session(path, threads=1)
        times.append(1000 * (perf_counter() - start))
    return min(times)


def latency_feeds(subject: Subject, batch: int) -> dict[str, np.ndarray] | None:
    """One batch of real samples, else random arrays of the size at which the model was observed."""
    samples = subject.tune or subject.held
    if samples is not None:
        return samples.batch(np.arange(batch) % len(samples))
    return None if fixed_batch(subject.model) is None else subject.feeds[0]


def accuracies(
    original: Path | ir.Model,
    pruned: Path | ir.Model,
    held: Samples,
    metric: Any = None,
    known: metrics.Accuracy | None = None,
) -> tuple[metrics.Accuracy | None, metrics.Accuracy | None]:
    """Accuracy of both models; without labels the pruned one's agreement with, or error to, the original.

    metric: what judges instead: the user's own, or relative_error whatever the outputs look like. known: the
    original's, which is not measured again.
    """
    one, two = sessions.open_session(original), sessions.open_session(pruned)
    if metric == RELATIVE_ERROR:
        return None, metrics.evaluate(two, held, one, regression=True)
    own = own_metric(metric)
    if own is not None:
        said = metrics.everything(one, held)
        return metrics.by_user(own, one, held, said), metrics.by_user(own, two, held, said)
    first = known or (metrics.evaluate(one, held) if held.labels is not None else None)
    return first, metrics.evaluate(two, held, None if held.labels is not None else one)
