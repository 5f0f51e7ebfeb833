"""The tensors that a network holds, and the constants that are computed once."""

from collections.abc import Collection
from typing import Any

import onnx_ir as ir
from torch import Tensor

from onnxprune.bridge.tensors import to_torch


class Store:
    """The tensors that a network holds, by index: parameters and buffers, from all graphs of the model."""

    def __init__(self, opsets: dict[str, int], keys: dict[ir.Value, str], parameters: Collection[ir.Value]) -> None:
        self.opsets = opsets
        self.keys = keys
        self.parameters = set(parameters)
        self.held: list[tuple[str, ir.Value | None, Tensor | None]] = []
        self.constants: dict[ir.Value, Any] = {}
        self.computed: set[str] = set()
        self._index: dict[ir.Value, int] = {}

    def constant(self, value: ir.Value) -> Any:
        """The CPU tensor of a constant; KeyError when it is none."""
        if value not in self.constants:
            if value in self.parameters or value.const_value is None:
                raise KeyError(value.name)
            if value.const_value.dtype == ir.DataType.STRING:
                self.constants[value] = value.const_value.numpy()
            else:
                self.constants[value] = to_torch(value.const_value.numpy())
        return self.constants[value]

    def index(self, value: ir.Value) -> int:
        """Where the network holds `value`, which is a parameter or a constant."""
        if value not in self._index:
            self._index[value] = len(self.held)
            tensor = None if value in self.parameters else self.constant(value)
            self.held.append((self.keys.get(value, value.name or ""), value, tensor))
        return self._index[value]
