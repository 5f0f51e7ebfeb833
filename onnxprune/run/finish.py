"""A cut and recovered model in the form in which it is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune import graph, quantize
from onnxprune.bridge import batchnorm
from onnxprune.graph import extras
from onnxprune.outputs import accuracies, answers
from onnxprune.system.isolation import CrashedError

if TYPE_CHECKING:
    from onnxprune.run.settings import Settings
    from onnxprune.run.subject import Subject

LOG = logging.getLogger("onnxprune")


def finish(model: ir.Model, *, rewrite: bool = True, join: bool = True) -> ir.Model:
    """A new model, ready to be written: norms folded, with `rewrite` all of onnxsim's fusions; `join`: see graph."""
    folded = graph.copy(model)
    batchnorm.fold_batchnorm(folded)  # onnxsim would too, but rename the weights, by which 'verify' finds them
    return graph.finish(folded, rewrite=rewrite, join=join)


@dataclass(frozen=True)
class Rounded:
    """The quantized result, None where it stays in floats, its section of the report, and notes."""

    made: quantize.Quantized | None = None
    told: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def quantized(finished: ir.Model, subject: Subject, settings: Settings, *, trial: bool = False) -> Rounded:
    """A finished model as --quantize asks; where a native library ends of that it stays in floats, and a note says so.

    An error would throw away what may have been tuned for hours. trial: without training, and nothing is told.
    """
    form = settings.form
    if form.quantize is None:
        return Rounded()
    asked = form.quantize.quick if trial else form.quantize
    provider, teacher = settings.timing.provider, subject.given.original
    lost = _lost_of(finished, subject)
    context = quantize.Context(
        asked, subject.tune, subject.feeds, provider, settings.seed, form.replayed, teacher, lost
    )
    try:
        made = quantize.quantize(finished, context)
        return Rounded(made, None if trial else quantize.told(made, subject.feeds), made.notes)
    except CrashedError as crash:
        note = (
            f"onnxruntime ends with {crash} on what --quantize {form.quantize.kind} makes of this model: the result is "
            "written in floats, with all that was tuned; quantize it as another kind"
        )
        LOG.warning("%s", note)
        return Rounded(notes=(note,))


def _lost_of(finished: ir.Model, subject: Subject) -> Callable[[ir.Model], float] | None:
    """How a model tells what share of the answers of `finished` it loses: on a few samples, by what the outputs are;
    None where there are no samples, or nothing that they say is an answer."""
    if subject.tune is None:
        return None
    batch = extras.of(finished).only_batch
    first = answers.reference(finished, quantize.drawn(subject.tune, quantize.JUDGED, 0), subject.outputs, batch)
    if first is None:
        return None

    def lost(model: ir.Model) -> float:
        said = answers.answers(model, first.samples, first.outputs, batch)
        return max((1 - part.share for part in accuracies.measure(said, first) if part.share is not None), default=0.0)

    return lost


def as_written(model: ir.Model, subject: Subject, settings: Settings) -> ir.Model:
    """A trial of a search as the result of it will be: finished and quantized where that is asked for, else `model`."""
    if settings.form.quantize is None:
        return model
    finished = finish(model)
    rounded = quantized(finished, subject, settings, trial=True).made
    return finished if rounded is None else rounded.model
