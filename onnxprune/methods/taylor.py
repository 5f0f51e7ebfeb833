"""taylor: the squared first-order change of the loss when a unit is removed (Molchanov et al., CVPR 2019, eq. 8).

    s_u = mean_i ( sum_{values of u} y * dL_i/dy )^2          i: samples

Gates of value 1 stand on everything that carries the unit, behind its bias and norm; their gradient is the inner
sum, one per sample. L is the cross-entropy with labels; without any a classifier's own answers stand in, elsewhere it
is the mean square of the outputs. Where samples are not stacked on axis 0 a batch takes the place of a sample.
"""

from dataclasses import dataclass

import numpy as np
import torch

from onnxprune.bridge.network import Network
from onnxprune.coupling import Dim
from onnxprune.methods import objective, options
from onnxprune.methods.base import Context, Needs, Outcome, method
from onnxprune.methods.gates import Gates


@dataclass(frozen=True)
class Settings:
    """samples: how many are looked at. score_batch: how many at once.

    joint: rank by what units of a Dim lose together, see base.together.
    """

    samples: int = 512
    joint: bool = True
    score_batch: int = 32


@method(
    "taylor", options=Settings, needs=Needs(data=True, gradients=True), summary="squared first-order change of the loss"
)
def taylor(context: Context) -> Outcome:
    """Scores by the gradient of the loss at gates of 1."""
    settings = options.read(Settings, context, "taylor")
    scores = losses(context, settings.samples, settings.score_batch)
    labelled = context.samples is None or context.samples.labels is not None
    notes = () if labelled else ("taylor used the model's own answers as labels",)
    return Outcome(scores, comparable=True, losses=settings.joint, notes=notes)


def losses(
    context: Context, samples: int = Settings.samples, batch: int = Settings.score_batch
) -> dict[Dim, np.ndarray]:
    """What the loss loses, to first order, when a unit alone goes: (size,) by Dim, over up to `samples` samples.

    Raises: BridgeError where the model has no torch counterpart or no gradient.
    """
    network = Network(context.model, trainable=()).to(context.device).eval()
    gates = Gates(context, network)
    totals = {dim: torch.zeros(dim.size, dtype=torch.float64) for dim in context.dims}
    count = dict.fromkeys(context.dims, 0)
    for feeds, labels in objective.walk(context, samples, objective.at_once(context, batch)):
        size = len(next(iter(feeds.values())))
        gates.open(size, context.device)
        loss = objective.loss(context, objective.said(context, network, feeds), labels)
        for dim, grad in gates.gradients(loss).items():
            # The loss is a mean over the batch: a sample's own gradient is that many times larger.
            own = grad * size if len(grad) > 1 else grad
            totals[dim] += own.double().square().sum(0).cpu()
            count[dim] += len(own)
    return {dim: (total / max(1, count[dim])).numpy() for dim, total in totals.items()}
