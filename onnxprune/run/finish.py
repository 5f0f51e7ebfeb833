"""A cut and recovered model in the form in which it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune import graph, quantize
from onnxprune.bridge import batchnorm
from onnxprune.options import Options, provider_for

if TYPE_CHECKING:
    from onnxprune.run.subject import Subject


def finish(model: ir.Model, *, rewrite: bool = True, join: bool = True) -> ir.Model:
    """A new model, ready to be written: norms folded, with `rewrite` all of onnxsim's fusions; `join`: see graph."""
    folded = graph.copy(model)
    batchnorm.fold_batchnorm(folded)  # onnxsim would too, but rename the weights, by which 'verify' finds them
    return graph.finish(folded, rewrite=rewrite, join=join)


def quantizing(subject: Subject, options: Options, known: Mapping[str, Any] | None = None) -> quantize.Context:
    """What --quantize is carried out with; known: how a plan that is replayed says that its result was quantized."""
    asked = quantize.parse(options.quantize)
    assert asked is not None
    return quantize.Context(asked, subject.tune, subject.feeds, provider_for(options), options.seed, known or {})


def as_written(model: ir.Model, subject: Subject, options: Options) -> ir.Model:
    """A trial of a search as the result of it will be: finished and quantized where that is asked for, else `model`."""
    if quantize.parse(options.quantize) is None:
        return model
    return quantize.quantize(finish(model), quantizing(subject, options)).model
