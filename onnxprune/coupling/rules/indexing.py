"""Gathers and scatters: positions that are chosen by number must stay."""

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxprune.coupling.dims import Axis, length
from onnxprune.coupling.node import Axes, NodeAxes, Range
from onnxprune.coupling.registry import coupling_rule

# Ends the names of nodes that map ids to rows while the vocabulary is cut; afterwards rows stay, as of any table.
OPEN_MAP = ".open_token_map"  # see run/vocabulary.py


@coupling_rule("Gather")
def Gather(n: NodeAxes) -> None:
    """data (*A, V, *B), indices (*I) -> y (*A, *I, *B); constant indices that form a grid regroup V."""
    data, indices = n.x(0), n.x(1)
    axis = n.attribute("axis", 0) % len(data)
    n.roles(0, {k: "produces" for k in range(len(data)) if k != axis})
    producer = n.node.inputs[1].producer() if n.node.inputs[1] is not None else None
    if producer is not None and (producer.name or "").endswith(OPEN_MAP):  # ids are numbered anew as rows go
        n.give([*data[:axis], *indices, *data[axis + 1 :]])
        return
    numbers = n.numbers(1)
    grid = grid_of(numbers, length(data[axis])) if numbers is not None else None
    if numbers is None or grid is None:
        n.freeze(data[axis], "indexed by data" if numbers is None else "indexed by constants")
        n.give([*data[:axis], *indices, *data[axis + 1 :]])
        return
    for part in indices:
        n.freeze(part, "indices, which are numbered anew")
    n.give([*data[:axis], *choose_grid(n, data[axis], grid, numbers.shape), *data[axis + 1 :]])


@dataclass(frozen=True)
class Grid:
    """Indices start + sum of i_k stride_k, 0 <= i_k < counts[k]: a range of positions, each met equally often."""

    start: int
    counts: tuple[int, ...]  # outer to inner, as the indices run
    strides: tuple[int, ...]  # zero where positions are repeated

    @property
    def stored(self) -> tuple[int, ...]:
        """The factors that are not repeats, in the order in which the data hold them."""
        return tuple(sorted((k for k, s in enumerate(self.strides) if s), key=lambda k: -self.strides[k]))


def grid_of(numbers: np.ndarray, size: int) -> Grid | None:
    """The grid that constant indices into `size` positions form, None where they do not."""
    flat = np.where(numbers < 0, numbers + size, numbers).ravel()
    if not len(flat) or not size:
        return None
    counts: list[int] = []
    strides: list[int] = []
    rest = flat
    while len(rest) > 1:
        steps = np.diff(rest)
        breaks = np.flatnonzero(steps != steps[0])
        run = int(breaks[0]) + 1 if len(breaks) else len(rest)
        if run == 1 or len(rest) % run:
            return None
        if (rest.reshape(-1, run) != rest[::run, None] + np.arange(run) * steps[0]).any():
            return None
        counts.insert(0, run)
        strides.insert(0, int(steps[0]))
        rest = rest[::run]
    grid = Grid(int(flat[0]), tuple(counts), tuple(strides))
    expected = 1
    for k in reversed(grid.stored):
        if grid.strides[k] != expected:
            return None
        expected *= grid.counts[k]
    return grid


def choose_grid(n: NodeAxes, axis: Axis, grid: Grid, shape: tuple[int, ...]) -> Axes:
    """The axes that a grid of positions of `axis` has when it is laid out in `shape`."""
    stored = [grid.counts[k] for k in grid.stored]
    stop = grid.start + prod(stored)
    before, _, _ = n.cuts(axis, [0, grid.start, stop, length(axis)])
    chosen = n.cut(axis, grid.start, stop)
    factors = dict(zip(grid.stored, n.split(chosen, stored), strict=True)) if stored else {}
    running = [factors.get(k) or n.fixed(count, "repeated positions") for k, count in enumerate(grid.counts)]
    y = n.reshape(running, shape)
    n.analysis.ranges.append(Range(n.name, before, tuple(running), grid.stored, tuple(y)))
    return y


@coupling_rule("GatherElements")
def GatherElements(n: NodeAxes) -> None:
    """data and indices of equal rank -> y shaped as indices; other axes that are used whole pass."""
    data, indices = n.x(0), n.x(1)
    axis = n.attribute("axis", 0) % len(data)
    y: Axes = []
    for k, (d, i) in enumerate(zip(data, indices, strict=True)):
        if k == axis:
            n.freeze(d, "indexed by data")
            n.freeze(i, "indexes")
        elif length(d) == length(i):
            n.unify(d, i)
        else:
            n.freeze(d, "only some positions are read")
        y.append(i)
    n.give(y)


@coupling_rule("GatherND")
def GatherND(n: NodeAxes) -> None:
    """data (*B, *V, *D), indices (*B, *I, K) with K = len(V) -> y (*B, *I, *D)."""
    data, indices = n.x(0), n.x(1)
    batch = n.attribute("batch_dims", 0)
    count = length(indices[-1])
    for axis in data[batch : batch + count]:
        n.freeze(axis, "indexed by data")
    for axis in indices:
        n.freeze(axis, "indexes")
    for a, b in zip(data[:batch], indices[:batch], strict=True):
        n.unify(a, b)
    n.give([*indices[:-1], *data[batch + count :]])


@coupling_rule("ScatterND", "TensorScatter")
def ScatterND(n: NodeAxes) -> None:
    """data (*V, *D), indices (*I, K), updates (*I, *D) -> y shaped as data."""
    if n.op_type == "TensorScatter":
        n.opaque("writes at positions that the data decide")
        return
    data, indices, updates = n.x(0), n.x(1), n.x(2)
    count = length(indices[-1])
    for axis in [*data[:count], *indices]:
        n.freeze(axis, "indexed by data")
    for a, b in zip(data[count:], updates[len(indices) - 1 :], strict=True):
        n.unify(a, b)
    for axis in updates[: len(indices) - 1]:
        n.freeze(axis, "updates by index")
    n.give(list(data))


@coupling_rule("ScatterElements", "Scatter")
def ScatterElements(n: NodeAxes) -> None:
    data = n.x(0)
    axis = n.attribute("axis", 0) % len(data)
    for k, (d, i, u) in enumerate(zip(data, n.x(1), n.x(2), strict=True)):
        if k != axis and length(d) == length(i):
            n.unify(d, i)
            n.unify(d, u)
        else:
            for part in (d, i, u):
                n.freeze(part, "indexed by data")
    n.give(list(data))


def embedding(n: NodeAxes, index: int) -> Axis:
    """The width axis of table `index` (V, D); V is indexed by data."""
    table = n.x(index)
    n.freeze(table[0], "indexed by data")
    n.roles(index, {1: "produces"})
    return table[1]
