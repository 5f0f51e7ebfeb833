"""Shapes of values inside bodies of If, Loop and Scan, observed as the model runs.

Outside of a body only its outputs are seen. So each body gets further outputs: a *record* of every value, which is
a tensor of a fixed size (2, WIDTH) with the largest and the smallest of what was seen. A branch that is not taken gives
records of nothing; those of a Loop or Scan are joined over its steps. What differs between steps is not known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

WIDTH = 16  # numbers of a record: more than any tensor has axes, and enough for shapes and indices that are computed
NEVER, LARGE = -(1 << 40), 1 << 40  # the largest and the smallest of nothing
FILL = -1
SIZES, NUMBERS = "@body.sizes", "@body.numbers"  # behind the name of a value: the two outputs that tell of it
FIRST_OPSET = 11
INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))  # TensorProto.DataType
NOT_TENSORS = frozenset(
    "SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SplitToSequence Optional ZipMap SequenceMap".split()
)


@dataclass(frozen=True)
class Seen:
    """The observed sizes and contents of values inside bodies; bodies that did not run are left out."""

    sizes: dict[str, tuple[int, ...]]
    moving: dict[str, tuple[bool, ...]]  # which sizes differ from step to step
    contents: dict[str, np.ndarray]  # integers that are the same in every step


def bodies_of(node: NodeProto) -> list[GraphProto]:
    """The bodies of `node`."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def record(graph: GraphProto, opset: int, kinds: Mapping[str, onnx.TypeProto], choices: Mapping[str, bool]) -> None:
    """Adds to the outputs of `graph` records of all values inside the bodies of its nodes.

    kinds: types of values, as far as they are known. choices: Ifs, by name, that shall take that branch.
    """
    if opset < FIRST_OPSET or not any(bodies_of(node) for node in graph.node):
        return
    graph.initializer.extend(
        numpy_helper.from_array(np.array(array, np.int64), f"record.{name}") for name, array in CONSTANTS.items()
    )
    if choices:
        _choose(graph, choices)
    for made in _Recorder(opset, kinds).inside(graph):
        name = made.value + made.kind
        graph.node.append(helper.make_node("Identity", [made.name], [name]))
        graph.output.append(onnx.ValueInfoProto(name=name))


CONSTANTS: dict[str, object] = {
    "fill": [FILL] * WIDTH,
    "start": [0],
    "one": [1],
    "two": [2],
    "end": [WIDTH],
    "flat": [-1],
    "row": [1, WIDTH],
    "nothing": [[NEVER] * WIDTH, [LARGE] * WIDTH],
    "largest": [[[NEVER] * WIDTH]],
    "smallest": [[[LARGE] * WIDTH]],
}


def _choose(graph: GraphProto, choices: Mapping[str, bool]) -> None:
    for node in graph.node:
        if node.op_type == "If" and node.name in choices:
            name = f"record.choice.{node.name}"
            graph.initializer.append(numpy_helper.from_array(np.array(choices[node.name]), name))
            node.input[0] = name
        for body in bodies_of(node):
            _choose(body, choices)


@dataclass(frozen=True)
class _Made:
    """A record: the name that it has in the graph at hand, and what it tells of which value."""

    name: str
    kind: str
    value: str


class _Recorder:
    """The nodes that make records, under names of their own."""

    def __init__(self, opset: int, kinds: Mapping[str, onnx.TypeProto]) -> None:
        self.opset, self.kinds, self.count = opset, kinds, 0

    def add(self, graph: GraphProto, op_type: str, *inputs: str, **attributes: Any) -> str:
        self.count += 1
        name = f"record.{self.count}"
        graph.node.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def inside(self, graph: GraphProto) -> list[_Made]:
        """Records, as values of `graph`, of all values inside the bodies of its nodes."""
        found: list[_Made] = []
        for node in list(graph.node):
            bodies = bodies_of(node)
            made = [[*self.inside(body), *self.own(body)] for body in bodies]
            if node.op_type == "If":
                found += self.of_branches(node, bodies, made)
            elif bodies:
                found += self.of_steps(graph, node, bodies[0], made[0])
        return found

    def own(self, body: GraphProto) -> Iterator[_Made]:
        """Records of the values of `body` itself."""
        computed = [name for node in list(body.node) if node.op_type not in NOT_TENSORS for name in node.output if name]
        for value in [*(v.name for v in body.input), *computed]:
            kind = self.kinds.get(value)
            if value.startswith("record.") or (kind is not None and not kind.HasField("tensor_type")):
                continue
            yield _Made(self.padded(body, self.add(body, "Shape", value)), SIZES, value)
            if kind is not None and kind.tensor_type.elem_type in INTEGERS and _rank(kind) < 2:
                whole = self.add(body, "Cast", value, to=onnx.TensorProto.INT64)
                flat = self.add(body, "Reshape", whole, "record.flat")
                yield _Made(self.padded(body, flat), NUMBERS, value)

    def padded(self, body: GraphProto, vector: str) -> str:
        """A vector of any length as a record."""
        long = self.add(body, "Concat", vector, "record.fill", axis=0)
        cut = self.add(body, "Slice", long, "record.start", "record.end")
        row = self.add(body, "Reshape", cut, "record.row")
        return self.add(body, "Concat", row, row, axis=0)

    def of_branches(self, node: NodeProto, bodies: Sequence[GraphProto], made: Sequence[list[_Made]]) -> list[_Made]:
        """Records of both branches as outputs of an If; those of the other branch tell of nothing."""
        for body, own in zip(bodies, made, strict=True):
            for records in made:
                names = [
                    each.name if records is own else self.add(body, "Identity", "record.nothing") for each in records
                ]
                body.output.extend(_declared(names, [2, WIDTH]))
        return self.handed_on(node, [each for records in made for each in records])

    def handed_on(self, node: NodeProto, made: Sequence[_Made]) -> list[_Made]:
        found = []
        for each in made:
            self.count += 1
            found.append(_Made(f"record.{self.count}", each.kind, each.value))
            node.output.append(found[-1].name)
        return found

    def of_steps(self, graph: GraphProto, node: NodeProto, body: GraphProto, made: Sequence[_Made]) -> list[_Made]:
        """Records of a Loop or Scan: of all of its steps together."""
        body.output.extend(_declared([each.name for each in made], [2, WIDTH]))
        for attribute in node.attribute:
            if attribute.name in ("scan_output_axes", "scan_output_directions"):
                attribute.ints.extend([0] * len(made))
        return [_Made(self.joined(graph, each.name), each.kind, each.value) for each in self.handed_on(node, made)]

    def joined(self, graph: GraphProto, steps: str) -> str:
        """(T, 2, WIDTH), one record for each of T steps, as one record."""
        rows = []
        for op_type, start, end, neutral in (
            ("ReduceMax", "start", "one", "largest"),
            ("ReduceMin", "one", "two", "smallest"),
        ):
            part = self.add(graph, "Slice", steps, f"record.{start}", f"record.{end}", "record.one")
            whole = self.add(graph, "Concat", part, f"record.{neutral}", axis=0)
            if self.opset >= 18:
                rows.append(self.add(graph, op_type, whole, "record.start", keepdims=0))
            else:
                rows.append(self.add(graph, op_type, whole, axes=[0], keepdims=0))
        return self.add(graph, "Concat", *rows, axis=0)


def _declared(names: Sequence[str], shape: Sequence[int]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape) for name in names]


def _rank(kind: onnx.TypeProto) -> int:
    """The rank of a value; 0 where it is not known."""
    return len(kind.tensor_type.shape.dim) if kind.tensor_type.HasField("shape") else 0


def read(outputs: Mapping[str, np.ndarray]) -> Seen:
    """The observations that a run wrote into its extra outputs."""
    seen = Seen({}, {}, {})
    for name, array in outputs.items():
        if name.endswith(SIZES) and array[0, 0] != NEVER:
            value, rank = name.removesuffix(SIZES), int((array[0] != FILL).sum())
            if rank != int((array[1] != FILL).sum()):
                continue  # another rank in another step
            seen.sizes[value] = tuple(map(int, array[0, :rank]))
            moving = tuple(map(bool, array[0, :rank] != array[1, :rank]))
            if any(moving):
                seen.moving[value] = moving
    for name, array in outputs.items():
        value = name.removesuffix(NUMBERS)
        shape = seen.sizes.get(value)
        if not name.endswith(NUMBERS) or shape is None or value in seen.moving or len(shape) > 1:
            continue
        count = shape[0] if shape else 1
        if count <= WIDTH and np.array_equal(array[0], array[1]):
            seen.contents[value] = array[0, :count].reshape(shape)
    return seen


def unseen_branches(graph: GraphProto, sizes: Mapping[str, object]) -> Iterator[dict[str, bool]]:
    """The choices (If node -> branch) that lead into each branch that was not taken, one mapping per branch."""
    yield from _unseen(graph, sizes, {})


def _unseen(graph: GraphProto, sizes: Mapping[str, object], way: dict[str, bool]) -> Iterator[dict[str, bool]]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type != onnx.AttributeProto.GRAPH:
                continue
            further = {**way, node.name: attribute.name == "then_branch"} if node.op_type == "If" else way
            names = [name for inner in attribute.g.node for name in inner.output if name]
            if node.op_type == "If" and names and not any(name in sizes for name in names):
                yield further
            yield from _unseen(attribute.g, sizes, further)
