"""Scores for one shot, or for the last of several steps, between which the model recovers.

Every step works in the coordinates of the original: after a step the cut model's weights are put back into the full
shapes, where the removed units are silent. So a plan is one set of kept positions, however it was reached.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune import graph, pipeline, search, surgery
from onnxprune.coupling import Coupling, Dim
from onnxprune.methods.base import Method, Outcome
from onnxprune.options import Options


def scored(
    subject: "pipeline.Subject", chosen: Method, options: Options, clock: "pipeline.Clock"
) -> "tuple[pipeline.Subject, Outcome]":
    """(the subject with the weights to be cut, the method's scores for them), after all steps but the last.

    Step k of N approaches the targets f as f^(k/N), so that each removes the same share of what is left.
    """
    keep: Mapping[Dim, np.ndarray] = {}
    for step in range(1, options.steps):
        subject, outcome = _score(subject, chosen, options, keep, clock)
        share = step / options.steps
        near = replace(options, target={key: f**share for key, f in options.target.items() if key != "latency"})
        with clock(f"step {step} of {options.steps}"):
            keep = next(search.choices(subject, outcome, replace(near, max_drop=None))).keep
            model = surgery.cut(subject.coupling, keep)
        pipeline.recover(subject, keep, model, replace(options, resume=None), clock, outcome.zeros)
        subject = _with_weights(subject, restored(subject.coupling, keep, model))
    return _score(subject, chosen, options, keep, clock)


def _score(
    subject: "pipeline.Subject",
    chosen: Method,
    options: Options,
    keep: Mapping[Dim, np.ndarray],
    clock: "pipeline.Clock",
) -> "tuple[pipeline.Subject, Outcome]":
    outcome = pipeline.score(subject, chosen, options, clock)
    if outcome.model is not None:  # a training method: the same graph with the weights that it learned
        subject = _with_weights(subject, outcome.model)
    scores = {dim: _removed_lowest(values, keep.get(dim)) for dim, values in outcome.scores.items()}
    return subject, replace(outcome, scores=scores)


def _removed_lowest(scores: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """`scores` (size,) with units that earlier steps removed below all others; the mean of magnitudes stays."""
    if kept is None or kept.all():
        return scores
    alive = np.asarray(scores, np.float64)[kept]
    return np.where(kept, scores, min(-np.abs(alive).mean(), alive.min() - 1e-9))


def restored(coupling: Coupling, keep: Mapping[Dim, np.ndarray], cut_model: ir.Model) -> ir.Model:
    """The graph of `coupling` with the weights of `cut_model` at the kept positions, and silence elsewhere."""
    full = surgery.uncut(coupling, keep, cut_model).graph.initializers
    model = coupling.model.clone()
    for name, value in model.graph.initializers.items():
        if name in full and value.const_value is not None:
            array = graph.array_of(full[name])
            if array.shape == tuple(value.const_value.shape.numpy()):
                graph.set_constant(value, array)
    return model


def _with_weights(subject: "pipeline.Subject", model: ir.Model) -> "pipeline.Subject":
    return replace(subject, coupling=replace(subject.coupling, model=model))
