"""Channel permutations that raise the energy which k of every G weights keep.

Positions of a Dim have no meaning of their own: permuting its units in every initializer where it stands leaves the
function as it is. So the channels that form a group can be chosen, on residual sums as well.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, dims
from onnxprune.methods.base import Context
from onnxprune.methods.layers import Layer

TRIALS_PER_CHANNEL = 30  # random swaps that are tried
MOST_TRIALS = 6000
ROWS = 256  # weights of a channel that are looked at; more are sampled


def permute(context: Context, chosen: list[Layer], axis: str, size: int, kept: int) -> tuple[ir.Model, float, float]:
    """A model with permuted channels, and the share of energy that the groups keep before and after."""
    coupling = context.coupling
    model = graph.copy(coupling.model)
    before = kept_energy(model, chosen, axis, size, kept)
    random = np.random.default_rng(context.seed)
    for dim, members in _grouped(coupling, chosen, axis).items():
        rows = [_channels(model, layer, axis, random) for layer in members]
        order = improved(np.concatenate(rows, axis=1), size, kept, random)
        apply(coupling, model, dim, order)
    return model, before, kept_energy(model, chosen, axis, size, kept)


def kept_energy(model: ir.Model, chosen: list[Layer], axis: str, size: int, kept: int) -> float:
    """Share of the squared weights of the chosen layers, each in units of its own, that the groups keep."""
    shares = []
    for layer in chosen:
        w = graph.array_of(model.graph.initializers[layer.weight]).astype(np.float64) ** 2
        groups = np.moveaxis(w, _axis(layer, axis), -1).reshape(-1, size)
        shares.append(float(np.sort(groups, axis=1)[:, -kept:].sum() / max(w.sum(), 1e-30)))
    return float(np.mean(shares))


def improved(rows: np.ndarray, size: int, kept: int, random: np.random.Generator) -> np.ndarray:
    """An order (C,) of channels with squared weights rows (C, R), found by swaps that raise the kept energy.

    It starts from the order as given, so the result is never worse.
    """
    order = np.arange(len(rows))
    if len(rows) <= size or kept >= size:
        return order
    energy = np.array([_kept(rows[order[k : k + size]], kept) for k in range(0, len(rows), size)])
    for a, b in _pairs(len(rows), size, random):
        first, second = a // size, b // size
        trial = order.copy()
        trial[[a, b]] = order[[b, a]]
        new = [_kept(rows[trial[g * size : (g + 1) * size]], kept) for g in (first, second)]
        if sum(new) > energy[first] + energy[second] + 1e-12:
            order = trial
            energy[[first, second]] = new
    return order


def _kept(group: np.ndarray, kept: int) -> float:
    return float(np.partition(group, len(group) - kept, axis=0)[len(group) - kept :].sum())


def _pairs(count: int, size: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Random pairs of positions in different groups."""
    for _ in range(min(MOST_TRIALS, TRIALS_PER_CHANNEL * count)):
        a, b = (int(k) for k in random.integers(0, count, 2))
        if a // size != b // size:
            yield a, b


def apply(coupling: Coupling, model: ir.Model, dim: Dim, order: np.ndarray) -> None:
    """Permutes the units of `dim` in `model`, in place and wherever it stands: unit i becomes what order[i] was."""
    if (order == np.arange(dim.size)).all():
        return
    done: set[tuple[str, int]] = set()
    for member in coupling.members[dim]:
        if (member.initializer, member.axis) in done:
            continue
        done.add((member.initializer, member.axis))
        value = model.graph.initializers[member.initializer]
        positions = _positions(coupling.axes[member.initializer][member.axis], dim, order)
        graph.set_constant(value, np.take(graph.array_of(value), positions, axis=member.axis))


def _positions(axis: dims.Axis, dim: Dim, order: np.ndarray) -> np.ndarray:
    """For each position of `axis` the one that it takes its content from."""
    parts, start = [], 0
    for segment in axis:
        parts.append(start + _segment_positions(segment, dim, order))
        start += dims.segment_length(segment)
    return np.concatenate(parts)


def _segment_positions(segment: dims.Segment, dim: Dim, order: np.ndarray) -> np.ndarray:
    found = np.zeros(1, np.int64)
    for factor in segment:
        if factor is dim:
            inner = order
        elif factor.definition is not None:
            inner = _positions(factor.definition, dim, order)
        else:
            inner = np.arange(factor.size)
        found = np.add.outer(found * factor.size, inner).ravel()
    return found


def _grouped(coupling: Coupling, chosen: list[Layer], axis: str) -> dict[Dim, list[Layer]]:
    """The free Dims that alone form the grouped axis of chosen layers, but for those of which nodes see the order."""
    ordered = {name for name, _, _ in coupling.lifts}
    fixed = {
        leaf
        for node in coupling.model.graph
        if node.name in ordered
        for value in node.inputs
        if value is not None
        for held in coupling.axes.get(value.name or "", ())
        for leaf in dims.leaves(held)
    }
    found: dict[Dim, list[Layer]] = {}
    for layer in chosen:
        segments = coupling.axes[layer.weight][_axis(layer, axis)]
        if len(segments) == 1 and len(segments[0]) == 1:
            dim = segments[0][0]
            if dim.definition is None and dim.frozen is None and dim not in fixed:
                found.setdefault(dim, []).append(layer)
    return found


def _channels(model: ir.Model, layer: Layer, axis: str, random: np.random.Generator) -> np.ndarray:
    """Squared weights by channel (C, R), in units of their mean, at most `ROWS` of them."""
    w = graph.array_of(model.graph.initializers[layer.weight]).astype(np.float64)
    rows = np.moveaxis(w, _axis(layer, axis), 0).reshape(w.shape[_axis(layer, axis)], -1) ** 2
    if rows.shape[1] > ROWS:
        rows = rows[:, random.choice(rows.shape[1], ROWS, replace=False)]
    return rows / max(rows.mean(), 1e-30)


def _axis(layer: Layer, axis: str) -> int:
    return layer.outputs if axis == "output" else layer.inputs
