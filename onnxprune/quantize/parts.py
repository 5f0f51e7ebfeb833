"""A quantized file taken apart: which value a rounded one stands for, and weights as floats again.

What DequantizeLinear means is written down here once more, in numpy and apart from onnxruntime.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.graph import half
from onnxprune.proof.evidence import NOT_BY_PLAN
from onnxprune.quantize.prepare import drop_unused
from onnxprune.quantize.ties import ROWS

DROPPED = frozenset(("Relu", "Clip"))  # the bounds of the rounding do their work: onnxruntime's quantizer drops them


@dataclass(frozen=True)
class Grid:
    """The numbers that a rounded array can hold: (integer - zero) * scale, with scales along `axis` where given."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int | None

    def shaped(self, array: np.ndarray, rank: int) -> np.ndarray:
        """`array`, the scale or the zero point, as it is multiplied with an array of `rank` axes."""
        if self.axis is None or array.ndim == 0 or array.size == 1:
            return array.reshape(())
        shape = [1] * rank
        shape[self.axis] = -1
        return array.reshape(shape)

    def real(self, integers: np.ndarray) -> np.ndarray:
        """The floats that `integers` stand for."""
        zero = self.shaped(self.zero, integers.ndim).astype(np.int64)
        return (integers.astype(np.int64) - zero).astype(np.float32) * self.shaped(self.scale, integers.ndim)

    def rounded(self, numbers: np.ndarray) -> np.ndarray:
        """`numbers` on the grid, the nearest each, halves to the even one; what is beyond its ends becomes its end."""
        low, high = bounds(self.zero.dtype)
        zero = self.shaped(self.zero, numbers.ndim).astype(np.float64)
        steps = np.rint(numbers.astype(np.float32) / self.shaped(self.scale, numbers.ndim)) + zero
        return (np.clip(steps, low, high) - zero).astype(np.float32) * self.shaped(self.scale, numbers.ndim)

    def step(self, rank: int) -> np.ndarray:
        """The distance between neighbors of the grid."""
        return self.shaped(self.scale, rank)


def bounds(dtype: np.dtype) -> tuple[int, int]:
    """The least and the largest integer of `dtype`."""
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def stored(value: ir.Value | None) -> tuple[np.ndarray, Grid] | None:
    """(integers, grid) behind a value that DequantizeLinear makes of an initializer, else None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers = graph.constant(node.inputs[0])
    grid = _grid(node, None if integers is None else integers.dtype)
    return None if integers is None or grid is None else (integers, grid)


def rounding(value: ir.Value | None) -> tuple[ir.Value, Grid, Grid] | None:
    """(what was rounded, the grid that it was rounded to, the grid that it is read by) behind QuantizeLinear and
    DequantizeLinear, else None."""
    reader = None if value is None else value.producer()
    if reader is None or reader.op_type != "DequantizeLinear" or reader.inputs[0] is None:
        return None
    writer = reader.inputs[0].producer()
    if writer is None or writer.op_type != "QuantizeLinear" or writer.inputs[0] is None:
        return None
    write = _grid(writer, None)
    read = _grid(reader, None if write is None else write.zero.dtype)
    return None if write is None or read is None else (writer.inputs[0], write, read)


def _grid(node: ir.Node, dtype: np.dtype | None) -> Grid | None:
    scale = graph.constant(node.inputs[1])
    if scale is None or node.attributes.get_int("block_size", 0):
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = graph.constant(given)
    if zero is None and given is not None:
        return None
    if zero is None:
        zero = np.zeros(scale.shape, dtype or np.uint8)
    per_axis = scale.ndim > 0 and scale.size > 1
    return Grid(scale.astype(np.float32), zero, node.attributes.get_int("axis", 1) if per_axis else None)


@dataclass(frozen=True)
class Matrix:
    """A matrix (K, N) that is stored as integers.

    real is what they stand for, step the distance between neighbors of the grid at each place, low and high its ends.
    """

    node: ir.Node  # that reads it
    source: ir.Node  # that reads what it is multiplied with
    output: ir.Value
    real: np.ndarray
    step: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def values(self) -> ir.Value:
        """What it is multiplied with: another value once a matrix in front of it is put back in floats."""
        value = self.source.inputs[0]
        assert value is not None
        return value


def as_floats(model: ir.Model, float_model: ir.Model, kind: str, where: str | Path = "the quantized model") -> ir.Model:
    """`model`, quantized as `kind`, as floats: weights are what the file stands for, nothing is rounded as it runs.

    float_model: a model of the same graph before it was quantized; what the quantizer dropped comes from there.
    where: what an error's message begins with.
    Raises: VerificationError where `model` was not made from that graph.
    """
    floats = graph.copy(model)
    if kind == "int8":
        _without_rounding(floats, float_model, where)
    elif kind == "fp16":
        floats = _single(floats, float_model)
    else:
        tables = _look_up_floats(floats)
        for name, matrix in matrices(floats, kind).items():
            _multiply(floats, name, matrix, tables)
        _join_gemms(floats, float_model)
    passes.RemoveUnusedNodesPass()(floats)
    drop_unused(floats)
    return floats


def _without_rounding(floats: ir.Model, float_model: ir.Model, where: str | Path) -> None:
    for node in list(floats.graph):
        if node.op_type != "DequantizeLinear":
            continue
        found, pair = stored(node.outputs[0]), rounding(node.outputs[0])
        if found is not None:
            integers, grid = found
            name = (node.inputs[0].name or "").removesuffix("_quantized")  # type: ignore[union-attr]
            _replace(node, graph.add_constant(floats.graph, name, grid.real(integers)))
        elif pair is not None:
            _replace(node, pair[0])
    for node in reversed(list(floats.graph)):
        if node.op_type == "QuantizeLinear" and not node.outputs[0].uses():
            floats.graph.remove(node, safe=True)
    for node in _dropped(floats, float_model):
        _insert(floats, node, where)


def _replace(node: ir.Node, value: ir.Value) -> None:
    """Takes `node` out of its graph; those that read its output read `value`."""
    output, own = node.outputs[0], node.graph
    assert own is not None
    shown = output.is_graph_output()
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    if shown:  # the interface keeps its name, type and shape
        name, output.name = output.name, f"{output.name}/rounded"
        value.name, value.type, value.shape = name, output.type, output.shape
    own.remove(node, safe=True)


def _dropped(model: ir.Model, float_model: ir.Model) -> Iterator[ir.Node]:
    names = {node.name for node in model.graph.all_nodes()}
    for node in float_model.graph:
        if node.op_type in DROPPED and node.name not in names:
            yield node


def _insert(model: ir.Model, node: ir.Node, where: str | Path) -> None:
    """Puts a copy of `node` back where it was: onnxruntime gave its output's name to what stood in front of it."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    name = None if producer is None else producer.name
    own = next((other for other in model.graph if other.name == name), None)
    value = _value_in(model, node.outputs[0].name or "") if own is None else own.outputs[0]
    if value is None or value.producer() is None:
        raise VerificationError(
            f"{where}: {node.op_type} '{node.name}' is missing, and so is what it reads; {NOT_BY_PLAN}"
        )
    rest = [graph.add_constant(model.graph, v.name or "", graph.array_of(v)) if v else None for v in node.inputs[1:]]
    copy = ir.Node(
        node.domain, node.op_type, [value, *rest], list(node.attributes.values()), name=node.name, num_outputs=1
    )
    output, before = copy.outputs[0], value.producer()
    assert before is not None
    name, value.name = value.name, source.name if source is not None else None
    output.name, output.type, output.shape = name, value.type, value.shape
    for user, index in list(value.uses()):
        if user is not copy:
            user.replace_input_with(index, output)
    for index, other in enumerate(model.graph.outputs):
        if other is value:
            model.graph.outputs[index] = output
    model.graph.insert_after(before, copy)


def _value_in(model: ir.Model, name: str) -> ir.Value | None:
    return next((value for node in model.graph for value in node.outputs if value.name == name), None)


# Matrices -----------------------------------------------------------------------------------------------------------


def matrices(model: ir.Model, kind: str) -> dict[str, Matrix]:
    """The matrices that `model` stores as integers, by the name that the node had in floats."""
    ops = {"int4": ("MatMulNBits", "_Q4", _of_blocks), "dynamic": ("MatMulInteger", "_quant", _of_columns)}
    op_type, suffix, read = ops[kind]
    found = {node.name or "": read(node) for node in model.graph if node.op_type == op_type}
    return {name.removesuffix(suffix): matrix for name, matrix in found.items() if matrix is not None}


def _of_blocks(node: ir.Node) -> Matrix | None:
    """MatMulNBits: two integers to a byte, the lower half first; a scale, and maybe a zero point, for each block."""
    K, N, block = (node.attributes.get_int(name, 0) for name in ("K", "N", "block_size"))
    packed, scale = (graph.constant(value) for value in node.inputs[1:3])
    zero = graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if packed is None or scale is None or node.inputs[0] is None:
        return None
    blocks = -(-K // block)
    integers = _nibbles(packed.reshape(N, -1)).reshape(N, blocks, block)
    zeros = np.full((N, blocks), 8) if zero is None else _nibbles(zero.reshape(N, -1))[:, :blocks]
    scale = scale.reshape(N, blocks, 1).astype(np.float32)
    places = (integers, np.zeros_like(integers), np.full_like(integers, 15))
    real, *ends = ((at - zeros[..., None]).astype(np.float32) * scale for at in places)
    arrays = (real, np.broadcast_to(np.abs(scale), real.shape), np.minimum(*ends), np.maximum(*ends))
    arrays = [np.ascontiguousarray(array.reshape(N, -1)[:, :K].T) for array in arrays]
    return Matrix(node, node, node.outputs[0], *arrays)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(np.int64)


def _of_columns(node: ir.Node) -> Matrix | None:
    """MatMulInteger between DynamicQuantizeLinear and a multiplication with both scales."""
    source = node.inputs[0].producer() if node.inputs[0] else None
    integers = _columns(node.inputs[1])
    zero = graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
    cast = _only_reader(node.outputs[0])
    product = _only_reader(cast.outputs[0]) if cast is not None else None
    if integers is None or source is None or cast is None or product is None or source.inputs[0] is None:
        return None
    scales = next((v.producer() for v in product.inputs if v is not None and v is not cast.outputs[0]), None)
    scale = next((a for a in map(graph.constant, scales.inputs) if a is not None), None) if scales else None
    if scale is None:
        return None
    zeros = np.zeros(1) if zero is None else zero.reshape(-1)
    real = (integers.astype(np.int64) - zeros.astype(np.int64)).astype(np.float32) * scale.reshape(-1)
    step = np.broadcast_to(np.abs(scale.reshape(-1)), real.shape)
    return Matrix(node, source, product.outputs[0], real, step, -np.inf * step, np.inf * step)


def _columns(value: ir.Value | None) -> np.ndarray | None:
    """The integers of a matrix, which may be a table, transposed."""
    turn = None if value is None else value.producer()
    if turn is None or turn.op_type != "Transpose":
        return graph.constant(value)
    table = graph.constant(turn.inputs[0])
    return None if table is None else table.transpose(turn.attributes.get_ints("perm", [1, 0]))


@dataclass(frozen=True)
class Table:
    """A table (V, C) that is stored as integers: the node that looks its rows up, what is read in the end, numbers."""

    node: ir.Node
    output: ir.Value
    real: np.ndarray
    step: np.ndarray


def tables(model: ir.Model) -> dict[str, Table]:
    """The tables that `model` stores as integers, by the name that the Gather had in floats; see ties."""
    found: dict[str, Table] = {}
    for node in model.graph:
        if node.op_type != "Gather" or not (node.name or "").endswith(ROWS):
            continue
        integers, cast = graph.constant(node.inputs[0]), _only_reader(node.outputs[0])
        product = None if cast is None else _only_reader(cast.outputs[0])
        scale = None if product is None else _scale_of_rows(product.inputs[1], node.inputs[1])
        if integers is None or product is None or scale is None:
            continue
        rows = scale.reshape(-1, 1).astype(np.float32)
        real = integers.astype(np.float32) * rows
        name = (node.name or "").removesuffix(ROWS)
        found[name] = Table(node, product.outputs[0], real, np.broadcast_to(np.abs(rows), real.shape))
    return found


def _scale_of_rows(value: ir.Value | None, ids: ir.Value | None) -> np.ndarray | None:
    """The scale of every row, behind a look-up by the same `ids`, or of all."""
    wide = None if value is None else value.producer()
    if wide is None:
        return graph.constant(value)
    own = wide.inputs[0].producer() if wide.op_type == "Unsqueeze" and wide.inputs[0] is not None else None
    if own is None or own.op_type != "Gather" or own.inputs[1] is not ids:
        return None
    return graph.constant(own.inputs[0])


def _look_up_floats(floats: ir.Model) -> dict[str, ir.Value]:
    """Puts look-ups of floats where integers were looked up; the tables in floats, by the name of their integers."""
    made: dict[str, ir.Value] = {}
    for name, table in tables(floats).items():
        stored, ids = table.node.inputs
        key = stored.name if stored is not None else None
        if key is None:
            continue
        if key not in made:
            made[key] = graph.add_constant(floats.graph, key.removesuffix("_quantized"), table.real)
        rows = ir.Node("", "Gather", [made[key], ids], name=name, num_outputs=1)
        last, value, kept = table.output.producer(), rows.outputs[0], table.output.name
        assert last is not None
        floats.graph.insert_before(last, rows)
        value.name, value.type, value.shape = f"{kept}/looked_up", table.output.type, table.output.shape
        _replace(last, value)
        value.name = kept
    return made


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 else None


def _multiply(floats: ir.Model, name: str, matrix: Matrix, held: Mapping[str, ir.Value]) -> None:
    """Puts a MatMul of floats where integers were multiplied; held: tables in floats by the name of their integers."""
    last = matrix.output.producer()
    assert last is not None
    stored = matrix.node.inputs[1]
    turn = None if stored is None else stored.producer()
    table = None if turn is None or turn.inputs[0] is None else held.get(turn.inputs[0].name or "")
    if turn is None or table is None:
        halves = matrix.values.dtype in half.HALVES
        real = matrix.real.astype(matrix.values.dtype.numpy()) if halves and matrix.values.dtype else matrix.real
        w = graph.add_constant(floats.graph, f"{name}/matrix", real)
    else:
        turn.replace_input_with(0, table)
        w = turn.outputs[0]
        w.type, w.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(matrix.real.shape)
    made = ir.Node("", "MatMul", [matrix.values, w], name=name, num_outputs=1)
    floats.graph.insert_before(last, made)
    value = made.outputs[0]
    value.name, value.type, value.shape = f"{matrix.output.name}/floats", matrix.output.type, matrix.output.shape
    kept = matrix.output.name
    _replace(last, value)
    value.name = kept


def _join_gemms(floats: ir.Model, float_model: ir.Model) -> None:
    """Makes Gemm again of what was taken apart to MatMul and Add, see prepare.split_gemms."""
    nodes = {node.name: node for node in floats.graph}
    for gemm in float_model.graph:
        product = nodes.get(gemm.name)
        if gemm.op_type != "Gemm" or product is None or product.op_type != "MatMul":
            continue
        total = nodes.get(f"{gemm.name}/sum")
        w = graph.constant(product.inputs[1])
        if w is None:
            continue
        transposed = gemm.attributes.get_int("transB", 0)
        named = graph.add_constant(floats.graph, f"{gemm.name}/matrix", np.ascontiguousarray(w.T) if transposed else w)
        last = product if total is None else total
        inputs = [product.inputs[0], named, *([] if total is None else [total.inputs[1]])]
        made = ir.Node("", "Gemm", inputs, list(gemm.attributes.values()), name=f"{gemm.name}/gemm", num_outputs=1)
        floats.graph.insert_before(last, made)
        value, kept = made.outputs[0], last.outputs[0].name
        value.name, value.type, value.shape = f"{kept}/floats", last.outputs[0].type, last.outputs[0].shape
        _replace(last, value)
        if total is not None:
            floats.graph.remove(product, safe=True)
        made.name, value.name = gemm.name, kept


# Halves -------------------------------------------------------------------------------------------------------------


def _single(model: ir.Model, float_model: ir.Model) -> ir.Model:
    """`model` in single precision, less the conversions that the converter put in."""
    own = {node.name for node in float_model.graph.all_nodes() if node.op_type == "Cast"}
    floats = half.single(model)
    for node in list(floats.graph.all_nodes()):
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Cast" and node.name not in own and source is not None:
            _replace(node, source)
    return floats
