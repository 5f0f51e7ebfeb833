"""QDQ form: scales and zero points are cut together with the axis they belong to."""

from onnxprune.coupling.dims import length
from onnxprune.coupling.node import NodeAxes
from onnxprune.coupling.registry import coupling_rule


@coupling_rule("QuantizeLinear", "DequantizeLinear")
@coupling_rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
def Quantize(n: NodeAxes) -> None:
    """x, scale, zero point: per tensor, per position of `axis`, or per block of `block_size` positions."""
    x, scale = n.x(0), n.x(1)
    block = n.attribute("block_size", 0)
    parameters = [n.x(index) for index in n.given()[1:]]
    if len(scale) == 1 and length(scale[0]) > 1:
        channels = x[n.attribute("axis", 1) % len(x)]
        for (axis,) in parameters:
            n.unify(axis, channels)
        for index in n.given()[1:]:
            n.roles(index, {0: "scales"})
    elif len(scale) == len(x) and block:
        position = n.attribute("axis", 1) % len(x)
        rows, inner = n.split(x[position], [length(scale[position]), block])
        n.freeze(inner, "positions of a block share a scale")
        for axes in parameters:
            for k, axis in enumerate(axes):
                n.unify(axis, rows if k == position else x[k])
    n.give(list(x))


@coupling_rule("DynamicQuantizeLinear")
def DynamicQuantizeLinear(n: NodeAxes) -> None:
    """The scale comes from the range, which always includes zero: silent positions do not change it."""
    x = n.x(0)
    for axis in x:
        n.analysis.contract(n.node, axis)
    n.give(list(x), [], [])


@coupling_rule("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain="com.microsoft")
def DynamicQuantizeMatMul(n: NodeAxes) -> None:
    """a (..., K), b (K, N) with scales and zero points per tensor or per column, bias (N)."""
    dynamic = n.op_type.startswith("Dynamic")
    a, b = n.x(0), n.x(1)
    n.unify(a[-1], b[0])
    n.roles(1, {0: "consumes", 1: "produces"})
    for axis in a if dynamic else []:
        n.analysis.contract(n.node, axis)
    columns = (2, 3, 4) if dynamic else (3, 5, 6)
    for index in columns:
        if n.has(index) and n.x(index) and length(n.x(index)[-1]) > 1:
            n.unify(n.x(index)[-1], b[1])
            n.roles(index, {len(n.x(index)) - 1: "scales"})
    n.give([*a[:-1], b[1]])
