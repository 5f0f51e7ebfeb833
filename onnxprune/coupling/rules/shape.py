"""Operators that move, join and cut axes, and those that make shapes."""

import numpy as np

from onnxprune.coupling.dims import ONE, Axis, is_dynamic, length, resolve
from onnxprune.coupling.node import Axes, NodeAxes
from onnxprune.coupling.registry import coupling_rule


@coupling_rule("Reshape")
def Reshape(n: NodeAxes) -> None:
    """Blocks of axes with equal product are merged and split; positive entries of the shape are repaired."""
    sizes = n.sizes()
    assert sizes is not None
    y = n.reshape(n.x(0), sizes)
    for position, axis in enumerate(y):
        if n.analysis.changes(n.node.outputs[0], position) and not is_dynamic(axis):
            n.analysis.mark_dynamic(axis)
    given = n.probed(1) if n.has(1) else np.array(n.attribute("shape", ()), np.int64)
    again = n.probed(1, again=True) if n.has(1) else given
    for entry, axis in enumerate(y):
        if given is not None and again is not None and given[entry] <= 0 and again[entry] <= 0:
            continue  # 0 copies and -1 infers: both stay right
        if n.has(1):
            n.length_input(1, {entry: axis})
        else:
            n.length_attribute("shape", axis, entry)
    n.give(y)


@coupling_rule("Flatten", "Squeeze", "Unsqueeze")
def Regroup(n: NodeAxes) -> None:
    sizes = n.sizes()
    assert sizes is not None
    n.give(n.reshape(n.x(0), sizes))


@coupling_rule("Transpose")
def Transpose(n: NodeAxes) -> None:
    x = n.x(0)
    n.give([x[k] for k in n.attribute("perm", tuple(reversed(range(len(x)))))])


@coupling_rule("Concat")
def Concat(n: NodeAxes) -> None:
    """A sum on `axis`; the other axes are the same in all inputs."""
    inputs = [n.x(i) for i in n.given()]
    axis = n.attribute("axis", 1) % len(inputs[0])
    for other in inputs[1:]:
        for k, (a, b) in enumerate(zip(inputs[0], other, strict=True)):
            if k != axis:
                n.unify(a, b)
    joined = tuple(segment for x in inputs for segment in resolve(x[axis]))
    n.give([joined if k == axis else resolve(a) for k, a in enumerate(inputs[0])])


@coupling_rule("Split")
def Split(n: NodeAxes) -> None:
    x = n.x(0)
    axis = n.attribute("axis", 0) % len(x)
    sizes = [n.analysis.sizes_of(value) for value in n.node.outputs]
    if any(size is None for size in sizes):
        n.opaque("sizes are unknown")
        return
    bounds = np.cumsum([0, *(size[axis] for size in sizes if size is not None)]).tolist()
    if bounds[-1] != length(x[axis]):
        n.opaque("sizes are computed")
        return
    parts = n.cuts(x[axis], bounds)
    if n.opset >= 13:
        n.length_input(1, dict(enumerate(parts)))
    else:
        for entry, part in enumerate(parts):
            n.length_attribute("split", part, entry)
    n.give(*[[part if k == axis else a for k, a in enumerate(x)] for part in parts])


def slice_arguments(n: NodeAxes, rank: int) -> list[tuple[int, int, int, int, int]] | None:
    """(entry, axis, start, end, step) of every sliced axis, None when they are computed."""
    if n.opset < 10:
        starts, ends = n.attribute("starts"), n.attribute("ends")
        axes, steps = n.attribute("axes") or range(len(starts)), [1] * len(starts)
    else:
        numbers = [n.probed(k) for k in (1, 2, 3, 4)]
        if numbers[0] is None or numbers[1] is None:
            return None
        starts, ends = numbers[0].ravel(), numbers[1].ravel()
        if (n.has(3) and numbers[2] is None) or (n.has(4) and numbers[3] is None):
            return None
        axes = numbers[2].ravel() if numbers[2] is not None else range(len(starts))
        steps = numbers[3].ravel() if numbers[3] is not None else [1] * len(starts)
    rows = zip(axes, starts, ends, steps, strict=True)
    return [(k, int(a) % rank, int(s), int(e), int(t)) for k, (a, s, e, t) in enumerate(rows)]


@coupling_rule("Slice")
def Slice(n: NodeAxes) -> None:
    """Step 1 cuts the axis; a step that divides it takes one of its inner positions; others freeze."""
    y = list(n.x(0))
    arguments = slice_arguments(n, len(y))
    if arguments is None:
        computed_slice(n)
        return
    for entry, axis, start, end, step in arguments:
        full = length(y[axis])
        low, high, step = slice(
            start, end if abs(end) < 2**31 - 1 else (None if (end > 0) == (step > 0) else end), step
        ).indices(full)
        if n.analysis.changes(n.node.outputs[0], axis) or is_dynamic(y[axis]):
            n.freeze(y[axis], "a computed range of it is taken")
            y[axis] = n.fixed_output(0, axis, "a slice")
        elif step == 1:
            if (low, high) == (0, full):
                continue
            part = n.cut(y[axis], low, max(low, high))
            before = n.cut(y[axis], 0, low)
            repair_slice(n, entry, before, part)
            y[axis] = part
        elif step > 1 and full % step == 0 and low < step and len(range(low, high, step)) == full // step:
            outer, inner = n.split(y[axis], [full // step, step])
            n.freeze(inner, "strided slices tell its positions apart")
            repair_end(n, entry, resolve(y[axis]))
            y[axis] = outer
        else:
            n.freeze(y[axis], "a strided slice")
            y[axis] = n.fixed_output(0, axis, "a strided slice")
    n.give(y)


def repair_slice(n: NodeAxes, entry: int, before: Axis, part: Axis) -> None:
    if n.opset < 10:
        n.length_attribute("starts", before, entry)
        n.length_attribute("ends", before + part, entry)
    else:
        n.length_input(1, {entry: before})
        n.length_input(2, {entry: before + part})


def repair_end(n: NodeAxes, entry: int, axis: Axis) -> None:
    if n.opset < 10:
        n.length_attribute("ends", axis, entry)
    else:
        n.length_input(2, {entry: axis})


def computed_slice(n: NodeAxes) -> None:
    """Bounds are computed and were not seen: the axes that are cut, where these are known, freeze, the others pass."""
    if n.sizes() is None:
        n.opaque("bounds are computed")
        return
    y = list(n.x(0))
    numbers = n.numbers(3)
    sliced = range(len(y)) if numbers is None else [int(axis) % len(y) for axis in numbers.ravel()]
    for k in sliced:
        n.freeze(y[k], "a computed range of it is taken")
        y[k] = n.fixed_output(0, k, "a computed slice")
    n.give(y)


@coupling_rule("Pad")
def Pad(n: NodeAxes) -> None:
    """Constant padding adds Dims of zeros on both sides; other modes repeat positions and freeze the axis."""
    x = n.x(0)
    pads, axes = pad_amounts(n, len(x))
    sizes = n.sizes()
    if pads is None or sizes is None:
        n.opaque("pad amounts are computed")
        return
    y = list(x)
    count = len(axes)
    constant = n.attribute("mode", "constant") == "constant"
    for k, axis in enumerate(axes):
        before, after = int(pads[k]), int(pads[k + count])
        if before == after == 0:
            continue
        if (
            before < 0
            or after < 0
            or not constant
            or is_dynamic(x[axis])
            or n.analysis.changes(n.node.outputs[0], axis)
        ):
            n.freeze(x[axis], "padded by repetition, cropped, or of changing size")
            y[axis] = n.fixed_output(0, axis, "padded")
            continue
        left, right = (n.fresh(size, suffix) if size else () for size, suffix in ((before, "/left"), (after, "/right")))
        y[axis] = (*left, *resolve(x[axis]), *right)
        for entry, part in ((k, left), (k + count, right)):
            if part and is_padding_repairable(n):
                if n.opset < 11:
                    n.length_attribute("pads", part, entry)
                else:
                    n.length_input(1, {entry: part})
    n.give(y)


def is_padding_repairable(n: NodeAxes) -> bool:
    return n.opset < 11 or n.has(1)


def pad_amounts(n: NodeAxes, rank: int) -> tuple[np.ndarray | None, list[int]]:
    pads = n.probed(1) if n.opset >= 11 else np.array(n.attribute("pads", n.attribute("paddings")))
    given = n.numbers(3)
    axes = given.ravel() if given is not None else range(rank)
    return pads, [int(axis) % rank for axis in axes]


@coupling_rule("Expand")
def Expand(n: NodeAxes) -> None:
    """Axes of length 1 become new, free ones: all their positions are copies."""
    sizes = n.sizes()
    assert sizes is not None
    x = [ONE] * (len(sizes) - len(n.x(0))) + n.x(0)
    given = n.probed(1)
    offset = len(sizes) - (len(given) if given is not None else 0)
    y: Axes = []
    for k, axis in enumerate(x):
        if length(axis) == sizes[k]:
            y.append(axis)
            stays = given is not None and k >= offset and given[k - offset] == 1
            if given is not None and not stays and k >= offset:
                n.length_input(1, {k - offset: axis})
        elif n.analysis.changes(n.node.outputs[0], k):
            y.append(n.fixed_output(0, k, "expanded to a changing size"))
        else:
            y.append(n.fresh(sizes[k], f"/{k}"))
            n.length_input(1, {k - offset: y[-1]})
    n.give(y)


@coupling_rule("Tile")
def Tile(n: NodeAxes) -> None:
    """Each axis becomes repeats x axis; the repeats are frozen."""
    sizes = n.sizes()
    assert sizes is not None
    y: Axes = []
    for k, axis in enumerate(n.x(0)):
        if length(axis) == sizes[k]:
            y.append(axis)
        elif n.analysis.changes(n.node.outputs[0], k) or not length(axis) or sizes[k] % length(axis):
            n.freeze(axis, "tiled a changing number of times")
            y.append(n.fixed_output(0, k, "tiled"))
        else:
            y.append(n.merge([n.fixed(sizes[k] // length(axis), "repeats"), axis]))
    n.give(y)


@coupling_rule("DepthToSpace")
def DepthToSpace(n: NodeAxes) -> None:
    """x (N, C x b x b, H, W) -> y (N, C, H b, W b); the block positions stay."""
    x, b = n.x(0), n.attribute("blocksize")
    c = length(x[1]) // (b * b)
    if n.attribute("mode", "DCR") == "DCR":
        row, column, channels = n.split(x[1], [b, b, c])
    else:
        channels, row, column = n.split(x[1], [c, b, b])
    for axis in (row, column):
        n.freeze(axis, "block positions become space")
    n.give(
        [x[0], resolve(channels), n.fixed_output(0, 2, "spatial positions"), n.fixed_output(0, 3, "spatial positions")]
    )


@coupling_rule("SpaceToDepth")
def SpaceToDepth(n: NodeAxes) -> None:
    """x (N, C, H b, W b) -> y (N, b x b x C, H, W)."""
    x, b = n.x(0), n.attribute("blocksize")
    block = n.fixed(b, "block positions")
    n.give(
        [
            x[0],
            n.merge([block, block, x[1]]),
            n.fixed_output(0, 2, "spatial positions"),
            n.fixed_output(0, 3, "spatial positions"),
        ]
    )


@coupling_rule("Shape")
def Shape(n: NodeAxes) -> None:
    """Sizes as numbers: surgery puts the original ones back, and repairs each place that uses them as a shape."""
    x = n.x(0)
    start = n.attribute("start", 0)
    end = n.attribute("end", len(x))
    for entry, axis in enumerate(x[slice(*slice(start, end).indices(len(x)))]):
        n.analysis.sizes_read.append((n.name, entry, axis))
    n.fixed_outputs("a shape")


@coupling_rule("Size")
def Size(n: NodeAxes) -> None:
    for axis in n.x(0):
        n.freeze(axis, "the number of elements is used")
    n.fixed_outputs("a size")


@coupling_rule("ConstantOfShape")
def ConstantOfShape(n: NodeAxes) -> None:
    """A filled tensor: each axis is free, its length an entry of the shape."""
    sizes = n.sizes()
    assert sizes is not None
    y: Axes = []
    for k, size in enumerate(sizes):
        if n.analysis.changes(n.node.outputs[0], k):
            y.append(n.fixed_output(0, k, "of changing size"))
        else:
            y.append(n.fresh(size, f"/{k}"))
            n.length_input(0, {k: y[-1]})
    n.give(y)


@coupling_rule("EyeLike")
def EyeLike(n: NodeAxes) -> None:
    n.opaque("compares positions")


@coupling_rule(
    "Range",
    "RandomNormal",
    "RandomUniform",
    "HannWindow",
    "HammingWindow",
    "BlackmanWindow",
    "MelWeightMatrix",
)
def Generator(n: NodeAxes) -> None:
    n.fixed_outputs("made from numbers")


@coupling_rule("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
def RandomLike(n: NodeAxes) -> None:
    n.opaque("random numbers")
