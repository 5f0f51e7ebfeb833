"""Dead units: where all weights of a unit are zero it can be removed.

A unit is dead when nothing reads it (all weights that consume it are zero), or when whatever reads it sees a constant:
all weights that produce it are zero, or a grouped convolution in between has a kernel of zeros for it, so that only a
bias is left. Either makes slices of other weights vanish, so the search is repeated until nothing changes. `packing`
stores the zeros that remain in little space.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, Member, analyze, dims
from onnxprune.coupling.layers import layer_of
from onnxprune.graph import half
from onnxprune.plan import cost
from onnxprune.plan.select import Selection


def dead_units(coupling: Coupling) -> dict[Dim, np.ndarray]:
    """Kept units (size,) of every exact Dim: those that are not dead; one stays where all are.

    A unit that is constant but not zero counts as dead: whoever cuts it pushes the constant into its consumers' biases
    (recover.constants).
    """
    finder = _Finder(coupling)
    while finder.sweep():
        pass
    return finder.keep


def cut_zeros(selection: Selection) -> dict[str, np.ndarray]:
    """The zeros of a selection that are left after its cut, initializer -> booleans of its shape."""
    found: dict[str, np.ndarray] = {}
    for name, mask in selection.zeros.items():
        for position, axis in enumerate(selection.coupling.axes.get(name, ())):
            mask = np.compress(selection.mask_of(axis), mask, axis=position)
        found[name] = mask
    return found


def density(model: ir.Model) -> float:
    """Share of the float weights of two axes or more that are not zero."""
    alive, count = _counts(model.graph.initializers.values())
    return alive / max(1, count)


def nonzeros(model: ir.Model) -> int:
    """Number of the float weights of two axes or more that are not zero."""
    return _counts(model.graph.initializers.values())[0]


def zeros_in(model: ir.Model) -> int:
    """Number of the float weights of two axes or more that are zero."""
    alive, count = _counts(model.graph.initializers.values())
    return count - alive


def nonzero_macs(model: ir.Model, costs: cost.Cost | None = None) -> int:
    """MACs of a normalized model without those that multiply by a weight of zero; no runtime here skips them.

    costs: of the model, where they are known.
    """
    by_node = (costs or cost.of(analyze(model))).by_node()
    return round(sum(by_node.get(node.name or "", 0) * _density_of(node) for node in model.graph.all_nodes()))


def _density_of(node: ir.Node) -> float:
    """Share of the weights of `node` that are not zero; 1 where it has none of its own."""
    alive, count = _counts(value for value in node.inputs if value is not None)
    return alive / count if count else 1.0


def _counts(values: Iterable[ir.Value]) -> tuple[int, int]:
    """(how many of the weights among `values` are not zero, how many there are); one is read at a time."""
    alive = count = 0
    for value in values:
        array = graph.constant(value)
        if array is not None and _is_weight(array):
            alive, count = alive + int(np.count_nonzero(array)), count + array.size
    return alive, count


def _is_weight(array: np.ndarray) -> bool:
    """Whether an array counts as weights here: biases and norms (one axis) are never sparse, and too few to matter."""
    return half.is_floating(array.dtype) and array.ndim > 1


@dataclass(frozen=True)
class _Step:
    """A node on the way of a Dim's units: it passes on those of `sources`, or makes them where there are none."""

    sources: tuple[ir.Value, ...]
    weights: tuple[Member, ...]  # of which a unit of zeros passes nothing that varies
    results: tuple[ir.Value, ...]


def _inside_bodies(coupling: Coupling) -> set[Dim]:
    """Dims that stand in bodies of control flow: on values there, or on weights that are read there."""
    found: set[Dim] = set()
    for body in coupling.model.graph.subgraphs():
        read = (value for node in body for value in (*node.inputs, *node.outputs) if value is not None)
        for value in (*body.inputs, *read):
            found.update(dims.all_leaves(coupling.axes.get(value.name or "", ())))
    return found


class _Finder:
    """The state of the search: what is kept so far."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        # Readers and makers are looked for in the main graph: a body may read a unit again in every step.
        inside = _inside_bodies(coupling)
        self.dims = [dim for dim in coupling.exact if dim not in inside]
        self.keep: dict[Dim, np.ndarray] = {dim: np.ones(dim.size, bool) for dim in self.dims}
        self.nodes = {node.name or "": node for node in coupling.model.graph.all_nodes()}
        self.nonzero = {
            name: array != 0
            for name, value in coupling.model.graph.initializers.items()
            if (array := graph.constant(value)) is not None and half.is_floating(array.dtype)
        }
        self.readers = {dim: self._readers(dim) for dim in self.dims}
        self.flows = {dim: tuple(self._flow(dim)) for dim in self.dims}

    def sweep(self) -> bool:
        """Looks at every Dim once; whether a unit more is dead."""
        before = sum(int(mask.sum()) for mask in self.keep.values())
        for dim, mask in self.keep.items():
            alive = mask & self._alive(dim)
            if not alive.any():
                alive[np.flatnonzero(mask)[0]] = True  # ONNX knows axes of length 0, and runtimes fail on them
            self.keep[dim] = alive
        return sum(int(mask.sum()) for mask in self.keep.values()) < before

    def _alive(self, dim: Dim) -> np.ndarray:
        """Units (size,) that are active where something reads them with weights other than zero."""
        active, readers = self._active(dim), self.readers[dim]
        if readers is None:  # whoever else reads it, units that are active nowhere say nothing
            return np.any([*active.values()], axis=0) if active else np.ones(dim.size, bool)
        found = np.zeros(dim.size, bool)
        for member in readers:
            values = [v for v in self.nodes[member.node].inputs if v is not None and self.coupling.stands(dim, [v])]
            seen = [active.get(value, np.ones(dim.size, bool)) for value in values if not value.is_initializer()]
            # A unit counts for a reader only if it is active in what that very reader sees: elsewhere along a
            # residual stream it may not have been added yet.
            found |= self._any(dim, [member]) & np.any(seen, axis=0)
        return found

    def _active(self, dim: Dim) -> dict[ir.Value, np.ndarray]:
        """Units (size,) that vary in each value."""
        whole = np.ones(dim.size, bool)
        found: dict[ir.Value, np.ndarray] = {}
        for step in self.flows[dim]:
            units = np.any([found.get(value, whole) for value in step.sources], axis=0) if step.sources else whole
            if step.weights:  # a grouped convolution passes on what its own kernels let through
                units = units & self._any(dim, step.weights)
            found.update(dict.fromkeys(step.results, units))
        return found

    def _any(self, dim: Dim, members: Iterable[Member]) -> np.ndarray:
        """Units of `dim` for which a slice of one of `members` holds a number other than zero at kept positions."""
        from onnxprune.coupling import unit_positions

        found = np.zeros(dim.size, bool)
        for member in members:
            nonzero = self.nonzero[member.initializer]
            axes = self.coupling.axes[member.initializer]
            for position, axis in enumerate(axes):
                if position != member.axis:  # weights of neighbors that are dead by now keep nothing alive
                    nonzero = np.compress(dims.keep_mask(axis, self.keep), nonzero, axis=position)
            positions = unit_positions(axes[member.axis], dim)
            others = tuple(k for k in range(nonzero.ndim) if k != member.axis)
            hit = positions[(positions >= 0) & nonzero.any(axis=others)]
            found[hit] = True
        return found

    def _readers(self, dim: Dim) -> tuple[Member, ...] | None:
        """The weights that consume `dim`, or None where something else may read it."""
        members = tuple(m for m in self.coupling.members[dim] if m.role == "consumes")
        if not members or any(m.initializer not in self.nonzero for m in members):
            return None
        consumers = {member.node for member in members}
        for node in self.coupling.model.graph:
            computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
            # It reads the units, but not with weights, and hands none of them on: a softmax, a mean, an output.
            read, handed_on = (self.coupling.stands(dim, values) for values in (computed, node.outputs))
            if node.name not in consumers and read and not handed_on:
                return None
        return members

    def _flow(self, dim: Dim) -> Iterator["_Step"]:
        """The nodes that make units of `dim` or pass them on, in order."""
        weights: dict[str, list[Member]] = {}
        consumers = {member.node for member in self.coupling.members[dim] if member.role == "consumes"}
        for member in self.coupling.members[dim]:
            if member.role == "produces" and self._is_weight(member) and self._known(member):
                weights.setdefault(member.node, []).append(member)
        for node in self.coupling.model.graph:
            if not self.coupling.stands(dim, node.outputs):
                continue
            name = node.name or ""
            computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
            # What consumes the Dim and makes it anew (a convolution between residual sums) passes nothing on.
            sources = [] if name in consumers else [value for value in computed if self.coupling.stands(dim, [value])]
            linear = layer_of(node) is not None
            yield _Step(tuple(sources), tuple(weights.get(name, ()) if linear else ()), tuple(node.outputs))

    def _known(self, member: Member) -> bool:
        """Whether its numbers can be read: floats that the model stores."""
        return member.initializer in self.nonzero

    def _is_weight(self, member: Member) -> bool:
        """Whether `member` is an operand of a weighted layer: its weight, or data that the model stores."""
        layer = layer_of(self.nodes[member.node])
        return layer is not None and member.input in (0, layer.weights.weight)
