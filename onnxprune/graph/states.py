"""States in the interface: inputs that a model hands back as outputs, and the gates through which they are cut.

A streaming model takes the state of an LSTM, a cache of frames or of keys and values, and gives the next one. The
interface has to stay, so the normal form puts a gate on every axis of a state that could shrink:

    inside  = Where(kept, input, 0)        output = Where(kept, inside, 0)

with one boolean per position, all true. A position that is removed becomes false in both: the state is read and given
as zeros there, which is what a masked model computes. Cutting turns gates into Gathers, finishing drops the others.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.graph import extras
from onnxprune.graph.tensors import add_constant, constant

GATE = re.compile(r"^(?P<name>.+)\.state_(?P<side>in|out)\.(?P<axis>\d+)$", re.DOTALL)
WHERE_OPSET = 9
FILLING = re.compile(r"\.state_out\.\d+\.cut\.(Pad|Gather)$")  # what cutting the gate of an output leaves
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
# Operators with states of their own -> {output: the input that it goes on from}.
STATES: dict[tuple[str, str], dict[int, int]] = {
    ("", "LSTM"): {1: 5, 2: 6},
    ("", "GRU"): {1: 5},
    ("", "RNN"): {1: 5},
    ("", "Attention"): {1: 4, 2: 5},
    ("com.microsoft", "Attention"): {1: 4},
    ("com.microsoft", "DynamicQuantizeLSTM"): {1: 5, 2: 6},
    ("com.microsoft", "GroupQueryAttention"): {1: 3, 2: 4},
    ("com.microsoft", "MultiHeadAttention"): {1: 6, 2: 7},
    ("com.microsoft", "QAttention"): {1: 8},
}
# Operators that move numbers: a cache is what was appended to it, or a part of that.
MOVING = frozenset(
    "Identity Transpose Reshape Squeeze Unsqueeze Flatten Slice Split Concat Gather Expand Pad ScatterND".split()
)


@dataclass(frozen=True)
class State:
    """An input and the output that is handed back as it, and why these belong together."""

    input: ir.Value
    output: ir.Value
    why: str


def find(model: ir.Model) -> list[State]:
    """The states of `model`: pairs that the graph shows, then those that names or gates show. Each value is in one."""
    given = [v for v in model.graph.inputs if v.name not in model.graph.initializers and v.shape is not None]
    outputs = list(model.graph.outputs)
    asked = [v for v in outputs if v.shape is not None and v.producer() is not None and outputs.count(v) == 1]
    found: dict[ir.Value, State] = {}
    taken: set[ir.Value] = set()
    for pairs in (
        _by_flow(given, asked),
        _by_name(given, asked),
        _by_gates(given, asked),
        _beside(given, asked, taken),
    ):
        for pair in pairs:
            if pair.output not in found and pair.input not in taken:
                found[pair.output] = pair
                taken.add(pair.input)
    return [found[value] for value in asked if value in found]


def _by_flow(given: list[ir.Value], asked: list[ir.Value]) -> Iterator[State]:
    """Outputs that one input alone flows into: as the state of an operator, or by being moved."""
    for output in asked:
        sources = [(value, why) for value, why in _sources(output) if value in given and _alike(value, output)]
        named = [entry for entry in sources if stem(entry[0].name) == stem(output.name)]
        for candidates in (sources, named):
            if len(candidates) == 1:
                yield State(candidates[0][0], output, candidates[0][1])


def of_operator(node: ir.Node) -> dict[int, int]:
    """Outputs of `node` that are states of its own -> the inputs that these go on from."""
    return STATES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type), {})


def _sources(value: ir.Value) -> list[tuple[ir.Value, str]]:
    """(graph input, how it comes to be `value`) for those that reach it without arithmetic."""
    found: dict[ir.Value, str] = {}
    waiting, seen = [(value, "")], {value}
    while waiting:
        value, why = waiting.pop()
        node = value.producer()
        if node is None:
            if why and value.is_graph_input():
                found.setdefault(value, why)
            continue
        for source, reason in _behind(node, value):
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append((source, why or reason))
    return list(found.items())


def _behind(node: ir.Node, value: ir.Value) -> list[tuple[ir.Value | None, str]]:
    """The inputs of `node` that `value` goes on from, and what that is called."""
    index = of_operator(node).get(value.index() or 0)
    if index is not None and index < len(node.inputs):
        return [(node.inputs[index], f"{node.op_type} '{node.name}' goes on from it")]
    if node.domain not in ("", "ai.onnx") or node.op_type not in MOVING:
        return []
    kept = f"{node.op_type} '{node.name}' keeps a part of it" if node.op_type in ("Slice", "Concat") else ""
    if node.op_type == "ScatterND":
        return [(node.inputs[0], "it is written into"), (node.inputs[2], "")]
    return [(source, kept) for source in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]


def _by_name(given: list[ir.Value], asked: list[ir.Value]) -> Iterator[State]:
    """Outputs whose names go with that of one input: h and h_out, past_0 and present_0, r1i and r1o.

    Neither is the first: a model that filters takes 'audio_in' and gives 'audio_out', which is no state.
    """
    for output in asked[1:]:
        words = stem(output.name)
        alike = [v for v in given[1:] if stem(v.name) == words and _alike(v, output)]
        if words and len(alike) == 1:
            yield State(alike[0], output, f"its name goes with that of the input '{alike[0].name}'")


def _by_gates(given: list[ir.Value], asked: list[ir.Value]) -> Iterator[State]:
    """Outputs that an input goes on in through gates, as z h + (1 - z) n of a GRU that is written out.

    Neither is the first: a model that masks or mends what it is given is none with states.
    """
    for output in asked[1:]:
        held = [value for value in _kept_by_gates(output) if value in given[1:] and _alike(value, output)]
        if len(held) == 1:
            yield State(held[0], output, "gates keep a part of it, and more is added")


def _beside(given: list[ir.Value], asked: list[ir.Value], taken: Collection[ir.Value]) -> Iterator[State]:
    """Outputs that are a gated tanh of a state already `taken`, as o tanh(c) of an LSTM, and the one input that is
    left over and looks like them."""
    for output in asked[1:]:
        if any(value in taken for value in _kept_by_gates(output, ("Tanh",))):
            left = [value for value in given[1:] if value not in taken and _alike(value, output)]
            if len(left) == 1:
                yield State(left[0], output, "a gate reads it out of another state")


def _kept_by_gates(value: ir.Value, through: Collection[str] = ()) -> list[ir.Value]:
    """The graph inputs of which a part, multiplied by a gate, is a term of `value`; through: operators passed by."""
    found: list[ir.Value] = []
    waiting = [(value, False, False)]
    seen = set(waiting)
    while waiting:
        value, added, gated = waiting.pop()
        node = value.producer()
        if node is None:
            if added and gated and value.is_graph_input():
                found.append(value)
            continue
        for source, more, gate in _terms(node, value, through):
            after = (source, added or more, gated or gate)
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return list(dict.fromkeys(found))


def _terms(node: ir.Node, value: ir.Value, through: Collection[str]) -> Iterator[tuple[ir.Value, bool, bool]]:
    """(input that `value` is made of position by position, whether something is added to it, whether it is gated)."""
    read = [source for source in node.inputs if source is not None]
    if node.domain not in ("", "ai.onnx"):
        return
    if node.op_type in ("Add", "Sub", "Sum"):
        yield from ((source, True, False) for source in read)
    elif node.op_type == "Mul":
        yield from ((source, False, True) for source, other in (read, read[::-1]) if _is_gate(other))
    elif node.op_type in through or node.op_type == "Cast":
        yield read[0], False, False
    else:
        yield from ((source, False, False) for source, _ in _behind(node, value) if source is not None)


def _is_gate(value: ir.Value) -> bool:
    """Whether `value` comes out of a sigmoid, or is one less such."""
    node = value.producer()
    if node is None or node.op_type in ("Sigmoid", "HardSigmoid"):
        return node is not None
    if node.op_type in ("Sub", "Split", "Slice", "Cast", *MOVING - {"Concat", "ScatterND"}):
        source = node.inputs[1 if node.op_type == "Sub" else 0]
        return source is not None and _is_gate(source)
    return False


def stem(name: str | None) -> str:
    """The name of a state without what tells before from after, and without the marks between its words."""
    words = re.sub("(past|present)(_key_values)?|prev(ious)?|next|updated", "", (name or "").lower())
    words = re.sub(r"(?<=[^a-z])(input|output|in|out|new)(?=[^a-z]|$)|^(input|output|in|out|new)(?=[^a-z])", "", words)
    return re.sub(r"(?<=.)(input|output|in|out|new|i|o|n)$", "", re.sub(r"[^a-z0-9]", "", words))


def _alike(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values have the same type, and sizes that agree wherever both are known."""
    if a.dtype != b.dtype or a.shape is None or b.shape is None or len(a.shape) != len(b.shape) or len(a.shape) < 2:
        return False
    sizes = zip(a.shape, b.shape, strict=True)
    return all(x == y for x, y in sizes if isinstance(x, int) and isinstance(y, int))


# Gates ------------------------------------------------------------------------------------------------------------


def side(node: ir.Node) -> str | None:
    """'in' or 'out' for a gate of a state, None for any other node."""
    found = GATE.match(node.name or "") if node.op_type == "Where" else None
    return found["side"] if found is not None else None


def axis_of(node: ir.Node) -> int:
    """The axis that a gate is about."""
    found = GATE.match(node.name or "")
    assert found is not None, node.name
    return int(found["axis"])


def flags_of_input(model: ir.Model, node: ir.Node) -> ir.Value | None:
    """The flags of the gate of the input that the output with the gate `node` is handed back as; None for logits."""
    found = GATE.match(node.name or "")
    assert found is not None, node.name
    given = next((given for given, output, _ in extras.of(model).states if output == found["name"]), None)
    return model.graph.initializers.get(f"{given}.state_in.{found['axis']}.kept")


def fills(node: ir.Node) -> bool:
    """Whether `node` only puts the numbers of removed positions beside those of an output."""
    return FILLING.search(node.name or "") is not None


def fill_of(node: ir.Node) -> float:
    """The number that a gate puts at removed positions."""
    number = constant(node.inputs[2])
    assert number is not None, node.name
    return float(number)


def is_logits(node: ir.Node) -> bool:
    """Whether `node` is the gate of logits rather than of a state."""
    return side(node) == "out" and fill_of(node) != 0


def masks(model: ir.Model) -> set[str]:
    """Names of the initializers that gates read: they are no weights, and stand in no written file."""
    return {value.name or "" for node in model.graph if side(node) for value in node.inputs if value.is_initializer()}  # type: ignore[union-attr]


def put_gates(model: ir.Model) -> None:
    """Puts gates on the axes of states that could shrink, in place; those that were there are made anew."""
    drop_gates(model)
    found = find(model)
    told = tuple((state.input.name or "", state.output.name or "", state.why) for state in found)
    extras.put(model, replace(extras.of(model), states=told))
    for state in found if model.opset_imports.get("", 1) >= WHERE_OPSET else ():
        name = state.output.name or ""
        for axis in _cuttable(state):
            shape = state.input.shape
            assert shape is not None, name
            size = shape[axis]
            assert isinstance(size, int), name
            _gate_input(model.graph, state.input, axis, size, len(shape))
            gate_output(model.graph, name, axis, size=size, rank=len(shape))


def drop_gates(model: ir.Model) -> None:
    """Takes all gates out of `model`, in place: what they let through passes by them."""
    for node in [node for node in model.graph if side(node)]:
        source, gated = node.inputs[1], node.outputs[0]
        assert source is not None, node.name
        if gated.is_graph_output():
            become_output(model.graph, gated, source)
        else:
            gated.replace_all_uses_with(source)
        constants = [value for value in (node.inputs[0], node.inputs[2]) if value is not None]
        model.graph.remove(node, safe=True)
        for value in constants:
            if not value.uses():
                model.graph.initializers.pop(value.name or "", None)


def _cuttable(state: State) -> list[int]:
    """Axes of which the size is written on both sides."""
    assert state.input.shape is not None
    assert state.output.shape is not None
    if state.input.dtype not in FLOATS or any(n.graph is not state.input.graph for n, _ in state.input.uses()):
        return []
    sizes = enumerate(zip(state.input.shape, state.output.shape, strict=True))
    return [k for k, (a, b) in sizes if isinstance(a, int) and a == b and a > 1]


def _gate(graph: ir.Graph, value: ir.Value, name: str, axis: int, size: int, rank: int, fill: float = 0.0) -> ir.Node:
    """Where(kept, value, fill), of the type and shape of `value`."""
    assert value.dtype is not None, value.name
    flags = np.ones([size if k == axis else 1 for k in range(rank)], bool)
    inputs = [add_constant(graph, f"{name}.kept", flags), value]
    inputs.append(add_constant(graph, f"{name}.fill", np.array(fill, value.dtype.numpy())))
    node = ir.Node("", "Where", inputs, name=name)
    node.outputs[0].name, node.outputs[0].type = f"{name}.gated", value.type
    node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    return node


def _gate_input(graph: ir.Graph, value: ir.Value, axis: int, size: int, rank: int) -> None:
    """Gates follow one another behind the input: the next one stands in front of the others."""
    uses = list(value.uses())
    node = _gate(graph, value, _free(graph, value.name or "", f".state_in.{axis}"), axis, size, rank)
    for user, index in uses:
        user.replace_input_with(index, node.outputs[0])
    graph.insert_before(_first(graph, [user for user, _ in uses]), node) if uses else graph.append(node)


def _free(graph: ir.Graph, name: str, ending: str) -> str:
    """`name` and `ending` as the name of a gate.

    What an earlier cut of this model left under names that begin so gets a mark in front of the ending: names of values
    have to differ, and plans know a gate by its name.
    """
    called, mark = f"{name}{ending}", "'"
    values = [*(value for node in graph for value in node.outputs), *graph.initializers.values()]
    named = [*graph, *(value for value in values if not value.is_graph_output())]
    while any((each.name or "").startswith(f"{name}{mark}{ending}.") for each in named):
        mark += "'"
    for each in named:
        if (each.name or "").startswith(f"{called}."):
            each.name = f"{name}{mark}{ending}{(each.name or '')[len(called) :]}"
    return called


def _first(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Node:
    wanted = set(nodes)
    return next(node for node in graph if node in wanted)


def gate_output(graph: ir.Graph, name: str, axis: int, *, size: int, rank: int, fill: float = 0.0) -> ir.Node:
    """Puts a gate in front of the output `name`, which keeps its name; what it was inside goes on under another one.

    fill: what removed positions are filled up with, see vocabulary.py, where that is no zero.
    """
    place = next(k for k, value in enumerate(graph.outputs) if value.name == name)
    value = graph.outputs[place]
    called = _free(graph, name, f".state_out.{axis}")
    node = _gate(graph, value, called, axis, size, rank, fill)
    value.name = f"{called}.inside"
    node.outputs[0].name = name
    graph.outputs[place] = node.outputs[0]
    graph.append(node)
    return node


def become_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """`new` becomes the graph output that `old` was, under its name."""
    place = list(graph.outputs).index(old)
    name, old.name = old.name, f"{old.name}.replaced"
    graph.outputs[place] = new
    new.name, new.type, new.shape = name, old.type, old.shape
