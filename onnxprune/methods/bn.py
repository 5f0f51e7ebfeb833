"""bn: the scale that BatchNormalization gives a channel (Liu et al., Network Slimming, ICCV 2017).

    s_u = mean_m |gamma_m,u|          m: the BatchNormalization nodes on the Dim

Without the sparsity training of the paper: the scales are those of the given model. A Dim on which no
BatchNormalization stands is scored by l2 in units of its mean, times the mean scale of the model, and says so.
"""

import numpy as np

from onnxprune import graph
from onnxprune.coupling import Dim, unit_positions
from onnxprune.errors import UsageError
from onnxprune.methods.base import Context, NoOptions, Outcome, method
from onnxprune.methods.magnitude import norms


@method("bn", options=NoOptions, summary="|scale| of the BatchNormalization behind a unit")
def bn(context: Context) -> Outcome:
    """Scores by BatchNormalization's scales. Raises: UsageError when the model has none."""
    found = {dim: gammas(context, dim) for dim in context.dims}
    known = [scale for scale in found.values() if scale is not None]
    if not known:
        raise UsageError("--method bn needs BatchNormalization nodes; this export folded them: choose l2")
    mean = float(np.mean(np.concatenate(known)))
    without = [dim.name for dim, scale in found.items() if scale is None]
    note = f"{len(without)} dimensions have no BatchNormalization and were scored by l2: {', '.join(without[:5])}"
    return Outcome(
        {dim: norms(context, dim, 2) * mean if scale is None else scale for dim, scale in found.items()},
        notes=(note,) if without else (),
    )


def gammas(context: Context, dim: Dim) -> np.ndarray | None:
    """Mean |gamma| of each unit over the BatchNormalization nodes on `dim`: (U,), None where there are none."""
    nodes = {node.name: node for node in context.model.graph if node.op_type == "BatchNormalization"}
    parts = []
    for member in context.coupling.members[dim]:
        if member.node in nodes and member.input == 1:
            gamma = graph.constant(nodes[member.node].inputs[1])
            units = unit_positions(context.coupling.axes[member.initializer][member.axis], dim)
            inside = units >= 0
            assert gamma is not None
            sums = np.bincount(units[inside], np.abs(gamma.astype(np.float64))[inside], dim.size)
            parts.append(sums / np.maximum(np.bincount(units[inside], minlength=dim.size), 1))
    return np.mean(parts, axis=0) if parts else None
