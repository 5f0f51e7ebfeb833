"""Elementwise operators: the output has the broadcast axes of the inputs."""

from onnxprune.coupling.dims import ONE
from onnxprune.coupling.node import NodeAxes
from onnxprune.coupling.registry import coupling_rule
from onnxprune.graph import states
from onnxprune.graph.tensors import draws

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu CastLike"
).split()
BINARY = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
    "Min Mod Mul Or Pow PRelu Sub Sum Where Xor"
).split()


@coupling_rule(*UNARY)
def Unary(n: NodeAxes) -> None:
    n.give(*[list(n.x(0)) for _ in n.node.outputs])


@coupling_rule("Dropout")
def Dropout(n: NodeAxes) -> None:
    if draws(n.node):
        n.opaque("random numbers")
    else:
        Unary(n)


@coupling_rule(*BINARY)
def Binary(n: NodeAxes) -> None:
    if side := states.side(n.node):
        _gate(n, side)
        return
    operands = [n.x(i) for i in n.given()]
    if n.opset < 7 and len(operands) == 2:  # the old attributes: b is aligned with `axis` of a
        axis, rank = n.attribute("axis"), len(operands[0])
        if n.attribute("broadcast", 0) and axis is not None and len(operands[1]) < rank:
            missing = rank - int(axis) % rank - len(operands[1])
            operands[1] = [*operands[1], *[ONE] * missing]
    n.give(n.broadcast(*operands))


def _gate(n: NodeAxes, side: str) -> None:
    """kept, x -> y: x of the interface stays whole where y, inside, can lose positions; for outputs the other way."""
    axis = states.axis_of(n.node)
    kept, x = n.x(0)[axis], list(n.x(1))
    if side == "out":
        n.unify(kept, x[axis])
        before = states.flags_of_input(n.analysis.model, n.node)
        if before is not None:  # what is not handed on need not be read
            n.unify(n.analysis.axes_of(before)[axis], kept)
        n.give([n.fixed_output(0, k, "a state that is handed on") if k == axis else a for k, a in enumerate(x)])
    else:
        n.give([kept if k == axis else a for k, a in enumerate(x)])


@coupling_rule("PRelu")
def PRelu(n: NodeAxes) -> None:
    x, slope = n.x(0), n.x(1)
    if n.opset < 7 and len(slope) == 1 and len(x) > 2:  # slope is per channel
        slope = [slope[0], *[ONE] * (len(x) - 2)]
    n.roles(1, dict.fromkeys(range(len(slope)), "scales"))
    n.give(n.broadcast(x, slope))
