"""From a graph to a Program: functions looked up, attributes bound, constants computed, values freed when last read.

Every value is of one kind. A constant depends on nothing that is trained or fed. A host value is computed from shapes
and constants only: it stays on the CPU, so that no device has to be waited for. All others are device values.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge import host
from onnxprune.bridge.binding import attribute_value, bind, op_name, where
from onnxprune.bridge.fusion import Fused, Fusions
from onnxprune.bridge.ops.registry import IGNORED_ATTRIBUTES, TorchFunction
from onnxprune.bridge.program import NOTHING, TRASH, Body, Context, Program, Step, run
from onnxprune.bridge.store import Store
from onnxprune.bridge.trainable import function_of
from onnxprune.errors import BridgeError
from onnxprune.graph import bodies, copy

Kind = Literal["host", "device"]


def compile_graph(graph: ir.Graph, store: Store, fusions: Fusions | None = None) -> tuple[Program, tuple[str, ...]]:
    """The program of a model's main graph, with `fusions` as single steps, and the names of its formal inputs.

    Raises: BridgeError that lists all ops without a torch function.
    """
    missing = sorted(_missing(graph, store.opsets))
    if missing:
        raise BridgeError(
            "; ".join(missing) + ". Register them with @onnxprune.torch_op, or leave them out of training"
        )
    builder = _Builder(store, None, fusions or Fusions())
    formal = [value for value in graph.inputs if value.const_value is None]
    return builder.build(graph, formal), tuple(value.name or "" for value in formal)


def without_texts(model: ir.Model) -> ir.Model:
    """`model` without outputs that hold text, and without the nodes that make nothing else, as LabelEncoder does.

    Torch has no texts, and there is nothing to learn from them that the values behind them do not tell. These are the
    outputs where no other is left.
    """
    if not any(value.dtype == ir.DataType.STRING for value in model.graph.outputs):
        return model
    model = copy(model)
    behind: list[ir.Value] = []
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.dtype != ir.DataType.STRING]
    for node in reversed(list(model.graph)):
        texts = all(value.dtype == ir.DataType.STRING for value in node.outputs)
        if texts and not any(value.uses() or value.is_graph_output() for value in node.outputs):
            behind = [value for value in node.inputs if value is not None and value.producer() is not None]
            model.graph.remove(node, safe=True)
    if not model.graph.outputs:
        model.graph.outputs.extend(behind)
    return model


def _missing(graph: ir.Graph, opsets: dict[str, int]) -> set[str]:
    found = set()
    for node in graph:
        if function_of(node, opsets) is None:
            opset = node.version or opsets.get(node.domain, 1)
            found.add(f"no torch function for {op_name(node)} (opset {opset}), node '{node.name}'")
        for body in bodies.of(node):
            found |= _missing(body, opsets)
    return found


class _Builder:
    """Builds the program of one graph; bodies have builders of their own that ask their parent for outer values."""

    def __init__(self, store: Store, parent: "_Builder | None", fusions: Fusions) -> None:
        self.store = store
        self.parent = parent
        self.fusions = fusions
        self.template: list[Any] = [None, None]
        self.loads: dict[int, int] = {}
        self.slots: dict[ir.Value, int] = {}
        self.kinds: dict[ir.Value, Kind] = {}
        self.on_device: dict[ir.Value, int] = {}
        self.literals: dict[tuple[ir.Value, bool], int] = {}
        self.captured: list[ir.Value] = []
        self.capture_slots: list[int] = []
        self.steps: list[Step] = []

    def build(self, graph: ir.Graph, formal: list[ir.Value]) -> Program:
        """The program of a graph; formal: values that are given when it is called."""
        inputs = [self.define(value, "device") for value in formal]
        for node in graph:
            if node in self.fusions.calls:
                self.add_fused(node, self.fusions.calls[node])
            elif node not in self.fusions.left_out:
                self.add(node)
        outputs = tuple(self.device_slot(value) for value in graph.outputs)
        return Program(
            tuple(self.template),
            tuple(self.loads.items()),
            (*inputs, *self.capture_slots),
            _with_dead(self.steps, keep={NOTHING, TRASH, *outputs, *self.loads, *self.literals.values()}),
            outputs,
        )

    # Values ----------------------------------------------------------------------------------------------------

    def new_slot(self, content: Any = None) -> int:
        self.template.append(content)
        return len(self.template) - 1

    def define(self, value: ir.Value, kind: Kind) -> int:
        self.kinds[value] = kind
        self.slots[value] = self.new_slot()
        return self.slots[value]

    def is_constant(self, value: ir.Value) -> bool:
        return value in self.store.constants or (
            value.const_value is not None and value not in self.store.parameters and value.is_initializer()
        )

    def kind(self, value: ir.Value) -> Kind:
        """Where a value that is no constant lives; an outer one becomes a capture of this body."""
        if value in self.store.parameters:
            return "device"
        if value not in self.kinds:
            if self.parent is None:
                raise BridgeError(f"value '{value.name}' is read but nothing produces it; check the model")
            kind = self.parent.kind(value)
            self.captured.append(value)
            self.capture_slots.append(self.define(value, kind))
        return self.kinds[value]

    def device_slot(self, value: ir.Value | None) -> int:
        """The slot of `value` as a tensor on the network's device."""
        if value is None:
            return NOTHING
        if value in self.on_device:
            return self.on_device[value]
        if self.is_constant(value) and not isinstance(self.store.constant(value), Tensor):
            return self.literal(value, listed=False)  # strings, sequences
        if self.is_constant(value) or value in self.store.parameters:
            slot = self.new_slot()
            self.loads[slot] = self.store.index(value)
        elif self.kind(value) == "host":
            slot = self.new_slot()
            step = Step(_to_device, (self.slots[value],), (slot,), (), True, ("",), f"copy of '{value.name}'")
            self.steps.append(step)
        else:
            slot = self.slots[value]
        self.on_device[value] = slot
        return slot

    def host_slot(self, value: ir.Value | None, *, listed: bool) -> int:
        """The slot of `value` for an input wanted on the host: constants as Python numbers when `listed`."""
        if value is None:
            return NOTHING
        if self.is_constant(value):
            return self.literal(value, listed=listed)
        if value in self.store.parameters:
            return self.device_slot(value)
        self.kind(value)
        return self.slots[value]

    def has_host_inputs_only(self, entry: TorchFunction, node: ir.Node) -> bool:
        """Whether the function sees no tensor that would tell it the device."""
        return all(value is None or index in entry.host for index, value in enumerate(node.inputs))

    def is_plain_constant(self, value: ir.Value) -> bool:
        """Whether a constant is a vector or a number of int64, which shape arithmetic takes as Python ints."""
        if not self.is_constant(value):
            return False
        content = self.store.constant(value)
        return isinstance(content, Tensor) and content.dtype == torch.int64 and content.ndim <= 1

    def literal(self, value: ir.Value, *, listed: bool) -> int:
        if (value, listed) not in self.literals:
            content = self.store.constant(value)
            listed_now = listed and isinstance(content, Tensor)
            self.literals[(value, listed)] = self.new_slot(content.tolist() if listed_now else content)
        return self.literals[(value, listed)]

    # Nodes -----------------------------------------------------------------------------------------------------

    def add(self, node: ir.Node) -> None:
        """Adds the step of a node: computed now from constants, on the host, or on the device."""
        entry = function_of(node, self.store.opsets)
        assert entry is not None
        attributes, captured = self.attributes(node)
        function = bind(entry, node, attributes, self.store.opsets)
        inputs = [value for value in [*node.inputs, *captured] if value is not None]
        if self.foldable(entry, inputs) and not captured:
            self.fold(entry, node, function)
            return
        # A sequence of host values would look like a vector of them, so sequences live on the device.
        elsewhere = bool(bodies.of(node)) or "Sequence" in node.op_type or "Optional" in node.op_type
        kind = "device" if elsewhere else self.kind_of_outputs(entry, inputs)
        slots = [self.input_slot(entry, kind, index, value) for index, value in enumerate(node.inputs)]
        slots += [self.capture_slot(value) for value in captured]
        outputs = tuple(self.define(value, kind) if value.name else TRASH for value in node.outputs)
        names = tuple(value.name or "" for value in node.outputs)
        contextual = "context" in entry.keywords
        if kind == "host" and not contextual:
            function = self.on_host(entry, node, function, attributes)
        elif kind == "device" and not contextual and self.has_host_inputs_only(entry, node):
            function, contextual = functools.partial(_placed, function=function), True
        self.steps.append(Step(function, tuple(slots), outputs, (), contextual, names, where(node)))
        self.store.computed.update(names)

    def on_host(
        self, entry: TorchFunction, node: ir.Node, function: Callable[..., Any], attributes: dict[str, Any]
    ) -> Callable[..., Any]:
        """The function of a step between host values, which may be Python numbers."""
        if entry.shape_only and node.op_type in host.SHAPE_ONLY:
            return functools.partial(host.SHAPE_ONLY[node.op_type], **attributes)
        plain = host.PLAIN.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        plain = functools.partial(plain, **attributes) if plain is not None and attributes else plain
        return functools.partial(host.call, function=function, plain=plain, positions=entry.host)

    def add_fused(self, node: ir.Node, fused: Fused) -> None:
        """One call in place of several nodes; its inputs are device tensors."""
        slots = tuple(self.device_slot(value) for value in fused.inputs)
        function = functools.partial(fused.function, **fused.attributes) if fused.attributes else fused.function
        value = node.outputs[0]
        place = " to ".join(where(end) for end in (fused.nodes[0], node))  # computed as one
        outputs = (self.define(value, "device"),)
        self.steps.append(Step(function, slots, outputs, (), fused.contextual, (value.name or "",), place))

    def foldable(self, entry: TorchFunction, inputs: list[ir.Value]) -> bool:
        if not entry.pure or "context" in entry.keywords:
            return False
        if entry.shape_only:
            return all(value.const_value is not None and value.is_initializer() for value in inputs)
        return all(self.is_constant(value) for value in inputs)

    def fold(self, entry: TorchFunction, node: ir.Node, function: Callable[..., Any]) -> None:
        """Computes a node of constants now."""
        arguments = [self.folding_argument(entry, index, value) for index, value in enumerate(node.inputs)]
        step = Step(
            function,
            tuple(range(2, 2 + len(arguments))),
            tuple(range(2 + len(arguments), 2 + len(arguments) + len(node.outputs))),
            (),
            False,
            (),
            where(node),
        )
        program = Program((None, None, *arguments, *([None] * len(node.outputs))), (), (), (step,), step.outputs)
        if all(value in self.store.constants for value in node.outputs):
            return  # the graph was compiled before, in its other form
        with torch.no_grad():
            results = run(program, (), Context())
        for value, result in zip(node.outputs, results, strict=True):
            self.store.constants[value] = result

    def folding_argument(self, entry: TorchFunction, index: int, value: ir.Value | None) -> Any:
        if value is None:
            return None
        if value in self.store.parameters:  # only its shape is read
            return torch.empty(value.const_value.shape.numpy(), device="meta")  # type: ignore[union-attr]
        content = self.store.constant(value)
        return content.tolist() if index in entry.host and isinstance(content, Tensor) else content

    def kind_of_outputs(self, entry: TorchFunction, inputs: list[ir.Value]) -> Kind:
        if entry.shape_only:
            return "host"
        if not inputs or not entry.pure:
            return "device"
        computed = [value for value in inputs if not self.is_constant(value)]
        return "host" if computed and all(self.kind(value) == "host" for value in computed) else "device"

    def input_slot(self, entry: TorchFunction, kind: Kind, index: int, value: ir.Value | None) -> int:
        if index in entry.host:
            return self.host_slot(value, listed=True)
        if kind == "host" and not entry.shape_only:
            return self.host_slot(value, listed=value is not None and self.is_plain_constant(value))
        if entry.shape_only and value is not None and not self.is_constant(value) and self.kind(value) == "host":
            return self.host_slot(value, listed=False)
        return self.device_slot(value)

    def capture_slot(self, value: ir.Value) -> int:
        self.kind(value)
        return self.slots[value]

    def attributes(self, node: ir.Node) -> tuple[dict[str, Any], list[ir.Value]]:
        """The node's attributes as Python values, and the outer values that its bodies read."""
        found: dict[str, Any] = {}
        builders: dict[str, tuple[_Builder, Program, int]] = {}
        captured: list[ir.Value] = []
        for name, attribute in node.attributes.items():
            if name in IGNORED_ATTRIBUTES:
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                graph = attribute.as_graph()
                builder = _Builder(self.store, self, Fusions())
                formal = [value for value in graph.inputs if value.const_value is None]
                builders[name] = builder, builder.build(graph, formal), len(formal)
                captured += [value for value in builder.captured if value not in captured]
            else:
                found[name] = attribute_value(attribute)
        for name, (builder, program, formal_count) in builders.items():
            picks = tuple(captured.index(value) for value in builder.captured)
            found[name] = Body(program, formal_count, picks)
        return found, captured


def _to_device(value: Any, *, context: Context) -> Any:
    value = host.as_tensor(value)
    return value.to(context.device, non_blocking=True) if isinstance(value, Tensor) else value


def _placed(*arguments: Any, function: Callable[..., Any], context: Context) -> Any:
    result = function(*arguments)
    return result.to(context.device) if isinstance(result, Tensor) else result


def _with_dead(steps: list[Step], keep: set[int]) -> tuple[Step, ...]:
    """The steps with, for each, the slots that no later step reads."""
    seen = set(keep)
    result = []
    for step in reversed(steps):
        last = tuple(slot for slot in dict.fromkeys((*step.inputs, *step.outputs)) if slot not in seen)
        seen.update(last)
        result.append(step._replace(dead=last))
    return tuple(reversed(result))
