"""Which initializers are trained: float ones from which a gradient path leads to an output, or what it decides on."""

from collections.abc import Iterator

import ml_dtypes  # noqa: F401  gives numpy bfloat16
import numpy as np
import onnx_ir as ir

from onnxprune.bridge.ops.registry import TorchFunction, find
from onnxprune.bridge.tensors import TRAINABLE_TYPES
from onnxprune.coupling.layers import layer_of
from onnxprune.graph import bodies
from onnxprune.outputs.decisions import decided_on

# A single number at one of these is a constant of the formula (the 0.5 of a GELU, an epsilon), not a parameter.
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Sum", "Mean", "Mod"})


def initializers(graph: ir.Graph) -> dict[str, ir.Value]:
    """All initializers by name, those of If, Loop and Scan bodies included.

    A name that two bodies use gets '@1', '@2', ... in graph order for the second and later ones.
    """
    found: dict[str, ir.Value] = {}
    for inner in _graphs(graph):
        for name, value in inner.initializers.items():
            key, count = name, 0
            while key in found:
                count += 1
                key = f"{name}@{count}"
            found[key] = value
    return found


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for body in bodies.of(node):
            yield from _graphs(body)


def trainable(graph: ir.Graph, opsets: dict[str, int]) -> list[ir.Value]:
    """The initializers to train, in no particular order.

    Statistics, thresholds, sizes and the numbers of formulas are not among them.
    """
    reached: set[ir.Value] = set()
    pending = [value for value in graph.outputs if value is not None]
    pending += _decided_on(pending)
    while pending:
        value = pending.pop()
        if value in reached or not _may_be_float(value):
            continue
        reached.add(value)
        node = value.producer()
        if node is not None:
            pending += _gradient_inputs(node, opsets)
    return [value for value in reached if value.const_value is not None and _is_parameter(value)]


def _decided_on(outputs: list[ir.Value]) -> list[ir.Value]:
    """The values inside that ArgMax, TopK, NonMaxSuppression and the like make `outputs` of."""
    return [
        value
        for output in outputs
        for name, _, node in decided_on(output)
        for value in node.inputs
        if value is not None and value.name == name
    ]


def function_of(node: ir.Node, opsets: dict[str, int]) -> TorchFunction | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return find(node.op_type, domain, node.version or opsets.get(domain, 1))


def _gradient_inputs(node: ir.Node, opsets: dict[str, int]) -> list[ir.Value]:
    function = function_of(node, opsets)
    if function is None or not function.differentiable or function.shape_only:
        return []
    skipped = function.host | function.fixed
    found = [value for index, value in enumerate(node.inputs) if value is not None and index not in skipped]
    for body in bodies.of(node):
        found += [value for value in body.outputs if value is not None]
    return found


def _may_be_float(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        return True  # its gradient is straight-through
    return value.dtype is None or value.dtype in TRAINABLE_TYPES


def _is_parameter(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype not in TRAINABLE_TYPES or tensor.size == 0 or not value.is_initializer():
        return False
    if len(tensor.shape) == 0 or (tensor.size == 1 and all(_is_formula(node, value) for node, _ in value.uses())):
        return False
    return bool(np.isfinite(tensor.numpy().astype(np.float32, copy=False)).all())


def _is_formula(node: ir.Node, value: ir.Value) -> bool:
    """Whether a single number is a constant of a formula here; a bias behind a one-column product is not."""
    if node.op_type not in ARITHMETIC:
        return False
    others = [other.producer() for other in node.inputs if other is not None and other is not value]
    behind_linear = any(layer_of(producer) is not None for producer in others)
    return not (node.op_type == "Add" and behind_linear)
