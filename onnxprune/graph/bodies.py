"""Bodies of If, Loop and Scan: what they hold, in a form that the analysis of the main graph can go on in.

A weight that stands in a body is the same to every runtime when it stands in the main graph, which bodies read. There
it is counted, cut and trained like any other; so the normal form has no initializers in bodies. Two branches may use
one name for two values: in the normal form a name stands for one value.
"""

from collections.abc import Iterator

import onnx_ir as ir

WITH_BODIES = frozenset(("If", "Loop", "Scan", "SequenceMap"))  # of ONNX's own operators


def of(node: ir.Node) -> list[ir.Graph]:
    """The bodies of `node`, in the order of their attributes; of most nodes none."""
    if node.op_type not in WITH_BODIES and not node.domain:  # asked for all nodes again and again: the quick answer
        return []
    return [a.as_graph() for a in node.attributes.data.values() if a.type == ir.AttributeType.GRAPH]


def all_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of `graph`, each followed by those of its bodies, as graph.all_nodes() does but quicker."""
    found: list[ir.Node] = []
    for node in graph:
        found.append(node)
        for body in of(node):
            found += all_nodes(body)
    return found


def all_bodies(graph: ir.Graph) -> list[ir.Graph]:
    """All bodies inside `graph`, those inside bodies included."""
    return [body for node in all_nodes(graph) for body in of(node)]


def nodes_inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes in the bodies of `node`, those of bodies inside them included."""
    for body in of(node):
        yield from all_nodes(body)


def lift(model: ir.Model) -> None:
    """Moves the initializers of all bodies to the main graph, and gives every value a name of its own."""
    bodies = all_bodies(model.graph)
    if not bodies:
        return
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken.update(value.name for node in model.graph for value in node.outputs)
    for body in bodies:
        for name, value in list(body.initializers.items()):
            _copy_where_returned(body, value)
            del body.initializers[name]
            rename(value, taken)
            model.graph.register_initializer(value)
        for value in (*body.inputs, *(value for node in body for value in node.outputs if value.name)):
            rename(value, taken)


def rename(value: ir.Value, taken: set[str | None]) -> None:
    """Gives `value` a name that is not `taken`, and notes it there: two branches may use one name."""
    if value.name in taken:
        count = 1
        while f"{value.name}.{count}" in taken:
            count += 1
        value.name = f"{value.name}.{count}"
    taken.add(value.name)


def _copy_where_returned(body: ir.Graph, value: ir.Value) -> None:
    """Adds an Identity where a body returns `value` as it is: outputs of a body have to be computed in it."""
    for index, output in enumerate(body.outputs):
        if output is value:
            node = ir.Node("", "Identity", [value], num_outputs=1)
            copied = node.outputs[0]
            copied.name, copied.type, copied.shape = f"{value.name}.returned", value.type, value.shape
            body.append(node)
            body.outputs[index] = copied
