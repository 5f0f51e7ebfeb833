"""A model as a torch module: the same graph, walked in order; its float initializers are the parameters."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

import onnxprune.bridge.ops  # noqa: F401  fills the table
from onnxprune import graph
from onnxprune.bridge.compile import compile_graph, without_texts
from onnxprune.bridge.fusion import find_fusions
from onnxprune.bridge.program import Context, run
from onnxprune.bridge.store import Store
from onnxprune.bridge.tensors import TORCH_TYPES, TRAINABLE_TYPES, is_half, to_numpy, to_torch
from onnxprune.bridge.trainable import initializers, trainable
from onnxprune.errors import BridgeError
from onnxprune.graph import half, set_constant

Hook = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """Runs an `onnx_ir.Model` in torch; `write_back` puts what was trained into a model again.

    gates: by value name, a function applied to a value right after it is produced.
    overrides: by initializer name, a function applied to a held tensor before it is used.
    freeze_norm: BatchNormalization keeps its running statistics in train mode too.
    What the model computes in half precision is computed in single: the range of half does not do for gradients.
    Outputs are rounded to the model's type, unless they carry a gradient. Those that hold text are left out.
    """

    def __init__(self, model: ir.Model, *, trainable: Collection[str] | None = None, freeze_norm: bool = False) -> None:
        """trainable: names of initializers to train; by default all float ones from which gradients reach an output.

        Left out by default are statistics, thresholds, non-finite tables and the single numbers of formulas.
        Raises: BridgeError that lists the ops without a torch function.
        """
        super().__init__()
        if model.functions:
            model = graph.copy(model)
            passes.InlinePass()(model)
        model = without_texts(model)
        types = ((value.name or "", value.dtype) for value in model.graph.outputs)
        self._rounded = {name: TORCH_TYPES[dtype] for name, dtype in types if dtype and dtype in half.HALVES}
        if half.has_halves(model):
            model = half.single(model)
        opsets = {"" if domain == "ai.onnx" else domain: version for domain, version in model.opset_imports.items()}
        named = initializers(model.graph)
        parameters = _chosen(model.graph, named, opsets, trainable)
        store = Store(opsets, {value: name for name, value in named.items()}, parameters)
        self.plain_program, self.input_names = compile_graph(model.graph, store)
        fusions = find_fusions(model.graph)
        self.program, _ = compile_graph(model.graph, store, fusions)
        self._hidden = fusions.hidden
        self.output_names = tuple(value.name or "" for value in model.graph.outputs)
        self.gates: dict[str, Hook] = {}
        self.overrides: dict[str, Hook] = {}
        self.freeze_norm = freeze_norm
        self._statistics = _batch_statistics(model.graph)
        self._held: list[tuple[str, str]] = []  # attribute, initializer name
        self._computed = frozenset(store.computed | set(self.input_names)) - {""}
        for index, (name, value, tensor) in enumerate(store.held):
            self._hold(index, name, value, tensor)
        # DistributedDataParallel reads this: constants are equal everywhere, and some of their types cannot be sent.
        ignored = [attribute for attribute, name in self._held if name not in self._statistics]
        self._ddp_params_and_buffers_to_ignore = [name for name in ignored if name in self._buffers]

    def _hold(self, index: int, name: str, value: ir.Value | None, tensor: Tensor | None) -> None:
        if tensor is None:
            assert value is not None
            assert value.const_value is not None
            attribute = _mangled("parameter", name)
            self.register_parameter(attribute, nn.Parameter(to_torch(value.const_value.numpy())))
        else:
            attribute = _mangled(f"constant{index}", name)
            # A copy: running statistics are updated in place, and constants may be views of one another.
            self.register_buffer(attribute, tensor.clone(), persistent=name in self._statistics)
        self._held.append((attribute, name))

    @property
    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The trainable initializers under their own names; half-precision ones as float32."""
        named = {name: self._parameters.get(attribute) for attribute, name in self._held}
        return {name: parameter for name, parameter in named.items() if parameter is not None}

    @property
    def statistics_by_name(self) -> dict[str, Tensor]:
        """The running means and variances of BatchNormalization by initializer name."""
        named = {name: self._buffers.get(attribute) for attribute, name in self._held if name in self._statistics}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def forward(self, feeds: dict[str, Tensor], capture: Collection[str] = ()) -> dict[str, Tensor]:
        """Graph outputs by name, and the values named in `capture`.

        Raises: BridgeError for inputs that are missing or unknown, names that are no values, and nodes that fail.
        """
        self._check_names(feeds, capture)
        feeds = {name: x.float() if is_half(x) else x for name, x in feeds.items()}
        held = self._held_tensors()
        context = Context(
            held=held,
            device=_device(held, feeds),
            gates=self.gates,
            wanted=frozenset(capture),
            training=self.training,
            batch_statistics=self.training and not self.freeze_norm,
        )
        inputs = [self._gated(name, feeds[name]) for name in self.input_names]
        outputs = run(self.plain_program if self._looks_inside(capture) else self.program, inputs, context)
        result = dict(zip(self.output_names, outputs, strict=True))
        for name, dtype in self._rounded.items():
            if not result[name].requires_grad:
                result[name] = result[name].to(dtype)
        for name in capture:
            result[name] = self._captured(name, context, feeds, held)
        return result

    def write_back(self, model: ir.Model) -> None:
        """Puts the trained arrays and running statistics into `model`, in place; what did not change is not touched."""
        named = initializers(model.graph)
        for name, tensor in [*self.parameters_by_name.items(), *self.statistics_by_name.items()]:
            if name not in named or named[name].const_value is None:
                raise BridgeError(f"initializer '{name}' is not in this model; write back to the one that was loaded")
            value = named[name]
            dtype = TORCH_TYPES[value.const_value.dtype]  # type: ignore[union-attr]
            array = to_numpy(tensor.detach().to(dtype))
            if not _same_bytes(array, value.const_value.numpy()):  # type: ignore[union-attr]
                set_constant(value, array.copy())

    def _looks_inside(self, capture: Collection[str]) -> bool:
        """Whether a value is gated or captured that only the unfused program computes."""
        return any(name in self._hidden for name in (*capture, *self.gates))

    def _held_tensors(self) -> list[Tensor]:
        held = []
        for attribute, name in self._held:
            tensor = getattr(self, attribute)
            held.append(self.overrides[name](tensor) if name in self.overrides else tensor)
        return held

    def _gated(self, name: str, value: Tensor) -> Tensor:
        return self.gates[name](value) if name in self.gates else value

    def _captured(self, name: str, context: Context, feeds: dict[str, Tensor], held: list[Tensor]) -> Any:
        if name in context.captured:
            return context.captured[name]
        if name in feeds:
            return self._gated(name, feeds[name])
        for tensor, (_, key) in zip(held, self._held, strict=True):
            if key == name:
                return tensor
        raise BridgeError(f"capture '{name}' lies inside a body of If, Loop or Scan that did not run")

    def _check_names(self, feeds: dict[str, Tensor], capture: Collection[str]) -> None:
        if feeds.keys() != set(self.input_names):
            raise BridgeError(f"fed are {sorted(feeds)}, but the model's inputs are {sorted(self.input_names)}")
        held = {name for _, name in self._held}
        for kind, names, known in (
            ("capture", capture, self._computed | held),
            ("gate", self.gates, self._computed),
            ("override", self.overrides, held),
        ):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise BridgeError(
                    f"{kind} '{unknown[0]}' names nothing that the network computes or holds; check the name"
                )


def _chosen(
    graph: ir.Graph, named: dict[str, ir.Value], opsets: dict[str, int], names: Iterable[str] | None
) -> list[ir.Value]:
    if names is None:
        return trainable(graph, opsets)
    unknown = sorted(set(names) - named.keys())
    if unknown:
        raise BridgeError(f"'{unknown[0]}' is no initializer of the model ({len(named)} are); check the name")
    whole = sorted(name for name in names if named[name].dtype not in TRAINABLE_TYPES)
    if whole:
        raise BridgeError(f"'{whole[0]}' is of type {named[whole[0]].dtype}, which cannot be trained; leave it out")
    return [named[name] for name in names]


def _batch_statistics(graph: ir.Graph) -> set[str]:
    """Names of the initializers that are running means and variances of BatchNormalization."""
    return {
        value.name or ""
        for node in graph
        if node.op_type == "BatchNormalization"
        for value in node.inputs[3:5]
        if value is not None and value.const_value is not None
    }


def _mangled(prefix: str, name: str) -> str:
    """An attribute name that torch accepts, one to one with the initializer's."""
    return f"{prefix}:{name.replace('%', '%25').replace('.', '%2E')}"


def _device(held: list[Tensor], feeds: dict[str, Tensor]) -> torch.device:
    for tensor in (*held, *feeds.values()):
        if isinstance(tensor, Tensor):
            return tensor.device
    return torch.device("cpu")


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()
