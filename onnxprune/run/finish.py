"""A cut and recovered model in the form in which it is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph, quantize
from onnxprune.bridge import batchnorm
from onnxprune.coupling.layers import layers, stored_behind
from onnxprune.graph import extras
from onnxprune.outputs import accuracies, answers
from onnxprune.system.isolation import CrashedError

if TYPE_CHECKING:
    from onnxprune.run.settings import Settings
    from onnxprune.run.subject import Subject

LOG = logging.getLogger("onnxprune")


def finish(model: ir.Model, *, rewrite: bool = True, join: bool = True) -> ir.Model:
    """A new model, ready to be written: norms folded, with `rewrite` all of onnxsim's fusions; `join`: see graph.

    Weights below the smallest normal number are zeros in it.
    """
    folded = graph.copy(model)
    batchnorm.fold_batchnorm(folded)  # onnxsim would too, but rename the weights, by which 'verify' finds them
    made = graph.finish(folded, rewrite=rewrite, join=join)
    if count := _without_subnormals(made):
        extras.note(made, f"{count} weights too small for fast arithmetic (subnormal numbers) are written as zeros")
    return made


def _without_subnormals(model: ir.Model) -> int:
    """Makes weights and biases of layers zero, in place, that are smaller than any normal number; how many there were.

    Processors take a hundred times as long for these, which weight decay makes of filters that it has let die: one of
    240 took two thirds of the time of a text recognizer. To an output they add nothing that it can hold.
    """
    count = 0
    for layer in layers(model):
        for stored in filter(None, map(stored_behind, (layer.weight, layer.bias))):
            array = graph.array_of(stored)
            if array.dtype not in (np.float32, np.float64):
                continue
            small = (np.abs(array) < np.finfo(array.dtype).tiny) & (array != 0)
            if small.any():
                graph.set_constant(stored, np.where(small, array.dtype.type(0), array))
                count += int(small.sum())
    return count


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
