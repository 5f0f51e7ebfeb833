"""From pairs of real values to joint cell counts n_xyz and their information, in blocks that stay in a core's cache.

A value is coded once, in quarters of a cell between the 2 % and 98 % quantiles of its row; its cell at shift s is
then (code + s) >> 2. Cells of x, y and z at one shift make one integer, and a bincount counts them.

Letters: N samples, R rows (pairs), S shifts, X, Y, Z cells per axis.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

UPPER = 10.0  # bound U on g, as in EDGE
TINY = 1e-12

BINS_XY, BINS_Z, SHIFTS = 8, 16, 4  # methods: 8 cells for x and y, 16 for z, shifted by 0, 1/4, 1/2, 3/4 of a cell
CELLS = BINS_XY * BINS_XY * BINS_Z
TAIL = 0.02  # cells span the 2 % to 98 % quantiles; the tails join the outer cells
LEVELS = 512  # of the histogram that the quantiles are read from
# Cantelli: at most 2 % of samples lie beyond 7 standard deviations on one side, so the levels reach no farther.
REACH = 7.01
COUNT_ROWS = 16  # rows of one bincount: its int64 result is then half a MiB


@dataclass(frozen=True)
class Scratch:
    """Buffers of one worker, rows first: fresh pages at every step would cost more than the arithmetic on them."""

    z: Tensor  # (R, N) float32
    real: Tensor  # (R, N) float32
    levels: Tensor  # (R, N) int32
    y_cells: Tensor  # (R, S, N) uint8
    z_cells: Tensor  # (R, S, N) uint8
    cells: Tensor  # (R, S, N) int32
    n: Tensor  # (R, S, X, Y, Z) float32
    m: Tensor  # like n
    terms: Tensor  # like n

    @staticmethod
    def empty(rows: int, samples: int, device: torch.device) -> Scratch:
        sample_wise = [(torch.float32, ())] * 2 + [(torch.int32, ())]
        shift_wise = [(torch.uint8, (SHIFTS,))] * 2 + [(torch.int32, (SHIFTS,))]
        of_samples = [
            torch.empty(rows, *shape, samples, dtype=dtype, device=device) for dtype, shape in sample_wise + shift_wise
        ]
        of_cells = [torch.empty(rows, SHIFTS, BINS_XY, BINS_XY, BINS_Z, device=device) for _ in range(3)]
        return Scratch(*of_samples, *of_cells)

    def rows(self, count: int) -> Scratch:
        """The same buffers, of which the first `count` rows."""
        return Scratch(*(getattr(self, field.name)[:count] for field in fields(self)))


def x_cells(x: Tensor) -> Tensor:
    """Offsets (J, S, N) int32 that the cells of x (J, N) add to a joint cell."""
    fine = torch.empty(len(x), SHIFTS, x.shape[1], dtype=torch.uint8, device=x.device)
    _shifted_fours(x, BINS_XY, torch.empty_like(x), torch.empty_like(x, dtype=torch.int32), fine)
    return fine.bitwise_and_(0xFC).to(torch.int32).mul_(BINS_XY * BINS_Z // 4)


def joint_cells(x: Tensor, contribution: Tensor, total: Tensor, scratch: Scratch) -> Tensor:
    """Joint cells (R, S, N), for `count`, of x (S, N) from `x_cells`, y = contribution (R, N), z = total (N,) - y."""
    y, z = scratch.y_cells, scratch.z_cells
    _shifted_fours(contribution, BINS_XY, scratch.real, scratch.levels, y)
    _shifted_fours(torch.sub(total, contribution, out=scratch.z), BINS_Z, scratch.real, scratch.levels, z)
    torch.add(z.bitwise_right_shift_(2), y.bitwise_and_(0xFC), alpha=BINS_Z // 4, out=z)
    tables = torch.arange(len(y) * SHIFTS, dtype=torch.int32, device=y.device) % (COUNT_ROWS * SHIFTS) * CELLS
    return scratch.cells.copy_(z).add_(x).add_(tables.view(-1, SHIFTS, 1))


def count(cells: Tensor, out: Tensor) -> Tensor:
    """Samples of each joint cell: cells (R, S, N) -> out (R, S, X, Y, Z)."""
    for start in range(0, len(cells), COUNT_ROWS):
        part, table = cells[start : start + COUNT_ROWS], out[start : start + COUNT_ROWS].view(-1)
        table.copy_(torch.bincount(part.reshape(-1), minlength=table.numel()))
    return out


def _shifted_fours(v: Tensor, bins: int, real: Tensor, levels: Tensor, out: Tensor) -> None:
    """Write code + s of v (R, N), rows of mean zero, to out (R, S, N); real and levels (R, N) are overwritten."""
    # A code above 4 bins - 4 is in the last cell at every shift, so one clamp bounds the cells of all shifts.
    low, high = quantile_range(v, real, levels)
    scale = torch.where(high > low, SHIFTS * bins / (high - low), 0.0)
    torch.mul(v, scale, out=real).sub_(low * scale).clamp_(0, SHIFTS * (bins - 1))
    fine = levels.copy_(real).to(torch.uint8)  # by way of int32: float to uint8 directly is five times slower
    torch.add(fine[:, None], torch.arange(SHIFTS, dtype=torch.uint8, device=v.device)[:, None], out=out)


def quantile_range(v: Tensor, real: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The 2 % and 98 % quantiles (R, 1) of v (R, N), rows of mean zero, interpolated in a histogram.

    real and levels (R, N) are overwritten.
    """
    rows, samples = v.shape
    reach = torch.linalg.vector_norm(v, dim=1, keepdim=True) * (REACH / samples**0.5)
    scale = torch.where(reach > 0, LEVELS / 2 / reach, 0.0)
    torch.mul(v, scale, out=real).add_(LEVELS / 2).clamp_(0, LEVELS - 1)
    tables = torch.arange(0, rows * LEVELS, LEVELS, dtype=torch.int32, device=v.device)
    levels.copy_(real).add_(tables[:, None])
    counts = torch.bincount(levels.view(-1), minlength=rows * LEVELS).view(rows, LEVELS).to(torch.float32)
    ranks = torch.tensor([TAIL, 1 - TAIL], device=v.device) * (samples - 1)
    edges = reach * (_positions(counts, ranks) * (2 / LEVELS) - 1)
    return edges[:, :1], edges[:, 1:]


def _positions(counts: Tensor, ranks: Tensor) -> Tensor:
    """Places (R, 2), in levels, of the samples of given ranks (2,), the samples of a level spread over it evenly."""
    below = counts.cumsum(1)
    level = torch.searchsorted(below, ranks.expand(len(counts), -1).contiguous(), right=True)
    inside = counts.gather(1, level)
    return level + (ranks - below.gather(1, level) + inside + 0.5) / inside


# Information ------------------------------------------------------------------------------------------------------


def information(cells: Tensor, scratch: Scratch) -> Tensor:
    """Information (R,) from joint cells (R, S, N): the median over the shifts."""
    terms = divergence_terms(count(cells, scratch.n), scratch.m, scratch.terms)
    return middle(terms.flatten(2).sum(2)) / cells.shape[-1]


def divergence_terms(n: Tensor, m: Tensor, out: Tensor) -> Tensor:
    """N q min(g(p/q), U) of every cell, also the empty ones: counts n (R, S, X, Y, Z) -> out; n and m are lost."""
    n_xz = n.sum(3, keepdim=True)
    n_z = n_xz.sum(2, keepdim=True).clamp_(min=1)
    torch.mul(n_xz.div_(n_z).add_(TINY), n.sum(2, keepdim=True).add_(TINY), out=m)  # N q, never zero
    return bounded(n, m, out)


def bounded(n: Tensor, m: Tensor, out: Tensor) -> Tensor:
    """m min(g(n/m), U), elementwise, from counts n = N p and m = N q > 0, in `out`; n and m are overwritten.

    g(t) = (t-1)^2 / (2(t+1)), geometric (Henze-Penrose) as in MINT, so 0 <= I < 1; at n = 0 it is m/2, the share
    g(0) q that empty cells have.
    """
    torch.sub(n, m, out=out).square_().div_(n.add_(m).mul_(2))
    return torch.minimum(out, m.mul_(UPPER), out=out)


def middle(members: Tensor) -> Tensor:
    """Median over the last axis, the mean of the two middle values when their number is even."""
    ordered, number = members.sort(-1).values, members.shape[-1]
    return (ordered[..., (number - 1) // 2] + ordered[..., number // 2]) / 2
