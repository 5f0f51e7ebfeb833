"""A cut and recovered model in the form in which it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune import graph, quantize
from onnxprune.bridge import batchnorm

if TYPE_CHECKING:
    from onnxprune.run.settings import Settings
    from onnxprune.run.subject import Subject


def finish(model: ir.Model, *, rewrite: bool = True, join: bool = True) -> ir.Model:
    """A new model, ready to be written: norms folded, with `rewrite` all of onnxsim's fusions; `join`: see graph."""
    folded = graph.copy(model)
    batchnorm.fold_batchnorm(folded)  # onnxsim would too, but rename the weights, by which 'verify' finds them
    return graph.finish(folded, rewrite=rewrite, join=join)


def quantized(
    finished: ir.Model, subject: Subject, settings: Settings, *, trial: bool = False
) -> quantize.Quantized | None:
    """A finished model as --quantize asks, None where it stays in floats; trial: without training."""
    form = settings.form
    if form.quantize is None:
        return None
    asked = form.quantize.quick if trial else form.quantize
    provider, teacher = settings.timing.provider, subject.given.original
    context = quantize.Context(asked, subject.tune, subject.feeds, provider, settings.seed, form.replayed, teacher)
    return quantize.quantize(finished, context)


def as_written(model: ir.Model, subject: Subject, settings: Settings) -> ir.Model:
    """A trial of a search as the result of it will be: finished and quantized where that is asked for, else `model`."""
    if settings.form.quantize is None:
        return model
    rounded = quantized(finish(model), subject, settings, trial=True)
    assert rounded is not None
    return rounded.model
