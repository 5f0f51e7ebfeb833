"""A table that is a matrix as well, transposed, stored once as integers.

onnxruntime's quantizer stores the matrix as integers and leaves the table in floats beside it. Here the table is what
is stored, as integers; its Transpose makes the matrix when the file is loaded, and rows that are looked up are
multiplied with their scales:

    rows = Cast(Gather(integers, ids)) * Gather(scale, ids)
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.quantize.prepare import drop_unused, is_tied

ROWS = "_rows"  # ending of the name of a Gather that looks integers up


@dataclass(frozen=True)
class Tie:
    """Names of a table, of the node that transposes it, and of the matrix that this makes."""

    table: str
    transpose: str
    matrix: str


def untied(model: ir.Model, excluded: Collection[str] = ()) -> tuple[ir.Model, tuple[Tie, ...]]:
    """(a copy of `model` with tied matrices as initializers of their own, which ties these were).

    Left as they are: those that are not only looked up and multiplied by, and those of `excluded` nodes.
    """
    made = graph.copy(model)
    ties: list[Tie] = []
    for node in list(made.graph):
        if not _is_tie(node, excluded):
            continue
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        matrix = graph.add_constant(made.graph, f"{output.name}/tied", np.ascontiguousarray(graph.array_of(source).T))
        output.replace_all_uses_with(matrix)
        made.graph.remove(node, safe=True)
        ties.append(Tie(source.name or "", node.name or "", matrix.name or ""))
    return made, tuple(ties)


def _is_tie(node: ir.Node, excluded: Collection[str]) -> bool:
    if node.op_type != "Transpose" or not is_tied(node) or list(node.attributes.get_ints("perm", [1, 0])) != [1, 0]:
        return False
    source, output = node.inputs[0], node.outputs[0]
    if source is None or graph.array_of(source).ndim != 2 or output.is_graph_output() or not output.uses():
        return False
    others = [user for user, _ in source.uses() if user is not node]
    looked_up = all(user.op_type == "Gather" and user.attributes.get_int("axis", 0) == 0 for user in others)
    multiplied = all(user.op_type == "MatMul" and k == 1 and user.name not in excluded for user, k in output.uses())
    return looked_up and multiplied


def retied(made: ir.Model, ties: Collection[Tie]) -> ir.Model:
    """`made`, in place, with each tie stored once, as integers; scales are those of the matrix's columns."""
    for tie in ties:
        stored = made.graph.initializers[f"{tie.matrix}_quantized"]
        integers = np.ascontiguousarray(graph.array_of(stored).T)
        table = graph.add_constant(made.graph, f"{tie.table}_quantized", integers)
        perm = [ir.AttrInt64s("perm", [1, 0])]
        transpose = ir.Node("", "Transpose", [table], perm, name=tie.transpose, num_outputs=1)
        transpose.outputs[0].name = f"{tie.matrix}_columns"
        stored.replace_all_uses_with(transpose.outputs[0])
        scale = made.graph.initializers[f"{tie.matrix}_scale"]
        for node in [user for user, _ in made.graph.initializers[tie.table].uses()]:
            _look_up(made, node, table, scale)
        made.graph.insert_before(made.graph[0], transpose)
    drop_unused(made)
    made.graph.sort()
    return made


def _look_up(model: ir.Model, node: ir.Node, table: ir.Value, scale: ir.Value) -> None:
    """Puts a look-up of integers, multiplied with their scales, in the place of `node`, a Gather of floats."""
    ids, output, name = node.inputs[1], node.outputs[0], node.name or ""
    rows = ir.Node("", "Gather", [table, ids], name=f"{name}{ROWS}", num_outputs=1)
    to = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    real = ir.Node("", "Cast", [rows.outputs[0]], to, name=f"{name}{ROWS}_cast", num_outputs=1)
    made, factor = [rows, real], scale
    if graph.array_of(scale).size > 1:
        own = ir.Node("", "Gather", [scale, ids], name=f"{name}{ROWS}_scale", num_outputs=1)
        last = graph.add_constant(model.graph, f"{name}{ROWS}_last", np.array([-1]))
        wide = ir.Node("", "Unsqueeze", [own.outputs[0], last], name=f"{name}{ROWS}_wide", num_outputs=1)
        made, factor = [*made, own, wide], wide.outputs[0]
    made.append(ir.Node("", "Mul", [real.outputs[0], factor], name=f"{name}{ROWS}_real", num_outputs=1))
    for each in made:
        each.outputs[0].name = f"{each.name}/output"
    model.graph.insert_before(node, made)
    kept, product = output.name, made[-1].outputs[0]
    product.type, product.shape = output.type, output.shape
    output.name = f"{kept}/floats"
    output.replace_all_uses_with(product, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    product.name = kept
