"""Inputs that have a default: an initializer under the name of an input, which callers may leave out.

Some exporters list every weight so, which only switches optimizations off. What an author lists on purpose, a gain or
a first state, is part of the interface: it is set aside while a model is worked on, as an input that may be anything,
and written back.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from onnxprune.graph import extras

FIRST_IR = 4  # before, initializers had to be inputs, so being one says nothing


def detach(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Takes the defaults off the inputs that were given one on purpose: these, by name."""
    graph = model.graph
    listed = [value for value in graph.inputs if value.is_initializer() and value.const_value is not None]
    if model.ir_version < FIRST_IR or _by_habit(graph, listed):
        return {}
    found: dict[str, ir.TensorProtocol] = {}
    for value in listed:
        assert value.const_value is not None
        found[value.name or ""] = value.const_value
        del graph.initializers[value.name or ""]
        value.const_value = None
    return found


def _by_habit(graph: ir.Graph, listed: list[ir.Value]) -> bool:
    """Whether most of the weights are listed, as exporters do that list everything."""
    weights = [v for v in graph.initializers.values() if v.const_value is not None and len(v.const_value.shape) > 1]
    shown = set(listed)
    whole = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
    return sum(v.const_value.nbytes for v in weights if v.const_value is not None and v in shown) * 2 > whole


@contextmanager
def attached(model: ir.Model) -> Iterator[None]:
    """`model` with the defaults of its inputs, as it is written."""
    given = tensors(model)
    values = [value for value in model.graph.inputs if value.name in given]
    for value in values:
        value.const_value = given[value.name or ""]
        model.graph.register_initializer(value)
    try:
        yield
    finally:
        for value in values:
            del model.graph.initializers[value.name or ""]
            value.const_value = None


def tensors(model: ir.Model) -> Mapping[str, ir.TensorProtocol]:
    """The defaults by the name of their input."""
    return extras.of(model).defaults


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    """The defaults as arrays."""
    return {name: tensor.numpy() for name, tensor in tensors(model).items()}
