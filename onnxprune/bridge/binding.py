"""Attributes bound to functions once, and how nodes are named in messages."""

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnxprune.bridge.ops.registry import SERVED, TorchFunction
from onnxprune.bridge.tensors import to_torch
from onnxprune.errors import BridgeError


def attribute_value(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.numpy() if tensor.dtype == ir.DataType.STRING else to_torch(tensor.numpy())
    if isinstance(attribute.value, (list, tuple)):
        return tuple(attribute.value)
    return attribute.value


def bind(entry: TorchFunction, node: ir.Node, attributes: dict[str, Any], opsets: dict[str, int]) -> Callable[..., Any]:
    unknown = sorted(attributes.keys() - entry.keywords)
    if unknown and not entry.any_keyword:
        raise BridgeError(
            f"{where(node)}: attribute '{unknown[0]}' is not known at this opset; "
            f"known are {', '.join(sorted(entry.keywords - SERVED)) or 'none'}"
        )
    bound = dict(attributes)
    if "outputs" in entry.keywords:
        bound["outputs"] = len(node.outputs)
    if "opset" in entry.keywords:
        bound["opset"] = node.version or opsets.get(node.domain, 1)
    if "input_types" in entry.keywords:
        bound["input_types"] = tuple(None if value is None else value.dtype for value in node.inputs)
    return functools.partial(entry.function, **bound) if bound else entry.function


def where(node: ir.Node) -> str:
    return f"{op_name(node)} '{node.name}'"


def op_name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
