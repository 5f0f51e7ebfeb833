"""Bodies of If, Loop and Scan in the coupling: what stands in them is analysed where it stands.

Values of the main graph that a body reads are the same values there. What both branches of an If return couples, since
either becomes its output. A state of a Loop or Scan couples with what it starts from and with what a step makes of it.
Whatever differs from step to step, and every body that was not seen to run, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.coupling import dims
from onnxprune.coupling.dims import Axis, Reason, length
from onnxprune.coupling.node import Axes
from onnxprune.graph import bodies
from onnxprune.graph.body_shapes import NOT_TENSORS

if TYPE_CHECKING:
    from onnxprune.coupling.analyze import Analysis

GROWS = "how many tensors its sequence holds depends on its steps"
UNSEEN = "control flow; a body of it did not run at the sizes that were tried, so it is left as it is"


class UnseenBodyError(Exception):
    """A body that cannot be analysed; the text says why."""


def visit(analysis: Analysis, node: ir.Node) -> None:
    """Relates the axes of values in the bodies of `node`, and gives its outputs their axes. Raises: UnseenBodyError."""
    kind = KINDS.get(node.op_type)
    if kind is None or node.domain not in ("", "ai.onnx"):
        raise UnseenBodyError("control flow; its body is left as it is")
    for body in bodies.of(node):
        made = (value for inner in body for value in inner.outputs if value.name and not is_sequence(value))
        if any(analysis.sizes_of(value) is None for value in made):
            raise UnseenBodyError(UNSEEN)
    kind(_Bodies(analysis, node))


def is_sequence(value: ir.Value) -> bool:
    """Whether `value` is no tensor, but holds tensors."""
    node = value.producer()
    return isinstance(value.type, (ir.SequenceType, ir.OptionalType)) or (
        node is not None and node.op_type in NOT_TENSORS and node.domain in ("", "ai.onnx")
    )


# Operators of which the sizes follow from numbers: of all they read, or of their settings.
OF_ALL = frozenset("NonZero Unique Compress NonMaxSuppression ConstantOfShape Range".split())
OF_SETTINGS = frozenset("Reshape Expand Slice Pad Tile Resize Upsample Split TopK OneHot Unsqueeze Squeeze".split())


@dataclass
class Steps:
    """Values in bodies that run in steps of which the numbers, or the sizes, may differ from step to step."""

    numbers: set[ir.Value] = field(default_factory=set[ir.Value])
    sizes: set[ir.Value] = field(default_factory=set[ir.Value])

    def resizes(self, node: ir.Node) -> bool:
        """Whether `node` gives sizes that depend on numbers of the step."""
        read = node.inputs if node.op_type in OF_ALL else node.inputs[1:] if node.op_type in OF_SETTINGS else ()
        return any(value in self.numbers for value in read)

    def note(self, node: ir.Node) -> None:
        """Follows what `node` reads to what it gives."""
        read = [value for value in node.inputs if value is not None]
        bodied = bool(bodies.of(node))
        if bodied or self.resizes(node) or any(value in self.sizes for value in read):
            self.sizes.update(node.outputs)
        changing = self.sizes if node.op_type in ("Shape", "Size") else self.numbers
        if bodied or any(value in changing for value in read):
            self.numbers.update(node.outputs)


class _Bodies:
    """A node with bodies under analysis."""

    def __init__(self, analysis: Analysis, node: ir.Node) -> None:
        self.analysis, self.node = analysis, node

    def why(self, text: str) -> Reason:
        return Reason(f"{self.node.op_type}: {text}", self.node.name or "")

    def walk(self, body: ir.Graph) -> None:
        for inner in body:
            self.analysis.visit(inner)

    def step_through(self, body: ir.Graph, states: Sequence[ir.Value], made: Sequence[ir.Value]) -> None:
        """Walks through a body that runs once per step (Loop, Scan).

        Only a few steps were observed, so integers and sizes that may change between steps are not taken as constants.
        """
        steps = self.analysis.steps
        steps.numbers.update(body.inputs)
        for inner, after in zip(states, made, strict=False):
            if (
                self.analysis.sizes_of(inner) != self.analysis.sizes_of(after)
                or inner.name in self.analysis.shapes.moving
            ):
                steps.sizes.add(inner)
        for inner in body:
            if steps.resizes(inner):
                self.analysis.opaque(inner, "its sizes may differ from step to step")
            else:
                self.analysis.visit(inner)
            steps.note(inner)

    def fixed(self, value: ir.Value, position: int, text: str) -> Axis:
        sizes = self.analysis.sizes_of(value)
        if sizes is None:
            raise UnseenBodyError(f"the shape of '{value.name}' is not known")
        return dims.fixed(sizes[position], self.why(text), dynamic=True)

    def moves(self, value: ir.Value, position: int) -> bool:
        flags = self.analysis.shapes.moving.get(value.name or "")
        return bool(flags and flags[position])

    def shared(self, value: ir.Value, others: Sequence[tuple[ir.Value, Axes]], text: str) -> Axes:
        """The axes of `value`, which is one or another of `others`; where their lengths differ, all are frozen."""
        sizes = self.analysis.sizes_of(value)
        if sizes is None or any(len(axes) != len(sizes) for _, axes in others):
            raise UnseenBodyError(f"the number of axes of '{value.name}' is not known")
        found: Axes = []
        for position, size in enumerate(sizes):
            own = [axes[position] for _, axes in others]
            moving = self.moves(value, position) or any(self.moves(other, position) for other, _ in others)
            if moving or any(length(axis) != size for axis in own):
                for axis in own:
                    dims.freeze(axis, self.why(text))
                found.append(self.fixed(value, position, text))
                continue
            for axis in own[1:]:
                dims.unify(own[0], axis, self.why)
            found.append(dims.resolve(own[0]))
        return found

    def enter(self, inner: ir.Value, start: ir.Value | None) -> None:
        """Gives a state inside a body the axes of what it starts from."""
        if start is None:
            raise UnseenBodyError(f"'{inner.name}' starts from nothing")
        if is_sequence(inner) or is_sequence(start):
            self.analysis.freeze(start, self.why(GROWS))
            return
        axes = self.analysis.axes_of(start)
        self.analysis.set_axes(
            self.node, inner, self.shared(inner, [(start, axes)], "its sizes change from step to step")
        )

    def leave(self, outer: ir.Value, inner: ir.Value, made: ir.Value) -> None:
        """Couples a state of a body with its next value, which a step makes of it; the result too."""
        if is_sequence(inner) or is_sequence(made):
            self.analysis.freeze(made, self.why(GROWS))
            return
        both = [(inner, self.analysis.axes_of(inner)), (made, self.analysis.axes_of(made))]
        axes = self.shared(outer, both, "its sizes change from step to step")
        if outer.name:
            self.analysis.set_axes(self.node, outer, axes)

    def stacked(self, outer: ir.Value, made: ir.Value, position: int) -> None:
        """Gives an output that holds what each step makes of a value an axis for the steps."""
        sizes, axes = self.analysis.sizes_of(outer), list(self.analysis.axes_of(made))
        if sizes is None or len(sizes) != len(axes) + 1:
            raise UnseenBodyError(f"the number of axes of '{outer.name}' is not known")
        position %= len(sizes)
        axes.insert(position, self.fixed(outer, position, "one for each step"))
        self.analysis.set_axes(self.node, outer, axes)


def _if(b: _Bodies) -> None:
    branches = [b.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        b.walk(branch)
    for index, output in enumerate(b.node.outputs):
        if output.name:
            made = [branch.outputs[index] for branch in branches]
            if any(map(is_sequence, made)):
                for value in made:
                    b.analysis.freeze(value, b.why("what its sequence holds depends on the branch"))
                continue
            both = [(value, b.analysis.axes_of(value)) for value in made]
            b.analysis.set_axes(b.node, output, b.shared(output, both, "its branches give other sizes"))


def _loop(b: _Bodies) -> None:
    """Couples the inputs and outputs of a Loop with those of its body."""
    body, starts = b.node.attributes["body"].as_graph(), b.node.inputs[2:]
    for value in b.node.inputs[:2]:
        b.analysis.freeze(value, b.why("tells how many steps there are"))
    for value in body.inputs[:2]:
        b.analysis.axes[value] = [dims.ONE] * len(b.analysis.sizes_of(value) or ())
    states = body.inputs[2:]
    for inner, start in zip(states, starts, strict=True):
        b.enter(inner, start)
    b.step_through(body, states, body.outputs[1:])
    b.analysis.freeze(body.outputs[0], b.why("tells whether there is another step"))
    made = body.outputs[1:]
    for index, (outer, value) in enumerate(zip(b.node.outputs, made, strict=True)):
        if index < len(states):
            b.leave(outer, states[index], value)
        elif outer.name:
            b.stacked(outer, value, 0)


def _scan(b: _Bodies) -> None:
    """Couples the inputs and outputs of a Scan with those of its body."""
    body, count = b.node.attributes["body"].as_graph(), b.node.attributes["num_scan_inputs"].as_int()
    first = len(b.node.inputs) - count
    states = body.inputs[:first]
    for inner, start in zip(states, b.node.inputs[:first], strict=True):
        b.enter(inner, start)
    axes_in = b.node.attributes.get_ints("scan_input_axes", None) or [0] * count
    for inner, value, axis in zip(body.inputs[first:], b.node.inputs[first:], axes_in, strict=True):
        if value is None:
            raise UnseenBodyError(f"'{inner.name}' reads nothing")
        axes = list(b.analysis.axes_of(value))
        dims.freeze(axes.pop(axis % len(axes)), b.why("its steps run along it"))
        b.analysis.set_axes(b.node, inner, axes)
    b.step_through(body, states, body.outputs)
    scans = len(body.outputs) - first
    axes_out = b.node.attributes.get_ints("scan_output_axes", None) or [0] * scans
    for index, (outer, value) in enumerate(zip(b.node.outputs, body.outputs, strict=True)):
        if index < first:
            b.leave(outer, states[index], value)
        elif outer.name:
            b.stacked(outer, value, axes_out[index - first])


KINDS = {"If": _if, "Loop": _loop, "Scan": _scan}
