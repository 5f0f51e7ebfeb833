"""Groups of nodes that torch computes in one call, as the code they were exported from did.

Exporters write GELU, attention, a linear layer or layer normalization as several nodes. Walked one by one they take
more memory traffic than the original, so a chain whose inner values nobody else reads becomes one step. A convolution
with its BatchNormalization is one, too: while the statistics are fixed both are one convolution. The graph itself is
not touched; where an inner value is captured or gated, the network walks the nodes one by one.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.convolution import Conv
from onnxprune.bridge.ops.normalization import batch_norm
from onnxprune.graph import constant
from onnxprune.graph.tensors import rank_of


@dataclass(frozen=True)
class Fused:
    """One call in place of `nodes`, the last of which is where it stands.

    contextual: the function takes the state of the forward pass as `context`.
    """

    function: Callable[..., Any]
    inputs: tuple[ir.Value | None, ...]
    attributes: dict[str, Any]
    nodes: tuple[ir.Node, ...]
    contextual: bool = False


@dataclass(frozen=True)
class Fusions:
    """The calls by the node they stand at, the nodes left out, and the names of the values that are not computed."""

    calls: dict[ir.Node, Fused] = field(default_factory=dict)
    left_out: frozenset[ir.Node] = frozenset()
    hidden: frozenset[str] = frozenset()


def find_fusions(graph: ir.Graph) -> Fusions:
    """All chains of `graph` that become one step, the longer kinds first."""
    calls: dict[ir.Node, Fused] = {}
    taken: set[ir.Node] = set()
    nodes = list(graph)
    for match in (_layer_norm, _gelu, _attention, _linear, _swish, _hard_swish, _normed_conv):
        for node in nodes:
            found = None if node in taken or node.domain not in ("", "ai.onnx") else match(node)
            if found is not None and not taken & set(found.nodes) and _is_closed(found):
                taken.update(found.nodes)
                calls[node] = found
    left_out = frozenset(taken - calls.keys())
    return Fusions(calls, left_out, frozenset(value.name or "" for node in left_out for value in node.outputs))


def _is_closed(found: Fused) -> bool:
    """Whether nothing outside reads what is inside."""
    inside = set(found.nodes)
    for node in found.nodes[:-1]:
        for value in node.outputs:
            if value.is_graph_output() or any(user not in inside for user, _ in value.uses()):
                return False
    return True


# Matching -------------------------------------------------------------------------------------------------------


def _behind(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes `value`, when it is one of `op_types`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in op_types and node.domain in ("", "ai.onnx") else None


def _scalar(value: ir.Value | None) -> float | None:
    """The number that `value` holds, when it is one constant number."""
    array = constant(value)
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind != "f":
        return None
    return float(array.reshape(()))


def _split_scalar(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    """(computed input, constant number) of a node with two inputs; (None, None) unless it has one of each."""
    for k in (1, 0):
        number = _scalar(node.inputs[k])
        if number is not None and (k == 1 or node.op_type in ("Mul", "Add")):
            return node.inputs[1 - k], number
    return None, None


def _close(number: float | None, wanted: float) -> bool:
    return number is not None and abs(number - wanted) <= 1e-3 * abs(wanted)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction that keeps them."""
    if node.attributes.get_int("keepdims", 1) != 1:
        return None
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", ()))
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else array.tolist()


def _is_last(axes: Iterable[int] | None, value: ir.Value | None) -> bool:
    rank = rank_of(value)
    return axes is not None and list(axes) in ([-1], [None if rank is None else rank - 1])


# Patterns -------------------------------------------------------------------------------------------------------


def _gelu(last: ir.Node) -> Fused | None:
    """0.5 x (1 + erf(x / sqrt 2)), the factors of the product in any order."""
    if last.op_type != "Mul":
        return None
    factors, nodes = _factors(last, 3)
    numbers = [_scalar(value) for value in factors]
    sums = [node for value in factors if (node := _behind(value, "Add")) is not None]
    if len(factors) != 3 or sum(_close(number, 0.5) for number in numbers) != 1:
        return None
    for one_plus in sums:
        erf_value, one = _split_scalar(one_plus)
        erf = _behind(erf_value, "Erf")
        scaled = None if erf is None else _behind(erf.inputs[0], "Div", "Mul")
        if erf is None or scaled is None or not _close(one, 1.0):
            continue
        x, factor = _split_scalar(scaled)
        wanted = math.sqrt(2) if scaled.op_type == "Div" else math.sqrt(0.5)
        if x is not None and x in factors and _close(factor, wanted):
            return Fused(F.gelu, (x,), {}, (scaled, erf, one_plus, *nodes))
    return None


def _factors(last: ir.Node, count: int) -> tuple[list[ir.Value | None], list[ir.Node]]:
    """The factors of a product written as nested Mul nodes, and these nodes, the last one last."""
    factors, nodes = list(last.inputs), [last]
    while len(factors) < count:
        place, inner = next(
            ((k, node) for k, value in enumerate(factors) if (node := _behind(value, "Mul")) is not None), (0, None)
        )
        if inner is None:
            break
        factors[place : place + 1] = inner.inputs
        nodes.insert(0, inner)
    return factors, nodes


def _layer_norm(last: ir.Node) -> Fused | None:
    """(x - mean) / sqrt(var + eps) * gamma + beta over the last axis."""
    if last.op_type != "Add":
        return None
    for k in (0, 1):
        product, beta = _behind(last.inputs[k], "Mul"), constant(last.inputs[1 - k])
        if product is None or beta is None or beta.ndim != 1:
            continue
        for j in (0, 1):
            division, gamma = _behind(product.inputs[j], "Div"), constant(product.inputs[1 - j])
            found = None if division is None else _standardized(division)
            if division is None or gamma is None or gamma.shape != beta.shape or found is None:
                continue
            x, epsilon, nodes = found
            inputs = (x, product.inputs[1 - j], last.inputs[1 - k])
            return Fused(layer_norm, inputs, {"epsilon": epsilon}, (*nodes, division, product, last))
    return None


def _standardized(division: ir.Node) -> tuple[ir.Value | None, float, list[ir.Node]] | None:
    """x and epsilon of (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps), and the nodes before the division."""
    centered, root = _behind(division.inputs[0], "Sub"), _behind(division.inputs[1], "Sqrt")
    shifted = None if root is None else _behind(root.inputs[0], "Add")
    if centered is None or root is None or shifted is None:
        return None
    variance_value, epsilon = _split_scalar(shifted)
    variance = _behind(variance_value, "ReduceMean")
    square = None if variance is None else _behind(variance.inputs[0], "Pow", "Mul")
    mean = _behind(centered.inputs[1], "ReduceMean")
    if variance is None or square is None or mean is None or epsilon is None:
        return None
    base = square.inputs[0].producer() if square.inputs[0] is not None else None
    squared = square.inputs[0] is square.inputs[1] if square.op_type == "Mul" else _scalar(square.inputs[1]) == 2
    x = centered.inputs[0]
    twin = (
        base is not centered
        and base is not None
        and base.op_type == "Sub"
        and list(base.inputs) == list(centered.inputs)
    )
    if not squared or (base is not centered and not twin) or mean.inputs[0] is not x:
        return None
    if not (_is_last(_axes(mean), x) and _is_last(_axes(variance), x)):
        return None
    extra = [base] if twin and base is not None else []
    return x, epsilon, [mean, centered, *extra, square, variance, shifted, root]


def _attention(last: ir.Node) -> Fused | None:
    """softmax(q k' * scale + mask) v."""
    softmax = _behind(last.inputs[0], "Softmax") if last.op_type == "MatMul" else None
    if softmax is None or not _is_last([softmax.attributes.get_int("axis", -1)], softmax.inputs[0]):
        return None
    nodes, mask, scale = [softmax, last], None, 1.0
    value = softmax.inputs[0]
    added = _behind(value, "Add")
    if added is not None:
        for k in (0, 1):
            if _behind(added.inputs[k], "Mul", "Div", "MatMul") is not None and mask is None:
                value, mask = added.inputs[k], added.inputs[1 - k]
        if mask is None:
            return None
        nodes.insert(0, added)
    value, scale, nodes = _peeled(value, scale, nodes)
    product = _behind(value, "MatMul")
    if product is None or rank_of(product.outputs[0]) != 4 or rank_of(last.inputs[1]) != 4:
        return None
    nodes.insert(0, product)
    q, scale, nodes = _peeled(product.inputs[0], scale, nodes)
    k_transposed, scale, nodes = _peeled(product.inputs[1], scale, nodes)
    if rank_of(q) != 4 or rank_of(k_transposed) != 4:
        return None
    return Fused(attention, (q, k_transposed, last.inputs[1], mask), {"scale": scale}, tuple(nodes))


def _peeled(value: ir.Value | None, scale: float, nodes: list[ir.Node]) -> tuple[ir.Value | None, float, list[ir.Node]]:
    """`value` without a multiplication or division by a number that gives it; the number goes into the scale."""
    node = _behind(value, "Mul", "Div")
    if node is None or len(node.outputs[0].uses()) != 1:
        return value, scale, nodes
    inner, number = _split_scalar(node)
    if inner is None or not number:
        return value, scale, nodes
    return inner, scale * number if node.op_type == "Mul" else scale / number, [node, *nodes]


def _linear(last: ir.Node) -> Fused | None:
    """x w + b with constant w (I, O) and b (O,)."""
    if last.op_type != "Add":
        return None
    for k in (0, 1):
        product, bias = _behind(last.inputs[k], "MatMul"), constant(last.inputs[1 - k])
        weight = None if product is None else constant(product.inputs[1])
        if product is None or bias is None or weight is None or weight.ndim != 2 or bias.shape != weight.shape[1:]:
            continue
        if np.dtype(bias.dtype) == weight.dtype and (rank_of(product.inputs[0]) or 0) > 1:
            return Fused(linear, (*product.inputs, last.inputs[1 - k]), {}, (product, last))
    return None


def _swish(last: ir.Node) -> Fused | None:
    return _gated(last, "Sigmoid", F.silu)


def _hard_swish(last: ir.Node) -> Fused | None:
    found = _gated(last, "HardSigmoid", F.hardswish)
    if found is None:
        return None
    gate = found.nodes[0].attributes
    return found if _close(gate.get_float("alpha", 0.2), 1 / 6) and gate.get_float("beta", 0.5) == 0.5 else None


def _gated(last: ir.Node, gate: str, function: Callable[..., Tensor]) -> Fused | None:
    if last.op_type != "Mul":
        return None
    for k in (0, 1):
        node = _behind(last.inputs[k], gate)
        if node is not None and node.inputs[0] is last.inputs[1 - k]:
            return Fused(function, (node.inputs[0],), {}, (node, last))
    return None


def _normed_conv(last: ir.Node) -> Fused | None:
    """Conv and the BatchNormalization behind it, in its inference form."""
    conv = _behind(last.inputs[0], "Conv") if last.op_type == "BatchNormalization" else None
    one_output = all(not value.name for value in last.outputs[1:])
    spatial = last.attributes.get_int("spatial", 1)
    if conv is None or not one_output or not spatial or last.attributes.get_int("training_mode", 0):
        return None
    attributes = {
        "auto_pad": conv.attributes.get_string("auto_pad", "NOTSET"),
        "group": conv.attributes.get_int("group", 1),
        "epsilon": last.attributes.get_float("epsilon", 1e-5),
        "momentum": last.attributes.get_float("momentum", 0.9),
    }
    for name in ("dilations", "pads", "strides"):
        attributes[name] = list(conv.attributes.get_ints(name, ())) or None
    b = conv.inputs[2] if len(conv.inputs) > 2 else None
    return Fused(normed_conv, (*conv.inputs[:2], b, *last.inputs[1:]), attributes, (conv, last), contextual=True)


# Functions ------------------------------------------------------------------------------------------------------


def attention(q: Tensor, k_transposed: Tensor, v: Tensor, mask: Tensor | None, *, scale: float) -> Tensor:
    mask = mask if mask is None else mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k_transposed.transpose(-1, -2), v, mask, scale=scale)


def normed_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    context: Any,
    epsilon: float,
    momentum: float,
    **attributes: Any,
) -> Tensor:
    """gamma (w x + b - mean) / sqrt(var + eps) + beta; with fixed statistics that is (s w) x + s (b - mean) + beta."""
    types = {tensor.dtype for tensor in (w, gamma, beta, mean, var)}
    if context.batch_statistics or len(types) > 1:
        y = Conv(x, w, b, **attributes)
        return batch_norm(y, gamma, beta, mean, var, context.batch_statistics, epsilon, momentum)
    s = gamma * torch.rsqrt(var + epsilon)
    shift = beta - mean * s if b is None else beta + (b - mean) * s
    return Conv(x, w * s.reshape(-1, *[1] * (w.ndim - 1)), shift, **attributes)


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w.t(), b)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> Tensor:
    if gamma.shape[0] != x.shape[-1]:  # broadcasting along another axis: not the layer's own width
        var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + epsilon) * gamma + beta
    return F.layer_norm(x, (x.shape[-1],), gamma, beta, epsilon)
