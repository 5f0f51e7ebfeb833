"""Adaptive conditional mutual information (ACMI) of every connection of a layer: the scores of SNACS, arXiv 2006.12463.

    I(X; Y | Z) = sum over hash cells of q g(p / q),   p = n_xyz / N,   q = n_xz n_yz / (n_z N)

X is a group of children, Y a group of parents, Z all parents outside that group; the estimator is the hash one
of EDGE (arXiv 1801.09125), extended to a condition. Scores are phi * I with phi the adaptive weight.

Ours hashes the rest of the layer through the child's own weights. A layer is linear, so with
w_j the mean of the child group's rows, x_j depends on its parents only through y_jg + z_jg:

    x_j  = mean over the group of its children's activations
    y_jg = sum over k in g     of w_jk a_k      what the parent group contributes
    z_jg = sum over k not in g of w_jk a_k      what the rest of the layer contributes

One-dimensional y and z lose nothing that a linear child could see, and cells hold many samples; a hash of all parents
at once, the literature's way, leaves about one sample per cell, so that its scores are mostly noise.

    phi_jg = mean |w| of the slices between two groups / their mean over the layer

The published code maps signed weights of the whole checkpoint to 0..1, so that strongly negative kernels weigh least;
that looks unintended, and the magnitude is what we use instead.

Letters: N samples, C children, P parents, G groups, J child groups, S shifts, R rows (pairs) of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from onnxprune.methods.snacs.cells import Scratch, information, joint_cells, x_cells
from onnxprune.methods.snacs.groups import Groups, grouped

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
    weigh: bool = True,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Scores (J, G) of all connections of a layer, larger = keep, from activations averaged over positions.

    parents (N, P); children (N, C), before the activation function; weights (C, P), signed and summed over the
    kernel; magnitude (C, P), mean |w| of each kernel slice, taken as |weights| when None. parent_groups and
    child_groups: a number of contiguous equal blocks, or group ids (P,) and (C,). weigh: by phi; else the information
    alone.

    Raises UsageError for lengths that disagree.
    """
    device = torch.device("cpu" if device is None else device)
    with workers(device) as (pool, number):
        layer = grouped(parents, children, weights, magnitude, parent_groups, child_groups, device)
        shares = [share.tolist() for share in np.array_split(np.arange(layer.child_groups), number)]
        kernel = compiled(layer)
        rows = partial(_in_torch, layer) if kernel is None else partial(_compiled, layer, kernel)
        found = torch.cat(list(pool.map(rows, [share for share in shares if share])))
        return (found * relative_weight(layer) if weigh else found).cpu().numpy()


def relative_weight(layer: Groups) -> Tensor:
    """phi (J, G); 0 in a layer without weights."""
    return layer.magnitude / layer.magnitude.mean().clamp(min=torch.finfo(torch.float32).tiny)


@contextmanager
def workers(device: torch.device) -> Iterator[tuple[Executor, int]]:
    """A pool of workers that each compute alone on one core, and its size: torch's threads on a CPU, one on a GPU.

    Faster than torch's own threads, because the steps are many and small.
    """
    threads = torch.get_num_threads()
    number = threads if device.type == "cpu" else 1
    # The number is kept per thread (OpenMP) and per process (MKL), hence both settings and the way back.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, number
    finally:
        torch.set_num_threads(threads)


def compiled(layer: Groups) -> ModuleType | None:
    """The compiled kernel where it can be had and pays: on a CPU, with numba, for a layer that is worth its import."""
    work = layer.child_groups * layer.parent_groups * layer.samples
    if layer.device.type != "cpu" or work < WORTH_COMPILING:
        return None
    try:
        from onnxprune.methods.snacs import kernel
    except (ImportError, RuntimeError):  # numba is optional, and says RuntimeError where it cannot keep what it made
        return None
    return kernel


@torch.inference_mode()
def _compiled(layer: Groups, kernel: ModuleType, share: list[int]) -> Tensor:
    """Information (share, G) of some child groups, as many at once as the memory is bounded to."""
    found = np.empty((len(share), layer.parent_groups), np.float32)
    step = max(1, min(CHILDREN, CHILDREN * BLOCK_SAMPLES // (layer.parent_groups * layer.samples)))
    for first in range(0, len(share), step):
        some = share[first : first + step]
        x = x_cells(layer.x[some]).numpy().astype(np.uint16)
        totals = layer.totals(some).numpy()
        contributions = layer.contributions(some, 0, layer.parent_groups).transpose(0, 1).contiguous().numpy()
        for i in range(len(some)):
            kernel.information(x[i], contributions[i], totals[i], found[first + i])
    return torch.from_numpy(found)


@torch.inference_mode()
def _in_torch(layer: Groups, share: list[int]) -> Tensor:
    """Information (share, G) of some child groups, by blocks of pairs so that the memory is bounded."""
    found = torch.empty(len(share), layer.parent_groups, device=layer.device)
    block = max(1, min(BLOCK_PAIRS, BLOCK_SAMPLES // layer.samples, layer.parent_groups))
    scratch = Scratch.empty(block, layer.samples, layer.device)
    for first in range(0, len(share), CHILDREN):
        some = share[first : first + CHILDREN]
        totals, x = layer.totals(some), x_cells(layer.x[some])
        for start in range(0, layer.parent_groups, block):
            stop = min(layer.parent_groups, start + block)
            part = scratch.rows(stop - start)
            contributions = layer.contributions(some, start, stop)
            for i in range(len(some)):
                cells = joint_cells(x[i], contributions[:, i], totals[i], part)
                found[first + i, start:stop] = information(cells, part)
    return found
