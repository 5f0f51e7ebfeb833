"""The kind of one float value, or of each of its parts: by what stands at its end, then by its numbers on samples."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.outputs.decisions import DEEPEST, SAME_NUMBERS, SAME_VALUES, through
from onnxprune.outputs.kinds import BOXES, CHOSEN, CLASSES, EMBEDDING, SCORES, SIGNAL, Part
from onnxprune.outputs.look import Look
from onnxprune.outputs.plain import FEWEST, no_choice, quantity, quantity_called

PLENTY = 1000  # classes of a sequence from which on nothing else than a vocabulary is likely
COORDINATES = 3  # the most numbers of a point
MAPS = frozenset({"Conv", "Resize", "Upsample", "ConvTranspose"})
LAYERS = frozenset({"Gemm", "MatMul", "Conv", "Add", "FusedMatMul", "FusedConv", "FusedGemm"})
NORMS = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "LpNormalization",
     "BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "ReduceMean", "Relu", "Tanh"}
)  # fmt: skip


def parts_of(look: Look, value: ir.Value) -> tuple[tuple[Part, ...], str]:
    """The parts of a float value, and why they are taken for that."""
    joint = _joint(look, value)
    if joint is not None:
        return joint
    part, reason = _single(look, value)
    if part.kind == SIGNAL and (split := _split_by_numbers(look, part)):
        return split, "its first rows are no numbers of 0 to 1, and all others are"
    return (part,), reason


def _joint(look: Look, value: ir.Value) -> tuple[tuple[Part, ...], str] | None:
    """Parts of a Concat of unlike parts, whatever moved them afterwards; None for other values."""
    source = through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"})
    node = source.producer()
    if node is None or node.op_type != "Concat":
        return None
    inputs = [v for v in node.inputs if v is not None]
    rank = len(look.sizes.get(source.name or "", ()))
    axis = node.attributes.get_int("axis", 0) % max(1, rank)
    widths = [look.size(v, axis) for v in inputs]
    if not all(widths):
        return None
    ends = [_end_of(look, v, axis) for v in inputs]
    if len(set(ends)) < 2:  # levels of a pyramid, one behind the other: parts stand in each of them alike
        inner = [_joint(look, v) for v in inputs]
        first = inner[0]
        if first is None or any(other is None or _layout(other[0]) != _layout(first[0]) for other in inner):
            return None
        moved = [_moved(look, part, part.along, source, value) for part in first[0]]
        return (tuple(p for p in moved if p), first[1]) if all(moved) else None
    found, start = [], 0
    for kind, width in zip(ends, widths, strict=True):
        place = _merged(found[-1], kind, start, width) if found else None
        part = Part(source.name or "", kind, axis, axis, start, start + width)
        found[-1:] = [place] if place is not None else [*found[-1:], part]
        start += width
    # Four columns of a row are no box, unless scores stand beside them.
    if len(found) < 2 or (rank < 3 and not {SCORES, CLASSES} & set(ends)):
        return None
    moved = [_moved(look, part, axis, source, value) for part in found]
    kept = tuple(p for p in moved if p)
    names = ", ".join(f"{p.stop - p.start} of {p.kind}" for p in found if p.stop is not None)
    return (kept, f"Concat '{node.name}' joins {names}") if len(kept) == len(found) else None


def _moved(look: Look, part: Part, axis: int | None, source: ir.Value, value: ir.Value) -> Part | None:
    """`part` of `source` as a part of `value`, which is made of it by Transpose, Reshape and the like."""
    at = None if axis is None else look.mapped(value, source, axis)
    if at is None:
        return None
    rows = look.rows(value.name or "")
    return replace(part, value=value.name or "", axis=at, along=at, rows=rows)


def _end_of(look: Look, value: ir.Value, axis: int) -> str:
    """The kind of an input of Concat, which has its own numbers along `axis`."""
    node = through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"}).producer()
    op = node.op_type if node is not None else ""
    if op in ("Sigmoid", "HardSigmoid"):
        return SCORES
    if op == "Softmax":
        return CLASSES
    return BOXES if look.size(value, axis) == 4 else SIGNAL


def _single(look: Look, value: ir.Value) -> tuple[Part, str]:
    """A value of one kind, and why."""
    name = value.name or ""
    source = through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"})
    node = source.producer()
    op = node.op_type if node is not None else ""
    size = tuple(look.sizes.get(name, ()))
    if node is not None and op in ("Softmax", "LogSoftmax"):
        axis = look.mapped(value, source, _softmax_axis(node, look.model, len(look.sizes.get(source.name or "", ()))))
        if axis is not None and (axis or not look.rows(name)):
            return look.choice(name, axis), f"{op} '{node.name}' ends it"
    summed = look.sums_to_one(name)
    if summed is not None:
        return look.choice(name, summed), f"its numbers sum to 1 along axis {summed} on every sample"
    rows = look.rows(name)
    if (sigmoid := _sigmoid_of(value)) is not None:
        node, op = sigmoid, sigmoid.op_type
        axis = 1 if len(size) in (2, 4) else len(size) - 1
        return Part(name, SCORES, axis if len(size) > 1 else None, rows=rows), f"{op} '{node.name}' ends it"
    if len(size) > 1 and look.has_unit_vectors(name):
        return Part(name, EMBEDDING, len(size) - 1, rows=rows), "its vectors have length 1"
    return _bare(look, value, node, rows)


def _bare(look: Look, value: ir.Value, node: ir.Node | None, rows: bool) -> tuple[Part, str]:
    """A value that no Softmax, Sigmoid or normalization ends, and that `node` makes before it is moved."""
    name, op = value.name or "", node.op_type if node is not None else ""
    size = tuple(look.sizes.get(name, ()))
    what = f"{op} '{node.name}' ends it" if node is not None else "nothing makes it"
    if len(size) > 1 and rows and size[1] != 1 and all(n == 1 for n in size[2:]):
        return _row(look, value, node, what, prod(size[1:]))
    if labels_say(look, name, 1) == SCORES and prod(size[1:]) == 1 and rows:
        return Part(name, SCORES, len(size) - 1, form="logits"), "its labels are 0 and 1"
    why = quantity(look, value)
    if why is not None and not (size[-1:] == (4,) and "box" in name.lower()):
        return Part(name, SIGNAL, rows=rows), why
    found = _at_places(look, value, node, what, size) if rows or look.batch_axes(name) else None
    if found is not None:
        why = no_choice(look, found[0]) if found[0].kind in CHOSEN else None
        return (Part(name, SIGNAL, rows=rows), why) if why is not None else found
    if len(size) > 1 and size[-1] == 4 and ("box" in name.lower() or not rows):
        return Part(name, BOXES, len(size) - 1, rows=rows), "it holds 4 numbers at each place"
    return Part(name, SIGNAL, rows=rows), f"{what}, and nothing says that it is anything else than numbers"


def _row(look: Look, value: ir.Value, node: ir.Node | None, what: str, count: int) -> tuple[Part, str]:
    """One row of `count` numbers per sample."""
    name, op = value.name or "", node.op_type if node is not None else ""
    if op in NORMS or _is_vector(name):
        return Part(name, EMBEDDING, 1), f"{what}: a vector per sample, no class scores"
    asked = labels_say(look, name, count)
    if asked == SCORES:
        return Part(name, SCORES, 1, form="logits"), "its labels say yes or no to each of its numbers"
    if asked == SIGNAL:
        return Part(name, SIGNAL), "its labels are numbers"
    if (called := quantity_called(name)) is not None:
        return Part(name, SIGNAL), called
    if node is not None and op == "Concat" and all(v is not None and look.size(v, 1) == 1 for v in node.inputs):
        return Part(name, SIGNAL), f"{what}, which joins heads of one number each"
    if _one_answer(look, name):
        return Part(name, SIGNAL), "its largest number stands at one place on every sample: it chooses nothing"
    return look.choice(name, 1), f"it is one row of {count} numbers per sample, and {what}"


def _at_places(
    look: Look, value: ir.Value, node: ir.Node | None, what: str, size: tuple[int, ...]
) -> tuple[Part, str] | None:
    """Class scores or vectors at each of several places, along the axis of the last layer's channels; else None."""
    name, op = value.name or "", node.op_type if node is not None else ""
    count, axis = look.channels(value)
    if count == 1 or len(size) not in (3, 4):
        return None  # one number at each place
    if axis is None and (len(size) == 4 or size[-1] <= COORDINATES):
        return None
    axis = len(size) - 1 if axis is None else axis
    numbers, rest = size[axis], prod(n for k, n in enumerate(size) if k not in (axis, *look.batch_axes(name)[:1]))
    if len(size) == 4:
        ends = op in MAPS or (op in LAYERS and _has_bias(node))
        fits = ends and numbers not in (1, 3)
        return (
            (look.choice(name, axis), f"it is a map of {numbers} numbers at each place, and {what}") if fits else None
        )
    if numbers > 1 and (op in NORMS or _is_vector(name)):
        return Part(name, EMBEDDING, axis, rows=look.rows(name)), f"{what}: a vector at each of {rest} places"
    if numbers > 1 and (numbers >= PLENTY or (op in LAYERS and _has_bias(node) and rest > 1)):
        return look.choice(name, axis), f"{what}: {numbers} scores at each of {rest} places"
    return None


def _is_vector(name: str) -> bool:
    return any(word in name.lower() for word in ("embed", "feat", "hidden"))


def labels_say(look: Look, name: str, count: int) -> str | None:
    """The kind of `count` numbers per sample by the labels: SIGNAL for numbers, SCORES for yes or no; else None."""
    y = look.labels
    if y is None or not len(y) or y[0].size != count or (count > 1 and y.ndim < 2):
        return None
    if y.dtype.kind == "f" and not np.array_equal(y, np.rint(y)):
        return SIGNAL
    one_hot = count > 1 and bool((y.reshape(len(y), -1).sum(1) == 1).all())
    return SCORES if set(np.unique(y)) == {0, 1} and not one_hot else None


def _one_answer(look: Look, name: str) -> bool:
    """Whether a row of numbers is largest at one place on all of enough samples, none labelled."""
    arrays = look.arrays(name)
    if look.labels is not None or sum(map(len, arrays)) < FEWEST:
        return False
    return len({int(k) for y in arrays for k in y.reshape(len(y), -1).argmax(1)}) == 1


def _split_by_numbers(look: Look, part: Part) -> tuple[Part, ...]:
    """Boxes of 4 or 5 wider numbers before scores of 0 to 1 along an axis; nothing where it looks otherwise."""
    arrays = look.arrays(part.value)
    if not arrays or not part.rows or any(y.ndim != 3 or y.dtype.kind != "f" for y in arrays):
        return ()
    for axis in (1, 2):
        others = tuple(k for k in range(3) if k != axis)
        low, high = (np.stack([f(y, axis=others) for y in arrays]) for f in (np.min, np.max))
        inside = (low.min(0) >= 0) & (high.max(0) <= 1)
        count = len(inside)
        if count > 4 and not inside[:4].any() and inside[4:].all() and high[:, :4].max() > 2:
            cuts = ((BOXES, 0, 4), (SCORES, 4, count))
            return tuple(Part(part.value, kind, axis, axis, a, b) for kind, a, b in cuts)
    return ()


def _merged(last: Part, kind: str, start: int, width: int) -> Part | None:
    """`last` made longer by a neighbor of the same kind, None where it differs; two runs of scores stay apart."""
    if last.kind != kind or (kind == SCORES and (last.stop or 0) - last.start != width):
        return None
    return replace(last, stop=start + width)


def _layout(parts: Sequence[Part]) -> tuple[Any, ...]:
    return tuple((p.kind, p.along, p.start, p.stop) for p in parts)


def _has_bias(node: ir.Node | None) -> bool:
    return node is not None and (node.op_type == "Add" or len([v for v in node.inputs if v is not None]) > 2)


def _sigmoid_of(value: ir.Value) -> ir.Node | None:
    """The Sigmoid that ends `value`, maybe behind a mean of its numbers, which lies between 0 and 1 as they do."""
    for _ in range(DEEPEST):
        node = value.producer()
        if node is None or node.op_type in ("Sigmoid", "HardSigmoid"):
            return node
        if node.op_type == "If":
            value = node.attributes["then_branch"].as_graph().outputs[0]
        elif node.op_type in SAME_VALUES | SAME_NUMBERS | {"Transpose", "ReduceMean"} and node.inputs[0] is not None:
            value = node.inputs[0]
        else:
            return None
    return None


def _softmax_axis(node: ir.Node, model: ir.Model, rank: int) -> int:
    default = -1 if model.opset_imports.get("", 13) >= 13 else 1
    return node.attributes.get_int("axis", default) % max(1, rank)
