"""Gathers and scatters: positions that are chosen by number must stay."""

import numpy as np

from onnxprune.coupling.dims import Axis, length
from onnxprune.coupling.node import Axes, NodeAxes
from onnxprune.coupling.registry import coupling_rule


@coupling_rule("Gather")
def Gather(n: NodeAxes) -> None:
    """data (*A, V, *B), indices (*I) -> y (*A, *I, *B); a constant contiguous range is a cut."""
    data, indices = n.x(0), n.x(1)
    axis = n.attribute("axis", 0) % len(data)
    n.roles(0, {k: "produces" for k in range(len(data)) if k != axis})
    numbers = n.numbers(1)
    size = length(data[axis])
    if numbers is not None and numbers.ndim == 1 and len(numbers) and size:
        positions = numbers % size
        if np.array_equal(positions, np.arange(size)):
            n.give(list(data))
            return
        if len(positions) > 1 and (np.diff(positions) == 1).all():
            # The indices themselves would have to be renumbered: the positions stay, those beside them go on.
            part = n.cut(data[axis], int(positions[0]), int(positions[-1]) + 1)
            before = n.cut(data[axis], 0, int(positions[0]))
            n.analysis.ranges.append((n.name, before, part))
            n.give([*data[:axis], part, *data[axis + 1 :]])
            return
    if numbers is not None and numbers.size == 1 and size > 1 and numbers.ndim <= 1:
        position = int(numbers.ravel()[0]) % size
        chosen = n.cut(data[axis], position, position + 1)
        before = n.cut(data[axis], 0, position)
        n.analysis.ranges.append((n.name, before, chosen))
        n.give([*data[:axis], *([chosen] if numbers.ndim else []), *data[axis + 1 :]])
        return
    n.freeze(data[axis], "indexed by data" if numbers is None else "indexed by constants")
    n.give([*data[:axis], *indices, *data[axis + 1 :]])


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
