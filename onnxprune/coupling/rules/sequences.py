"""Sequences of tensors: coupled where it is known which element each tensor is, for these are only tensors passed on.

What a sequence holds is kept in the analysis by element. Any other operator that reads a sequence, a body that carries
one, or a graph output, freezes all that is in it.
"""

from onnxprune.coupling.dims import Axis, is_dynamic, length, resolve
from onnxprune.coupling.node import Axes, NodeAxes, OpaqueError
from onnxprune.coupling.registry import coupling_rule
from onnxprune.errors import CouplingError


@coupling_rule("SequenceConstruct")
def SequenceConstruct(n: NodeAxes) -> None:
    n.give_elements([list(n.x(index)) for index in n.given()])


@coupling_rule("SequenceEmpty")
def SequenceEmpty(n: NodeAxes) -> None:
    n.give_elements([])


@coupling_rule("SequenceInsert")
def SequenceInsert(n: NodeAxes) -> None:
    """The sequence with a tensor more, in front of `position`, else at the end."""
    elements = n.elements(0)
    at = _position(n, 2, len(elements) + 1) if n.has(2) else len(elements)
    n.give_elements([*elements[:at], list(n.x(1)), *elements[at:]])


@coupling_rule("SequenceErase")
def SequenceErase(n: NodeAxes) -> None:
    elements = n.elements(0)
    at = _position(n, 1, len(elements)) if n.has(1) else len(elements) - 1
    n.give_elements([*elements[:at], *elements[at + 1 :]])


@coupling_rule("SequenceLength")
def SequenceLength(n: NodeAxes) -> None:
    n.elements(0)
    n.give([])


@coupling_rule("SequenceAt")
def SequenceAt(n: NodeAxes) -> None:
    """One element; where it is known only when the model runs, all elements are alike."""
    elements = n.elements(0)
    if n.numbers(1) is None:
        n.give(_alike(n, elements))
    else:
        n.give([resolve(axis) for axis in elements[_position(n, 1, len(elements))]])


@coupling_rule("SplitToSequence")
def SplitToSequence(n: NodeAxes) -> None:
    """Parts of x along `axis`, of the lengths in a vector `split`; of equal ones for a number, of one without it."""
    x = n.x(0)
    axis = n.attribute("axis", 0) % len(x)
    size, split = length(x[axis]), n.numbers(1)
    if is_dynamic(x[axis]) or (n.has(1) and split is None):
        raise OpaqueError("how many elements there are depends on the input")
    if split is None or split.ndim == 0:
        n.freeze(x[axis], "split into parts of one length")
        step = 1 if split is None else int(split)
        bounds = [*range(0, size, step), size]
    else:
        bounds = [0]
        for part in split.tolist():
            bounds.append(bounds[-1] + part)
    parts = n.cuts(x[axis], bounds)
    if split is not None and split.ndim == 1:
        n.length_input(1, dict(enumerate(parts)))
    if split is None and not n.attribute("keepdims", 1):
        n.give_elements([[*x[:axis], *x[axis + 1 :]] for _ in parts])
    else:
        n.give_elements([[part if k == axis else a for k, a in enumerate(x)] for part in parts])


@coupling_rule("ConcatFromSequence")
def ConcatFromSequence(n: NodeAxes) -> None:
    """A sum on `axis`, the others alike; with `new_axis` the elements are stacked, and alike on all axes."""
    elements = n.elements(0)
    if n.attribute("new_axis", 0):
        alike = _alike(n, elements)
        at = int(n.attribute("axis")) % (len(alike) + 1)
        stacked = n.fixed(len(elements), "elements of a sequence")
        n.give([*alike[:at], stacked, *alike[at:]])
        return
    at = int(n.attribute("axis")) % len(elements[0])
    alike = _alike(n, elements, apart=at)
    joined = tuple(segment for element in elements for segment in resolve(element[at]))
    n.give([joined if k == at else axis for k, axis in enumerate(alike)])


def _position(n: NodeAxes, index: int, count: int) -> int:
    """The position that input `index` names among `count`, where it is the same in every run."""
    number = n.numbers(index)
    if number is None:
        raise OpaqueError("which element it is depends on the input")
    at = int(number.reshape(-1)[0])
    if not -count <= at < count:
        raise CouplingError(f"element {at} of a sequence of {count}")
    return at % count


def _alike(n: NodeAxes, elements: list[Axes], apart: int | None = None) -> Axes:
    """The axes of all elements, made one; but for axis `apart`."""
    first = elements[0]
    for other in elements[1:]:
        for k, (a, b) in enumerate(zip(first, other, strict=True)):
            if k != apart:
                n.unify(a, b)
    found: list[Axis] = [resolve(axis) for axis in first]
    return found
