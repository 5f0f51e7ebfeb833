"""Mixtures of experts: each token goes through k of E small networks, which a router picks for it.

The width of the experts can shrink, and whole experts can go. A removed expert is one that the router never picks, as
if its number there were minus infinity: the masked twin picks among the kept ones. At least k stay.

Letters: T tokens, C channels, E experts, F their width.
"""

from onnxprune.coupling.dims import Axis, length, resolve
from onnxprune.coupling.node import NodeAxes, OpaqueError
from onnxprune.coupling.registry import coupling_rule

MS = "com.microsoft"
# Of QMoE: the weights, scales, biases and zero points of each of the three layers.
LAYERS = ((2, 3, 4, 11), (5, 6, 7, 12), (8, 9, 10, 13))
ROUTER_WEIGHTS = 14


@coupling_rule("MoE", domain=MS)
def MoE(n: NodeAxes) -> None:
    """x (..., C), router (T, E), fc1 (E, F, C), fc2 (E, C, F), fc3 as fc1, with biases (E, F), (E, C), (E, F)."""
    x, fc1, fc2 = n.x(0), n.x(2), n.x(4)
    C, F = x[-1], fc2[2]
    wide = _with_gate(n, F, length(fc1[1]))
    for index, axes in ((2, [wide, C]), (3, [wide]), (4, [C, F]), (5, [C]), (6, [F, C]), (7, [F])):
        if n.has(index):
            n.unify(n.x(index)[0], fc1[0])
            for mine, theirs in zip(n.x(index)[1:], axes, strict=True):
                n.unify(mine, theirs)
    for index in (2, 4, 6):
        n.roles(index, {0: "produces", 1: "produces", 2: "consumes"})
    for index in (3, 5, 7):
        n.roles(index, {1: "produces"})
    n.unify(n.x(1)[-1], fc1[0])
    _picked(n, fc1[0])
    n.give([*x[:-1], resolve(C)])


@coupling_rule("QMoE", domain=MS)
def QMoE(n: NodeAxes) -> None:
    """As MoE, with weights of 2, 4 or 8 bits: fc1 (E, F, bytes of C), fc2 (E, C, bytes of F), fc3 as fc1."""
    if n.attribute("quant_type", b"int") not in ("int", b"int") or n.attribute("weights_prepacked", -1) == 1:
        raise OpaqueError("weights that are stored in the order of another provider, or not as integers")
    x, fc1, fc2 = n.x(0), n.x(2), n.x(5)
    C, E = x[-1], fc1[0]
    bits = [n.attribute(f"fc{k}_expert_weight_bits", n.attribute("expert_weight_bits", 4)) for k in (1, 2, 3)]
    F = n.fresh(length(fc2[2]) * 8 // bits[1])
    wide = _with_gate(n, F, length(fc1[1]))
    for places, axes, b in zip(LAYERS, ((wide, C), (C, F), (F, C)), bits, strict=True):
        if n.has(places[0]):
            _quantized_layer(n, places, (E, *axes), b)
    n.analysis.contract(n.node, C)  # columns of fc1 cannot be made zero: rows share their scales
    for index in (1, ROUTER_WEIGHTS):
        if n.has(index):
            n.unify(n.x(index)[-1], E)
    _picked(n, E)
    n.give([*x[:-1], resolve(C)])


def _with_gate(n: NodeAxes, F: Axis, rows: int) -> Axis:
    """The rows of the first layer: where a gate is stored there, 2 F: pairs of them, or one half behind the other."""
    gate = n.fixed(2, "a gate and what it gates")
    wide = {1: n.merge([F, gate]), 2: n.merge([gate, F])}.get(n.attribute("swiglu_fusion", 0), F)
    return wide if rows != length(F) else F


def _picked(n: NodeAxes, E: Axis) -> None:
    if n.attribute("use_sparse_mixer", 0):
        n.freeze(E, "the mixer compares each expert with the others")
    else:
        n.pick(E, n.attribute("k", 1), "the router picks among experts")


def _quantized_layer(n: NodeAxes, places: tuple[int, ...], axes: tuple[Axis, Axis, Axis], bits: int) -> None:
    """Relates a layer (E, O, bytes of I) and its scales, biases and zero points with experts, rows O and columns I."""
    weights, scales, bias, zeros = places
    E, rows, columns = axes
    for index in places:
        if n.has(index):
            n.unify(n.x(index)[0], E)
            if length(n.x(index)[1]) == length(rows):
                n.unify(n.x(index)[1], rows)
    per_byte = 8 // bits
    stored = n.x(weights)[2]
    blocked = n.has(scales) and len(n.x(scales)) == 3
    shared = length(columns) // length(n.x(scales)[2]) if blocked else per_byte
    outer = _outer(n, columns, shared, "positions of a block share a scale" if blocked else "weights that share a byte")
    n.unify(stored, n.merge([outer, n.fixed(shared // per_byte, "bytes of a block")]))
    if blocked:
        n.unify(n.x(scales)[2], outer)
    if n.has(zeros):
        points = n.x(zeros)
        _shared_bytes(n, points[-1], outer if len(points) == 3 else rows, per_byte)
    n.roles(weights, {0: "produces", 1: "produces", 2: "consumes"})
    if n.has(bias):
        n.roles(bias, {1: "produces"})


def _shared_bytes(n: NodeAxes, stored: Axis, axis: Axis, per_byte: int) -> None:
    """Zero points of which `per_byte` share a byte: positions of `axis` leave by bytes, or stay where these are
    not full."""
    if length(stored) * per_byte != length(axis):
        n.freeze(axis, "zero points that share a byte")
        n.freeze(stored, "zero points that share a byte")
        return
    n.unify(stored, _outer(n, axis, per_byte, "zero points that share a byte"))


def _outer(n: NodeAxes, axis: Axis, together: int, why: str) -> Axis:
    """`axis` in units of so many positions that leave together."""
    if together == 1:
        return axis
    outer, inner = n.split(axis, [length(axis) // together, together])
    n.freeze(inner, why)
    return outer
