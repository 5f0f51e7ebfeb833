"""The mean error that rounded weights make in each channel, taken out of the biases.

Rounding moves the mean of a channel as well as it adds noise. What the weights move it by is known without running the
quantized model: the mean over samples of what W - Wq makes of the float inputs. It is added to the bias (Nagel et al.,
Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2, with means measured).

Legend: C output channels.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling.layers import Layer, layer_of
from onnxprune.graph import sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.quantize import parts
from onnxprune.quantize.prepare import drop_unused, reduced


def corrected(floats: ir.Model, quantized: ir.Model, batches: Iterable[Feeds]) -> tuple[ir.Model, int]:
    """(a copy of `floats` with biases that take out what the weights of `quantized` move them by, how many)."""
    shifts = mean_errors(floats, quantized, batches)
    made = graph.copy(floats)
    for node in made.graph:
        if node.name and node.name in shifts:
            _add_to_bias(made, node, shifts[node.name])
    drop_unused(made)
    return made, len(shifts)


def mean_errors(floats: ir.Model, quantized: ir.Model, batches: Iterable[Feeds]) -> Mapping[str, np.ndarray]:
    """Mean error of each channel (C,) by node: floats minus quantized, over samples and positions."""
    model, names = _measuring(floats, quantized)
    if not names:
        return {}
    session = sessions.open_session(model, threads=sessions.few_threads())
    sums: dict[str, np.ndarray] = {}
    count = 0
    for batch in batches:
        rows = next((array.shape[0] for array in batch.values() if array.ndim), 1)
        found = sessions.run(session, batch)
        for node, output in names.items():
            sums[node] = sums.get(node, 0.0) + rows * np.asarray(found[output], np.float64)
        count += rows
    return {node: total / count for node, total in sums.items()} if count else {}


def _measuring(floats: ir.Model, quantized: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """(`floats` with the means of W - Wq on the inputs of each node as its outputs, their names by node)."""
    model, own = graph.copy(floats), {node.name: node for node in quantized.graph}
    names: dict[str, str] = {}
    made: list[ir.Node] = []
    for node in list(model.graph):
        twin = own.get(node.name)
        layer = layer_of(node)
        if layer is None or layer.weights.fused or layer.kind == "transposed":
            continue
        if (layer.weights.weight, layer.weights.bias) != (1, 2) or not _bias_fits(node):
            continue
        if twin is None or twin.op_type != node.op_type:
            continue
        w, stored = graph.constant(node.inputs[1]), parts.stored(twin.inputs[1])
        if w is None or stored is None:
            continue
        missing = graph.add_constant(model.graph, f"{node.name}/missing", w - stored[1].rounded(w))
        rest = list(node.attributes.values())
        product = ir.Node("", node.op_type, [node.inputs[0], missing], rest, name=f"{node.name}/error", num_outputs=1)
        value = product.outputs[0]
        value.name = f"{node.name}/error"
        mean = _mean(model, layer, w.ndim if layer.spatial else 2, value)
        made += [product, mean]
        names[node.name or ""] = mean.outputs[0].name or ""
    model.graph.extend(made)
    del model.graph.outputs[:]
    model.graph.outputs.extend(node.outputs[0] for node in made[1::2])
    return model, names


def _mean(model: ir.Model, layer: Layer, rank: int, value: ir.Value) -> ir.Node:
    """The mean of `value`, like the output of `layer` with `rank` axes, over all axes but that of its channels."""
    axes = [axis for axis in range(rank) if axis != layer.y_axis % rank]
    return reduced(model, "ReduceMean", f"{layer.name}/mean", value, axes)


def _bias_fits(node: ir.Node) -> bool:
    """Whether a bias per channel is there, added as it is."""
    array = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return plain and array is not None and array.ndim == 1 and array.dtype == np.float32


def _add_to_bias(model: ir.Model, node: ir.Node, shift: np.ndarray) -> None:
    old = node.inputs[2]
    assert old is not None
    array = (graph.array_of(old) + shift).astype(np.float32)
    if len(old.uses()) == 1:
        graph.set_constant(old, array)
    else:  # equal biases of several nodes are one initializer
        node.replace_input_with(2, graph.add_constant(model.graph, f"{node.name}/bias", array))
