"""The divergences of ACMI, from counts, and the median of an ensemble."""

from __future__ import annotations

import torch
from torch import Tensor

UPPER = 10.0  # bound U on g, as in EDGE
TINY = 1e-12


def bounded(n: Tensor, m: Tensor, divergence: str, out: Tensor) -> Tensor:
    """m min(g(n/m), U), elementwise, from counts n = N p and m = N q > 0, in `out`; n and m are overwritten.

    Geometric (Henze-Penrose): g(t) = (t-1)^2 / (2(t+1)), so 0 <= I < 1; at n = 0 it is m/2, the share g(0) q that
    empty cells have. Shannon: g(t) = t log t, in nats.
    """
    if divergence == "geometric":
        torch.sub(n, m, out=out).square_().div_(n.add_(m).mul_(2))
    else:
        torch.xlogy(n, n / m, out=out)
    return torch.minimum(out, m.mul_(UPPER), out=out)


def middle(members: Tensor) -> Tensor:
    """Median over the last axis, the mean of the two middle values when their number is even."""
    ordered, count = members.sort(-1).values, members.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2
