"""Outputs that are maps: their ZipMap nodes are set aside while a model is pruned, and put back when it is written.

ZipMap only writes class names beside the columns of a tensor. That tensor stands in for the output meanwhile: it is
frozen as outputs are, and it is compared as numbers.
"""

from dataclasses import dataclass
from typing import TypeVar

import onnx

DOMAIN = "ai.onnx.ml"
Message = TypeVar("Message", onnx.NodeProto, onnx.ValueInfoProto)


@dataclass(frozen=True)
class Map:
    """An output that was set aside."""

    position: int  # among the outputs
    output: onnx.ValueInfoProto
    node: onnx.NodeProto
    opset: int  # of DOMAIN
    extra: bool  # the tensor became an output in its place


def detach(proto: onnx.ModelProto) -> tuple[Map, ...]:
    """Sets aside the ZipMap nodes of `proto` that make outputs, in place; what `attach` needs to put them back."""
    graph = proto.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.input}
    makers = {name: node for node in graph.node for name in node.output if node.op_type == "ZipMap"}
    computed = {name for node in graph.node for name in node.output}
    opset = next((entry.version for entry in proto.opset_import if entry.domain == DOMAIN), 1)
    found: list[Map] = []
    for position, output in enumerate(list(graph.output)):
        node = makers.get(output.name)
        if node is None or output.name in read or node.input[0] not in computed:
            continue
        extra = all(other.name != node.input[0] for other in graph.output)
        found.append(Map(position, _copy(output), _copy(node), opset, extra))
        graph.node.remove(node)
        if extra:
            output.CopyFrom(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
        else:
            graph.output.remove(output)
    return tuple(found)


def attach(proto: onnx.ModelProto, maps: tuple[Map, ...]) -> None:
    """Puts the ZipMap nodes back, in place."""
    outputs = list(proto.graph.output)
    for entry in maps:
        tensor = entry.node.input[0]
        outputs = [value for value in outputs if not (entry.extra and value.name == tensor)]
        outputs.insert(entry.position, entry.output)
        proto.graph.node.append(entry.node)
        if all(found.domain != DOMAIN for found in proto.opset_import):
            proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, entry.opset))
    copies = [_copy(value) for value in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(copies)


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
