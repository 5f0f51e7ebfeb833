"""Cost as a polynomial in the kept sizes of the Dims: exact for every plan, without building a model.

MACs of a node, parameters and bytes of an initializer are each a product of axis lengths, and an axis length is a
sum of products of sizes. 1 MAC = 2 FLOPs; MACs are counted, for a batch of one where the batch is symbolic, and for
one run of the body of a Loop or Scan, and of the dearest branch of an If.

Parameters are weights, however they are stored: four bits, or eight, are a number each. Scales, zero points, indices
and shapes are none. Bytes are all that is stored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import onnx_ir as ir

from onnxprune.coupling import Coupling, dims
from onnxprune.coupling.dims import Axis, Dim, Keep
from onnxprune.coupling.layers import STATED, Layer, layer_of
from onnxprune.coupling.rules.matrix import expand_term
from onnxprune.graph import bodies, defaults, quantized, shapes, states

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
        """The term's cost when each Dim in `sizes` keeps that many positions."""
        result = self.coefficient
        for axis in self.axes:
            result *= dims.kept_length(axis, sizes)
        return result


class _Sum:
    """Terms of which the parts that do not vary are multiplied out once, for totals that are asked for often."""

    def __init__(self, terms: Iterable[Term], varying: frozenset[Dim]) -> None:
        self.constant = 0.0
        factors: dict[tuple[tuple[Dim, ...], tuple[Axis, ...]], float] = {}
        for term in terms:
            coefficient = term.coefficient
            single: list[Dim] = []
            others: list[Axis] = []
            for axis in term.axes:
                if varying.isdisjoint(dims.leaves(axis)):
                    coefficient *= dims.length(axis)
                elif len(axis) == 1 and len(axis[0]) == 1 and axis[0][0].definition is None:
                    single.append(axis[0][0])
                else:
                    others.append(axis)
            if single or others:
                key = (tuple(single), tuple(others))
                factors[key] = factors.get(key, 0.0) + coefficient
            else:
                self.constant += coefficient
        self.terms = [(coefficient, *key) for key, coefficient in factors.items()]

    def value(self, sizes: Sizes) -> float:
        """The sum at these sizes, which are those of all that varies."""
        total = self.constant
        for coefficient, single, others in self.terms:
            for dim in single:
                coefficient *= sizes[dim]
            for axis in others:
                coefficient *= dims.kept_length(axis, sizes)
            total += coefficient
        return total


@dataclass(frozen=True)
class Cost:
    """The three polynomials of a model."""

    terms: dict[Kind, tuple[Term, ...]]
    reference: dict[Dim, int]  # sizes of symbolic batch axes: one
    touching: dict[Kind, dict[Dim, tuple[Term, ...]]] = field(repr=False)
    whole: Mapping[Kind, int] = field(default_factory=dict[Kind, int])  # of the file as it came, where that is known
    multiplied: dict[tuple[Kind, frozenset[Dim]], _Sum] = field(
        default_factory=dict[tuple[Kind, frozenset[Dim]], _Sum], repr=False, compare=False
    )

    def total(self, kind: Kind, sizes: Sizes | None = None) -> float:
        """MACs, number of parameters, or bytes, when each Dim in `sizes` keeps that many positions.

        Without sizes: of the file as it came. Its normal form may hold more, where shared weights had to be told apart.
        """
        if sizes is None and kind in self.whole:
            return self.whole[kind]
        known = {**self.reference, **(sizes or {})}
        return self._sum_over(kind, frozenset(known)).value(known)

    def _sum_over(self, kind: Kind, varying: frozenset[Dim]) -> _Sum:
        """The terms of `kind` with all that does not depend on the sizes of `varying` multiplied out, and kept."""
        key = (kind, varying)
        if key not in self.multiplied:
            self.multiplied[key] = _Sum(self.terms[kind], varying)
        return self.multiplied[key]

    def totals(self, sizes: Sizes | None = None) -> dict[str, int]:
        """All three, by kind, as `total` counts them."""
        return {kind: round(self.total(kind, sizes)) for kind in KINDS}

    def marginal(self, kind: Kind, dim: Dim, sizes: Sizes | None = None) -> float:
        """How much less the model costs when `dim` loses one position more, its consumers' slices included."""
        known = {**self.reference, **(sizes or {})}
        size = known.get(dim, dim.size)
        less = {**known, dim: size - 1}
        return sum(term.value(known) - term.value(less) for term in self.touching[kind].get(dim, ()))

    def by_node(self, sizes: Sizes | None = None) -> dict[str, int]:
        """MACs of each node that has any."""
        known = {**self.reference, **(sizes or {})}
        return {term.name: round(term.value(known)) for term in self.terms["macs"]}


Counted = tuple[float, list[Axis]]


@dataclass(frozen=True)
class NodeCost:
    """A node as its cost rule sees it: the axes of its inputs and outputs, [] for what is absent or not known."""

    axes: Mapping[str, Sequence[Axis]]
    node: ir.Node

    def x(self, index: int) -> list[Axis]:
        """The axes of an input."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return list(self.axes.get(value.name or "", ())) if value is not None else []

    def y(self, index: int = 0) -> list[Axis]:
        """The axes of an output."""
        value = self.node.outputs[index] if index < len(self.node.outputs) else None
        return list(self.axes.get(value.name or "", ())) if value is not None else []

    def attribute(self, name: str, default: object = None) -> object:
        """The value of an attribute; lists come as tuples."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value


def of(coupling: Coupling, original: ir.Model | None = None) -> Cost:
    """The cost polynomials of an analysed model; `original` is the model as it came, before it was normalized."""
    macs = _macs_of(coupling.model.graph, _axes(coupling))
    params: list[Term] = []
    sizes: list[Term] = []
    flags = states.masks(coupling.model)
    for name, value in coupling.model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or name in flags:  # flags are ours: they mark states of the interface, and are cut away
            continue
        axes = coupling.axes.get(name)
        count = float(tensor.size) if axes is None else 1.0
        numbers = quantized.numbers_of(value)
        if numbers:
            params.append(Term(name, count * numbers / max(1, tensor.size), axes or ()))
        sizes.append(Term(name, count * _bytes(tensor) / max(1, tensor.size), axes or ()))
    for name, tensor, numbers in (*_defaults(coupling.model), *_stored_in_bodies(coupling.model)):
        if numbers:
            params.append(Term(name, float(numbers), ()))
        sizes.append(Term(name, float(_bytes(tensor)), ()))
    terms: dict[Kind, tuple[Term, ...]] = {"macs": tuple(macs), "params": tuple(params), "bytes": tuple(sizes)}
    whole = {} if original is None else stored(original)
    return Cost(terms, _batch_dims(coupling), {kind: _index(terms[kind]) for kind in KINDS}, whole)


def stored(model: ir.Model) -> dict[Kind, int]:
    """Parameters and bytes of weights that a model holds as it is: initializers and constants, those of bodies too."""
    functions = [function.graph for function in model.functions.values()]
    graphs = [model.graph, *bodies.all_bodies(model.graph), *functions, *(g for f in functions for g in f.subgraphs())]
    found = [entry for graph in graphs for entry in _stored(graph)]
    found += _defaults(model)
    return {"params": sum(numbers for *_, numbers in found), "bytes": sum(_bytes(tensor) for _, tensor, _ in found)}


def _bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes that are stored: of texts those of their letters."""
    if tensor.dtype == ir.DataType.STRING:
        return sum(len(text) for text in tensor.numpy().ravel().tolist())
    return tensor.nbytes


def _defaults(model: ir.Model) -> list[tuple[str, ir.TensorProtocol, int]]:
    """(name, tensor, how many weights) of the default values that inputs have."""
    given = defaults.tensors(model).items()
    return [(name, tensor, tensor.size if tensor.dtype.is_floating_point() else 0) for name, tensor in given]


def _stored(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol, int]]:
    """(name, tensor, how many weights) of all that `graph` itself stores: its initializers, and its Constant nodes."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value.name or "", value.const_value, quantized.numbers_of(value)
    for node in graph:
        value = node.outputs[0] if node.op_type == "Constant" and not node.domain else None
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if value is not None and tensor is not None:
            yield value.name or "", tensor, quantized.numbers_in(tensor, value)


def _stored_in_bodies(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol, int]]:
    for body in bodies.all_bodies(model.graph):
        yield from _stored(body)


def _index(terms: Iterable[Term]) -> dict[Dim, tuple[Term, ...]]:
    touching: dict[Dim, list[Term]] = {}
    for term in terms:
        for dim in dims.all_leaves(term.axes):
            touching.setdefault(dim, []).append(term)
    return {dim: tuple(found) for dim, found in touching.items()}


def _batch_dims(coupling: Coupling) -> dict[Dim, int]:
    first = (coupling.axes[v.name or ""][0] for v in coupling.model.graph.inputs if coupling.axes.get(v.name or ""))
    return {dim: 1 for axis in first for dim in dims.leaves(axis) if dim.dynamic}


def _counted(n: NodeCost) -> Counted | None:
    rule = MACS.get(n.node.op_type)
    if rule is not None:
        return rule(n)
    layer = layer_of(n.node)
    return None if layer is None else _of_layer(n, layer)


def counts(domain: str, op_type: str) -> bool:
    """Whether MACs of the operator are counted."""
    return op_type in MACS or (domain, op_type) in STATED


def _of_layer(n: NodeCost, layer: Layer) -> Counted | None:
    """A weighted layer without a rule of its own: each output, of a transposed convolution each input, meets a kernel
    of channels."""
    w = n.x(layer.weights.weight)
    positions = n.x(0) if layer.kind == "transposed" else n.y()
    if len(w) < 2 or not positions:
        return None
    channels = {layer.outputs(len(w)), layer.inputs(len(w))}
    summed = w[layer.outputs(len(w)) if layer.kind == "transposed" else layer.inputs(len(w))]
    kernel = [dims.length(axis) for k, axis in enumerate(w) if k not in channels] if layer.spatial else []
    return float(prod(kernel)), [*positions, summed]


def _axes(coupling: Coupling) -> Mapping[str, Sequence[Axis]]:
    """The axes of all values; in bodies that were not analysed of the sizes that static inference knows of."""
    model = coupling.model
    if all(map(coupling.sees, bodies.all_bodies(model.graph))):
        return coupling.axes
    known = shapes.inferred(model, coupling.shapes.probe)
    weights = {name: v.const_value.shape.numpy() for name, v in model.graph.initializers.items() if v.const_value}
    fixed = {name: tuple(map(dims.fresh, sizes)) for name, sizes in {**known, **weights}.items()}
    return {**fixed, **coupling.axes}


def _macs_of(graph: ir.Graph, axes: Mapping[str, Sequence[Axis]]) -> list[Term]:
    """A term for each node that multiplies, those of the dearest branch of an If and of one step of a body included."""
    found: list[Term] = []
    for node in graph:
        counted = _counted(NodeCost(axes, node))
        if counted is not None:
            found.append(Term(node.name or "", counted[0], tuple(counted[1])))
        inside = [_macs_of(body, axes) for body in bodies.of(node)]
        found += max(inside, key=_whole) if inside else ()
    return found


def _whole(terms: Sequence[Term]) -> float:
    return sum(term.value({}) for term in terms)


# MACs by operator: a coefficient and the axes of which the lengths multiply ----------------------------------------

MACS: dict[str, Callable[[NodeCost], Counted | None]] = {}


def macs_rule(*op_types: str) -> Callable[[Callable[[NodeCost], Counted | None]], Callable[[NodeCost], Counted | None]]:
    """Registers the decorated function as what these operators cost: (coefficient, axes) or None for nothing."""

    def register(rule: Callable[[NodeCost], Counted | None]) -> Callable[[NodeCost], Counted | None]:
        MACS.update(dict.fromkeys(op_types, rule))
        return rule

    return register


@macs_rule("Conv", "FusedConv", "ConvInteger", "DeformConv", "QLinearConv")
def Conv(n: NodeCost) -> Counted | None:
    w = n.x(3 if n.node.op_type == "QLinearConv" else 1)
    return (float(prod(map(dims.length, w[2:]))), [*n.y(), w[1]]) if w and n.y() else None


@macs_rule("ConvTranspose")
def ConvTranspose(n: NodeCost) -> Counted | None:
    x, w = n.x(0), n.x(1)
    return (float(prod(map(dims.length, w[2:]))), [*x, w[1]]) if x and w else None


@macs_rule("NhwcFusedConv", "NhwcConv")
def NhwcConv(n: NodeCost) -> Counted | None:
    """w (O, K, I)."""
    w = n.x(1)
    return (float(prod(map(dims.length, w[1:-1]))), [*n.y(), w[-1]]) if w and n.y() else None


@macs_rule("Gemm", "FusedGemm", "QGemm", "GemmFastGelu")
def Gemm(n: NodeCost) -> Counted | None:
    a = n.x(0)
    return (1.0, [*n.y(), a[0] if n.attribute("transA", 0) else a[1]]) if a and n.y() else None


@macs_rule(
    *("MatMul MatMulInteger FusedMatMul FusedMatMulActivation DynamicQuantizeMatMul MatMulIntegerToFloat").split(),
    *("QLinearMatMul QOrderedMatMul MatMulNBits MatMulBnb4 MatMulInteger16 MatMulFpQ4 TransposeMatMul").split(),
    *("MatMulBlockQuantizedFp8Weight", "MatMulBlockQuantizedFp4Weight"),
)
def MatMul(n: NodeCost) -> Counted | None:
    a = n.x(0)
    second = 0 if n.attribute("transBatchA", 0) else -2
    contracted = second if n.attribute("transA", 0) and len(a) > 1 else -1
    return (1.0, [*n.y(), a[contracted]]) if a and n.y() else None


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


@macs_rule("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
def Recurrent(n: NodeCost) -> Counted | None:
    """T N (G H) (I + H) per direction; w (D, G H, I) and r (D, G H, H), the last of these operators has (D, I, G H)."""
    x, w, r = n.x(0), n.x(1), n.x(2)
    gates, read = (2, 1) if n.node.op_type == "DynamicQuantizeLSTM" else (1, 2)
    return (1.0, [x[0], x[1], w[0], w[gates], w[read] + r[read]]) if x and w and r else None


@macs_rule("MoE", "QMoE")
def MoE(n: NodeCost) -> Counted | None:
    """Each of T tokens goes through k experts: k T C (F1 + F2 + F3) with fc1 (E, F1, C), fc3 (E, F3, C).

    F2 is the width of an expert: F1, or half of it where a gate is stored in fc1.
    """
    x, fc1, fc3 = n.x(0), n.x(2), n.x(8 if n.node.op_type == "QMoE" else 6)
    if not (x and fc1):
        return None
    k, (_, width, *_) = n.node.attributes.get_int("k", 1), fc1
    if n.node.attributes.get_int("swiglu_fusion", 0):
        return 1.5 * k, [*x, width]
    return float(k), [*x, (*width, *width, *(fc3[1] if fc3 else ()))]


@macs_rule("GroupQueryAttention", "SparseAttention")
def GroupQueryAttention(n: NodeCost) -> Counted | None:
    """Scores and values: 2 B L (H d) S, S of the keys with the past."""
    y, present = n.y(0), n.y(1)
    return (2.0, [*y, present[2]]) if y and present else None


@macs_rule("Attention", "QAttention")
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
    """2 B L (H d) S; keys come as (B, S, H d), or with the past as (B, H, S, d)."""
    q, k, present = n.x(0), n.x(1), n.y(1)
    if not (q and (k or present)):
        return None
    keys = present[2] if present else k[2] if len(k) == 4 else k[1]
    return 2.0, [*(n.y() or q), keys]


def keep_sizes(keep: Keep) -> dict[Dim, int]:
    """Number of kept positions of each Dim."""
    return {dim: int(mask.sum()) for dim, mask in keep.items()}
