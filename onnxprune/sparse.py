"""What zeros are good for: units that are entirely dead can be removed.

A unit is dead when nothing reads it (all weights that consume it are zero), or when it is constant (all weights that
produce it are zero, so that only its bias is left). Either makes slices of other weights vanish, so the search is
repeated until nothing changes. `packing` stores the zeros that remain in little space.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, Member, dims

Keep = dict[Dim, np.ndarray]
BIAS_INPUT = 2  # from this input on an initializer of Conv, Gemm or the like is an addend
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"})


def dead_units(coupling: Coupling, *, constants: bool = True) -> Keep:
    """Kept units (size,) of every exact Dim: those that are not dead; one stays where all are.

    constants: units that are constant but not zero count as dead; whoever cuts them pushes the constant into the
    consumers' biases (recover.constants). Without it every removal is exact by itself.
    """
    finder = _Finder(coupling, constants)
    while finder.sweep():
        pass
    return finder.keep


def cut_zeros(
    coupling: Coupling, keep: Mapping[Dim, np.ndarray], zeros: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The positions in `zeros` (initializer -> booleans of its shape) that are left after a cut by `keep`."""
    found = {}
    for name, mask in zeros.items():
        for position, axis in enumerate(coupling.axes.get(name, ())):
            mask = np.compress(dims.keep_mask(axis, keep), mask, axis=position)
        found[name] = mask
    return found


def density(model: ir.Model) -> float:
    """Share of the float weights of two axes or more that are not zero."""
    arrays = [a for v in model.graph.initializers.values() if (a := graph.constant(v)) is not None and _is_weight(a)]
    return sum(np.count_nonzero(a) for a in arrays) / max(1, sum(a.size for a in arrays))


def _is_weight(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.ndim > 1


SUMS = frozenset({"Add", "Sub", "Sum"})
FACTORS = frozenset({"Mul", "Div", "PRelu"})
ZERO_TO_ZERO = frozenset(
    "Relu LeakyRelu PRelu Elu Selu Celu ThresholdedRelu Tanh Gelu Sin Tan Sqrt Abs Neg Erf Identity Mul "
    "MaxPool AveragePool GlobalAveragePool GlobalMaxPool Flatten Reshape Transpose Squeeze Unsqueeze Concat Split "
    "Slice Resize Upsample Dropout Cast".split()
)


class _Finder:
    """The state of the search: what is kept so far."""

    def __init__(self, coupling: Coupling, constants: bool) -> None:
        self.coupling = coupling
        self.keep: Keep = {dim: np.ones(dim.size, bool) for dim in coupling.exact}
        self.nodes = {node.name or "": node for node in coupling.model.graph}
        self.nonzero = {
            name: array != 0
            for name, value in coupling.model.graph.initializers.items()
            if (array := graph.constant(value)) is not None and array.dtype.kind == "f"
        }
        self.readers = {dim: self._readers(dim) for dim in coupling.exact}
        self.makers = {dim: self._makers(dim) for dim in coupling.exact}
        self.loud = {dim: np.zeros(dim.size, bool) if constants else self._loud(dim) for dim in coupling.exact}

    def sweep(self) -> bool:
        """Looks at every Dim once; whether a unit more is dead."""
        before = sum(int(mask.sum()) for mask in self.keep.values())
        for dim, mask in self.keep.items():
            alive = mask.copy()
            if self.readers[dim] is not None:
                alive &= self._any(dim, self.readers[dim] or ())
            if self.makers[dim] is not None:
                alive &= self._any(dim, self.makers[dim] or ()) | self.loud[dim]
            if not alive.any():
                alive[np.flatnonzero(mask)[0]] = True
            self.keep[dim] = alive
        return sum(int(mask.sum()) for mask in self.keep.values()) < before

    def _any(self, dim: Dim, members: Iterable[Member]) -> np.ndarray:
        """Units of `dim` for which a slice of one of `members` holds a number other than zero at kept positions."""
        from onnxprune.methods.base import unit_positions

        found = np.zeros(dim.size, bool)
        for member in members:
            nonzero = self.nonzero[member.initializer]
            axes = self.coupling.axes[member.initializer]
            for position, axis in enumerate(axes):
                if position != member.axis:
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
            if node.name not in consumers and self._stands(dim, computed) and not self._stands(dim, node.outputs):
                return None
        return members

    def _makers(self, dim: Dim) -> tuple[Member, ...] | None:
        """The weights that alone produce `dim`, or None where its values come from elsewhere, too."""
        found: list[Member] = []
        by_node: dict[str, list[Member]] = {}
        for member in self.coupling.members[dim]:
            if member.role == "produces" and member.input < BIAS_INPUT:
                by_node.setdefault(member.node, []).append(member)
        for node in self.coupling.model.graph:
            computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
            if not self._stands(dim, node.outputs) or self._stands(dim, computed):
                continue
            members = by_node.get(node.name or "")
            if members is None or node.op_type not in LINEAR or any(m.initializer not in self.nonzero for m in members):
                return None
            found += members
        return tuple(found) or None

    def _loud(self, dim: Dim) -> np.ndarray:
        """Units (size,) not zero though their weights are: they meet an addend, or a function that moves zero."""
        through = [n for n in self.coupling.model.graph if self._stands(dim, [v for v in n.inputs if v is not None])]
        if not all(self._keeps_zero(dim, node) for node in through):
            return np.ones(dim.size, bool)
        addends = [m for m in self.coupling.members[dim] if self._adds(m)]
        if any(m.initializer not in self.nonzero for m in addends):
            return np.ones(dim.size, bool)
        return self._any(dim, addends)

    def _keeps_zero(self, dim: Dim, node: ir.Node) -> bool:
        """Whether a unit that is zero leaves `node` as zero; a sum with what knows no units (x + 3) does not."""
        if node.op_type in SUMS:
            return all(value is None or self._stands(dim, [value]) for value in node.inputs)
        return node.op_type in ZERO_TO_ZERO | LINEAR

    def _adds(self, member: Member) -> bool:
        if member.role == "consumes" or self.nodes[member.node].op_type in FACTORS:
            return False
        linear = self.nodes[member.node].op_type in LINEAR
        return not (linear and member.input < BIAS_INPUT)

    def _stands(self, dim: Dim, values: Iterable[ir.Value]) -> bool:
        axes = (axis for value in values for axis in self.coupling.axes.get(value.name or "", ()))
        return any(leaf is dim for axis in axes for leaf in dims.leaves(axis))
