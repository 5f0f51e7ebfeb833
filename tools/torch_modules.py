"""An ONNX file of plain convolutional networks as torch modules with its weights, for tools that cut modules.

Enough for chains and inverted residual blocks: Conv, Gemm and BatchNormalization behind it, Relu, Clip, MaxPool,
GlobalAveragePool, Flatten and Add.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxprune import graph


class Modules(nn.Module):
    """Runs the nodes of a normalized model in order; layers are modules, all else are functions.

    Raises: NotImplementedError for other nodes.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        (self.input,), (self.output,) = (v.name for v in model.graph.inputs), (v.name for v in model.graph.outputs)
        self.layers = nn.ModuleList()
        self.stored: dict[str, str] = {}  # initializer -> its place in the state dict
        self.steps: list[tuple[Callable[..., Tensor], list[str], str]] = []
        for node in model.graph:
            make = MAKERS.get(node.op_type)
            if make is None:
                raise NotImplementedError(f"{node.op_type} '{node.name}' is no step of a plain convolutional network")
            self.steps.append((self._step(make, node), _values(node), node.outputs[0].name or ""))

    def _step(self, make: Callable[..., Any], node: ir.Node) -> Callable[..., Tensor]:
        parameters = [value for value in node.inputs if value is not None and value.is_initializer()]
        arrays = [graph.array_of(value) for value in parameters]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        step = make(attributes, *(array.astype(np.float32) for array in arrays))
        if isinstance(step, nn.Module):
            layer = f"layers.{len(self.layers)}"
            self.layers.append(step)
            for value, name in zip(parameters, NAMES, strict=False):
                self.stored[value.name or ""] = f"{layer}.{name}"
        return step

    def forward(self, x: Tensor) -> Tensor:
        values = {self.input: x}
        for step, inputs, output in self.steps:
            values[output] = step(*(values[name] for name in inputs))
        return values[self.output]

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights that are left as float32, by initializer."""
        state = self.state_dict()
        return {name: state[place].numpy().copy() for name, place in self.stored.items()}

    def last(self) -> nn.Module:
        """The layer that gives the answers."""
        return self.layers[-1]


def widened(model: ir.Model, *, apart: bool = False) -> ir.Model:
    """`model`, in place, without casts of half-precision weights: other tools see no weights behind these.

    apart: move each by less than a half-precision number can be off, so that nearly all of them differ.
    """
    generator = np.random.default_rng(0)
    for node in list(model.graph):
        stored = node.inputs[0] if node.op_type == "Cast" else None
        if stored is None or not stored.is_initializer() or stored.dtype != ir.DataType.FLOAT16:
            continue
        array = graph.array_of(stored).astype(np.float32)
        if apart:
            array *= 1 + generator.random(array.shape, np.float32) / 2**12
        stored.const_value = ir.Tensor(array, name=stored.name)
        stored.type = ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored)
        model.graph.remove(node, safe=True)
    return model


NAMES = ("weight", "bias", "running_mean", "running_var")


def _values(node: ir.Node) -> list[str]:
    return [value.name or "" for value in node.inputs if value is not None and not value.is_initializer()]


def _filled(module: nn.Module, *arrays: np.ndarray) -> nn.Module:
    for name, array in zip(NAMES, arrays, strict=False):
        getattr(module, name).data.copy_(torch.from_numpy(array))
    return module.eval()


def _convolution(attributes: Mapping[str, Any], w: np.ndarray, *b: np.ndarray) -> nn.Module:
    pads, groups = attributes.get("pads", (0, 0, 0, 0)), attributes.get("group", 1)
    if tuple(pads[:2]) != tuple(pads[2:]) or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise NotImplementedError(f"Conv: padding {pads} is not even")
    inner = {"padding": tuple(pads[:2]), "groups": groups, "bias": bool(b)}
    inner |= {
        "stride": tuple(attributes.get("strides", (1, 1))),
        "dilation": tuple(attributes.get("dilations", (1, 1))),
    }
    return _filled(nn.Conv2d(w.shape[1] * groups, w.shape[0], w.shape[2:], **inner), w, *b)


def _product(attributes: Mapping[str, Any], w: np.ndarray, *b: np.ndarray) -> nn.Module:
    if (
        not attributes.get("transB")
        or attributes.get("transA")
        or {attributes.get(k, 1) for k in ("alpha", "beta")} != {1}
    ):
        raise NotImplementedError(f"Gemm with {dict(attributes)}; only x @ w.T + b is known")
    return _filled(nn.Linear(w.shape[1], w.shape[0], bool(b)), w, *b)


def _norm(attributes: Mapping[str, Any], *arrays: np.ndarray) -> nn.Module:
    return _filled(nn.BatchNorm1d(len(arrays[0]), attributes.get("epsilon", 1e-5)), *arrays)


def _clip(attributes: Mapping[str, Any], low: np.ndarray, high: np.ndarray) -> Callable[[Tensor], Tensor]:
    return lambda x: x.clamp(float(low), float(high))


def _pool(attributes: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    if any(attributes.get("pads", ())) or attributes.get("ceil_mode"):
        raise NotImplementedError(f"MaxPool with {dict(attributes)}; only whole windows are known")
    return lambda x: F.max_pool2d(x, attributes["kernel_shape"], attributes.get("strides"))


MAKERS: Mapping[str, Callable[..., Any]] = {
    "Conv": _convolution,
    "Gemm": _product,
    "BatchNormalization": _norm,
    "Relu": lambda _: torch.relu,
    "Clip": _clip,
    "MaxPool": _pool,
    "GlobalAveragePool": lambda _: lambda x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda _: lambda x: x.flatten(1),
    "Add": lambda _: torch.add,
}
