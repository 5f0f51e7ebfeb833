"""BatchNormalization taken out of a graph, and put back for fine-tuning.

y = gamma (W x + b - mean) / sqrt(var + eps) + beta is a convolution with W s and (b - mean) s + beta, s = gamma /
sqrt(var + eps). Put back with gamma = sqrt(var + eps) and beta = mean it changes nothing, and learns as it used to.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.layers import Layer, layer_of
from onnxprune.errors import BridgeError
from onnxprune.graph import add_constant, array_of, constant, set_constant

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
    return [node.outputs[0].name or "" for node in model.graph if _takes_norm(node) is not None]


def insert_batchnorm(model: ir.Model, statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """The names of the BatchNormalization nodes put behind convolutions, in place; the function is unchanged.

    statistics: for output names of Conv nodes the mean (C,) and variance (C,) over data. The new node's output takes
    over the name, so that everything that refers to the value goes on meaning what it meant.
    Raises: BridgeError for a name that is no such output, or statistics of another length.
    """
    layers = {node.outputs[0].name: layer for node in model.graph if (layer := _takes_norm(node)) is not None}
    for name, (mean, var) in statistics.items():
        if name not in layers:
            raise BridgeError(f"'{name}' is no output of a Conv that could take BatchNormalization; see normalizable()")
        w = array_of(layers[name].weight)
        channels = w.shape[layers[name].outputs(w.ndim)]
        if mean.shape != (channels,) or var.shape != (channels,):
            raise BridgeError(
                f"'{name}': {channels} channels, but statistics {mean.shape} and {var.shape}; give one each"
            )
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    return [_insert(model.graph, layers[name], mean, var, opset) for name, (mean, var) in statistics.items()]


def _foldable(graph: ir.Graph) -> Iterator[tuple[Layer, ir.Node]]:
    for norm in graph:
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx") or not _in_inference(norm):
            continue
        layer = layer_of(norm.inputs[0].producer() if norm.inputs[0] is not None else None)
        if layer is None or layer.weights.bias is None or layer.weights.fused:
            continue
        alone = len(layer.y.uses()) == 1 and not layer.y.is_graph_output()
        if alone and _has_constants(layer, norm):
            yield layer, norm


def _in_inference(norm: ir.Node) -> bool:
    trained = norm.attributes.get_int("training_mode", 0)
    spatial = norm.attributes.get_int("spatial", 1)
    return not trained and spatial == 1 and sum(bool(value.uses()) for value in norm.outputs[1:]) == 0


def _has_constants(layer: Layer, norm: ir.Node) -> bool:
    if any(constant(value) is None for value in norm.inputs[1:5]):
        return False
    bias, w = layer.bias, constant(layer.weight)
    if w is None or (bias is not None and constant(bias) is None) or (layer.kind == "matrix" and w.ndim != 2):
        return False
    # A Gemm's bias may differ from row to row; then it is not one number per channel.
    rows = layer.spatial or bias is None or array_of(bias).ndim < 2 or array_of(bias).shape[0] == 1
    return rows and layer.beta != 0


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, node.name
    return value


def _fold(graph: ir.Graph, layer: Layer, norm: ir.Node) -> None:
    gamma, beta, mean, var = (array_of(_input(norm, k)).astype(np.float64) for k in range(1, 5))
    scale = gamma / np.sqrt(var + norm.attributes.get_float("epsilon", EPSILON))
    weight = _own_input(graph, layer.node, layer.weights.weight)
    old = array_of(weight)
    set_constant(weight, (old.astype(np.float64) * _per_output(scale, layer, old.ndim)).astype(old.dtype))
    _set_bias(graph, layer, weight, scale, beta - mean * scale)
    _remove(graph, layer, norm)


def _per_output(scale: np.ndarray, layer: Layer, rank: int) -> np.ndarray:
    """scale (O,) in a shape that multiplies the weight of `layer`, which has `rank` axes."""
    outputs, inputs = layer.outputs(rank), layer.inputs(rank)
    if layer.kind != "transposed":
        return np.expand_dims(scale, tuple(axis for axis in range(rank) if axis != outputs))
    # The weight has the outputs of one group only, and a block of inputs per group.
    channels = array_of(layer.weight).shape[inputs]
    rows = np.repeat(scale.reshape(layer.groups, -1), channels // layer.groups, axis=0)  # (C, O / G)
    rows = rows if inputs < outputs else rows.T
    return np.expand_dims(rows, tuple(axis for axis in range(rank) if axis not in (outputs, inputs)))


def _set_bias(graph: ir.Graph, layer: Layer, weight: ir.Value, scale: np.ndarray, shift: np.ndarray) -> None:
    """bias * scale + shift; a factor before the bias is taken into account."""
    factor, index, node = layer.beta, layer.weights.bias, layer.node
    assert index is not None
    dtype = array_of(weight).dtype
    if layer.bias is not None:
        bias = _own_input(graph, node, index)
        old = np.broadcast_to(array_of(bias).astype(np.float64).reshape(-1), scale.shape)
        set_constant(bias, (old * scale + shift / factor).astype(dtype))
        return
    bias = add_constant(graph, f"{weight.name}.bias", (shift / factor).astype(dtype))
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, bias)


def _own_input(graph: ir.Graph, node: ir.Node, index: int) -> ir.Value:
    """The initializer at an input, copied first when others read it too."""
    value = _input(node, index)
    if len(value.uses()) == 1 and not value.is_graph_output():
        return value
    copy = add_constant(graph, value.name or "weight", array_of(value))
    node.replace_input_with(index, copy)
    return copy


def _remove(graph: ir.Graph, layer: Layer, norm: ir.Node) -> None:
    """Takes the norm out; the layer's output takes over its output's name."""
    parameters = [value for value in norm.inputs[1:] if value is not None]
    old, new = norm.outputs[0], layer.y
    new.shape, new.type = old.shape or new.shape, old.type or new.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    name, old.name = old.name, f"{old.name}.removed"
    new.name = name
    for value in dict.fromkeys(parameters):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


def _takes_norm(node: ir.Node) -> Layer | None:
    layer = layer_of(node)
    if layer is None or layer.kind != "convolution" or layer.weights.fused or constant(layer.weight) is None:
        return None
    return None if any(user.op_type == "BatchNormalization" for user, _ in layer.y.uses()) else layer


def _insert(graph: ir.Graph, layer: Layer, mean: np.ndarray, var: np.ndarray, opset: int) -> str:
    raw = layer.y
    name, dtype = raw.name, array_of(layer.weight).dtype
    deviation = np.sqrt(var.astype(np.float64) + EPSILON)
    arrays = {"scale": deviation, "bias": mean, "mean": mean, "var": var}
    parameters = [add_constant(graph, f"{name}.norm.{part}", array.astype(dtype)) for part, array in arrays.items()]
    output = ir.Value(name=f"{name}.norm", shape=raw.shape, type=raw.type)
    raw.replace_all_uses_with(output, replace_graph_outputs=True)
    attributes: dict[str, float | int] = {"epsilon": EPSILON, "momentum": MOMENTUM}
    if opset < 7:
        attributes["is_test"] = 1
    node = ir.node("BatchNormalization", [raw, *parameters], attributes, outputs=[output], name=f"{layer.name}.norm")
    graph.insert_after(layer.node, node)
    raw.name, output.name = f"{name}.conv", name
    return node.name or ""
