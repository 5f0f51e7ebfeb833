"""Ifs of which the condition turned out to be a constant: exporters write them for what shapes decide."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.graph import bodies, extras
from onnxprune.graph.tensors import add_constant, constant


def inline_decided(model: ir.Model) -> bool:
    """Puts the branch that is always taken in the place of each such If; whether there was one."""
    decided = [(node, constant(node.inputs[0])) for node in model.graph if node.op_type == "If" and not node.domain]
    found = [(node, bool(condition.all())) for node, condition in decided if condition is not None]
    for node, condition in found:
        _inline(model.graph, node, node.attributes["then_branch" if condition else "else_branch"].as_graph())
    return bool(found)


def decide(model: ir.Model, choices: Mapping[str, bool]) -> ir.Model:
    """A copy of `model` in which the Ifs named in `choices` always take that branch, inlined where it can be."""
    model = extras.copy(model)
    for node in model.graph.all_nodes():
        if node.op_type == "If" and node.name in choices:
            choice = add_constant(model.graph, f"{node.name}.choice", np.array(choices[node.name or ""]))
            node.replace_input_with(0, choice)
    while inline_decided(model):
        pass
    return model


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Puts the nodes of a branch in place of the If."""
    results, inner = list(branch.outputs), list(branch)
    branch.outputs.clear()
    taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
    taken.update(value.name for other in graph for value in other.outputs)
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        bodies.rename(value, taken)
        graph.register_initializer(value)
    branch.remove(inner)
    for value in (value for moved in inner for value in moved.outputs):
        bodies.rename(value, taken)
    graph.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        if old in graph.outputs:  # keeps its name
            name, old.name = old.name, f"{old.name}.of_if"
            kept = ir.Node("", "Identity", [new], num_outputs=1)
            kept.outputs[0].name, kept.outputs[0].type, kept.outputs[0].shape = name, old.type, old.shape
            graph.insert_before(node, kept)
            graph.outputs[list(graph.outputs).index(old)] = kept.outputs[0]
            new = kept.outputs[0]
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    for inner in list(bodies.nodes_inside(node)):  # of the branch that is gone: it reads nothing any more
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
