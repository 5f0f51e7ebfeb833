"""Normalizations: channels pass, and the axes that statistics run over are marked `reduced`."""

from onnxprune.coupling.dims import Axis, length
from onnxprune.coupling.node import NodeAxes
from onnxprune.coupling.registry import coupling_rule


@coupling_rule("BatchNormalization")
def BatchNormalization(n: NodeAxes) -> None:
    """x (N, C, *S), four vectors (C,): statistics are constants, so channels are independent."""
    x = n.x(0)
    channels = x[1] if len(x) > 1 else x[0]
    for index in (1, 2, 3, 4):
        n.unify(n.x(index)[0], channels)
        n.roles(index, {0: "scales"})
    n.give(list(x), *[[channels]] * (len(n.node.outputs) - 1))


@coupling_rule("InstanceNormalization")
def InstanceNormalization(n: NodeAxes) -> None:
    """x (N, C, *S), scale and bias (C,): statistics over S."""
    x = n.x(0)
    for index in (1, 2):
        n.unify(n.x(index)[0], x[1])
        n.roles(index, {0: "scales"})
    for axis in x[2:]:
        n.reduce(axis, "normalizes over it")
    n.give(list(x))


@coupling_rule("GroupNormalization")
def GroupNormalization(n: NodeAxes) -> None:
    """x (N, G x D, *S), scale and bias (C,) or, before opset 21, (G,): statistics over D and S."""
    x = n.x(0)
    groups = n.attribute("num_groups")
    G, D = n.split(x[1], [groups, length(x[1]) // groups])
    for index in (1, 2):
        n.unify(n.x(index)[0], x[1] if length(n.x(index)[0]) == length(x[1]) else G)
        n.roles(index, {0: "scales"})
    n.reduce(D, "normalizes over it")
    n.length_attribute("num_groups", G)
    n.give(list(x))


@coupling_rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def LayerNormalization(n: NodeAxes) -> None:
    """x (*B, *D), scale and bias broadcast to D: statistics over D."""
    x = n.x(0)
    axis = n.attribute("axis", -1) % len(x)
    for index in n.given()[1:]:
        n.broadcast(list(x[axis:]), n.x(index))
        n.roles(index, dict.fromkeys(range(len(n.x(index))), "scales"))
    for part in x[axis:]:
        n.reduce(part, "normalizes over it")
    statistics: list[Axis] = [*x[:axis], *[((),)] * (len(x) - axis)]
    n.give(list(x), statistics, statistics)


@coupling_rule("LpNormalization", "MeanVarianceNormalization")
def LpNormalization(n: NodeAxes) -> None:
    x = n.x(0)
    axes = n.attribute("axes", (0, 2, 3)) if n.op_type.startswith("Mean") else (n.attribute("axis", -1),)
    for axis in axes:
        n.reduce(x[axis % len(x)], "normalizes over it")
    n.give(list(x))


@coupling_rule("LRN")
def LRN(n: NodeAxes) -> None:
    """Sums over neighboring channels: it keeps seeing all of them, the removed ones as zeros."""
    n.lift(0, 1)
    n.give(list(n.x(0)))


@coupling_rule("Softmax", "LogSoftmax", "Hardmax")
def Softmax(n: NodeAxes) -> None:
    """Before opset 13 the input is flattened at `axis`, so all axes behind it share the sum."""
    x = n.x(0)
    axis = n.attribute("axis", -1 if n.opset >= 13 else 1) % max(1, len(x))
    for part in x[axis:] if n.opset < 13 else x[axis : axis + 1]:
        n.freeze(part, "runs over it")
    n.give(list(x))
