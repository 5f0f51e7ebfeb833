"""The outcome of a sparse method: zeros that stay in place, and what they leave dead, to be removed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.methods.base import Context, Outcome
from onnxprune.methods.magnitude import norms
from onnxprune.surgery import dead


def outcome(context: Context, model: ir.Model, zeros: Mapping[str, np.ndarray], notes: Sequence[str]) -> Outcome:
    """`model` with its zeros; `keep` leaves out what is dead, scores rank units by the weights that are left."""
    learned = replace(context, coupling=replace(context.coupling, model=model))
    gone = dead.dead_units(learned.coupling)
    keep = {dim: gone.get(dim, np.ones(dim.size, bool)) for dim in context.dims}
    lost = sum(int((~mask).sum()) for mask in keep.values())
    share = sum(mask.sum() for mask in zeros.values()) / max(1, sum(mask.size for mask in zeros.values()))
    total = sum(map(len, keep.values()))
    line = f"{share:.1%} of the weights in {len(zeros)} initializers are zero; {lost} of {total} units are dead"
    scores = {dim: norms(learned, dim, 2) for dim in context.dims}
    return Outcome(scores, keep=keep, model=model, zeros=dict(zeros), notes=(*notes, line))
