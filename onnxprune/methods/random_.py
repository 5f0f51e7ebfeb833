"""random: uniform scores, the control that every criterion has to beat."""

import numpy as np

from onnxprune.methods.base import Context, NoOptions, Outcome, method


@method("random", options=NoOptions, summary="uniform scores: the control")
def random(context: Context) -> Outcome:
    """Scores in 0..1, the same for the same seed."""
    generator = np.random.default_rng(context.seed)
    return Outcome({dim: generator.random(dim.size) for dim in context.dims})
