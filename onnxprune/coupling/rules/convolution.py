"""Convolutions and poolings. Letters: N batch, C channels, O out, I in, K kernel, G groups."""

from onnxprune.coupling.dims import Axis, is_frozen, length, resolve
from onnxprune.coupling.layers import Weights
from onnxprune.coupling.node import Axes, NodeAxes
from onnxprune.coupling.registry import coupling_rule

CONVOLUTION = Weights(kind="convolution", groups="group")


@coupling_rule("Conv", weights=CONVOLUTION)
@coupling_rule("ConvInteger")
def Conv(n: NodeAxes) -> None:
    """x (N, C, *S), w (O, I, *K), b (O) -> y (N, O, *S')."""
    x, w = n.x(0), n.x(1)
    groups = n.attribute("group", 1)
    if any(not is_frozen(axis) and length(axis) > 1 for axis in x[2:]):
        lift_spatial(n, x)
    for axis in w[2:]:
        n.freeze(axis, "kernel positions")
    if groups == 1:
        n.unify(x[1], w[1])
    else:
        G = grouped(n, x[1], w[1], w[0], groups)
        n.length_attribute("group", G)
    if n.op_type == "ConvInteger" and n.has(3) and n.x(3) and length(n.x(3)[0]) > 1:
        n.unify(n.x(3)[0], w[0])
        n.roles(3, {0: "scales"})
    if n.op_type == "ConvInteger":  # integers, which nothing refits: no `Weights`
        n.roles(1, {0: "produces", 1: "consumes"})
    if n.op_type == "Conv" and n.has(2):
        n.unify(n.x(2)[0], w[0])
    n.give([x[0], resolve(w[0]), *spatial_output(n, x)])


def grouped(n: NodeAxes, channels: Axis, per_group: Axis, out: Axis, groups: int) -> Axis:
    """Relates channels = G x per_group and out = G x out_per_group; the axis G, the length of which is `group`."""
    if length(per_group) == 1 and groups == length(channels):  # depthwise: every channel is a group
        multiplier = length(out) // groups
        n.unify(out, n.merge([channels, n.fresh(multiplier, "/multiplier")]))
        return channels
    G = n.fresh(groups, "/group")
    n.unify(channels, n.merge([G, per_group]))
    n.unify(out, n.merge([G, n.fresh(length(out) // groups, "/out_per_group")]))
    return G


def lift_spatial(n: NodeAxes, x: Axes) -> None:
    """Free positions on a spatial axis (ECA convolves over channels): the node keeps seeing the full axis."""
    sizes = n.sizes()
    for position in range(2, len(x)):
        if is_frozen(x[position]) or length(x[position]) == 1:
            continue
        if sizes is not None and sizes[position] == length(x[position]):
            n.lift(0, position)
        else:
            n.freeze(x[position], "the axis is convolved over")


def spatial_output(n: NodeAxes, x: Axes) -> Axes:
    """Axes behind the channels: frozen, except where a lifted axis keeps its positions."""
    lifted = {position for node, _, position in n.analysis.lifts if node == n.name}
    return [
        resolve(x[position]) if position in lifted else n.fixed_output(0, position, "spatial positions")
        for position in range(2, len(x))
    ]


@coupling_rule("ConvTranspose", weights=Weights(outputs=1, inputs=0, kind="transposed", groups="group"))
def ConvTranspose(n: NodeAxes) -> None:
    """x (N, C, *S), w (C, O/G, *K), b (O) -> y (N, O, *S')."""
    x, w = n.x(0), n.x(1)
    groups = n.attribute("group", 1)
    n.unify(x[1], w[0])
    for axis in [*w[2:], *x[2:]]:
        n.freeze(axis, "kernel positions")
    out = w[1]
    if groups > 1:
        G = x[1] if groups == length(x[1]) else n.fresh(groups, "/group")
        if groups != length(x[1]):
            n.unify(x[1], n.merge([G, n.fresh(length(x[1]) // groups, "/in_per_group")]))
        out = n.merge([G, w[1]])
        n.length_attribute("group", G)
        n.roles(1, {0: "produces", 1: "produces"})
    if n.has(2):
        n.unify(n.x(2)[0], out)
    n.give([x[0], resolve(out), *(n.fixed_output(0, k, "spatial positions") for k in range(2, len(x)))])


@coupling_rule("DeformConv")
def DeformConv(n: NodeAxes) -> None:
    """x (N, C, H, W), w (O, C/G, kH, kW), offset, b (O), mask: offsets are shared by offset groups of channels."""
    x, w = n.x(0), n.x(1)
    for axis in [*x[2:], *w[2:], *n.x(2)[1:], *(n.x(4)[1:] if n.has(4) else [])]:
        n.freeze(axis, "sampling offsets")
    if n.attribute("group", 1) == 1 and n.attribute("offset_group", 1) == 1:
        n.unify(x[1], w[1])
    else:
        n.freeze(x[1], "grouped deformable convolution")
        n.freeze(w[0], "grouped deformable convolution")
    n.roles(1, {0: "produces", 1: "consumes"})
    if n.has(3):
        n.unify(n.x(3)[0], w[0])
        n.roles(3, {0: "produces"})
    n.give([x[0], resolve(w[0]), *(n.fixed_output(0, k, "spatial positions") for k in range(2, len(x)))])


@coupling_rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def Pool(n: NodeAxes) -> None:
    """Pools each channel over space; MaxPool's second output, flat indices, would change meaning."""
    x = n.x(0)
    for axis in x[2:]:
        if n.op_type.startswith("Global"):
            n.reduce(axis, "pools over it")
        else:
            n.freeze(axis, "spatial positions")
    if len(n.node.outputs) > 1 and n.node.outputs[1].name:
        n.freeze(x[1], "indices of the flattened tensor are used")
    y = [x[0], x[1], *(n.fixed_output(0, k, "spatial positions") for k in range(2, len(x)))]
    n.give(*[y for _ in n.node.outputs])


@coupling_rule("MaxUnpool", "MaxRoiPool")
def MaxUnpool(n: NodeAxes) -> None:
    n.opaque("indices of the flattened tensor")


@coupling_rule("RoiAlign")
def RoiAlign(n: NodeAxes) -> None:
    """x (N, C, H, W), rois (R, 4), batch_indices (R) -> y (R, C, h, w)."""
    x, rois = n.x(0), n.x(1)
    for axis in (x[0], *x[2:], rois[1]):
        n.freeze(axis, "regions of interest")
    n.give([rois[0], x[1], n.fixed_output(0, 2, "spatial positions"), n.fixed_output(0, 3, "spatial positions")])


@coupling_rule("Upsample", "Resize")
def Resize(n: NodeAxes) -> None:
    """Axes that keep their size pass; the others are spatial."""
    x, sizes = n.x(0), n.sizes()
    assert sizes is not None
    y: Axes = []
    for position, axis in enumerate(x):
        keeps = length(axis) == sizes[position] and not n.analysis.changes(n.node.outputs[0], position)
        if not keeps and not is_frozen(axis):
            n.freeze(axis, "resized")
        passes = length(axis) == sizes[position] and position < 2
        y.append(axis if keeps or passes else n.fixed_output(0, position, "resized"))
    if n.op_type == "Resize" and n.has(3) and n.attribute("axes") is None:
        n.length_input(3, dict(enumerate(y)))
    n.give(y)


@coupling_rule("GridSample")
def GridSample(n: NodeAxes) -> None:
    """x (N, C, *S), grid (N, *S', D) -> y (N, C, *S')."""
    x, grid = n.x(0), n.x(1)
    for axis in (*x[2:], grid[-1]):
        n.freeze(axis, "sampled positions")
    n.unify(x[0], grid[0])
    n.give([x[0], x[1], *grid[1:-1]])


@coupling_rule("AffineGrid")
def AffineGrid(n: NodeAxes) -> None:
    n.opaque("coordinates")


@coupling_rule("Col2Im")
def Col2Im(n: NodeAxes) -> None:
    """x (N, C x K, L) -> y (N, C, *S)."""
    x, sizes = n.x(0), n.sizes()
    assert sizes is not None
    channels, kernel = n.split(x[1], [sizes[1], length(x[1]) // sizes[1]])
    n.freeze(kernel, "kernel positions")
    n.freeze(x[2], "blocks")
    n.give([x[0], channels, *(n.fixed_output(0, k, "spatial positions") for k in range(2, len(sizes)))])
