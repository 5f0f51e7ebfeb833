"""Checking a result by its plan, from the files alone."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import graph, pipeline, plan, surgery, verify
from onnxprune.coupling import Coupling, Dim, analyze, dims
from onnxprune.errors import VerificationError
from onnxprune.methods.base import unit_positions
from onnxprune.options import Options


def check(source: Path, out: Path, plan_path: Path, options: Options) -> tuple[verify.Verification, str]:
    """(how far `out` is from the masked `source`, what was compared).

    A result that was recovered has other weights: it is compared with the mask that carries its own weights.
    Raises: VerificationError when they differ, UsageError when the plan does not belong to `source`.
    """
    loaded = plan.load(plan_path)
    subject = pipeline.prepare(source, options, pipeline.Clock())
    keep = plan.masks(loaded, subject.coupling)
    result = graph.load(out)
    _same_interface(subject.model, result, out)
    found = verify.compare(result, surgery.mask(subject.coupling, keep), subject.feeds)
    if found.ok or loaded.recover == "none":
        return verify.require(found), "cut = mask"
    return _check_recovered(subject, keep, result)


def _same_interface(model: ir.Model, result: ir.Model, out: Path) -> None:
    for kind, ours, theirs in (
        ("inputs", model.graph.inputs, result.graph.inputs),
        ("outputs", model.graph.outputs, result.graph.outputs),
    ):
        left, right = ([(v.name, str(v.type), str(v.shape)) for v in values] for values in (ours, theirs))
        if left != right:
            raise VerificationError(
                f"{out}: its {kind} are {right}, the original's are {left}; it was not made by this plan"
            )


def _check_recovered(
    subject: pipeline.Subject, keep: pipeline.Keep, result: ir.Model
) -> tuple[verify.Verification, str]:
    """Compares `result` with the masked model into which its own weights were put back at the kept positions."""
    from onnxprune.bridge import batchnorm

    folded = subject.model.clone()
    batchnorm.fold_batchnorm(folded)
    coupling = analyze(graph.normalize(folded), subject.coupling.shapes)
    twin = surgery.uncut(coupling, _by_slices(subject.coupling, keep, coupling), result)
    found = verify.compare(result, twin, subject.feeds)
    return verify.require(found), "cut = mask with the recovered weights"


def _by_slices(old: Coupling, keep: pipeline.Keep, new: Coupling) -> dict[Dim, np.ndarray]:
    """The kept positions of the Dims of `new`, a rewriting of the same model, found by their members' names."""
    found: dict[Dim, np.ndarray] = {}
    for dim in new.free:
        for member in new.members[dim]:
            axes = old.axes.get(member.initializer)
            if axes is None or member.axis >= len(axes):
                continue
            mask = dims.keep_mask(axes[member.axis], keep)
            units = unit_positions(new.axes[member.initializer][member.axis], dim)
            if len(units) != len(mask):
                continue
            kept = np.zeros(dim.size, bool)
            kept[units[(units >= 0) & mask]] = True
            found[dim] = kept
            break
    return found
