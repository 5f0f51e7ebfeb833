"""hessian: the second-order change of the loss when a unit's weights vanish (Optimal Brain Damage, LeCun et al. 1990).

    s_u = 1/2 sum_{w of u} h_w w^2,        h_w = E_i[(dL_i/dw)^2]

h is the diagonal of the Fisher matrix, which for a classifier at its own distribution is the Gauss-Newton Hessian: the
labels in L_i are drawn from the model's outputs, so none are needed. Where nothing is classified, noise on the
outputs gives the Gauss-Newton diagonal of the distance that fine-tuning minimizes, by their kinds (outputs/parts.py).
Gradients of independent draws have mean zero, so a batch of B gives B * (mean gradient)^2 as an unbiased estimate of
E[g^2]: no per-sample gradients are formed.
"""

from dataclasses import dataclass

import numpy as np
import torch

from onnxprune.bridge.network import Network
from onnxprune.coupling import Dim, Member
from onnxprune.graph.inputs import is_float
from onnxprune.methods import objective, options, units
from onnxprune.methods.base import Context, Needs, Outcome, method, sum_by_unit


@dataclass(frozen=True)
class Settings:
    """samples: how many are looked at. score_batch: how many share one draw of the gradient.

    joint: rank by what units of a Dim lose together, see base.together.
    """

    samples: int = 512
    joint: bool = True
    score_batch: int = 8


@method(
    "hessian",
    options=Settings,
    needs=Needs(data=True, gradients=True),
    summary="second-order change of the loss, diagonal",
)
def hessian(context: Context) -> Outcome:
    """Scores by the Fisher diagonal of the weights that produce a unit, its biases included."""
    settings = options.read(Settings, context, "hessian")
    places = {dim: _producing(context, dim) for dim in context.dims}
    names = sorted({member.initializer for found in places.values() for member, _, _ in found})
    network = Network(context.model, trainable=names).to(context.device).eval()
    fisher = _fisher(context, network, settings)
    scores = {}
    for dim, found in places.items():
        terms = [
            sum_by_unit(fisher[member.initializer] * array.astype(np.float64) ** 2, member.axis, positions, dim.size)
            for member, array, positions in found
        ]
        scores[dim] = np.sum(terms, axis=0) / 2 if terms else np.zeros(dim.size)
    return Outcome(scores, comparable=True, losses=settings.joint)


def _producing(context: Context, dim: Dim) -> list[tuple[Member, np.ndarray, np.ndarray]]:
    """Float arrays that vanish with a unit and make its values; statistics and scales of norms are not counted."""
    for roles in (("produces", "follows"), ("scales", "consumes")):
        found = [entry for role in roles for entry in units.in_role(context, dim, role) if is_float(entry[1].dtype)]
        if found:
            return found
    return []


def _fisher(context: Context, network: Network, settings: Settings) -> dict[str, np.ndarray]:
    """E_i[(dL_i/dw)^2] by initializer."""
    parameters = network.parameters_by_name
    generator = torch.Generator().manual_seed(context.seed)
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    batches = 0
    for feeds, _ in objective.walk(context, settings.samples, settings.score_batch):
        values = objective.said(context, network, feeds)
        loss = objective.with_gradient(objective.sampled_loss(context, values, generator))
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, grad in zip(sums.values(), found, strict=True):
            if grad is not None:
                total += grad.float().square() * len(next(iter(feeds.values())))
        batches += 1
    return {name: (total / max(1, batches)).double().cpu().numpy() for name, total in sums.items()}
