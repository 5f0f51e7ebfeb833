"""Nodes of the cut model beside those of its twin: which belong together, what they read, and what was left out.

Simplifying merges, folds and renames nodes, so names alone do not tell.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxprune.graph import bodies, states
from onnxprune.graph.tensors import constant
from onnxprune.proof.decisions import first_output

COMMUTING = frozenset("Add Mul Max Min Sum Mean And Or Xor Equal BitwiseAnd BitwiseOr BitwiseXor".split())
# Operators of which no rewriting rids a cut model: some numbers show each of them, but maybe none that was tried. The
# gates of states, which cutting takes away, are none of them.
BENDING = frozenset(
    "Abs Neg Sign Floor Ceil Round Clip Min Max Where Mod Not Exp Log Sqrt Pow Reciprocal Sin Cos Relu LeakyRelu PRelu "
    "ThresholdedRelu Elu Selu Celu Gelu Sigmoid HardSigmoid HardSwish Swish Mish Softplus Softsign Tanh Erf Shrink "
    "Softmax LogSoftmax".split()
)

# Nodes that masking adds, which gather kept positions and spread them again (surgery/repair.py): no cut model has them.
ADDED = re.compile(r"\.(kept|spread|zeros)\b")


@dataclass(frozen=True)
class Pair:
    """A node in both models; alike: it reads the same values in both."""

    own: ir.Node
    twin: ir.Node
    alike: bool
    crossed: bool  # it reads another value, and both models have both

    @property
    def op_type(self) -> str:
        return self.twin.op_type


@dataclass(frozen=True)
class Paired:
    """The nodes of both models; gone: of the twin's those in whose place there is nothing, or another operator."""

    pairs: list[Pair]
    gone: list[ir.Node]


def nodes(cut: ir.Model, masked: ir.Model) -> Paired:
    """The nodes that stand in both models: of the same operator and output, else of those that read the same."""
    ours, theirs = (list(bodies.all_nodes(model.graph)) for model in (cut, masked))
    found = list(_of_one_name(ours, theirs))
    taken = {node for pair in found for node in pair}
    renamed: dict[str | None, str | None] = {}
    found += _of_one_place([n for n in ours if n not in taken], [n for n in theirs if n not in taken], renamed)
    taken = {node for pair in found for node in pair}
    known, there = ({renamed.get(name, name) for name in _computed(model)} for model in (cut, masked))
    bending = [n for n in theirs if n not in taken and n.op_type in BENDING and states.side(n) is None]
    lone = {value.name: node for node in bending for value in node.outputs}
    # A name that both models give to what different operators make.
    gone = {lone[name]: None for node in ours if node not in taken for name in _names(node.outputs) if name in lone}
    pairs: list[Pair] = []
    for own, twin in found:
        a, b = _read(own, renamed), _read(twin)
        even = len(a) == len(b)
        pairs.append(Pair(own, twin, a == b, even and _crossed(a, b, known, there, twin.op_type in COMMUTING)))
        gone |= {node: None for x, y in (_others(a, b, True) if even else ()) if (node := _skipped(x, y, lone))}
    for value in masked.graph.outputs:
        gone |= {node: None for node in [_skipped(renamed.get(value.name), value.name, lone)] if node}
    return Paired(pairs, list(gone))


def _skipped(ours: str | None, theirs: str | None, lone: Mapping[str | None, ir.Node]) -> ir.Node | None:
    """The node that gives what the twin reads and reads what the cut model has in its place."""
    node = lone.get(theirs)
    return node if node is not None and ours in _names(node.inputs) else None


def _names(values: Sequence[ir.Value | None]) -> list[str]:
    return [value.name for value in values if value is not None and value.name]


def _others(ours: list[str | None], theirs: list[str | None], commuting: bool) -> list[tuple[str | None, str | None]]:
    """The values that a node reads in one model in place of those in the other."""
    if commuting:
        ours, theirs = (list((Counter(a) - Counter(b)).elements()) for a, b in ((ours, theirs), (theirs, ours)))
    return [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]


def _crossed(
    ours: list[str | None],
    theirs: list[str | None],
    known: Collection[str | None],
    there: Collection[str | None],
    commuting: bool,
) -> bool:
    """Whether a node reads something else, and no rewriting took away what it should read: both models have all."""
    others = _others(ours, theirs, commuting)
    return bool(others) and all(a in there and b in known for a, b in others)


def _of_one_name(ours: Sequence[ir.Node], theirs: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Nodes by operator and output; in their order, for branches may use a name twice."""
    groups: dict[object, tuple[list[ir.Node], list[ir.Node]]] = {}
    for side, nodes in enumerate((ours, theirs)):
        for node in filter(first_output, nodes):
            groups.setdefault((node.op_type, first_output(node)), ([], []))[side].append(node)
    for left, right in groups.values():
        if len(left) == len(right):
            yield from zip(left, right, strict=True)


def _of_one_place(
    ours: Sequence[ir.Node], theirs: Sequence[ir.Node], renamed: dict[str | None, str | None]
) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Nodes by operator and what they read; their values are added to `renamed`, from our name to that of the twin."""
    waiting: dict[object, list[ir.Node]] = {}
    for node in theirs:
        if ADDED.search(node.name or ""):
            continue
        waiting.setdefault((node.op_type, *_read(node)), []).append(node)
    for own in ours:
        if others := waiting.get((own.op_type, *_read(own, renamed))):
            twin = others.pop(0)
            renamed |= {a.name: b.name for a, b in zip(own.outputs, twin.outputs, strict=False)}
            yield own, twin


def _computed(model: ir.Model) -> set[str | None]:
    """Names of the values that nodes give, and of the inputs."""
    given = {value.name for each in (model.graph, *bodies.all_bodies(model.graph)) for value in each.inputs}
    return given | {value.name for node in bodies.all_nodes(model.graph) for value in node.outputs}


def _read(node: ir.Node, renamed: Mapping[str | None, str | None] = MappingProxyType({})) -> list[str | None]:
    """Names of the values that are not stored which `node` reads; sorted where their order does not matter."""
    names = [value.name for value in node.inputs if value is not None and stored_array(value) is None]
    found = [renamed.get(name, name) for name in names]
    return sorted(found, key=str) if node.op_type in COMMUTING else found


def stored_array(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer, or of a node Constant."""
    if value is None or value.producer() is None:
        return constant(value)
    found = ir.convenience.get_const_tensor(value)
    return None if found is None else found.numpy()
