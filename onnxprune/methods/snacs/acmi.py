"""Adaptive conditional mutual information (ACMI) of every connection of a layer: the scores of SNACS, arXiv 2006.12463.

    I(X; Y | Z) = sum over hash cells of q g(p / q),   p = n_xyz / N,   q = n_xz n_yz / (n_z N)

X is a group of children, Y a group of parents, Z all parents outside that group; the estimator is the hash one
of EDGE (arXiv 1801.09125), extended to a condition. Scores are phi * I with phi the adaptive weight.

Ours, `z="weights"`, hashes the rest of the layer through the child's own weights. A layer is linear, so with
w_j the mean of the child group's rows, x_j depends on its parents only through y_jg + z_jg:

    x_j  = mean over the group of its children's activations
    y_jg = sum over k in g     of w_jk a_k      what the parent group contributes
    z_jg = sum over k not in g of w_jk a_k      what the rest of the layer contributes

One-dimensional y and z lose nothing that a linear child could see, and cells hold many samples; a hash of the
full Z leaves about one sample per cell, hence noise (`z="hash"`, the literature's way, in acmi_hash.py).

Letters: N samples, C children, P parents, G groups, J child groups, S shifts, R rows (pairs) of one block.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import UsageError

from .acmi_cells import Scratch, count, joint_cells, x_cells
from .acmi_groups import Groups, grouped
from .acmi_hash import by_hash
from .acmi_math import TINY, bounded, middle
from .acmi_phi import sample_phi, weight_phi
from .acmi_threads import workers

BLOCK_PAIRS, BLOCK_SAMPLES = 64, 1 << 20  # pairs of a block, and their samples
CHILDREN = 8  # child groups whose contributions are computed at once
WORTH_COMPILING = 1 << 22  # pairs times samples; less takes torch under a tenth of a second


def connection_scores(
    parents,
    children,
    weights,
    *,
    parent_groups,
    child_groups,
    magnitude=None,
    divergence: str = "geometric",
    phi: str = "weight",
    z: str = "weights",
    device: str | torch.device | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Scores (J, G) of all connections of a layer, larger = keep, from activations averaged over positions.

    parents (N, P); children (N, C), before the activation function; weights (C, P), signed and summed over the
    kernel; magnitude (C, P), mean |w| of each kernel slice, taken as |weights| when None. parent_groups and
    child_groups: a number of contiguous equal blocks, or group ids (P,) and (C,). divergence is "geometric" or
    "shannon"; phi one of acmi_phi.PHIS; z "weights" or "hash". `seed` matters to "hash" only.

    Raises UsageError for names that do not exist and for lengths that disagree.
    """
    if divergence not in ("geometric", "shannon"):
        raise UsageError(f"divergence '{divergence}' is unknown; use 'geometric' or 'shannon'")
    if z not in ("weights", "hash"):
        raise UsageError(f"z '{z}' is unknown; use 'weights' or 'hash'")
    device = torch.device("cpu" if device is None else device)
    with workers(device) as (pool, number):
        layer = grouped(parents, children, weights, magnitude, parent_groups, child_groups, device)
        factor, inside = weight_phi(phi, layer), sample_phi(phi, layer)
        shares = [share.tolist() for share in np.array_split(np.arange(layer.child_groups), number)]
        spread = lambda rows: torch.cat(list(pool.map(rows, [share for share in shares if share])))  # noqa: E731
        if z == "hash":
            information = by_hash(layer, divergence, inside, spread, seed)
        else:
            kernel = compiled(layer) if inside is None else None
            rows = (
                partial(_by_weights, layer, divergence, inside)
                if kernel is None
                else partial(_by_kernel, layer, divergence, kernel)
            )
            information = spread(rows)
        return (factor * information).cpu().numpy()


def compiled(layer: Groups) -> ModuleType | None:
    """acmi_kernel where it can be had and pays: on a CPU, with numba, for a layer that is worth its import."""
    work = layer.child_groups * layer.parent_groups * layer.samples
    if layer.device.type != "cpu" or work < WORTH_COMPILING:
        return None
    try:
        from . import acmi_kernel
    except (ImportError, RuntimeError):  # numba is optional, and says RuntimeError where it cannot keep what it made
        return None
    return acmi_kernel


@torch.inference_mode()
def _by_kernel(layer: Groups, divergence: str, kernel: ModuleType, share: list[int]) -> Tensor:
    """Information (share, G) of some child groups, as many at once as the memory is bounded to."""
    information = np.empty((len(share), layer.parent_groups), np.float32)
    step = max(1, min(CHILDREN, CHILDREN * BLOCK_SAMPLES // (layer.parent_groups * layer.samples)))
    for first in range(0, len(share), step):
        some = share[first : first + step]
        x = x_cells(layer.x[some]).numpy().astype(np.uint16)
        totals = layer.totals(some).numpy()
        contributions = layer.contributions(some, 0, layer.parent_groups).transpose(0, 1).contiguous().numpy()
        for i in range(len(some)):
            kernel.information(x[i], contributions[i], totals[i], divergence == "shannon", information[first + i])
    return torch.from_numpy(information)


@torch.inference_mode()
def _by_weights(layer: Groups, divergence: str, inside, share: list[int]) -> Tensor:
    """Information (share, G) of some child groups, by blocks of pairs so that the memory is bounded."""
    information = torch.empty(len(share), layer.parent_groups, device=layer.device)
    block = max(1, min(BLOCK_PAIRS, BLOCK_SAMPLES // layer.samples, layer.parent_groups))
    scratch = Scratch.empty(block, layer.samples, layer.device)
    for first in range(0, len(share), CHILDREN):
        some = share[first : first + CHILDREN]
        totals, x = layer.totals(some), x_cells(layer.x[some])
        for start in range(0, layer.parent_groups, block):
            stop = min(layer.parent_groups, start + block)
            part = scratch.rows(stop - start)
            contributions = layer.contributions(some, start, stop)
            for i, j in enumerate(some):
                cells = joint_cells(x[i], contributions[:, i], totals[i], part)
                phi = None if inside is None else inside(j, start, stop)
                information[first + i, start:stop] = _information(cells, part, divergence, phi)
    return information


def _information(cells: Tensor, scratch: Scratch, divergence: str, phi: Tensor | None) -> Tensor:
    """Information (R,) from joint cells (R, S, N), each sample weighing phi (R, N) in its cell."""
    n = count(cells, scratch.n)
    size = None if phi is None else n.clone()
    terms = divergence_terms(n, divergence, scratch.m, scratch.terms)
    if phi is not None and size is not None:
        inside = count(cells, scratch.n, phi[:, None].expand_as(cells)).div_(size.clamp(min=1))
        terms *= torch.where(size > 0, inside, phi.mean(1)[:, None, None, None, None])
    return middle(terms.flatten(2).sum(2)) / cells.shape[-1]


def divergence_terms(n: Tensor, divergence: str, m: Tensor, out: Tensor) -> Tensor:
    """N q min(g(p/q), U) of every cell, also the empty ones: counts n (R, S, X, Y, Z) -> out; n and m are lost."""
    n_xz = n.sum(3, keepdim=True)
    n_z = n_xz.sum(2, keepdim=True).clamp_(min=1)
    torch.mul(n_xz.div_(n_z).add_(TINY), n.sum(2, keepdim=True).add_(TINY), out=m)  # N q, never zero
    return bounded(n, m, divergence, out)
