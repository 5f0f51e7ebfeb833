"""What the original and the result cost, how good they are, and how fast, measured on the files themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune import cost, graph, metrics, plan, report, runtime
from onnxprune.bench import QUICK, measure_file, measure_latency
from onnxprune.coupling import analyze
from onnxprune.data import Samples, batch_size_of, input_infos
from onnxprune.options import Options, provider_for

if TYPE_CHECKING:
    from onnxprune.pipeline import Clock, Subject


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
            provider=provider_for(options),
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
