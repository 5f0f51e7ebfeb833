"""--states narrow: states that were cut inside lose the same positions in the interface, and regain them to verify."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.graph import states
from onnxprune.graph.inputs import Feeds


@dataclass(frozen=True)
class Narrowed:
    """An axis of a state, an input and the output handed back as it, of which `keep` of `size` positions are left."""

    input: str
    output: str
    axis: int
    size: int
    keep: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """The record that a plan holds."""
        return {**vars(self), "keep": list(self.keep)}


def of_json(found: Iterable[Mapping[str, Any]]) -> tuple[Narrowed, ...]:
    """The narrowed states that a plan records."""
    return tuple(
        Narrowed(str(f["input"]), str(f["output"]), int(f["axis"]), int(f["size"]), tuple(map(int, f["keep"])))
        for f in found
    )


def narrow(model: ir.Model, pairs: Iterable[tuple[str, str]]) -> tuple[ir.Model, tuple[Narrowed, ...]]:
    """(a copy of a finished model that takes and gives the kept positions alone, what was narrowed).

    pairs: input and output of each state. Only axes that are cut on both sides alike are narrowed, so that what is
    given can be handed back.
    """
    model = graph.copy(model)
    nodes = {node.name: node for node in model.graph}
    sizes = {value.name: value.shape for value in model.graph.inputs}
    found: list[Narrowed] = []
    for given, output in pairs:
        shape = sizes.get(given)
        for axis in range(len(shape) if shape is not None else 0):
            reads, fills = nodes.get(_gather_of(given, "in", axis)), nodes.get(_gather_of(output, "out", axis))
            pad = fills.inputs[0].producer() if fills is not None and fills.inputs[0] is not None else None
            keep = graph.constant(reads.inputs[1]) if reads is not None else None
            places = graph.constant(fills.inputs[1]) if fills is not None else None
            if reads is None or fills is None or pad is None or pad.op_type != "Pad" or keep is None or places is None:
                continue
            if not np.array_equal(np.flatnonzero(places < len(keep)), keep):
                continue
            found.append(Narrowed(given, output, axis, len(places), tuple(keep.tolist())))
            _take_out(model.graph, reads, fills, pad)
    for entry in found:
        for value in (*model.graph.inputs, *model.graph.outputs):
            if value.name in (entry.input, entry.output) and value.shape is not None:
                value.shape = _with(value.shape, entry.axis, len(entry.keep))
    return model, tuple(found)


def widened(model: ir.Model, found: Sequence[Narrowed]) -> ir.Model:
    """A copy of a narrowed model behind the interface that the original has.

    Raises: VerificationError where the model does not have the narrow states.
    """
    model = graph.copy(model)
    for entry in reversed(found):
        for name, values in ((entry.input, model.graph.inputs), (entry.output, model.graph.outputs)):
            shape = next((value.shape for value in values if value.name == name), None)
            if shape is None or len(shape) <= entry.axis or shape[entry.axis] != len(entry.keep):
                raise VerificationError(
                    f"state '{name}' has the shape {shape}, and axis {entry.axis} of length {len(entry.keep)} by the "
                    "plan; the model was not made by this plan"
                )
        value = next(value for value in model.graph.inputs if value.name == entry.input)
        uses = list(value.uses())
        keep = np.array(entry.keep, np.int64)
        reads = _gather(model.graph, value, keep, entry.axis, _gather_of(entry.input, "in", entry.axis))
        reads.outputs[0].shape = value.shape
        model.graph.insert_before(next(iter(model.graph)), reads)
        for node, index in uses:
            node.replace_input_with(index, reads.outputs[0])
        if value.shape is not None:
            value.shape = _with(value.shape, entry.axis, entry.size)
        _fill(model.graph, entry)
    return model


def fed(feeds: Feeds, found: Iterable[Narrowed], of: str = "input") -> dict[str, np.ndarray]:
    """Arrays of the whole interface, inputs or outputs by name, as those of the narrowed one."""
    arrays = dict(feeds)
    for entry in found:
        name = getattr(entry, of)
        arrays[name] = np.take(arrays[name], entry.keep, axis=entry.axis)
    return arrays


def _gather_of(name: str, side: Literal["in", "out"], axis: int) -> str:
    """The name of the node that takes the kept positions of a state at the input, or fills them up at the output."""
    return f"{name}.state_{side}.{axis}.cut.Gather"


def _with(shape: ir.Shape, axis: int, size: int) -> ir.Shape:
    return ir.Shape([size if k == axis else dim for k, dim in enumerate(shape)])


def _take_out(graph_: ir.Graph, reads: ir.Node, fills: ir.Node, pad: ir.Node) -> None:
    """Removes the nodes of a gate that are given: what reads them reads what they read."""
    source, inner = reads.inputs[0], pad.inputs[0]
    assert source is not None, reads.name
    assert inner is not None, pad.name
    reads.outputs[0].replace_all_uses_with(source)
    output = fills.outputs[0]
    if output.is_graph_output():
        states.become_output(graph_, output, inner)
    else:
        output.replace_all_uses_with(inner)
    graph_.remove([reads, fills, pad], safe=True)
    for node in (reads, fills, pad):
        for value in node.inputs[1:]:
            if value is not None and not value.uses():
                graph_.initializers.pop(value.name or "", None)


def _gather(graph_: ir.Graph, value: ir.Value, indices: np.ndarray, axis: int, name: str) -> ir.Node:
    constant = graph.add_constant(graph_, f"{name}.indices", indices)
    node = ir.Node("", "Gather", [value, constant], [ir.AttrInt64("axis", axis)], name=name)
    node.outputs[0].name, node.outputs[0].type = f"{name}.y", value.type
    return node


def _fill(graph_: ir.Graph, entry: Narrowed) -> None:
    """Zeros at the removed positions of an output."""
    inner = next(value for value in graph_.outputs if value.name == entry.output)
    name = _gather_of(entry.output, "out", entry.axis)
    shape = inner.shape
    assert shape is not None, entry.output
    pads = np.zeros(2 * len(shape), np.int64)
    pads[len(shape) + entry.axis] = 1
    pad = ir.Node("", "Pad", [inner, graph.add_constant(graph_, f"{name}.pads", pads)], name=name[:-6] + "Pad")
    pad.outputs[0].name, pad.outputs[0].type = f"{name}.padded", inner.type
    places = np.full(entry.size, len(entry.keep), np.int64)
    places[list(entry.keep)] = np.arange(len(entry.keep))
    fills = _gather(graph_, pad.outputs[0], places, entry.axis, name)
    graph_.extend([pad, fills])
    states.become_output(graph_, inner, fills.outputs[0])
    inner.name = f"{name}.inside"
    fills.outputs[0].shape = _with(shape, entry.axis, entry.size)
