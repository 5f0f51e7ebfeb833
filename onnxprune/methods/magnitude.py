"""l1, l2: the norm of all weights that produce a unit (Li et al., Pruning Filters for Efficient ConvNets, 2017).

    l1_u = mean_m |W_m,u|_1 / mean_u |W_m,u|_1          m: the tensors that produce the Dim
    l2_u = sqrt(mean_m (|W_m,u|_2 / mean_u |W_m,u|_2)^2)

Norms are divided by their tensor's mean before tensors are joined: on a residual sum the largest branch would speak
alone. Biases do not count; the scale of a BatchNormalization that follows does, as if it were folded already.
"""

import numpy as np

from onnxprune.coupling import Dim
from onnxprune.methods import units
from onnxprune.methods.base import Context, NoOptions, Outcome, method, sum_by_unit


def norms(context: Context, dim: Dim, power: int) -> np.ndarray:
    """The joint norm of each unit of `dim`: -> (U,), mean about 1; power 1 or 2.

    Powers are summed before the root, so a unit spread over several channels counts once.
    """
    parts = []
    for member, w, positions in units.weights(context, dim):
        total = sum_by_unit(np.abs(w) if power == 1 else w * w, member.axis, positions, dim.size) ** (1 / power)
        parts.append(relative(total) ** power)
    return np.mean(parts, axis=0) ** (1 / power) if parts else np.zeros(dim.size)


def relative(scores: np.ndarray) -> np.ndarray:
    """`scores` in units of their mean; zeros stay zeros."""
    mean = np.abs(scores).mean()
    return scores / mean if mean > 0 else scores


@method("l1", options=NoOptions, summary="sum of absolute weights of a unit")
def l1(context: Context) -> Outcome:
    """Scores by the L1 norm."""
    return Outcome({dim: norms(context, dim, 1) for dim in context.dims})


@method("l2", options=NoOptions, summary="Euclidean norm of the weights of a unit")
def l2(context: Context) -> Outcome:
    """Scores by the L2 norm."""
    return Outcome({dim: norms(context, dim, 2) for dim in context.dims})
