"""A quantized file taken apart: which value a rounded one stands for, and weights as floats again.

What DequantizeLinear means is written down here once more, in numpy and apart from onnxruntime.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import VerificationError

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
        """What `integers` stand for."""
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


def as_floats(model: ir.Model, float_model: ir.Model, record: Mapping[str, Any]) -> ir.Model:
    """`model`, quantized as int8, as floats: its weights are numbers of the grid, and nothing is rounded as it runs.

    float_model: a model of the same graph before it was quantized; what the quantizer dropped comes from there.
    Raises: VerificationError where `model` was not made from that graph.
    """
    meta, floats = model.meta, model.clone()
    floats.meta.update(meta)
    for node in list(floats.graph):
        if node.op_type != "DequantizeLinear":
            continue
        found, pair = stored(node.outputs[0]), rounding(node.outputs[0])
        if found is not None:
            integers, grid = found
            name = (node.inputs[0].name or "").removesuffix("_quantized")  # type: ignore[union-attr]
            _replace(floats, node, graph.add_constant(floats.graph, name, grid.real(integers)))
        elif pair is not None:
            _replace(floats, node, pair[0])
    for node in reversed(list(floats.graph)):
        if node.op_type == "QuantizeLinear" and not node.outputs[0].uses():
            floats.graph.remove(node, safe=True)
    for node in _dropped(floats, float_model):
        _insert(floats, node)
    for name, value in list(floats.graph.initializers.items()):
        if not value.uses() and value not in floats.graph.outputs:
            del floats.graph.initializers[name]
    return floats


def _replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """Takes `node` out; those that read its output read `value`."""
    output = node.outputs[0]
    shown = output in model.graph.outputs
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    if shown:  # the interface keeps its name, type and shape
        name, output.name = output.name, f"{output.name}/rounded"
        value.name, value.type, value.shape = name, output.type, output.shape
    model.graph.remove(node, safe=True)


def _dropped(model: ir.Model, float_model: ir.Model) -> Iterator[ir.Node]:
    names = {node.name for node in model.graph}
    for node in float_model.graph:
        if node.op_type in DROPPED and node.name not in names:
            yield node


def _insert(model: ir.Model, node: ir.Node) -> None:
    """Puts a copy of `node` back where it was: onnxruntime gave its output's name to what stood in front of it."""
    source = node.inputs[0]
    producer = None if source is None else source.producer()
    name = None if producer is None else producer.name
    own = next((other for other in model.graph if other.name == name), None)
    value = _value_in(model, node.outputs[0].name or "") if own is None else own.outputs[0]
    if value is None or value.producer() is None:
        raise VerificationError(f"{node.op_type} '{node.name}' is missing, and so is what it reads; not made from it")
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
