"""Quantized operators (QLinearConv and the like) written out as dequantize, compute, quantize: the form that is cut.

onnxruntime makes quantized operators of that form again when it loads a file, see NOTE.
Operators of onnx: QLinearConv, QLinearMatMul; the others are onnxruntime's (com.microsoft, docs/ContribOperators.md).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from onnxprune.graph import extras, sessions
from onnxprune.graph.tensors import add_constant, constant

NOTE = (
    "quantized operators (QLinearConv and the like) were written out as QDQ, of which onnxruntime makes them again; "
    "where values are int8, on x86 only with the session option session.qdqisint8allowed=1"
)
NEAR = 1e-4  # of the largest number: what rounding may change
PER_AXIS = 13  # opset in which DequantizeLinear takes a scale per position of an axis
OWN = frozenset({"channels_last", "opset"})  # attributes that the plain operator does not have
# Quantized operator -> (plain operator, positions of its inputs: value, scale, zero point; of its output's scale).
UNARY = ((0, 1, 2),), 3
BINARY = ((0, 1, 2), (3, 4, 5)), 6
PLAIN = {
    "QLinearConv": ("Conv", *BINARY),
    "QLinearMatMul": ("MatMul", *BINARY),
    "QGemm": ("Gemm", ((0, 1, 2), (3, 4, 5)), 7),
    "QLinearAdd": ("Add", *BINARY),
    "QLinearMul": ("Mul", *BINARY),
    "QLinearLeakyRelu": ("LeakyRelu", *UNARY),
    "QLinearSigmoid": ("Sigmoid", *UNARY),
    "QLinearSoftmax": ("Softmax", *UNARY),
    "QLinearAveragePool": ("AveragePool", *UNARY),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", *UNARY),
}
BIAS = {"QLinearConv": 8, "QGemm": 6}


@dataclass(frozen=True)
class _Linear:
    """A quantized value: real = (value - zero) * scale, with one scale per position of `axis` where it is given."""

    value: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int | None = None


def write_out(model: ir.Model) -> int:
    """Writes out the quantized operators of `model`, in place; what cannot be written so stays. How many were."""
    count = 0
    for node in list(model.graph):
        made = _written(model, node)
        if made:
            count += 1
            replace_nodes_and_values(model.graph, node, [node], made, node.outputs, made[-1].outputs)
    return count


def rounds_alike(model: ir.Model, feeds: Iterable[Mapping[str, np.ndarray]]) -> bool:
    """Whether each quantized operator of `model` gives on `feeds` what it gives written out, up to one step.

    Both read the same inputs: differences of one step, which rounding makes, do not add up from operator to operator.
    """
    both = extras.copy(model)
    pairs: list[tuple[str, str]] = []
    for node in list(both.graph):
        made = _written(both, node)
        if made:
            both.graph.insert_after(node, made)
            name = node.outputs[0].name or ""
            made[-1].outputs[0].name = f"{name}/written"
            pairs.append((name, f"{name}/written"))
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    session = sessions.open_session(both, extra_outputs=names, threads=sessions.few_threads(), optimize=False)
    for batch in feeds:
        found = sessions.run(session, batch)
        for one, two in pairs:
            a, b = (np.asarray(found[name], np.float64) for name in (one, two))
            step = 1.0 if found[one].dtype.kind in "iu" else NEAR * max(float(np.abs(a).max(initial=0)), 1e-12)
            if a.shape != b.shape or not np.abs(a - b).max(initial=0) <= step:
                return False
    return bool(pairs)


def _written(model: ir.Model, node: ir.Node) -> list[ir.Node]:
    """The nodes that stand for a quantized operator, the last of which gives its output; none where none can."""
    if node.op_type not in PLAIN and node.op_type != "QLinearConcat":
        return []
    opset = model.opset_imports.get("", 1)
    if node.op_type == "QLinearConcat":
        plain, result = "Concat", 0
        read = [_linear(node, at, at + 1, at + 2) for at in range(2, len(node.inputs), 3)]
    else:
        plain, places, result = PLAIN[node.op_type]
        read = [_linear(node, *place) for place in places]
    target = _linear(node, result, result, result + 1)
    linears = [_along(node, linear) for linear in read if linear is not None]
    if len(linears) < len(read) or not _can(node, opset, linears, target):
        return []
    made: list[ir.Node] = []
    called = node.name or node.outputs[0].name

    def add(op_type: str, inputs: Sequence[ir.Value | None], attributes: Iterable[ir.Attr] = ()) -> ir.Value:
        made.append(ir.Node("", op_type, inputs, attributes, name=f"{called}/{op_type}_{len(made)}"))
        return made[-1].outputs[0]

    def real(linear: _Linear) -> ir.Value:
        axis = [] if linear.axis is None else [ir.AttrInt64("axis", linear.axis)]
        scale, zero = (_shaped(model, x, linear.axis is None) for x in (linear.scale, linear.zero))
        return add("DequantizeLinear", [linear.value, scale, zero], axis)

    inputs: list[ir.Value | None] = [real(linear) for linear in linears]
    position = BIAS.get(node.op_type)
    if position is not None and _given(node, position):
        inputs.append(real(_bias(model, node, position, linears)))
    attributes = [a for name, a in node.attributes.items() if name not in OWN]
    y = add(plain, inputs, attributes)
    if target is not None:
        add("QuantizeLinear", [y, *(_shaped(model, x, True) for x in (target.scale, target.zero))])
    return made


def _given(node: ir.Node, position: int) -> bool:
    return position < len(node.inputs) and node.inputs[position] is not None


def _linear(node: ir.Node, value: int, scale: int, zero: int) -> _Linear | None:
    if not _given(node, value) or not _given(node, scale):
        return None
    x, s = node.inputs[value], node.inputs[scale]
    assert x is not None
    assert s is not None
    return _Linear(x, s, node.inputs[zero] if _given(node, zero) else None)


def _can(node: ir.Node, opset: int, read: Sequence[_Linear], target: _Linear | None) -> bool:
    """Whether all scales are numbers of the file, and the plain operator means the same."""
    for linear in (*read, *([target] if target else [])):
        scale = constant(linear.scale)
        if scale is None or not np.isfinite(scale).all() or (linear.zero is not None and constant(linear.zero) is None):
            return False
    if node.attributes.get_int("channels_last", 0) or (opset < PER_AXIS and any(x.axis is not None for x in read)):
        return False
    # Until opset 13 Softmax ran over all axes from `axis` on.
    return node.op_type != "QLinearSoftmax" or (node.attributes.get_int("opset", 1) >= 13) == (opset >= 13)


def _along(node: ir.Node, linear: _Linear) -> _Linear:
    """`linear` with the axis along which its scales differ."""
    scale = constant(linear.scale)
    if scale is None or scale.size == 1:
        return linear
    transposed = node.op_type == "QGemm" and node.attributes.get_int("transB", 0)
    axis = 0 if node.op_type == "QLinearConv" or transposed else -1
    return replace(linear, axis=axis)


def _bias(model: ir.Model, node: ir.Node, position: int, read: Sequence[_Linear]) -> _Linear:
    """The bias, integers in units of the product of both scales."""
    x, w = (np.asarray(constant(linear.scale), np.float32) for linear in read[:2])
    scale = x.reshape(-1)[0] * w.reshape(-1) * np.float32(node.attributes.get_float("alpha", 1.0))
    per_axis = scale.size > 1
    bias = node.inputs[position]
    assert bias is not None
    named = add_constant(model.graph, f"{bias.name}/scale", scale if per_axis else scale.reshape(()))
    return _Linear(bias, named, None, 0 if per_axis else None)


def _shaped(model: ir.Model, value: ir.Value | None, scalar: bool) -> ir.Value | None:
    """One number as a scalar: DequantizeLinear takes a list of one for a scale per position."""
    array = constant(value)
    if value is None or array is None or not scalar or array.ndim == 0:
        return value
    name = f"{value.name}/scalar"
    return model.graph.initializers.get(name) or add_constant(model.graph, name, array.reshape(()))
