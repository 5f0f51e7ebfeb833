"""Time the ACMI scores of onnxprune against a plain numpy estimator that takes one pair at a time.

    python tools/bench_acmi.py            one layer: 512x512 channels, 64x64 groups, 2,000 samples
    python tools/bench_acmi.py --vgg16    all layers of a VGG-16 for CIFAR-10, 64x64 groups each

Three estimators that take one pair after the other, all with exact quantiles and float64, differ in how they count:

    dictionaries   one Python dictionary per table, as EDGE's published code does
    np.unique      what one writes in numpy from the formula
    dense tables   np.bincount, the fastest per-pair form that we know

Sums over all parents are shared between their pairs. They run on one thread, on a random subset of the pairs, in
turn with ours (all of torch's threads, all pairs) within one process, and are extrapolated to all pairs; their
scores on the subset are compared with ours. Data are random, with the shapes of real layers.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
import torch

from onnxprune.methods.snacs.acmi import connection_scores

SHIFTS, UPPER = (0.0, 0.25, 0.5, 0.75), 10.0
VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512)  # 13 convolutions, one hidden Gemm
CLASSES = 10


def plain_scores(parents, children, weights, groups, pairs, information, phi=True) -> np.ndarray:
    """Scores of some pairs (child group, parent group), one at a time; information(x, y, z) -> value of one shift."""
    by_child, by_parent = (np.split(np.arange(n), g) for n, g in zip(weights.shape, groups, strict=True))
    layer_mean = np.abs(weights).mean()
    w = np.stack([weights[members].mean(0) for members in by_child])
    totals = w @ parents.T  # once for all pairs: what can be shared without thought is shared here too
    scores = []
    for j, g in pairs:
        contribution = parents[:, by_parent[g]] @ w[j, by_parent[g]]
        x = scaled(children[:, by_child[j]].mean(1), 8)
        y, z = scaled(contribution, 8), scaled(totals[j] - contribution, 16)
        value = np.median([information(cells(x, 8, b), cells(y, 8, b), cells(z, 16, b)) for b in SHIFTS])
        relative = np.abs(weights[np.ix_(by_child[j], by_parent[g])]).mean() / layer_mean
        scores.append(value * relative if phi else value)
    return np.array(scores)


def scaled(v, bins):
    """v in units of a cell, from its 2 % quantile on."""
    low, high = np.quantile(v, (0.02, 0.98))
    return (v - low) * (bins / (high - low)) if high > low else np.zeros_like(v)


def cells(v, bins, shift):
    return np.clip(np.floor(v + shift), 0, bins - 1).astype(np.int64)


def by_unique(x, y, z) -> float:
    """Conditional information of one pair at one shift, from the occupied cells alone."""
    _, first, n = np.unique((x * 8 + y) * 16 + z, return_index=True, return_counts=True)

    def size(codes):
        _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        return counts[inverse][first]

    n_z, n_xz, n_yz = size(z), size(x * 16 + z), size(y * 16 + z)
    q, r = n_xz * n_yz / (n_z * len(x)), n * n_z / (n_xz * n_yz)
    g = (r - 1) ** 2 / (2 * (r + 1))
    return float((q * np.minimum(g, UPPER)).sum() + 0.5 * (1 - q.sum()))


def by_bincount(x, y, z) -> float:
    """The same from a dense table."""
    n = np.bincount((x * 8 + y) * 16 + z, minlength=1024).reshape(8, 8, 16)
    n_xz, n_yz, n_z = n.sum(1, keepdims=True), n.sum(0, keepdims=True), n.sum((0, 1))
    occupied = n > 0
    q = (n_xz * n_yz / (np.maximum(n_z, 1) * len(x)))[occupied]
    r = n[occupied] / len(x) / q
    return float((q * np.minimum((r - 1) ** 2 / (2 * (r + 1)), UPPER)).sum() + 0.5 * (1 - q.sum()))


def by_dictionary(x, y, z) -> float:
    """The same from dictionaries."""
    x, y, z = x.tolist(), y.tolist(), z.tolist()
    n_xyz, n_xz = Counter(zip(x, y, z, strict=True)), Counter(zip(x, z, strict=True))
    n_yz, n_z = Counter(zip(y, z, strict=True)), Counter(z)
    total = occupied = 0.0
    for (i, j, k), n in n_xyz.items():
        q = n_xz[i, k] * n_yz[j, k] / (n_z[k] * len(x))
        r = n / len(x) / q
        occupied += q
        total += q * min((r - 1) ** 2 / (2 * (r + 1)), UPPER)
    return total + 0.5 * (1 - occupied)


def planted(parents: int, children: int, samples: int, seed: int):
    """A random layer: rectified, correlated parents; weights of uneven size; children with a little noise."""
    random = np.random.default_rng(seed)
    a = np.maximum(0, random.normal(size=(samples, parents)) + 0.5 * random.normal(size=(samples, 1)))
    w = random.normal(size=(children, parents)) * random.gamma(1, size=(children, parents)) / parents**0.5
    return a, a @ w.T + 0.1 * random.normal(size=(samples, children)), w


def timed(function) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of (wall clock, CPU over all threads), and the value."""
    start, start_cpu = time.perf_counter(), time.process_time()
    value = function()
    return np.array([time.perf_counter() - start, time.process_time() - start_cpu]), value


def scored(parents, children, weights, groups, arguments) -> np.ndarray:
    """Scores of all pairs, (child groups, parent groups), on the host."""
    return connection_scores(parents, children, weights, **groups, device=arguments.device)


def compare(arguments) -> None:
    """One layer, ours and the plain estimators in turn; medians over the rounds."""
    layer = planted(arguments.channels, arguments.channels, arguments.samples, arguments.seed)
    groups = (arguments.groups, arguments.groups)
    pairs = np.random.default_rng(arguments.seed).integers(0, arguments.groups, (arguments.pairs, 2))
    in_float32 = [v.astype(np.float32) for v in layer]
    forms = {"dictionaries": by_dictionary, "np.unique": by_unique, "dense tables": by_bincount}
    seconds = {name: [] for name in ("ours", *forms)}
    plain = scores = np.zeros(0)
    for round_number in range(arguments.rounds + 1):
        for name, form in forms.items():
            took, plain = timed(lambda form=form: plain_scores(*layer, groups, pairs, form))
            seconds[name].append(took / len(pairs) * arguments.groups**2)
        took, scores = timed(
            lambda: scored(*in_float32, {"parent_groups": groups[1], "child_groups": groups[0]}, arguments)
        )
        seconds["ours"].append(took)
        if round_number == 0:  # warming up
            seconds = {name: [] for name in seconds}
    size = f"{arguments.channels}x{arguments.channels} channels, {arguments.groups}x{arguments.groups} groups"
    print(f"{size}, {arguments.samples} samples, {torch.get_num_threads()} threads, {arguments.rounds} rounds, medians")
    ours = np.array(seconds["ours"])
    wall, cpu = np.median(ours, axis=0)
    print(f"  {'ours':14s} {wall:8.3f} s wall, {cpu:8.3f} s CPU, all pairs")
    for name in forms:
        wall, cpu = np.median(seconds[name], axis=0)
        ratio, by_cpu = (np.array(seconds[name]) / ours).T
        spread = f"{np.median(ratio):6.1f} times ours ({ratio.min():.1f} to {ratio.max():.1f})"
        print(f"  {name:14s} {wall:8.3f} s wall, {cpu:8.3f} s CPU   {spread}, {np.median(by_cpu):.1f} by CPU time")
    mine = scores[tuple(pairs.T)]
    largest = np.abs(mine - plain).max() / plain.max()
    print(f"  correlation {np.corrcoef(mine, plain)[0, 1]:.6f}, largest difference {largest:.2%} of the largest score")


def vgg16(arguments) -> None:
    """Seconds for all layers of a VGG-16 whose parents are another layer's children."""
    total = 0.0
    for parents, children in zip(VGG16, (*VGG16[1:], CLASSES), strict=True):
        a, x, w = (v.astype(np.float32) for v in planted(parents, children, arguments.samples, arguments.seed))
        groups = {"parent_groups": min(64, parents), "child_groups": min(64, children)}
        took, _ = timed(lambda a=a, x=x, w=w, groups=groups: scored(a, x, w, groups, arguments))
        total += took[0]
        print(f"  {parents:4d} -> {children:4d}  {took[0]:7.3f} s")
    print(f"VGG-16, {arguments.samples} samples, {arguments.device}, {torch.get_num_threads()} threads: {total:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vgg16", action="store_true", help="all layers of a VGG-16 instead of the comparison")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=200, help="pairs that the plain estimators take")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of ours; the plain estimators run on the CPU")
    arguments = parser.parse_args()
    (vgg16 if arguments.vgg16 else compare)(arguments)


if __name__ == "__main__":
    main()
