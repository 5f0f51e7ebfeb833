"""The ways in which mutants.py damages a cut model, each as a bug of a coupling rule or of surgery could.

A damage is a function (case, model) -> the places where it can be done, each with what does it: name of the place ->
a change of `model`, which is a copy of the honest cut. Whether the change makes a difference is found out later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, dims
from onnxprune.coupling.analyze import Member
from onnxprune.graph import bodies

if TYPE_CHECKING:
    from random import Random

Change = Callable[["Random"], None]
Place = tuple[str, Change]


@dataclass(frozen=True)
class Case:
    """A network, a plan, and the honest cut."""

    coupling: Coupling
    keep: Mapping[Dim, np.ndarray]
    cut: ir.Model


Damage = Callable[[Case, ir.Model], Iterator[Place]]
DAMAGES: dict[str, Damage] = {}
GATES = {"LSTM": 4, "GRU": 3, "DynamicQuantizeLSTM": 4}
NORMS = (
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "SkipLayerNormalization",
    "GroupNormalization",
)
SCALES = {"QuantizeLinear": (1,), "DequantizeLinear": (1,), "QLinearConv": (1, 4, 6), "QLinearMatMul": (1, 4, 6)}
POINTS = {"QuantizeLinear": (2,), "DequantizeLinear": (2,), "QLinearConv": (2, 5, 7), "QLinearMatMul": (2, 5, 7),
          "MatMulInteger": (2, 3), "ConvInteger": (2, 3)}  # fmt: skip
BOUNDED = {"Clip": (1, 2), "Greater": (0, 1), "Less": (0, 1), "Max": (0, 1), "Min": (0, 1)}
RECKONED = {"Mod": (1,), "Div": (1,), "Min": (0, 1), "Max": (0, 1), "Less": (0, 1), "Greater": (0, 1)}
SETTINGS = frozenset(("alpha", "beta", "epsilon", "lambd", "softcap"))
SWITCHED = {"AveragePool": ("count_include_pad", "ceil_mode"), "MaxPool": ("ceil_mode",)}
ACTIVATIONS = frozenset("Relu Sigmoid Tanh Gelu HardSwish LeakyRelu Erf HardSigmoid".split())


def damage(name: str) -> Callable[[Damage], Damage]:
    """Adds a function to the table."""

    def add(function: Damage) -> Damage:
        DAMAGES[name] = function
        return function

    return add


# Arrays -------------------------------------------------------------------------------------------------------------


def reordered(array: np.ndarray, axis: int, order: np.ndarray) -> np.ndarray:
    return np.take(array, order, axis)


def change(value: ir.Value, new: Callable[[np.ndarray, Random], np.ndarray], random: Random) -> None:
    """Puts what `new` makes of the array of `value` in its place."""
    array = graph.array_of(value)
    made = np.ascontiguousarray(new(array.copy(), random), array.dtype)
    assert made.shape == array.shape
    graph.set_constant(value, made)


def members(case: Case, model: ir.Model, *roles: str, least: int = 2) -> Iterator[tuple[Member, ir.Value]]:
    """Where Dims stand in initializers of `model`, once for each axis."""
    seen: set[tuple[str, int]] = set()
    for dim in case.coupling.dims:
        for member in case.coupling.members[dim]:
            value = model.graph.initializers.get(member.initializer)
            key = (member.initializer, member.axis)
            if value is None or value.const_value is None or member.role not in roles or key in seen:
                continue
            shape = value.const_value.shape.numpy()
            if member.axis < len(shape) and shape[member.axis] >= least:
                seen.add(key)
                yield member, value


def place(member: Member) -> str:
    return f"{member.initializer} axis {member.axis} of {member.node}"


def on_axis(axis: int, order: Callable[[int, Random], np.ndarray], array: np.ndarray, random: Random) -> np.ndarray:
    return reordered(array, axis, order(array.shape[axis], random))


def shifted(count: int, random: Random) -> np.ndarray:
    return np.roll(np.arange(count), random.choice((1, -1)))


def swapped(count: int, random: Random) -> np.ndarray:
    order = np.arange(count)
    a, b = random.sample(range(count), 2)
    order[[a, b]] = b, a
    return order


def reverse(count: int, random: Random) -> np.ndarray:
    return np.arange(count)[::-1]


def orders(*roles: str, order: Callable[[int, Random], np.ndarray], only: Callable = lambda m, v: True) -> Damage:
    """A damage that reorders an axis of an initializer."""

    def places(case: Case, model: ir.Model) -> Iterator[Place]:
        for member, value in members(case, model, *roles):
            if only(member, value):
                yield place(member), partial(change, value, partial(on_axis, member.axis, order))

    return places


def _vector(member: Member, value: ir.Value) -> bool:
    return graph.array_of(value).ndim == 1 or max(graph.array_of(value).shape) == graph.array_of(value).size


def _matrix(member: Member, value: ir.Value) -> bool:
    return not _vector(member, value)


DAMAGES["filters shifted by one"] = orders("produces", order=shifted, only=_matrix)
DAMAGES["two filters swapped"] = orders("produces", order=swapped, only=_matrix)
DAMAGES["filters reversed"] = orders("produces", order=reverse, only=_matrix)
DAMAGES["inputs of a weight shifted by one"] = orders("consumes", order=shifted)
DAMAGES["two inputs of a weight swapped"] = orders("consumes", order=swapped)


# Positions that the original has, cut otherwise ---------------------------------------------------------------------


def recut(
    case: Case, value: ir.Value, position: int, wrong: Callable[[np.ndarray, Random], np.ndarray], random: Random
) -> None:
    """Puts in place of `value` its original cut at other positions of one axis, as many of them."""
    axes = case.coupling.axes[value.name or ""]
    full = graph.array_of(case.coupling.model.graph.initializers[value.name or ""])
    masks = [dims.keep_mask(axis, case.keep) for axis in axes]
    masks[position] = wrong(masks[position], random)
    graph.set_constant(value, np.ascontiguousarray(full[np.ix_(*masks)]))


def loses(case: Case, member: Member) -> bool:
    mask = dims.keep_mask(case.coupling.axes[member.initializer][member.axis], case.keep)
    return not mask.all() and member.initializer in case.coupling.model.graph.initializers


def cuts(*roles: str, wrong: Callable[[np.ndarray, Random], np.ndarray], only: Callable = lambda m, v: True) -> Damage:
    """A damage that keeps other positions of one axis of an initializer."""

    def places(case: Case, model: ir.Model) -> Iterator[Place]:
        for member, value in members(case, model, *roles, least=1):
            if only(member, value) and loses(case, member):
                yield place(member), partial(recut, case, value, member.axis, wrong)

    return places


def rolled(mask: np.ndarray, random: Random) -> np.ndarray:
    return np.roll(mask, random.choice((1, -1)))


def first_ones(mask: np.ndarray, random: Random) -> np.ndarray:
    return np.arange(len(mask)) < mask.sum()


def one_other(mask: np.ndarray, random: Random) -> np.ndarray:
    found = mask.copy()
    found[random.choice(np.flatnonzero(mask))], found[random.choice(np.flatnonzero(~mask))] = False, True
    return found


def drawn(mask: np.ndarray, random: Random) -> np.ndarray:
    return np.isin(np.arange(len(mask)), random.sample(range(len(mask)), int(mask.sum())))


def _of_norm(member: Member, value: ir.Value) -> bool:
    return any(node.op_type in NORMS for node in value.consumers())


def _bias(member: Member, value: ir.Value) -> bool:
    return _vector(member, value) and not _of_norm(member, value)


EVERY = ("produces", "consumes", "scales", "follows")
DAMAGES["one weight cut at the positions beside"] = cuts(*EVERY, wrong=rolled, only=_matrix)
DAMAGES["one weight cut at one other position"] = cuts(*EVERY, wrong=one_other, only=_matrix)
DAMAGES["one weight cut at random positions"] = cuts(*EVERY, wrong=drawn, only=_matrix)
DAMAGES["a bias not cut, but shortened"] = cuts(*EVERY, wrong=first_ones, only=_bias)
DAMAGES["a bias cut at one other position"] = cuts(*EVERY, wrong=one_other, only=_bias)
DAMAGES["a norm's numbers not cut, but shortened"] = cuts(*EVERY, wrong=first_ones, only=_of_norm)
DAMAGES["a norm's numbers cut at one other position"] = cuts(*EVERY, wrong=one_other, only=_of_norm)


@damage("a concatenation cut at the wrong offset")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    for member, value in members(case, model, "consumes", least=1):
        axis = case.coupling.axes[member.initializer][member.axis]
        if len(dims.resolve(axis)) > 1 and loses(case, member):
            yield place(member), partial(recut, case, value, member.axis, rolled)


# Heads and groups ---------------------------------------------------------------------------------------------------


def factors(case: Case, member: Member) -> tuple[int, int] | None:
    """(outer, inner) lengths that a product has in the cut model; None for an axis that is none."""
    axis = dims.resolve(case.coupling.axes[member.initializer][member.axis])
    if len(axis) != 1 or len(axis[0]) < 2:
        return None
    sizes = {dim: int(mask.sum()) for dim, mask in case.keep.items()}
    outer = dims.kept_length(((axis[0][0],),), sizes)
    inner = dims.kept_length((axis[0][1:],), sizes)
    return (outer, inner) if outer > 1 and inner > 1 else None


def products(case: Case, model: ir.Model) -> Iterator[tuple[Member, ir.Value, int, int]]:
    for member, value in members(case, model, *EVERY):
        if (found := factors(case, member)) and found[0] * found[1] == graph.array_of(value).shape[member.axis]:
            yield member, value, *found


@damage("heads transposed")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    for member, value, outer, inner in products(case, model):
        order = np.arange(outer * inner).reshape(outer, inner).T.ravel()
        yield place(member), partial(change, value, lambda a, _, m=member, o=order: reordered(a, m.axis, o))


@damage("two heads exchanged in one weight")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random, axis: int, outer: int, inner: int) -> np.ndarray:
        order = np.arange(outer * inner).reshape(outer, inner)[swapped(outer, random)].ravel()
        return reordered(array, axis, order)

    for member, value, outer, inner in products(case, model):
        yield place(member), partial(change, value, partial(new, axis=member.axis, outer=outer, inner=inner))


@damage("a head zeroed")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random, axis: int, size: int) -> np.ndarray:
        count = array.shape[axis] // size
        start = random.randrange(count) * size
        array[(*[slice(None)] * axis, slice(start, start + size))] = 0
        return array

    for member, value in members(case, model, "produces"):
        found, length = factors(case, member), graph.array_of(value).shape[member.axis]
        size = found[1] if found and found[0] * found[1] == length else max(1, length // 4)
        yield place(member), partial(change, value, partial(new, axis=member.axis, size=size))


@damage("groups regrouped")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random, groups: int) -> np.ndarray:
        count = array.shape[0]
        order = (
            np.arange(count).reshape(groups, -1).T.ravel() if count > groups else np.roll(np.arange(count), count // 2)
        )
        return reordered(array, 0, order)

    for node in model.graph:
        groups = node.attributes.get_int("group", 1) if node.op_type in ("Conv", "QLinearConv", "ConvInteger") else 1
        index = 3 if node.op_type == "QLinearConv" else 1
        value = weight_of(node, index) if groups > 1 else None
        if value is not None:
            yield f"{value.name} of {node.name}", partial(change, value, partial(new, groups=groups))


def weight_of(node: ir.Node, index: int) -> ir.Value | None:
    """The initializer that input `index` of `node` is, or is made of by one node."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is not None and not value.is_initializer() and value.producer() is not None:
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    return value if value is not None and value.is_initializer() else None


@damage("the number of heads is another")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, name: str, others: list[int]) -> None:
        node.attributes[name] = ir.AttrInt64(name, random.choice(others))

    for node in model.graph:
        for name in ("num_heads", "kv_num_heads", "q_num_heads"):
            if heads := node.attributes.get_int(name, 0):
                yield f"{name} of {node.name}", partial(set_to, node=node, name=name, others=[1, heads + 1, 2 * heads])


# Tables, experts, recurrent gates -------------------------------------------------------------------------------------


def initializers_of(
    model: ir.Model, op_types: tuple[str, ...], index: int, rank: int
) -> Iterator[tuple[ir.Node, ir.Value]]:
    seen = set()
    for node in model.graph:
        value = weight_of(node, index) if node.op_type in op_types else None
        if value is not None and value not in seen and graph.array_of(value).ndim >= rank:
            seen.add(value)
            yield node, value


@damage("rows of a table shifted from the third on")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    for node, value in initializers_of(model, ("Gather",), 0, 2):
        rows = graph.array_of(value).shape[0]
        if rows > 3:
            order = np.r_[0, 1, np.roll(np.arange(2, rows), 1)]
            yield f"{value.name} of {node.name}", partial(change, value, lambda a, _, o=order: a[o])


@damage("the last rows of a table wrong")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    for node, value in initializers_of(model, ("Gather",), 0, 2):
        rows = graph.array_of(value).shape[0]
        if rows > 7:
            order = np.r_[np.arange(rows - rows // 4), np.arange(rows // 4)]
            yield f"{value.name} of {node.name}", partial(change, value, lambda a, _, o=order: a[o])


@damage("two experts exchanged in one weight")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    for node, value in initializers_of(model, ("MatMul", "Einsum"), 1, 3):
        if graph.array_of(value).shape[0] > 1:
            yield f"{value.name} of {node.name}", partial(change, value, partial(on_axis, 0, swapped))


@damage("two gates exchanged")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random, axis: int, gates: int) -> np.ndarray:
        size = array.shape[axis] // gates
        order = np.arange(array.shape[axis]).reshape(gates, size)[swapped(gates, random)].ravel()
        return reordered(array, axis, order)

    for node in model.graph:
        gates = GATES.get(node.op_type, 0)
        for index in (1, 2, 3) if gates else ():
            value = weight_of(node, index)
            if value is not None and graph.array_of(value).ndim in (2, 3):
                parts = 2 * gates if index == 3 else gates
                axis = 2 if node.op_type == "DynamicQuantizeLSTM" and index < 3 else 1
                yield f"{value.name} of {node.name}", partial(change, value, partial(new, axis=axis, gates=parts))


@damage("units of a recurrent layer shifted in one weight")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random, gates: int) -> np.ndarray:
        size = array.shape[1] // gates
        order = np.roll(np.arange(array.shape[1]).reshape(gates, size), 1, 1).ravel()
        return reordered(array, 1, order)

    for node in model.graph:
        gates = {**GATES, "RNN": 1}.get(node.op_type, 0)
        for index in (1, 2, 3) if gates and node.op_type != "DynamicQuantizeLSTM" else ():
            value = weight_of(node, index)
            if (
                value is not None
                and graph.array_of(value).ndim in (2, 3)
                and graph.array_of(value).shape[1] > gates * 2
            ):
                parts = 2 * gates if index == 3 else gates
                yield f"{value.name} of {node.name}", partial(change, value, partial(new, gates=parts))


@damage("directions exchanged")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    for node in model.graph:
        if node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
            for index in (1, 2, 3):
                value = weight_of(node, index)
                if value is not None and graph.array_of(value).shape[0] == 2:
                    yield f"{value.name} of {node.name}", partial(change, value, lambda a, _: a[::-1])


# Constants of shapes and positions ------------------------------------------------------------------------------------


def own_constant(node: ir.Node, index: int) -> np.ndarray | None:
    return graph.constant(node.inputs[index]) if index < len(node.inputs) and node.inputs[index] is not None else None


def set_own(model: ir.Model, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Gives `node` a constant of its own."""
    name = f"{node.name}.damaged{index}"
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
    value.const_value = ir.Tensor(array, name=name)
    model.graph.initializers[name] = value
    node.replace_input_with(index, value)


def constants(case: Case, model: ir.Model, op_type: str, index: int) -> Iterator[tuple[ir.Node, np.ndarray]]:
    for node in model.graph:
        array = own_constant(node, index) if node.op_type == op_type else None
        if array is not None and array.dtype.kind == "i":
            yield node, array


@damage("a shape of equal product")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, others: list[np.ndarray]) -> None:
        set_own(model, node, 1, random.choice(others))

    for node, shape in constants(case, model, "Reshape", 1):
        others = []
        for a in range(len(shape)):
            for b in range(a + 1, len(shape)):
                if shape[a] > 0 and shape[b] > 0 and shape[a] != shape[b]:
                    new = shape.copy()
                    new[[a, b]] = shape[b], shape[a]
                    others.append(new)
                    for x, y in ((a, b), (b, a)):
                        if shape[x] % 2 == 0:
                            new = shape.copy()
                            new[x], new[y] = shape[x] // 2, shape[y] * 2
                            others.append(new)
        if others:
            yield f"shape of {node.name}", partial(set_to, node=node, others=others)


@damage("a slice off by one")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def move(random: Random, node: ir.Node, arrays: list[np.ndarray]) -> None:
        by = random.choice((1, -1))
        for index, array in enumerate(arrays, 1):
            set_own(model, node, index, np.where(np.abs(array) > 2**30, array, array + by))

    for node, starts in constants(case, model, "Slice", 1):
        ends = own_constant(node, 2)
        if ends is not None:
            yield f"bounds of {node.name}", partial(move, node=node, arrays=[starts, ends])


@damage("a split at the wrong place")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def move(random: Random, node: ir.Node, parts: np.ndarray) -> None:
        a, b = random.sample(range(len(parts)), 2)
        new = parts.copy()
        new[a] += 1
        new[b] -= 1
        set_own(model, node, 1, new)

    def exchange(random: Random, node: ir.Node) -> None:
        a, b = random.sample(range(len(node.outputs)), 2)
        one, two = node.outputs[a], node.outputs[b]
        uses = [(u.node, u.idx, v) for v, w in ((two, one), (one, two)) for u in w.uses()]
        for user, index, value in uses:
            user.replace_input_with(index, value)

    for node in model.graph:
        if node.op_type == "Split" and len(node.outputs) > 1:
            parts = own_constant(node, 1)
            if parts is not None and (parts > 1).all():
                yield f"sizes of {node.name}", partial(move, node=node, parts=parts)
            if not any(v.is_graph_output() for v in node.outputs):
                yield f"outputs of {node.name}", partial(exchange, node=node)


@damage("a constant index off by one")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def move(random: Random, node: ir.Node, array: np.ndarray) -> None:
        by = random.choice((1, -1))
        set_own(model, node, 1, np.asarray(np.maximum(array + by, 0), array.dtype))

    for node, indices in constants(case, model, "Gather", 1):
        yield f"indices of {node.name}", partial(move, node=node, array=indices)


@damage("a transposition of other axes")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, perm: list[int]) -> None:
        a, b = random.sample(range(len(perm)), 2)
        perm[a], perm[b] = perm[b], perm[a]
        node.attributes["perm"] = ir.AttrInt64s("perm", perm)

    for node in model.graph:
        perm = node.attributes.get_ints("perm") if node.op_type == "Transpose" else None
        if perm:
            yield f"perm of {node.name}", partial(set_to, node=node, perm=list(perm))


@damage("a softmax or reduction over another axis")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, others: list[int]) -> None:
        node.attributes["axis"] = ir.AttrInt64("axis", random.choice(others))

    for node in model.graph:
        if node.op_type in ("Softmax", "LogSoftmax", "ArgMax", "TopK"):
            axis = node.attributes.get_int("axis", -1)
            rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 2
            others = [k for k in range(-rank, 0) if k != (axis if axis < 0 else axis - rank)]
            if others:
                yield f"axis of {node.name}", partial(set_to, node=node, others=others)


# What reads what ------------------------------------------------------------------------------------------------------


@damage("parts of a concatenation exchanged")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def exchange(random: Random, node: ir.Node) -> None:
        a, b = random.sample(range(len(node.inputs)), 2)
        one, two = node.inputs[a], node.inputs[b]
        node.replace_input_with(a, two)
        node.replace_input_with(b, one)

    for node in model.graph:
        known = [own_constant(node, k) is None for k in range(len(node.inputs))]
        if node.op_type == "Concat" and sum(known) == len(known) > 1:
            yield f"inputs of {node.name}", partial(exchange, node=node)


@damage("operands exchanged")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def exchange(random: Random, node: ir.Node) -> None:
        one, two = node.inputs[:2]
        node.replace_input_with(0, two)
        node.replace_input_with(1, one)

    for node in model.graph:
        if node.op_type in ("Sub", "Div", "MatMul") and len(node.inputs) == 2:
            yield f"inputs of {node.name}", partial(exchange, node=node)


def _shape(value: ir.Value | None) -> str:
    return str(value.shape) if value is not None and value.shape is not None else ""


@damage("a sum reads a value from elsewhere")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def read(random: Random, node: ir.Node, index: int, others: list[ir.Value]) -> None:
        node.replace_input_with(index, random.choice(others))

    before: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        if node.op_type in ("Add", "Mul", "Sum"):
            for index, value in enumerate(node.inputs):
                others = [v for v in before.get(_shape(value), ()) if v is not value]
                if value is not None and value.producer() is not None and others:
                    yield f"input {index} of {node.name}", partial(read, node=node, index=index, others=others)
        for value in node.outputs:
            if _shape(value) and value.dtype == ir.DataType.FLOAT:
                before.setdefault(_shape(value), []).append(value)


def _ends_a_body(node: ir.Node) -> bool:
    owner = node.graph
    return owner is not None and any(value in owner.outputs for value in node.outputs)


@damage("an activation left out")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def skip(random: Random, node: ir.Node) -> None:
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, node.inputs[0])

    for node in bodies.all_nodes(model.graph):
        if node.op_type in ACTIVATIONS and not node.outputs[0].is_graph_output() and not _ends_a_body(node):
            yield f"{node.op_type} {node.name}", partial(skip, node=node)


# Single numbers ---------------------------------------------------------------------------------------------------


def other_numbers(
    model: ir.Model, table: Mapping[str, Iterable[int]], factors: Sequence[float], added: float = 0.0
) -> Iterator[Place]:
    """Places at single numbers, the inputs in `table` by operator: times one of `factors`, and more by `added`."""

    def set_to(random: Random, node: ir.Node, index: int, array: np.ndarray) -> None:
        set_own(model, node, index, np.asarray(array * random.choice(factors) + added, array.dtype))

    for node, index, array in own_inputs(model, table):
        if array.size == 1 and array.dtype.kind == "f":
            yield f"input {index} of {node.name}", partial(set_to, node=node, index=index, array=array)


@damage("a factor of another size")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    yield from other_numbers(model, {"Mul": (0, 1), "Div": (0, 1)}, (0.5**0.5, 0.9, 2**0.5))


@damage("a bound of another size")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    yield from other_numbers(model, BOUNDED, (0.5, 0.9, 1.1), 0.01)


@damage("another setting of an operator")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, name: str) -> None:
        factor = random.choice((0.5, 0.99, 1.5))
        node.attributes[name] = ir.AttrFloat32(name, factor * node.attributes[name].as_float())

    def switch(random: Random, node: ir.Node, name: str) -> None:
        node.attributes[name] = ir.AttrInt64(name, 1 - node.attributes.get_int(name, 0))

    for node in bodies.all_nodes(model.graph):
        for name in SETTINGS & node.attributes.keys():
            yield f"{name} of {node.name}", partial(set_to, node=node, name=name)
        for name in SWITCHED.get(node.op_type, ()):
            yield f"{name} of {node.name}", partial(switch, node=node, name=name)


@damage("rows of a sliced table wrong")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random, axis: int) -> np.ndarray:
        rows = np.moveaxis(array, axis, 0)
        start = random.randrange(len(rows) - 1)
        rows[start:] = np.roll(rows[start:], 1, axis=0)
        return array

    for node in model.graph:
        value = node.inputs[0] if node.op_type == "Slice" else None
        axes = own_constant(node, 3) if len(node.inputs) > 3 else None
        if (
            value is not None
            and value.is_initializer()
            and axes is not None
            and graph.array_of(value).dtype.kind == "f"
        ):
            yield f"table of {node.name}", partial(change, value, partial(new, axis=int(axes.flat[0])))


@damage("rows of a rotary table wrong")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random) -> np.ndarray:
        start = random.randrange(len(array) - 1)
        array[start:] = np.roll(array[start:], 1, axis=0)
        return array

    for node in model.graph:
        for value in node.inputs[1:] if node.op_type == "RotaryEmbedding" else ():
            if value is not None and value.is_initializer() and graph.array_of(value).dtype.kind == "f":
                yield f"{value.name} of {node.name}", partial(change, value, new)


@damage("a whole number that is reckoned with is another")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, index: int, array: np.ndarray) -> None:
        other = random.choice((array - 1, array // 2, array + 1))
        set_own(model, node, index, np.asarray(np.maximum(other, 1), array.dtype))

    for node, index, array in own_inputs(model, RECKONED):
        if array.size == 1 and array.dtype.kind == "i":
            yield f"input {index} of {node.name}", partial(set_to, node=node, index=index, array=array)


@damage("a case of a distinction is another")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    yield from other_numbers(model, {"Where": (1, 2)}, (0.5, 0.9, -1.0), 0.1)


@damage("a leaf of a tree is another")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, node: ir.Node, name: str) -> None:
        numbers = list(node.attributes[name].as_floats())
        numbers[random.randrange(len(numbers))] += 1
        node.attributes[name] = ir.AttrFloat32s(name, numbers)

    for node in model.graph:
        for name in ("target_weights", "class_weights", "nodes_values"):
            if name in node.attributes:
                yield f"{name} of {node.name}", partial(set_to, node=node, name=name)


# Beside the nodes: functions, versions, and what stands behind the last operator --------------------------------------


@damage("a function with the name of an operator does more")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def call(random: Random, node: ir.Node) -> None:
        most = random.choice((1.0, 3.0, 6.0))
        text = (
            '<domain: "own", opset_import: ["" : 18]> '
            f"{node.op_type} (x) => (y) {{ r = {node.op_type}(x) c = Constant<value_float = {most}>() y = Min(r, c) }}"
        )
        made = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        model.functions[made.identifier()] = made
        model.opset_imports["own"] = 1
        node.domain = "own"

    for node in model.graph:
        plain = node.op_type in ("Relu", "HardSwish", "Gelu", "Tanh") and not node.attributes and not node.domain
        if plain and node.outputs[0].dtype in (None, ir.DataType.FLOAT):
            yield f"{node.op_type} {node.name}", partial(call, node=node)


@damage("another version of the operators")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def set_to(random: Random, version: int) -> None:
        model.opset_imports[""] = version

    for version in (model.opset_imports.get("", 18) - 1, model.opset_imports.get("", 18) + 1):
        yield f"version {version}", partial(set_to, version=version)


@damage("an axis of one is lost behind the last operator")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def squeeze(random: Random, number: int) -> None:
        output = model.graph.outputs[number]
        node = ir.node("Squeeze", [output], name="damaged.squeeze")
        lost = node.outputs[0]
        lost.type, lost.shape, lost.name = output.type, output.shape, output.name
        output.name = f"{output.name}.whole"
        model.graph.append(node)
        model.graph.outputs[number] = lost

    for number, output in enumerate(model.graph.outputs):
        if output.producer() is not None and isinstance(output.type, ir.TensorType):
            yield f"output {output.name}", partial(squeeze, number=number)


@damage("one number of a weight is zero")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    def new(array: np.ndarray, random: Random) -> np.ndarray:
        order = np.argsort(np.abs(array.astype(np.float64)), None)
        array.flat[order[-1 - random.randrange(max(1, array.size // 4))]] = 0
        return array

    for member, value in members(case, model, "produces", "consumes"):
        yield place(member), partial(change, value, new)


def own_inputs(model: ir.Model, table: Mapping[str, Iterable[int]]) -> Iterator[tuple[ir.Node, int, np.ndarray]]:
    """(node, input, array) of the constants at the inputs in `table`, by operator, those in bodies included."""
    for node in bodies.all_nodes(model.graph):
        for index in table.get(node.op_type, ()):
            array = own_constant(node, index)
            if array is not None:
                yield node, index, array


def of_wrong_channels(model: ir.Model, table: Mapping[str, Iterable[int]], *, varying: bool) -> Iterator[Place]:
    """Places at the inputs in `table`: moved on by a channel, or another one's; varying: only where that differs."""

    def set_to(random: Random, node: ir.Node, index: int, array: np.ndarray, others: list[np.ndarray]) -> None:
        set_own(model, node, index, np.roll(array, 1) if array.size > 1 else random.choice(others))

    found = list(own_inputs(model, table))
    for node, index, array in found:
        others = [
            a for _, _, a in found if a.shape == array.shape and a.dtype == array.dtype and not np.array_equal(a, array)
        ]
        if (not varying or len(np.unique(array)) > 1) if array.size > 1 else others:
            yield f"input {index} of {node.name}", partial(set_to, node=node, index=index, array=array, others=others)


@damage("a scale of the wrong channel")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    yield from of_wrong_channels(model, SCALES, varying=False)


@damage("a zero point of the wrong channel")
def _(case: Case, model: ir.Model) -> Iterator[Place]:
    yield from of_wrong_channels(model, POINTS, varying=True)
