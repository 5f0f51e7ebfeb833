"""ACMI with the full Z hashed, as in the literature: p-stable projections and an ensemble, with EDGE's defaults.

    h(v) = floor((v R + b) / epsilon),   R Gaussian to at most log2(N / 10) dimensions, of standardized channels
    epsilon = 3 d gamma 0.9 * mean distance of a probe to its k-th neighbour, per coordinate,
    k = 0.43 N^(2/3 + 0.17 d / (d+1));  members l = 0 .. 9 have epsilon (1 + l / 90) and b = epsilon l / 10

The median of the members is taken. After a first run gamma is scaled by 2^(-sqrt(2 I) + 0.5 / I); we take I as the
mean over the layer and hold the exponent in [-2, 2], because a single near-zero I would put all samples in one cell.
Cells are told apart exactly (no second hash to a table), so two cells never share a count.

A group of children is one coordinate, the mean of its channels, as in acmi.py [ours]: cells widen with d, and with 8
channels of their own most samples share one cell, so that scores carry no order, or are all zero.

Nearly every cell of a high-dimensional Z holds one sample: expect noise, ranked mostly by phi.

Letters: N samples, d dimensions, R rows, G parent groups, J child groups, L members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .acmi_groups import Groups
from .acmi_math import bounded, middle

MEMBERS, PROBES, SMOOTH = 10, 500, 0.9


@dataclass(frozen=True)
class Projected:
    """Coordinates of each group's activations, rows first, and the cell width of each coordinate at gamma = 1."""

    values: Tensor  # (R, N, d)
    width: Tensor  # (R, 1, d)

    def cells(self, member: int, gamma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Cell ids (R, N) from 0, and the samples (R, N) of each sample's cell, for one member of the ensemble."""
        width = self.width * (gamma * (1 + member / (10 * (MEMBERS - 1))))
        codes = torch.where(width > 0, self.values / width + member / MEMBERS, 0).floor_().to(torch.int64)
        mix = torch.randint(1 << 61, (codes.shape[-1],), generator=generator).to(codes.device)
        return runs((codes * mix).sum(-1))


def by_hash(layer: Groups, divergence: str, inside, spread: Callable, seed: int) -> Tensor:
    """Information (J, G), all Z hashed; spread(f) joins the rows that f returns for shares of the child groups."""
    generator = torch.Generator().manual_seed(seed)
    x, y, z = (_with_width(v, generator) for v in _projections(layer, generator))
    gamma = 1.0
    for _ in range(2):
        members = []
        for member in range(MEMBERS):
            cells = [v.cells(member, gamma, generator) for v in (x, y, z)]
            members.append(spread(partial(_rows, cells, divergence, inside)))
        information = middle(torch.stack(members, -1))
        level = max(float(information.mean()), 1e-6)
        gamma *= 2 ** min(2.0, max(-2.0, -((2 * level) ** 0.5) + 0.5 / level))
    return information


@torch.inference_mode()
def _rows(cells: list[tuple[Tensor, Tensor]], divergence: str, inside, share: list[int]) -> Tensor:
    """Information (share, G) of one member, from cells and their sizes for x (J, N), y and z (G, N)."""
    (x_ids, _), (y_ids, _), (z_ids, n_z) = cells
    samples = x_ids.shape[1]
    _, n_yz = runs(z_ids * samples + y_ids)
    rows = []
    for j in share:
        phi = None if inside is None else inside(j, 0, len(y_ids))
        ordered, order = ((x_ids[j] * samples + z_ids) * samples + y_ids).sort(1)
        n, n_xz = _run_sizes(ordered), _run_sizes(ordered.div(samples, rounding_mode="floor"))
        m = n_xz * n_yz.gather(1, order) / n_z.gather(1, order)
        rows.append(_information(n, m, divergence, None if phi is None else phi.gather(1, order)))
    return torch.stack(rows)


def _information(n: Tensor, m: Tensor, divergence: str, phi: Tensor | None) -> Tensor:
    """Information (R,) from N p and N q of every sample's cell (R, N), empty cells included."""
    seen = m / n  # summed over samples: N times the q of all occupied cells
    terms = bounded(n.clone(), m, divergence, torch.empty_like(n)) / n
    empty = (1 - seen.mean(1)) / 2 if divergence == "geometric" else torch.zeros_like(seen[:, 0])
    if phi is None:
        return terms.mean(1) + empty
    return (terms * phi).mean(1) + empty * phi.mean(1)


def runs(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (R, N) from 0 of equal keys (R, N) within a row, and how many samples share each one's key (R, N)."""
    ordered, order = keys.sort(1)
    ids, sizes = _run_ids(ordered), _run_sizes(ordered)
    return torch.empty_like(ids).scatter_(1, order, ids), torch.empty_like(sizes).scatter_(1, order, sizes)


def _run_ids(ordered: Tensor) -> Tensor:
    first = torch.zeros_like(ordered)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return first.cumsum_(1)


def _run_sizes(ordered: Tensor) -> Tensor:
    """Length (R, N), float32, of the run of equal values each place of a sorted row (R, N) is in."""
    rows, samples = ordered.shape
    ids = _run_ids(ordered)
    ids += torch.arange(0, rows * samples, samples, device=ids.device)[:, None]
    return torch.bincount(ids.view(-1), minlength=rows * samples).to(torch.float32)[ids]


def _projections(layer: Groups, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of x (J, N, 1), y (G, N, d) and z (G, N, d), the last without the group's own channels."""
    most = max(1, int(torch.log2(torch.tensor(layer.samples / 10))))
    groups, channels, _ = layer.parents.shape
    parents = _standardized(layer.parents)  # (G, K, N)
    y = _projection(channels, most, generator, layer.device)
    z = _projection(groups * channels, most, generator, layer.device).view(groups, channels, -1)
    parts = torch.einsum("gkn,gkd->gnd", parents, z)
    return (
        _standardized(layer.x)[..., None],
        torch.einsum("gkn,kd->gnd", parents, y),
        parts.sum(0) - parts,
    )


def _projection(channels: int, most: int, generator: torch.Generator, device: torch.device) -> Tensor:
    d = min(channels, most)
    return (
        torch.randn(channels, d, generator=generator).to(device) / d**0.5
        if channels > 1
        else torch.ones(1, 1).to(device)
    )


def _standardized(v: Tensor) -> Tensor:
    """v (..., N) over its standard deviation; constant rows become zero."""
    deviation, mean = torch.std_mean(v, -1, correction=0, keepdim=True)
    return torch.where(deviation > 0, (v - mean) / deviation, 0.0)


def _with_width(values: Tensor, generator: torch.Generator) -> Projected:
    d = values.shape[-1]
    k = max(1, int(0.43 * values.shape[1] ** (2 / 3 + 0.17 * d / (d + 1))))
    probes = torch.randint(values.shape[1], (PROBES,), generator=generator).to(values.device)
    width = neighbor_distance(values.transpose(1, 2), k, probes) * (3 * d * SMOOTH)
    return Projected(values, width[:, None])


def neighbor_distance(v: Tensor, k: int, probes: Tensor) -> Tensor:
    """Mean distance (...) from some samples, indices (Q,), to the k-th nearest in v (..., N), themselves included."""
    ordered, at = v.sort(-1).values, v[..., probes].contiguous()
    # The k nearest are k neighbours in order; the window moves on where the next sample is nearer than its first.
    starts = torch.searchsorted(((ordered[..., :-k] + ordered[..., k:]) / 2).contiguous(), at)
    first, last = ordered.gather(-1, starts), ordered.gather(-1, starts + k - 1)
    return torch.maximum(at - first, last - at).mean(-1)
