"""PAAM's attention network: from the filters of a layer to a score for each, and the gates that apply the scores.

Legend: U units of a Dim, n filters of a layer, D numbers in a filter, d width of queries and keys.
"""

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.coupling import Dim
from onnxprune.methods import units
from onnxprune.methods.base import Context
from onnxprune.methods.gates import Gates

LARGEST_PAIRWISE = 512  # filters; the additive form holds n * n * d numbers
GATE_CEILING = 1.05
SLOPE = 0.01


def leaky_exponential(x: Tensor) -> Tensor:
    """exp(x) for x <= 0, 1 + 0.01 x above: positive, 1 at 0, and with a gradient everywhere."""
    return torch.where(x <= 0, x.clamp_max(0).exp(), 1 + SLOPE * x)


def standardized(rows: np.ndarray) -> Tensor:
    """Filters (n, D) with mean 0 and deviation 1 over the layer, and their standardized log norm: (n, D + 1)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    norms = np.log(lengths + 0.01 * lengths.mean() + 1e-12)  # an empty filter must not set the scale of all others
    centered = (rows - rows.mean()) / (rows.std() + 1e-12)
    scale = (norms - norms.mean()) / (norms.std() + 1e-12)
    # A filter is a long row: divided by sqrt(D) its projections keep the size of the norm's column.
    return torch.from_numpy(np.hstack([centered / np.sqrt(rows.shape[1]), scale]).astype(np.float32))


class LayerAttention(nn.Module):
    """z_i = c + 1/n sum_j e_ij u_j with e_ij = v tanh(q_i + k_j + b): scores (n,) of the filters of one layer.

    v and c start at zero, so every score starts at exactly 1. Filters are a constant: scores must not move them.
    """

    def __init__(self, filters: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("filters", filters)
        columns = filters.shape[1]
        self.query, self.key = nn.Linear(columns, width, bias=False), nn.Linear(columns, width)
        self.value = nn.Linear(columns, 1, bias=False)
        self.v, self.c = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        filters = self.get_buffer("filters")
        q, k, u = self.query(filters), self.key(filters), self.value(filters)[:, 0]
        if len(filters) > LARGEST_PAIRWISE:
            e = (q * self.v) @ k.T / len(self.v) ** 0.5
        else:
            e = torch.tanh(q[:, None] + k[None]) @ self.v
        return leaky_exponential(self.c + e @ u / len(filters))


class AttentionNetwork(nn.Module):
    """One LayerAttention per layer that produces a Dim; layers that share a Dim share the mean of their scores.

    Units without a weight other than zero have nothing to attend to: their score is 0.
    """

    def __init__(self, context: Context, width: int) -> None:
        super().__init__()
        self.dims: list[Dim] = []
        self.heads = nn.ModuleList()
        self.alive: list[Tensor] = []
        for dim in context.dims:
            found = [rows for rows in _filters(context, dim) if rows is not None]
            if found:
                self.dims.append(dim)
                self.alive.append(torch.from_numpy(np.any([rows.any(axis=1) for rows in found], axis=0)).float())
                self.heads.append(nn.ModuleList(LayerAttention(standardized(rows), width) for rows in found))

    def forward(self) -> dict[Dim, Tensor]:
        """Scores by Dim: (U,) each, differentiable."""
        return {
            dim: mean * alive.to(mean)
            for dim, heads, alive in zip(self.dims, self.heads, self.alive, strict=True)
            for mean in (torch.stack([head() for head in heads]).mean(0),)  # type: ignore[union-attr]
        }


def _filters(context: Context, dim: Dim) -> list[np.ndarray | None]:
    return [units.rows(w, member.axis, positions, dim.size) for member, w, positions in units.weights(context, dim)]


def gate(gates: Gates, scores: dict[Dim, Tensor]) -> None:
    """Puts the scores, at most 1.05, onto the values that carry the units."""
    gates.values = {dim: score.clamp_max(GATE_CEILING)[None] for dim, score in scores.items()}
