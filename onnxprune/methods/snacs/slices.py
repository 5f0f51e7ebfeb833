"""SNACS as published: connections, that is kernel slices between groups of filters, are zeroed; what dies is removed.

Scores, limits, threshold and protected filters are those of snacs.py, per layer instead of per Dim. What a zeroed
slice used to contribute on average stays in the bias of its child.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.methods.base import Context, Outcome
from onnxprune.methods.snacs import rules
from onnxprune.methods.snacs.acmi import connection_scores
from onnxprune.methods.snacs.layers import Layer, judged_on, protect
from onnxprune.methods.snacs.rules import disagreement, largest_share
from onnxprune.methods.zeros import Allowance, allowances
from onnxprune.methods.zeros import outcome as sparse_outcome

if TYPE_CHECKING:
    from onnxprune.methods.snacs.snacs import Settings

LOG = logging.getLogger("onnxprune")
Masks = dict[str, np.ndarray]  # node -> (J, G) True where the connection stays


def prune_connections(
    context: Context,
    settings: Settings,
    layers: Sequence[Layer],
    activations: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
) -> Outcome:
    """Zeroed slices, the model that has them, and the units that died by it."""
    groups = {layer.node: _groups(layer, settings.groups) for layer in layers}
    scores = {
        layer.node: connection_scores(
            activations[layer.parent_value],
            activations[layer.child_value],
            layer.weights,
            parent_groups=groups[layer.node][1],
            child_groups=groups[layer.node][0],
            magnitude=layer.magnitude,
            device=context.device,
        )
        for layer in layers
    }
    limits = {
        layer.node: _limit(layer, scores[layer.node], groups[layer.node], activations, classes) for layer in layers
    }
    shielded = {layer.node: _protected(layers, layer, groups[layer.node][0], activations, settings) for layer in layers}
    _, reference = judged_on(context)

    def zeroed(fraction: float) -> tuple[ir.Model, Masks]:
        masks = rules.select_connections(scores, limits, fraction, shielded)
        return _zero(context, layers, masks, groups, activations), masks

    def error(fraction: float) -> float:
        return disagreement(zeroed(fraction)[0], reference)

    if settings.density or context.target is not None:  # the smallest fraction that leaves at most what is allowed
        pairs = [(layer.node, layer.initializer) for layer in layers]
        allowed = allowances(context, pairs, settings.density)
        fraction = _fraction_for(allowed, layers, scores, limits, shielded, groups)
    else:
        fraction = rules.automatic_fraction(error, settings.tolerance or rules.untrained(context.recover))
    model, masks = zeroed(fraction)
    zeros = {layer.initializer: ~_expand(layer, masks[layer.node], groups[layer.node], model) for layer in layers}
    stays = 1 - sum(int(z.sum()) for z in zeros.values()) / sum(z.size for z in zeros.values())
    note = f"snacs: {stays:.1%} of the connections of {len(layers)} layers stay, the most important ones of the model"
    return sparse_outcome(context, model, zeros, (note,))


def _groups(layer: Layer, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous groups of the children (C,) and parents (P,), at most `count` of each."""
    children, parents = layer.weights.shape
    return tuple(np.arange(n) * min(n, count) // n for n in (children, parents))  # type: ignore[return-value]


def _limit(
    layer: Layer,
    scores: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
    activations: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
) -> float:
    """Largest share of the layer's connections that its children can lose, lowest scores first."""
    parents, children = activations[layer.parent_value], activations[layer.child_value]
    rows = rules.limit_rows(len(parents))
    centered, children = parents[rows] - parents.mean(0), children[rows]

    def pruned(share: float) -> np.ndarray:
        gone = ~rules.lowest_pruned(scores, share)[groups[0]][:, groups[1]]
        return children - centered @ (layer.weights * gone).T.astype(np.float32)

    return largest_share(pruned, children, classes)


def _protected(
    layers: Sequence[Layer],
    layer: Layer,
    child_groups: np.ndarray,
    activations: Mapping[str, np.ndarray],
    settings: Settings,
) -> np.ndarray:
    """Child groups (J,) that hold a unit on which the next layer leans most; all of them in the last layer."""
    keep = np.zeros(int(child_groups.max()) + 1, bool)
    for dim, units in layer.made.items():
        shielded = protect(layers, dim, activations, settings.protect)
        keep[child_groups[(units >= 0) & shielded[np.maximum(units, 0)]]] = True
    return keep


def _expand(layer: Layer, mask: np.ndarray, groups: tuple[np.ndarray, np.ndarray], model: ir.Model) -> np.ndarray:
    """A mask (J, G) at the shape of the layer's initializer."""
    full = mask[groups[0]][:, groups[1]]
    array = graph.array_of(model.graph.initializers[layer.initializer])
    shape = (*(full.T if layer.transposed else full).shape, *[1] * (array.ndim - 2))
    spread = (full.T if layer.transposed else full).reshape(shape if not layer.transposed else full.T.shape)
    return np.broadcast_to(spread, array.shape).copy()


def _zero(
    context: Context,
    layers: Sequence[Layer],
    masks: Masks,
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    activations: Mapping[str, np.ndarray],
) -> ir.Model:
    """The model with the masked slices at zero and their mean contributions in the biases that exist."""
    model = graph.copy(context.model)
    nodes = {node.name: node for node in model.graph.all_nodes()}
    for layer in layers:
        stays = _expand(layer, masks[layer.node], groups[layer.node], model)
        weight = model.graph.initializers[layer.initializer]
        graph.set_constant(weight, np.where(stays, graph.array_of(weight), 0))
        bias = nodes[layer.node].inputs[2] if len(nodes[layer.node].inputs) > 2 else None
        array = graph.constant(bias)
        if bias is not None and array is not None and array.shape == (layer.weights.shape[0],):
            gone = ~masks[layer.node][groups[layer.node][0]][:, groups[layer.node][1]]
            mean = (layer.weights * gone) @ activations[layer.parent_value].mean(0)
            graph.set_constant(bias, (array + mean).astype(array.dtype))
    return model


def _fraction_for(
    allowed: Sequence[Allowance],
    layers: Sequence[Layer],
    scores: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    shielded: Mapping[str, np.ndarray],
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> float:
    """Smallest global fraction, to a thousandth, that leaves at most what is allowed of the layers' weights."""

    def holds(fraction: float) -> bool:
        masks = rules.select_connections(scores, limits, fraction, shielded)
        stays = np.array([masks[x.node][groups[x.node][0]][:, groups[x.node][1]].mean() for x in layers])
        return all(float(each.counts @ stays) <= each.density * each.counts.sum() for each in allowed)

    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
