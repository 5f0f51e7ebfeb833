"""fpgm: units near the geometric median of their kind are redundant (He et al., CVPR 2019).

    s_u = mean_m sum_v |W_m,u - W_m,v|_2 / mean_u(...)          m: the tensors that produce the Dim

The filter that minimizes the sum of distances to all others is the one nearest the geometric median (their eq. 6);
what it does the others can do as well. As in l2, BatchNormalization scales are folded and tensors joined relatively.
"""

import numpy as np

from onnxprune.coupling import Dim
from onnxprune.methods import units
from onnxprune.methods.base import Context, NoOptions, Outcome, method
from onnxprune.methods.magnitude import norms, relative


@method("fpgm", options=NoOptions, summary="distance to the other units: what is near the geometric median goes")
def fpgm(context: Context) -> Outcome:
    """Scores by the sum of distances to the other units."""
    return Outcome({dim: _scores(context, dim) for dim in context.dims})


def _scores(context: Context, dim: Dim) -> np.ndarray:
    parts = []
    for member, w, positions in units.weights(context, dim):
        rows = units.rows(w, member.axis, positions, dim.size)
        if rows is not None:
            parts.append(relative(distances(rows).sum(1)))
    return np.mean(parts, axis=0) if parts else norms(context, dim, 2)


def distances(rows: np.ndarray) -> np.ndarray:
    """Euclidean distances between rows (U, R) -> (U, U)."""
    # |a - b|^2 = |a|^2 + |b|^2 - 2ab in float64: rounding can leave it a little below zero.
    squares = np.einsum("ur,ur->u", rows, rows)
    return np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0))
