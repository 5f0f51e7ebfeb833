"""Cost as a polynomial in the kept sizes of the Dims: exact for every plan, without building a model.

MACs of a node, parameters and bytes of an initializer are each a product of axis lengths, and an axis length is a
sum of products of sizes. 1 MAC = 2 FLOPs; MACs are counted, for a batch of one where the batch is symbolic.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.coupling import Coupling, dims
from onnxprune.coupling.dims import Axis, Dim
from onnxprune.coupling.rules.matrix import expand_term

Kind = Literal["macs", "params", "bytes"]
KINDS: tuple[Kind, ...] = ("macs", "params", "bytes")
Sizes = Mapping[Dim, int]


@dataclass(frozen=True)
class Term:
    """coefficient * product of axis lengths."""

    name: str  # of the node, or of the initializer
    coefficient: float
    axes: tuple[Axis, ...]

    def value(self, sizes: Sizes) -> float:
        result = self.coefficient
        for axis in self.axes:
            result *= dims.kept_length(axis, sizes)
        return result


@dataclass(frozen=True)
class Cost:
    """The three polynomials of a model."""

    terms: dict[Kind, tuple[Term, ...]]
    reference: dict[Dim, int]  # sizes of symbolic batch axes: one
    touching: dict[Kind, dict[Dim, tuple[Term, ...]]] = field(repr=False)

    def total(self, kind: Kind, sizes: Sizes | None = None) -> float:
        """MACs, number of parameters, or bytes, when each Dim in `sizes` keeps that many positions."""
        known = {**self.reference, **(sizes or {})}
        return sum(term.value(known) for term in self.terms[kind])

    def totals(self, sizes: Sizes | None = None) -> dict[str, int]:
        return {kind: round(self.total(kind, sizes)) for kind in KINDS}

    def marginal(self, kind: Kind, dim: Dim, sizes: Sizes | None = None) -> float:
        """What the model costs less when `dim` loses one position more, its consumers' slices included."""
        known = {**self.reference, **(sizes or {})}
        size = known.get(dim, dim.size)
        less = {**known, dim: size - 1}
        return sum(term.value(known) - term.value(less) for term in self.touching[kind].get(dim, ()))

    def by_node(self, sizes: Sizes | None = None) -> dict[str, int]:
        """MACs of each node that has any."""
        known = {**self.reference, **(sizes or {})}
        return {term.name: round(term.value(known)) for term in self.terms["macs"]}


def of(coupling: Coupling) -> Cost:
    """The cost polynomials of an analysed model."""
    reference = _batch_dims(coupling)
    macs: list[Term] = []
    for node in coupling.model.graph:
        rule = MACS.get(node.op_type)
        if rule is not None:
            counted = rule(NodeCost(coupling, node))
            if counted is not None:
                macs.append(Term(node.name or "", counted[0], tuple(counted[1])))
    params: list[Term] = []
    sizes: list[Term] = []
    for name, value in coupling.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        axes = coupling.axes.get(name)
        count = 1.0 if axes is not None else float(tensor.size)
        if tensor.dtype.is_floating_point() or _is_quantized(value):
            params.append(Term(name, count, axes or ()))
        sizes.append(Term(name, count * tensor.nbytes / max(1, tensor.size), axes or ()))
    terms: dict[Kind, tuple[Term, ...]] = {"macs": tuple(macs), "params": tuple(params), "bytes": tuple(sizes)}
    return Cost(terms, reference, {kind: _index(terms[kind]) for kind in KINDS})


def _index(terms: Iterable[Term]) -> dict[Dim, tuple[Term, ...]]:
    touching: dict[Dim, list[Term]] = {}
    for term in terms:
        for dim in dims.all_leaves(term.axes):
            touching.setdefault(dim, []).append(term)
    return {dim: tuple(found) for dim, found in touching.items()}


def _batch_dims(coupling: Coupling) -> dict[Dim, int]:
    first = (coupling.axes[v.name or ""][0] for v in coupling.model.graph.inputs if coupling.axes.get(v.name or ""))
    return {dim: 1 for axis in first for dim in dims.leaves(axis) if dim.dynamic}


def _is_quantized(value: ir.Value) -> bool:
    return any(node.op_type in ("DequantizeLinear", "MatMulInteger", "ConvInteger") for node, _ in value.uses())


# MACs by operator: a coefficient and the axes of which the lengths multiply ----------------------------------------

Counted = tuple[float, list[Axis]]


@dataclass(frozen=True)
class NodeCost:
    """A node as its cost rule sees it: the axes of its inputs and outputs."""

    coupling: Coupling
    node: ir.Node

    def x(self, index: int) -> list[Axis]:
        value = self.node.inputs[index]
        return list(self.coupling.axes.get(value.name or "", ())) if value is not None else []

    def y(self, index: int = 0) -> list[Axis]:
        return list(self.coupling.axes.get(self.node.outputs[index].name or "", ()))

    def attribute(self, name: str, default: object = None) -> object:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value


MACS: dict[str, Callable[[NodeCost], Counted | None]] = {}


def macs_rule(*op_types: str) -> Callable[[Callable[[NodeCost], Counted | None]], Callable[[NodeCost], Counted | None]]:
    """Registers the decorated function as what these operators cost: (coefficient, axes) or None for nothing."""

    def register(rule: Callable[[NodeCost], Counted | None]) -> Callable[[NodeCost], Counted | None]:
        MACS.update(dict.fromkeys(op_types, rule))
        return rule

    return register


@macs_rule("Conv", "FusedConv", "ConvInteger", "DeformConv")
def Conv(n: NodeCost) -> Counted | None:
    w = n.x(1)
    return (float(prod(map(dims.length, w[2:]))), [*n.y(), w[1]]) if w and n.y() else None


@macs_rule("ConvTranspose")
def ConvTranspose(n: NodeCost) -> Counted | None:
    x, w = n.x(0), n.x(1)
    return (float(prod(map(dims.length, w[2:]))), [*x, w[1]]) if x and w else None


@macs_rule("Gemm", "FusedGemm")
def Gemm(n: NodeCost) -> Counted | None:
    a = n.x(0)
    return (1.0, [*n.y(), a[0] if n.attribute("transA", 0) else a[1]]) if a and n.y() else None


@macs_rule("MatMul", "MatMulInteger", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def MatMul(n: NodeCost) -> Counted | None:
    a = n.x(0)
    second = 0 if n.attribute("transBatchA", 0) else -2
    contracted = second if n.attribute("transA", 0) and len(a) > 1 else -1
    return (1.0, [*n.y(), a[contracted]]) if a else None


@macs_rule("Einsum")
def Einsum(n: NodeCost) -> Counted | None:
    """Every letter once: an upper bound that is exact for products of two operands."""
    equation = str(n.attribute("equation")).replace(" ", "")
    axes: dict[str, Axis] = {}
    for index, term in enumerate(equation.partition("->")[0].split(",")):
        x = n.x(index)
        if not x:
            return None
        for position, letter in enumerate(expand_term(term, len(x))[0]):
            axes.setdefault(f".{position}" if letter == "." else letter, x[position])
    return 1.0, list(axes.values())


@macs_rule("LSTM", "GRU", "RNN")
def Recurrent(n: NodeCost) -> Counted | None:
    """T N (G H) (I + H) per direction."""
    x, w, r = n.x(0), n.x(1), n.x(2)
    return (1.0, [x[0], x[1], w[0], w[1], w[2] + r[2]]) if x and w and r else None


@macs_rule("Attention")
def Attention(n: NodeCost) -> Counted | None:
    """ai.onnx: q k and scores v, H L S (d + v). com.microsoft: the projection of x as well, which dominates."""
    if n.node.domain == "com.microsoft":
        x, w = n.x(0), n.x(1)
        return (1.0, [*x, w[1]]) if x and w else None
    q, k, v = n.x(0), n.x(1), n.x(2)
    if not (q and k and v):
        return None
    return (2.0, [*q, k[1]]) if len(q) == 3 else (1.0, [q[0], q[1], q[2], k[2], q[3] + v[3]])


@macs_rule("MultiHeadAttention")
def MultiHeadAttention(n: NodeCost) -> Counted | None:
    q, k = n.x(0), n.x(1)
    return (2.0, [*q, k[1]]) if q and k else None


def keep_sizes(keep: Mapping[Dim, np.ndarray]) -> dict[Dim, int]:
    """Number of kept positions of each Dim."""
    return {dim: int(mask.sum()) for dim, mask in keep.items()}
