"""Scores for one shot, or for the last of several steps, between which the model recovers.

Every step works in the coordinates of the original: after a step the cut model's weights are put back into the full
shapes, where the removed units are silent. So a plan is one set of kept positions, however it was reached.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, Keep
from onnxprune.coupling.dims import Axis
from onnxprune.methods import base
from onnxprune.methods.base import Method, Outcome
from onnxprune.plan.select import Selection
from onnxprune.recover import biases, levels
from onnxprune.recover.linear import linears
from onnxprune.run import measuring, search
from onnxprune.run.settings import Settings
from onnxprune.run.subject import Subject, scored_dims
from onnxprune.surgery import packing
from onnxprune.system.clock import Clock


def scored(subject: Subject, settings: Settings, clock: Clock) -> tuple[Subject, Outcome]:
    """(the subject with the weights to be cut, the method's scores for them), after all steps but the last.

    Step k of N approaches the targets f as f^(k/N), so that each removes the same share of what is left.
    """
    keep: Keep = {}
    # Checkpoints are those of the recovery at the end.
    goal, how = settings.goal, replace(settings.recovery, resume=None)
    for step in range(1, goal.steps):
        subject, outcome = _score(subject, settings, keep, clock)
        share = step / goal.steps
        near = {key: f**share for key, f in goal.shares.items()}
        with clock(f"step {step} of {goal.steps}"):
            selection = next(search.selections(subject, outcome, settings, near))
            keep = selection.keep
            model = surgery.cut(selection)
        levels.recover(subject.given, selection, model, how, clock)
        subject = replace(subject, coupling=restored(selection, model))
    return _score(subject, settings, keep, clock)


def _score(subject: Subject, settings: Settings, keep: Keep, clock: Clock) -> tuple[Subject, Outcome]:
    """The scores for the next step, in which what earlier steps removed comes last; keep: what they left."""
    outcome = score(subject, settings.method, settings, clock)
    if outcome.model is not None:  # a training method: the same graph with the weights that it learned
        subject = replace(subject, coupling=subject.coupling.of(outcome.model))
    scores = {dim: _removed_lowest(values, keep.get(dim)) for dim, values in outcome.scores.items()}
    return subject, replace(outcome, scores=scores)


def _removed_lowest(scores: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    """`scores` (size,) with units that earlier steps removed below all others; the mean of magnitudes stays."""
    if kept is None or kept.all():
        return scores
    alive = np.asarray(scores, np.float64)[kept]
    # As far below zero as the others are above: the mean by which selection normalizes stays about as it was.
    return np.where(kept, scores, min(-np.abs(alive).mean(), alive.min() - 1e-9))


def restored(selection: Selection, cut_model: ir.Model) -> Coupling:
    """The coupling of a selection with the weights of `cut_model` at the kept positions, and silence elsewhere.

    Biases that recovery made are made there as well; they stand on the axes of the outputs that they are added to.
    """
    coupling = selection.coupling
    full = surgery.uncut(selection, cut_model).graph.initializers
    model = graph.copy(coupling.model)
    for name, value in model.graph.initializers.items():
        if name in full and value.const_value is not None:
            array = graph.array_of(full[name])
            if array.shape == tuple(value.const_value.shape.numpy()):
                graph.set_constant(value, array)
    biases.carry(selection, cut_model, model)
    return replace(coupling, model=model, axes={**coupling.axes, **_axes_of_biases(coupling, model)})


def _axes_of_biases(coupling: Coupling, model: ir.Model) -> dict[str, tuple[Axis, ...]]:
    """The axes of what `model` has beyond the graph of `coupling`: biases, and products before they are added."""
    found: dict[str, tuple[Axis, ...]] = {}
    for linear in linears(model).values():
        total = biases.output_of(linear)
        axes = coupling.axes.get(total.name or "")
        bias = total.producer().inputs[-1] if biases.has_bias(linear) else None  # type: ignore[union-attr]
        if axes is None or bias is None or not bias.is_initializer() or bias.name in coupling.axes:
            continue
        found[bias.name or ""] = (axes[linear.y_axis],)
        if linear.y is not total:
            found[linear.y.name or ""] = axes
    return found


def score(
    subject: Subject,
    chosen: Method,
    settings: Settings,
    clock: Clock,
    method_options: Mapping[str, Any] | None = None,
) -> base.Outcome:
    """The scores of `chosen`. method_options: those to score with, instead of what was asked for another method."""
    goal, shares = settings.goal, settings.goal.shares
    if settings.form.pack and "size" in shares:  # sparse methods train towards what the packed file leaves them
        whole = float(measuring.measure_file("original", subject.path, subject.cost.totals()).bytes or 0)
        shares["size"] = packing.density_for(subject.model, shares["size"] * whole)
    remaining = min(shares.values(), default=None)
    context = base.Context(
        subject.coupling,
        subject.cost,
        scored_dims(subject.coupling, settings.widths),
        levels.learned_from(subject.given, settings.recovery) if chosen.needs.training else subject.tune,
        settings.seed,
        levels.device(settings.recovery.device) if chosen.needs != base.Needs() else "cpu",  # asking loads torch
        remaining,
        settings.method_options if method_options is None else method_options,
        settings.progress,
        settings.recovery.level,
        settings.widths.align,
        {kind: shares[kind] for kind in ("macs", "params") if kind in shares},
        described=subject.outputs,
        decides=not (goal.target or goal.front or goal.max_drop is not None),
    )
    with clock("score"):
        return base.run(chosen, context)
