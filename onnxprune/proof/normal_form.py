"""The normal form, proven: it computes what the model does as it was given."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import GraphError, VerificationError
from onnxprune.graph import extras, half, qoperator, sessions, shapes
from onnxprune.proof import comparison
from onnxprune.proof.evidence import Verification, failure
from onnxprune.system.isolation import CrashedError, can_copy

LOG = logging.getLogger("onnxprune")
FIRST = 2  # sizes at which a form is tried before another form is
WITHOUT = "onnxsim's rewritings do not run at sizes that the model runs at: it is pruned without them"


def form_of(original: ir.Model) -> ir.Model:
    """The normal form that pruning works on; unproven where the model does not run, which only pruning refuses."""
    model = graph.normalize(original)
    try:
        return proven(original, *observed_form(original, model))[0]
    except GraphError as error:
        LOG.warning("the normal form was not compared with the model: %s", error)
        return model


def observed_form(
    original: ir.Model, model: ir.Model, samples: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[ir.Model, shapes.Shapes]:
    """(`model`, the normal form of `original`, its shapes); without rewritings where these leave nothing that runs.

    Raises: GraphError when that one runs at none of the sizes that were tried either.
    """
    with contextlib.suppress(GraphError):
        return model, shapes.observe(model, samples, tries=FIRST)
    # What the model itself runs at, its rewritten form has to run at: before the others are tried, that one is.
    plain = graph.normalize(original, rewrite=False)
    for form, tries in ((plain, FIRST), (model, None)):
        with contextlib.suppress(GraphError):
            found = shapes.observe(form, samples, tries=tries)
            if form is plain:
                note(plain, WITHOUT)
            return form, found
    found = shapes.observe(plain, samples)
    note(plain, WITHOUT)
    return plain, found


def note(model: ir.Model, text: str) -> None:
    """Notes on a normal form what was done in a lesser way; reports show it."""
    LOG.info("  %s", text)
    extras.note(model, text)


def proven(
    original: ir.Model,
    model: ir.Model,
    observed: shapes.Shapes,
    samples: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> tuple[ir.Model, shapes.Shapes]:
    """(a normal form that equals `original` in numbers, its shapes): `model`, or one without rewritings.

    Raises: VerificationError when that one differs as well, GraphError when it alone does not run.
    """
    feeds = comparison.random_feeds(model, observed, seed)
    found = _compare(original, model, feeds)
    if isinstance(found, Unknown):
        note(model, f"the normal form was not compared with the model as it was given, which does not run: {found.why}")
        return model, observed
    if _holds(found) or _differs_by_steps(original, model, feeds):
        return model, observed
    changed = found
    model = graph.normalize(original, rewrite=False)
    why = "change its numbers" if isinstance(changed, Verification) else "do not run"
    note(model, f"onnxsim's rewritings of this model {why}: it is pruned without them")
    observed = shapes.observe(model, samples)
    found = _compare(original, model, feeds)
    if isinstance(found, Unknown):
        note(model, f"the normal form was not compared with the model as it was given, which does not run: {found.why}")
        return model, observed
    if isinstance(found, GraphError):
        raise found
    if not _holds(found):
        assert isinstance(found, Verification)
        raise VerificationError(
            f"the model's normal form differs from the model as it was given {failure(found)}; nothing was written. "
            "Please report this model"
        )
    return model, observed


def _differs_by_steps(original: ir.Model, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether quantized operators that were written out, see qoperator.py, are all that differs, by a step each."""
    if not extras.of(model).written_out:
        return False
    plain = graph.normalize(original, rewrite=False)
    if not qoperator.rounds_alike(plain, feeds):
        return False
    written = graph.copy(plain)
    qoperator.write_out(written)
    LOG.info("  quantized operators, written out as QDQ, round by up to a step otherwise")
    return _holds(_compare(written, model, feeds))


@dataclass(frozen=True)
class Unknown:
    """The model as it was given does not run, so its normal form cannot be compared; `why` is the reason."""

    why: str


def _holds(found: "Verification | GraphError | Unknown") -> bool:
    return isinstance(found, Verification) and found.ok


def _compare(
    original: ir.Model, model: ir.Model, feeds: Sequence[Mapping[str, np.ndarray]]
) -> Verification | GraphError | Unknown:
    """How far `model` is from `original`, or why it does not run."""
    try:
        if can_copy() or half.has_halves(original):  # onnxruntime dies of some fusions of halves
            return comparison.compare_apart(model, original, feeds, look_inside=False)
        return comparison.compare(model, original, feeds, look_inside=False)  # nothing was made yet that could be lost
    except CrashedError as crash:
        return GraphError(f"onnxruntime ends with {crash} on this model; it cannot be run")
    except GraphError as error:
        failed = error
    try:
        sessions.run(sessions.open_session(original), feeds[0])
    except GraphError as error:  # an operator that onnxruntime lacks may stand where nothing needs it
        return Unknown(str(error))
    return failed
