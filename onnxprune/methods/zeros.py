"""Zeros that stay in place: how many a target asks for, and the outcome of a method that made them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import BudgetError
from onnxprune.methods.base import Context, Outcome
from onnxprune.methods.magnitude import norms
from onnxprune.plan.cost import Kind
from onnxprune.recover import biases
from onnxprune.surgery import dead

DENSITY_OPTIONS = ("density", "kept")  # with which a user says in words how much of the weights stays
SLACK = 1e-6  # of a density, for sums in single precision


@dataclass(frozen=True)
class Allowance:
    """What the non-zeros of some layers may count: `counts` (layers,) of each when whole, of all of it the `density`.

    kind: the target that it follows from, None where a density was asked for as such.
    """

    counts: np.ndarray
    density: float
    kind: Kind | None = None

    def require(self, least: float) -> None:
        """Checks that a density of `least` is low enough. Raises: BudgetError with what can be met."""
        if self.density < least and self.kind is not None:
            raise BudgetError(
                f"--target {self.kind}: {max(0.0, self.density):.1%} of the weights that may be zeroed could stay, and "
                f"at least {least:.1%} of them must; ask for more {self.kind}, or choose a method that removes units"
            )


def allowances(context: Context, layers: Sequence[tuple[str, str]], density: float) -> list[Allowance]:
    """What may stay of `layers`, (node, weight) each: where `density` is given it, else one for each target.

    What lies outside of these layers stays whole, so they have to make up for it.
    """
    weights = context.model.graph.initializers
    sizes = np.array([float(np.prod(weights[name].shape.numpy())) for _, name in layers])  # type: ignore[union-attr]
    if density or not context.shares:
        return [Allowance(sizes, density or context.target or 0.0)]
    macs = context.cost.by_node()
    counts = {"params": sizes, "macs": np.array([float(macs.get(node, 0)) for node, _ in layers])}
    made = biases.most_made(context.model)[1] if context.recover != "none" else 0
    outside = {"params": made, "macs": 0}
    found = []
    for kind, share in context.shares.items():
        whole, inside = context.cost.total(kind), float(counts[kind].sum())
        left = share * whole - (whole - inside) - outside[kind]
        found.append(Allowance(counts[kind], min(1.0, left / max(1.0, inside) - SLACK), kind))
    return found


def outcome(context: Context, model: ir.Model, zeros: Mapping[str, np.ndarray], notes: Sequence[str]) -> Outcome:
    """`model` with its zeros; `keep` leaves out what is dead, scores rank units by the weights that are left."""
    learned = context.with_weights(model)
    gone = dead.dead_units(learned.coupling)
    keep = {dim: gone.get(dim, np.ones(dim.size, bool)) for dim in context.dims}
    lost = sum(int((~mask).sum()) for mask in keep.values())
    share = sum(mask.sum() for mask in zeros.values()) / max(1, sum(mask.size for mask in zeros.values()))
    total = sum(map(len, keep.values()))
    line = f"{share:.1%} of the weights in {len(zeros)} initializers are zero; {lost} of {total} units are dead"
    scores = {dim: norms(learned, dim, 2) for dim in context.dims}
    return Outcome(scores, keep=keep, model=model, zeros=dict(zeros), notes=(*notes, line))
