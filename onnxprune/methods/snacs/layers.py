"""The layers of a model as SNACS sees them: parents, children, the weights between, and their mean activations.

A layer is a node with a constant weight that contracts its input's channels: Conv, Gemm, MatMul. Its parents are
the channels of its true input tensor (behind a residual sum that is the sum), its children its output channels.

Letters: N samples, P parents, C children, K kernel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Dim, dims, unit_positions
from onnxprune.coupling.layers import layer_of, stored_behind
from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.graph import sessions
from onnxprune.methods import objective
from onnxprune.methods.base import Context
from onnxprune.methods.snacs import rules
from onnxprune.outputs import answers
from onnxprune.system.memory import at_most

BATCH = 64
JOINT_SAMPLES = 256  # by which all layers together are judged
MEANS_OPSET = 13  # of ReduceMean as it is used here; older models hand over whole feature maps


@dataclass(frozen=True)
class Layer:
    """One weighted node. `weights` (C, P) are signed and summed over K, `magnitude` (C, P) is mean |w| over K.

    units: Dim -> (P,) the unit that each parent belongs to, -1 for none. made: likewise (C,) for the children.
    parent_axis and child_axis are those of the input and output tensors; to_matrix gives (C, P, K) of the weight.
    """

    node: str
    initializer: str
    parent_value: str
    child_value: str
    parent_axis: int
    child_axis: int
    weights: np.ndarray
    magnitude: np.ndarray
    units: Mapping[Dim, np.ndarray]
    made: Mapping[Dim, np.ndarray]
    transposed: bool  # the weight is stored (P, C), as MatMul and Gemm without transB have it


def find(context: Context) -> list[Layer]:
    """The layers of the model that consume or produce a Dim to be scored, in topological order."""
    chosen = set(context.dims)
    layers = (_layer(context, node, chosen) for node in context.model.graph)
    return [layer for layer in layers if layer is not None and (layer.units or layer.made)]


def _layer(context: Context, node: ir.Node, chosen: set[Dim]) -> Layer | None:
    layer, axes = layer_of(node), context.coupling.axes
    if layer is None or layer.weights.weight != 1 or layer.kind == "transposed" or layer.groups != 1:
        return None
    value, weight = layer.x, stored_behind(layer.weight)
    if layer.x_axis not in (1, -1):  # rows of the data are channels
        return None
    if weight is None or value.name not in axes or value.is_initializer():
        return None
    array = graph.array_of(weight).astype(np.float32)
    if array.ndim < 2:
        return None
    transposed, parent_axis, child_axis = layer.outputs(2) == 1, layer.x_axis, layer.y_axis
    if transposed and array.size != array.shape[-2] * array.shape[-1]:  # a stack of matrices is no single layer
        return None
    matrix = to_matrix(array, transposed)
    x, y = axes[value.name or ""], axes.get(node.outputs[0].name or "", ())
    if len(x) < 2 or len(y) < 2 or dims.length(x[parent_axis]) != matrix.shape[1]:
        return None
    return Layer(
        node.name or "",
        weight.name or "",
        value.name or "",
        node.outputs[0].name or "",
        parent_axis,
        child_axis,
        matrix.sum(2, dtype=np.float64),
        np.abs(matrix).mean(2, dtype=np.float64),
        _units(x[parent_axis], chosen),
        _units(y[child_axis], chosen),
        transposed,
    )


def to_matrix(array: np.ndarray, transposed: bool) -> np.ndarray:
    """A weight (C, P, *K), or (P, C) when transposed, as (C, P, K)."""
    if transposed:
        array = array.reshape(array.shape[-2:]).T
    return array.reshape(array.shape[0], array.shape[1], -1)


def _units(axis: dims.Axis, chosen: set[Dim]) -> dict[Dim, np.ndarray]:
    found = dict.fromkeys(dim for dim in dims.leaves(axis) if dim in chosen)
    return {dim: unit_positions(axis, dim) for dim in found}


def protect(layers: Sequence[Layer], dim: Dim, activations: Mapping[str, np.ndarray], share: float) -> np.ndarray:
    """Protected units of `dim` (size,) booleans: the `share` on which the layers that read it lean most."""
    strengths = []
    for layer in layers:
        units = layer.units.get(dim)
        if units is None:
            continue
        inside = units >= 0
        rms = np.sqrt((activations[layer.parent_value].astype(np.float64) ** 2).mean(0))
        strengths.append(rules.protected_children(layer.magnitude[:, inside], rms[inside], share, units[inside]))
    return np.any(strengths, axis=0) if strengths else np.zeros(dim.size, bool)


# Activations ------------------------------------------------------------------------------------------------------


def mean_activations(
    context: Context, layers: Sequence[Layer], samples: Samples, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """Value name -> (N, channels): every layer's input and output, averaged over all positions but the channel."""
    axes = {layer.parent_value: layer.parent_axis for layer in layers} | {
        layer.child_value: layer.child_axis for layer in layers
    }
    names = list(axes)
    model, means = _with_means(context, axes)
    outputs = {value.name for value in model.graph.outputs}
    plain = [name for name in names if name not in outputs and name not in means]
    session = sessions.open_session(model, extra_outputs=plain, threads=sessions.few_threads())
    fixed = fixed_batch(context.model)
    chosen = samples.subset(indices)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    seen = 0
    at_once = objective.at_once(context, min(BATCH, len(chosen)))  # onnxruntime may compute all means at the end
    for block in batches(chosen, at_most(at_once), fixed=fixed):
        rows = min(len(block), len(chosen) - seen)
        found = sessions.run(session, chosen.batch(block))
        for name in names:
            value, axis = (found[means[name]], -1) if name in means else (found[name], axes[name])
            parts[name].append(_means(value, axis, len(block))[:rows])
        seen += rows
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}


def _with_means(context: Context, axes: Mapping[str, int]) -> tuple[ir.Model, dict[str, str]]:
    """(the model with outputs that are means over space, the name of each by that of the value).

    onnxruntime then hands over two numbers per channel instead of whole feature maps, which takes longer than to
    compute them. Values that are not float32 have none.
    """
    model = graph.copy(context.model)
    opset = model.opset_imports.get("", 0)
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    means: dict[str, str] = {}
    for name, axis in axes.items():
        value, rank = values.get(name), len(context.coupling.axes[name])
        if value is None or value.dtype != ir.DataType.FLOAT or rank < 3 or axis % rank == 0 or opset < MEANS_OPSET:
            continue
        over = [k for k in range(1, rank) if k != axis % rank]
        node = _mean_node(value, over, opset, f"{name}/onnxprune_mean", model.graph)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
        means[name] = node.outputs[0].name or ""
    return model, means


def _mean_node(value: ir.Value, over: list[int], opset: int, name: str, graph_: ir.Graph) -> ir.Node:
    """A ReduceMean over some axes, in the form of the model's opset: axes are an input since 18."""
    inputs, attributes = [value], [ir.AttrInt64("keepdims", 0)]
    if opset < 18:
        attributes.append(ir.AttrInt64s("axes", over))
    else:
        where = ir.Value(name=f"{name}/axes", const_value=ir.tensor(np.array(over, np.int64)))
        graph_.register_initializer(where)
        inputs.append(where)
    node = ir.Node("", "ReduceMean", inputs, attributes, name=name)
    out = node.outputs[0]
    out.name, out.dtype = name, ir.DataType.FLOAT
    return node


def _means(value: np.ndarray, axis: int, count: int) -> np.ndarray:
    """(N, channels) means over all other axes; samples that were folded into the first axis are unfolded."""
    rows = np.moveaxis(value, axis, -1)
    channels = rows.shape[-1]
    if rows.ndim == 2 and rows.shape[0] == count:
        return rows.astype(np.float32)
    return (
        rows.reshape(count, -1, channels).mean(1, dtype=np.float32)
        if rows.shape[0] % count == 0
        else _spread(rows, count)
    )


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """A value that does not depend on the sample, once per sample."""
    return np.repeat(rows.reshape(-1, rows.shape[-1]).mean(0, dtype=np.float32)[None], count, axis=0)


def balanced(samples: Samples, count: int, seed: int) -> np.ndarray:
    """Indices of at most `count` samples, as many of each class as there are labels for."""
    rng = np.random.default_rng(seed)
    if len(samples) <= count:
        return np.arange(len(samples))
    if samples.labels is None or samples.labels.ndim > 1:
        return np.sort(rng.choice(len(samples), count, replace=False))
    ranks = np.empty(len(samples), np.int64)  # position of each sample within its class, in random order
    for label in np.unique(samples.labels):
        members = np.flatnonzero(samples.labels == label)
        ranks[rng.permutation(members)] = np.arange(len(members))
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def judged_on(context: Context) -> tuple[Samples, answers.Reference | None]:
    """(few samples, evenly of all classes, the original's answers on them): by these all layers together are judged."""
    samples = context.samples
    assert samples is not None
    few = samples.subset(balanced(samples, JOINT_SAMPLES, context.seed + 1))
    return few, answers.reference(context.model, few, context.outputs)
