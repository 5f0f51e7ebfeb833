"""One node as its coupling rule sees it: axes of inputs, numbers of integer inputs, and the verbs of the algebra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import onnx_ir as ir

from onnxprune.coupling import dims
from onnxprune.coupling.dims import ONE, Axis, Reason, length
from onnxprune.errors import CouplingError

if TYPE_CHECKING:
    from onnxprune.coupling.analyze import Analysis

Role = Literal["produces", "consumes", "scales", "follows"]
Axes = list[Axis]
T = TypeVar("T")


class OpaqueError(Exception):
    """Raised by a rule that knows that its node keeps all it reads and gives: the reason, as users read it."""


@dataclass(frozen=True)
class Length:
    """A number that is the length of an axis: an attribute, or an entry of an integer input, of a node.

    Surgery rewrites it when the axis shrinks: all that rules need to say about repair.
    """

    node: str
    target: str | int  # attribute name, or input index
    entry: int | None  # position inside a list attribute or an input tensor; None for a scalar
    axis: Axis


@dataclass(frozen=True)
class Range:
    """Constant indices of a Gather that are a grid: surgery numbers them anew.

    They are start + arange of the `stored` factors, laid out as `factors` and reshaped to `shape`; a factor that is
    not stored repeats.
    """

    node: str
    before: Axis  # the positions in front of the first
    factors: tuple[Axis, ...]
    stored: tuple[int, ...]
    shape: tuple[Axis, ...]


class NodeAxes:
    """A node under analysis. Rules read inputs with `x`, relate axes with the verbs, and end with `give`."""

    def __init__(self, analysis: Analysis, node: ir.Node):
        self.analysis = analysis
        self.node = node
        self.name = node.name or ""
        self.op_type = node.op_type

    # Reading ----------------------------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """The opset of the node's domain."""
        return self.analysis.opset(self.node.domain)

    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def x(self, index: int = 0) -> Axes:
        """The axes of input `index`."""
        value = self.node.inputs[index]
        assert value is not None, (self.name, index)
        return self.analysis.axes_of(value)

    def elements(self, index: int) -> list[Axes]:
        """The axes of each tensor of input `index`, a sequence. Raises: OpaqueError where they are unknown."""
        value = self.node.inputs[index]
        if value is None or value not in self.analysis.elements:
            raise OpaqueError("what is in the sequence is not known")
        return self.analysis.elements[value]

    def given(self) -> list[int]:
        """Indices of the inputs that are given."""
        return [index for index in range(len(self.node.inputs)) if self.has(index)]

    def sizes(self, output: int = 0) -> tuple[int, ...] | None:
        """Sizes of an output at the probe, None when they are unknown."""
        return self.analysis.sizes_of(self.node.outputs[output])

    def numbers(self, index: int) -> np.ndarray | None:
        """The contents of an integer input that is the same in every run, else None."""
        first, second = self.probed(index), self.probed(index, again=True)
        return first if first is not None and np.array_equal(first, second) else None  # type: ignore[arg-type]

    def probed(self, index: int, *, again: bool = False) -> np.ndarray | None:
        """The contents of an integer input as it was at the first probe, or at the second, constant or not."""
        value = self.node.inputs[index] if self.has(index) else None
        if value is not None:
            self.analysis.read.add(value)
        return self.analysis.numbers_of(value, again=again)

    @overload
    def attribute(self, name: str) -> Any: ...

    @overload
    def attribute(self, name: str, default: T) -> T: ...

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of attribute `name`; lists come as tuples."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    # Relating ---------------------------------------------------------------------------------------------------

    def why(self, text: str) -> Reason:
        """The reason, with the node, that reports give for what may not be removed."""
        return Reason(f"{self.op_type}: {text}", self.name)

    def unify(self, a: Axis, b: Axis) -> Axis:
        """Makes two axes one; the unified axis."""
        if length(a) != length(b):
            raise CouplingError(
                f"{self.op_type} '{self.name}': an axis of length {length(a)} meets one of length {length(b)}; "
                "check the model with onnx.checker"
            )
        dims.unify(a, b, self.why)
        return dims.resolve(a)

    def cut(self, axis: Axis, start: int, stop: int) -> Axis:
        """The sub-axis of the positions from `start` up to `stop`, which live and die apart from the rest."""
        return dims.cut(axis, start, stop, self.why)

    def cuts(self, axis: Axis, bounds: Sequence[int]) -> Axes:
        """The sub-axes between successive `bounds`; all are refined before any is read."""
        for start, stop in pairwise(bounds):
            self.cut(axis, start, stop)
        return [self.cut(axis, start, stop) for start, stop in pairwise(bounds)]

    def merge(self, axes: Sequence[Axis]) -> Axis:
        """One axis whose positions are those of `axes` in row-major order, as Reshape joins them."""
        return dims.merge(axes)

    def split(self, axis: Axis, sizes: Sequence[int]) -> Axes:
        """The axes of these sizes into which `axis` is laid out in row-major order."""
        return dims.split(axis, sizes, self.why)

    def reshape(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axes:
        """The axes of a tensor of `sizes` that holds the same numbers in the same order as one with `axes`."""
        return dims.reshape(axes, sizes, self.why)

    def freeze(self, axis: Axis, text: str) -> None:
        """Keeps all positions of `axis`; reports say why."""
        dims.freeze(axis, self.why(text))

    def reduce(self, axis: Axis, text: str) -> None:
        """Marks `axis` as summarized over here; the masked twin then computes this node over kept positions."""
        dims.reduce(axis, self.why(text))
        self.analysis.local.add(self.name)

    def pick(self, axis: Axis, count: int, text: str) -> None:
        """Marks `axis` as one of which `count` positions are picked here, by numbers that removed ones take no part in:
        the masked twin picks among the kept ones."""
        dims.pick(axis, count, self.why(text))
        self.reduce(axis, text)

    def fixed(self, size: int, text: str, *, dynamic: bool = False) -> Axis:
        """A new axis that has to stay whole; dynamic: its size differs from run to run."""
        return dims.fixed(size, self.why(text), dynamic=dynamic)

    def fresh(self, size: int, suffix: str = "") -> Axis:
        """A new axis that may lose positions, and belongs to nothing else yet."""
        return dims.fresh(size, f"{self.name}{suffix}")

    def broadcast(self, *operands: Axes) -> Axes:
        """Axes of the result of numpy broadcasting; axes of length 1 couple with nothing."""
        result: Axes = []
        for position in range(1, max(map(len, operands)) + 1):
            present = [axes[-position] for axes in operands if len(axes) >= position]
            long = [axis for axis in present if length(axis) != 1]
            for axis in long[1:]:
                self.unify(long[0], axis)
            result.insert(0, dims.resolve(long[0]) if long else ONE)
        return result

    # Telling ----------------------------------------------------------------------------------------------------

    def give(self, *outputs: Axes) -> None:
        """Sets the axes of the outputs, in order; superfluous ones are ignored."""
        for value, axes in zip(self.node.outputs, outputs, strict=False):
            if value.name:
                self.analysis.set_axes(self.node, value, axes)

    def give_elements(self, elements: list[Axes]) -> None:
        """Sets what is in the sequence that the node gives: the axes of each tensor."""
        self.analysis.elements[self.node.outputs[0]] = elements

    def fixed_output(self, output: int, position: int, text: str) -> Axis:
        """A frozen axis for `position` of an output, of its observed size."""
        value = self.node.outputs[output]
        sizes = self.sizes(output)
        assert sizes is not None, (self.name, "sizes unknown")
        return self.fixed(sizes[position], text, dynamic=self.analysis.changes(value, position))

    def fixed_outputs(self, text: str) -> None:
        """Every output frozen whole."""
        outputs: list[list[Axis]] = []
        for index, value in enumerate(self.node.outputs):
            sizes = self.analysis.sizes_of(value)
            outputs.append([self.fixed_output(index, k, text) for k in range(len(sizes or ()))])
        self.give(*outputs)

    def opaque(self, text: str) -> None:
        """Freezes everything that the node touches."""
        for index in self.given():
            for axis in self.x(index):
                self.freeze(axis, text)
        self.fixed_outputs(text)

    def roles(self, index: int, roles: Mapping[int, Role]) -> None:
        """Says what input `index`, if it is an initializer, does on the axes in `roles`."""
        for position, role in roles.items():
            self.analysis.roles[(self.name, index, position)] = role

    def length_attribute(self, name: str, axis: Axis, entry: int | None = None) -> None:
        """Attribute `name`, or an entry of it, is the length of `axis`: surgery sets it when that shrinks."""
        self.analysis.lengths.append(Length(self.name, name, entry, axis))

    def length_input(self, index: int, axes: Mapping[int, Axis]) -> None:
        """Entries of the integer input `index` are the lengths of `axes`: surgery sets them when these shrink."""
        for entry, axis in axes.items():
            self.analysis.lengths.append(Length(self.name, index, entry, axis))

    def lift(self, index: int, position: int) -> None:
        """The node reads input `index` at its full size on axis `position`: removed positions come back as zeros."""
        self.analysis.lifts.add((self.name, index, position))
