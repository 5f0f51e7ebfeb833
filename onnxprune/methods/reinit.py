"""Fresh weights by operator, for training from scratch: the graph is the architecture."""

import numpy as np
import onnx_ir as ir
import torch

from onnxprune import graph
from onnxprune.bridge.batchnorm import fold_batchnorm, insert_batchnorm, normalizable
from onnxprune.bridge.network import Network
from onnxprune.methods.layers import linear_layers

NORMS = frozenset(
    "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization".split()
)


def architecture(model: ir.Model) -> ir.Model:
    """A copy of `model` to be trained from random weights: with BatchNormalization behind convolutions with a bias,
    where the exporter folded them away. Values keep their names, see bridge.batchnorm."""
    working = graph.copy(model)
    if any(node.op_type in NORMS for node in model.graph):
        return working
    convolutions = {node.outputs[0].name or "": node for node in working.graph if node.op_type == "Conv"}
    with_bias = [name for name in normalizable(working) if len(convolutions[name].inputs) > 2]
    sizes = {name: graph.array_of(_weight(convolutions[name])).shape[0] for name in with_bias}
    insert_batchnorm(working, {name: (np.zeros(size), np.ones(size)) for name, size in sizes.items()})
    return working


def trained(model: ir.Model, working: ir.Model) -> ir.Model:
    """`model` with the weights of `working`, in which norms that `architecture` put there are folded again."""
    if not any(node.op_type in NORMS for node in model.graph):
        fold_batchnorm(working)
    result = graph.copy(model)
    for name, value in result.graph.initializers.items():
        learned = working.graph.initializers.get(name)
        if learned is not None and learned.const_value is not value.const_value:
            graph.set_constant(value, graph.array_of(learned))
    return result


def _weight(node: ir.Node) -> ir.Value:
    assert node.inputs[1] is not None
    return node.inputs[1]


def draw(model: ir.Model, network: Network, seed: int) -> None:
    """Draws the parameters of `network` anew, in place: He normal for linear layers, identity norms, zero biases.

    The last of several linear layers that meet in a residual sum would double its variance at each block: where no
    norm is left in the graph, layers that end in an Add of two computed values start at a tenth of their size.
    """
    generator = torch.Generator().manual_seed(seed)
    known = network.parameters_by_name
    with_norms = any(node.op_type in NORMS for node in model.graph)
    nodes = {node.name: node for node in model.graph.all_nodes()}
    with torch.no_grad():
        for layer in linear_layers(model):
            if layer.weight in known:
                w = known[layer.weight]
                fan_in = w.numel() / w.shape[layer.outputs]
                gain = 0.1 if not with_norms and _ends_in_sum(nodes[layer.node]) else 1.0
                w.copy_((torch.randn(w.shape, generator=generator) * gain * float(np.sqrt(2 / fan_in))).to(w))
            if layer.bias is not None and layer.bias in known:
                known[layer.bias].zero_()
        for node in model.graph:
            if node.op_type in NORMS:
                _identity(node, network)


def _ends_in_sum(node: ir.Node) -> bool:
    users = list(node.outputs[0].uses())
    if len(users) != 1 or users[0].node.op_type != "Add":
        return False
    return all(value is not None and not value.is_initializer() for value in users[0].node.inputs)


def _identity(node: ir.Node, network: Network) -> None:
    known = {**network.parameters_by_name, **network.statistics_by_name}
    for index, start in ((1, 1.0), (2, 0.0), (3, 0.0), (4, 1.0)):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.name in known:
            known[value.name].fill_(start)
