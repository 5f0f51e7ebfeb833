"""BatchNormalization taken out of a graph, and put back for fine-tuning.

y = gamma (W x + b - mean) / sqrt(var + eps) + beta is a convolution with W s and (b - mean) s + beta, s = gamma /
sqrt(var + eps). Put back with gamma = sqrt(var + eps) and beta = mean it changes nothing, and learns as it used to.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.errors import BridgeError
from onnxprune.graph import add_constant, array_of, constant, set_constant

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")
EPSILON = 1e-5
MOMENTUM = 0.9


def fold_batchnorm(model: ir.Model) -> int:
    """How many BatchNormalization nodes were merged into the layer before them, in place.

    Weights keep their names and type; a bias that was absent is named after the weight, with '.bias' behind it.
    """
    pairs = list(_foldable(model.graph))
    for layer, norm in pairs:
        _fold(model.graph, layer, norm)
    return len(pairs)


def normalizable(model: ir.Model) -> list[str]:
    """Output names of the Conv nodes with constant weights and no BatchNormalization behind, in graph order."""
    return [node.outputs[0].name or "" for node in model.graph if _takes_norm(node)]


def insert_batchnorm(model: ir.Model, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """The names of the BatchNormalization nodes put behind convolutions, in place; the function is unchanged.

    statistics: for output names of Conv nodes the mean (C,) and variance (C,) over data. The new node's output takes
    over the name, so that everything that refers to the value goes on meaning what it meant.
    Raises: BridgeError for a name that is no such output, or statistics of another length.
    """
    layers = {node.outputs[0].name: node for node in model.graph if _takes_norm(node)}
    for name, (mean, var) in statistics.items():
        if name not in layers:
            raise BridgeError(f"'{name}' is no output of a Conv that could take BatchNormalization; see normalizable()")
        channels = array_of(_input(layers[name], 1)).shape[0]
        if mean.shape != (channels,) or var.shape != (channels,):
            raise BridgeError(
                f"'{name}': {channels} channels, but statistics {mean.shape} and {var.shape}; give one each"
            )
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    return [_insert(model.graph, layers[name], mean, var, opset) for name, (mean, var) in statistics.items()]


def _foldable(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    for norm in graph:
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx") or not _in_inference(norm):
            continue
        layer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if layer is None or layer.op_type not in FOLDABLE or layer.domain not in ("", "ai.onnx"):
            continue
        alone = len(layer.outputs[0].uses()) == 1 and not layer.outputs[0].is_graph_output()
        if alone and _has_constants(layer, norm):
            yield layer, norm


def _in_inference(norm: ir.Node) -> bool:
    trained = norm.attributes.get_int("training_mode", 0)
    spatial = norm.attributes.get_int("spatial", 1)
    return not trained and spatial == 1 and sum(bool(value.uses()) for value in norm.outputs[1:]) == 0


def _has_constants(layer: ir.Node, norm: ir.Node) -> bool:
    if any(constant(value) is None for value in norm.inputs[1:5]):
        return False
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if constant(layer.inputs[1]) is None or (bias is not None and constant(bias) is None):
        return False
    # A Gemm's bias may differ from row to row; then it is not one number per channel.
    rows = layer.op_type != "Gemm" or bias is None or array_of(bias).ndim < 2 or array_of(bias).shape[0] == 1
    return rows and layer.attributes.get_float("beta", 1.0) != 0


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, node.name
    return value


def _fold(graph: ir.Graph, layer: ir.Node, norm: ir.Node) -> None:
    gamma, beta, mean, var = (array_of(_input(norm, k)).astype(np.float64) for k in range(1, 5))
    scale = gamma / np.sqrt(var + norm.attributes.get_float("epsilon", EPSILON))
    weight = _own_input(graph, layer, 1)
    old = array_of(weight)
    set_constant(weight, (old.astype(np.float64) * _per_output(scale, layer, old.ndim)).astype(old.dtype))
    _set_bias(graph, layer, weight, scale, beta - mean * scale)
    _remove(graph, layer, norm)


def _per_output(scale: np.ndarray, layer: ir.Node, rank: int) -> np.ndarray:
    """scale (O,) in a shape that multiplies the weight of `layer`."""
    if layer.op_type == "Conv":
        return scale.reshape(-1, *([1] * (rank - 1)))
    if layer.op_type == "Gemm":
        return scale[:, None] if layer.attributes.get_int("transB", 0) else scale
    group = layer.attributes.get_int("group", 1)  # transposed weights are (C, O / group, *K), a block of rows per group
    channels = array_of(_input(layer, 1)).shape[0]
    rows = np.repeat(scale.reshape(group, -1), channels // group, axis=0)
    return rows.reshape(*rows.shape, *([1] * (rank - 2)))


def _set_bias(graph: ir.Graph, layer: ir.Node, weight: ir.Value, scale: np.ndarray, shift: np.ndarray) -> None:
    """bias * scale + shift; a Gemm's factor for the bias is taken into account."""
    factor = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
    dtype = array_of(weight).dtype
    if len(layer.inputs) > 2 and layer.inputs[2] is not None:
        bias = _own_input(graph, layer, 2)
        old = np.broadcast_to(array_of(bias).astype(np.float64).reshape(-1), scale.shape)
        set_constant(bias, (old * scale + shift / factor).astype(dtype))
        return
    bias = add_constant(graph, f"{weight.name}.bias", (shift / factor).astype(dtype))
    layer.resize_inputs(3)
    layer.replace_input_with(2, bias)


def _own_input(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    """The initializer at an input, copied first when others read it too."""
    value = _input(node, index)
    if len(value.uses()) == 1 and not value.is_graph_output():
        return value
    copy = add_constant(graph, value.name or "weight", array_of(value))
    node.replace_input_with(index, copy)
    return copy


def _remove(graph: ir.Graph, layer: ir.Node, norm: ir.Node) -> None:
    """Takes the norm out; the layer's output takes over its output's name."""
    parameters = [value for value in norm.inputs[1:] if value is not None]
    old, new = norm.outputs[0], layer.outputs[0]
    new.shape, new.type = old.shape or new.shape, old.type or new.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    name, old.name = old.name, f"{old.name}.removed"
    new.name = name
    for value in dict.fromkeys(parameters):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


def _takes_norm(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or constant(node.inputs[1]) is None:
        return False
    return all(user.op_type != "BatchNormalization" for user, _ in node.outputs[0].uses())


def _insert(graph: ir.Graph, layer: ir.Node, mean: np.ndarray, var: np.ndarray, opset: int) -> str:
    raw = layer.outputs[0]
    name, dtype = raw.name, array_of(_input(layer, 1)).dtype
    deviation = np.sqrt(var.astype(np.float64) + EPSILON)
    arrays = {"scale": deviation, "bias": mean, "mean": mean, "var": var}
    parameters = [add_constant(graph, f"{name}.norm.{part}", array.astype(dtype)) for part, array in arrays.items()]
    output = ir.Value(name=f"{name}.norm", shape=raw.shape, type=raw.type)
    raw.replace_all_uses_with(output, replace_graph_outputs=True)
    attributes: dict[str, float | int] = {"epsilon": EPSILON, "momentum": MOMENTUM}
    if opset < 7:
        attributes["is_test"] = 1
    node = ir.node("BatchNormalization", [raw, *parameters], attributes, outputs=[output], name=f"{layer.name}.norm")
    graph.insert_after(layer, node)
    raw.name, output.name = f"{name}.conv", name
    return node.name or ""
