"""A step of a Loop or Scan, standing in the graph itself: there its values can be looked at and its decisions fed.

The first step is left to the operator, since what it starts from is often zeros; the second one is inlined:

    y = Loop(n, c, x)   ->   x1 = Loop(1, c, x); y = body(1, true, x1)
    y = Scan(h, xs)     ->   h1 = Scan(h, xs[:1]); y = body(h1, xs[-1])

The results of the body are the outputs of the model then, and what stood behind the operator is gone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.graph import bodies, extras
from onnxprune.graph.tensors import add_constant

FIRST = ".first"  # behind the names of what is copied for the first step
SHOWN = "stepped"  # an output that stands for those of a body that gives none


def of(model: ir.Model) -> list[ir.Node]:
    """The nodes of the main graph that repeat a body and can be shown as one step of it; no copies of them."""
    repeat = (node for node in model.graph if not node.domain and (node.op_type == "Loop" or _is_plain(node)))
    return [node for node in repeat if not (node.name or "").endswith(FIRST)]


def _is_plain(node: ir.Node) -> bool:
    """Whether a node is a Scan that goes forwards and stacks its results in front, as those of all exporters do."""
    if node.op_type != "Scan":
        return False
    names = ("scan_input_directions", "scan_output_axes", "scan_output_directions")
    return all(not any(node.attributes.get_ints(name, [])) for name in names)


def stepped(model: ir.Model, output: str, hidden: Iterable[str] = ()) -> ir.Model:
    """A copy of `model` that ends with one step of the Loop or Scan that gives `output`.

    hidden: values that are no outputs of the copy, for in the cut model they have other positions; they are in it.
    """
    model = extras.copy(model)
    node = next(node for node in of(model) if any(value.name == output for value in node.outputs))
    body = bodies.of(node)[0]
    results = list(body.outputs)
    given = _loop_inputs(model.graph, node, body) if node.op_type == "Loop" else _scan_inputs(model.graph, node, body)
    inner = list(body)
    body.outputs.clear()  # what is handed on as it came could not be replaced
    for old, new in zip(body.inputs, given, strict=True):
        old.replace_all_uses_with(new)
    body.remove(inner)
    model.graph.insert_before(node, inner)
    results = [value for value in results if value.producer() in inner]
    model.graph.outputs.clear()
    model.graph.outputs.extend(dict.fromkeys(results))
    passes.RemoveUnusedNodesPass()(model)
    _show(model.graph, [value for value in results if value.name not in {*hidden}])  # what makes the others stays
    _inherit_positions(model, node)
    return model


def _loop_inputs(graph: ir.Graph, node: ir.Node, body: ir.Graph) -> list[ir.Value]:
    """The inputs of a Loop's second step: its number, that it goes on, and the results of the first step."""
    number, goes_on, *carried = body.inputs
    shapes = [() if value.shape is None else tuple([1] * len(value.shape)) for value in (number, goes_on)]
    first = add_constant(graph, f"{node.name}.once", np.array(1, np.int64))
    step = add_constant(graph, f"{node.name}.step", np.full(shapes[0], 1, np.int64))
    true = add_constant(graph, f"{node.name}.goes_on", np.full(shapes[1], True))
    made = _first_step(graph, node, [first, node.inputs[1], *node.inputs[2:]])
    return [step, true, *made[: len(carried)]]


def _scan_inputs(graph: ir.Graph, node: ir.Node, body: ir.Graph) -> list[ir.Value]:
    """The inputs of a Scan's second step: the states of the first, and the last element of every sequence."""
    count = node.attributes.get_int("num_scan_inputs", 0)
    states, sequences = list(node.inputs[:-count]), list(node.inputs[-count:])
    axes = node.attributes.get_ints("scan_input_axes", [0] * count)
    begins, ends, last = (
        add_constant(graph, f"{node.name}.{name}", np.array(number, np.int64))
        for name, number in (("begin", [0]), ("end", [1]), ("last", -1))
    )
    firsts: list[ir.Value] = []
    lasts: list[ir.Value] = []
    for k, (sequence, axis) in enumerate(zip(sequences, axes, strict=True)):
        on = add_constant(graph, f"{node.name}.axis{k}", np.array([axis], np.int64))
        firsts.append(_added(graph, node, ir.Node("", "Slice", [sequence, begins, ends, on]), f"first{k}"))
        take = ir.Node("", "Gather", [sequence, last], [ir.AttrInt64("axis", axis)])
        lasts.append(_added(graph, node, take, f"last{k}"))
    return [*_first_step(graph, node, [*states, *firsts])[: len(states)], *lasts]


def _added(graph: ir.Graph, before: ir.Node, node: ir.Node, name: str) -> ir.Value:
    node.name = f"{before.name}.{name}"
    node.outputs[0].name = node.name
    source = node.inputs[0]
    node.outputs[0].type = source.type if source is not None else None
    graph.insert_before(before, node)
    return node.outputs[0]


def _first_step(graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
    """The results of a copy of `node` that reads `inputs`, which make it run one step."""
    copy = bodies.of(node)[0].clone(allow_outer_scope_values=True)
    for value in (*copy.inputs, *(value for inner in bodies.all_nodes(copy) for value in inner.outputs)):
        if value.name:
            value.name = f"{value.name}{FIRST}"
    for inner in bodies.all_nodes(copy):
        inner.name = f"{inner.name}{FIRST}"
    others = [attribute for name, attribute in node.attributes.items() if name != "body"]
    made = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        [ir.AttrGraph("body", copy), *others],
        num_outputs=len(node.outputs),
        name=f"{node.name}{FIRST}",
    )
    for new, old in zip(made.outputs, node.outputs, strict=True):
        new.name, new.type = _first_name(old), old.type
    graph.insert_before(node, made)
    return made.outputs


def _first_name(value: ir.Value) -> str:
    return f"{value.name}{FIRST}"


def _show(graph: ir.Graph, results: Sequence[ir.Value]) -> None:
    """Makes `results` the outputs of the graph; where there are none, a copy of an input."""
    graph.outputs.clear()
    if not results:
        node = ir.Node("", "Identity", [graph.inputs[0]], name=SHOWN)
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = SHOWN, graph.inputs[0].type, None
        graph.append(node)
        results = node.outputs
    graph.outputs.extend(dict.fromkeys(results))


def _inherit_positions(model: ir.Model, node: ir.Node) -> None:
    """Notes for the results of the first step the kept positions of the operator's own results."""
    held = extras.of(model)
    kept = {_first_name(value): held.kept[value.name or ""] for value in node.outputs if value.name in held.kept}
    extras.put(model, replace(held, kept={**held.kept, **kept}, forced=(), maps=(), defaults={}))
