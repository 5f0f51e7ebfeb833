"""Reductions and searches along axes."""

from onnxprune.coupling.dims import ONE
from onnxprune.coupling.node import Axes, NodeAxes, OpaqueError
from onnxprune.coupling.registry import coupling_rule

# Sums skip zeros, so leaving positions out is the same as silencing them, unless what is silenced is not zero.
SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


def reduction_axes(n: NodeAxes, rank: int) -> list[int] | None:
    """The axes a Reduce* node runs over, None when they are computed."""
    given = n.attribute("axes")
    if given is None and n.has(1):
        numbers = n.numbers(1)
        if numbers is None:
            return None
        given = numbers.ravel().tolist()
    if given is None or not len(given):
        return [] if n.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [int(axis) % rank for axis in given]


@coupling_rule(*SUMS, *OTHERS)
def Reduce(n: NodeAxes) -> None:
    x = n.x(0)
    axes = reduction_axes(n, len(x))
    if axes is None:
        n.opaque("axes are computed")
        return
    keep = n.attribute("keepdims", 1)
    for axis in axes:
        if n.op_type in SUMS:
            n.analysis.contract(n.node, x[axis])
        else:
            n.reduce(x[axis], "runs over it")
    n.give([ONE if k in axes else axis for k, axis in enumerate(x) if keep or k not in axes])


@coupling_rule("ArgMax", "ArgMin")
def ArgMax(n: NodeAxes) -> None:
    x = n.x(0)
    axis = n.attribute("axis", 0) % len(x)
    n.freeze(x[axis], "gives positions on it")
    n.give([ONE if k == axis else a for k, a in enumerate(x) if n.attribute("keepdims", 1) or k != axis])


@coupling_rule("CumSum")
def CumSum(n: NodeAxes) -> None:
    """Running sums over `axis`; the others pass."""
    x, axis = n.x(0), n.numbers(1)
    if axis is None:
        n.opaque("axis is computed")
        return
    n.freeze(x[int(axis.ravel()[0]) % len(x)], "runs along it")
    n.give(list(x))


@coupling_rule("TopK")
def TopK(n: NodeAxes) -> None:
    x = n.x(0)
    axis = n.attribute("axis", -1) % len(x)
    n.freeze(x[axis], "chooses positions on it")
    y: Axes = [n.fixed_output(0, k, "chosen positions") if k == axis else a for k, a in enumerate(x)]
    n.give(y, y)


@coupling_rule("Trilu")
def Trilu(n: NodeAxes) -> None:
    x = n.x(0)
    for axis in x[-2:]:
        n.freeze(axis, "compares positions on it")
    n.give(list(x))


@coupling_rule("Compress")
def Compress(n: NodeAxes) -> None:
    """x and a condition for each position of `axis`, or of all positions in a row."""
    if "axis" not in n.node.attributes:
        raise OpaqueError("depends on the data and on positions")
    x = n.x(0)
    axis = n.attribute("axis", 0) % len(x)
    n.freeze(x[axis], "data chooses positions on it")
    n.freeze(n.x(1)[0], "one condition for each position")
    n.give([n.fixed_output(0, k, "chosen positions") if k == axis else a for k, a in enumerate(x)])


@coupling_rule("ReverseSequence")
def ReverseSequence(n: NodeAxes) -> None:
    """x and lengths along `batch_axis`, of what is turned round along `time_axis`."""
    x = n.x(0)
    for axis in (n.attribute("batch_axis", 1), n.attribute("time_axis", 0)):
        n.freeze(x[axis % len(x)], "positions in a sequence")
    n.freeze(n.x(1)[0], "a length for each sequence")
    n.give(list(x))


@coupling_rule("NonZero", "Unique", "NonMaxSuppression", "Det", "StringNormalizer")
def DataDependent(n: NodeAxes) -> None:
    n.opaque("depends on the data and on positions")


@coupling_rule("OneHot")
def OneHot(n: NodeAxes) -> None:
    """indices (*I), depth, values -> y: a new axis of length depth."""
    x = n.x(0)
    axis = n.attribute("axis", -1) % (len(x) + 1)
    n.give([*x[:axis], n.fixed_output(0, axis, "classes"), *x[axis:]])
