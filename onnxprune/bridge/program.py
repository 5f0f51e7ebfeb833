"""A graph as a flat list of steps, and how to run it.

Values live in numbered slots. Slot 0 holds None (inputs left out), slot 1 takes results that nobody reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onnxprune.bridge import host
from onnxprune.errors import BridgeError, UnsupportedFormError, first_line

NOTHING, TRASH = 0, 1
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
# What torch says of shapes and types that do not fit, and what a table says of a rank or a type that it lacks. A
# mistake of ours or of a user's function may look the same: the message names the node, and -v shows the trace.
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError)


class Step(NamedTuple):
    """One call: arguments from `inputs`, results to `outputs`, then the slots in `dead` are emptied."""

    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]
    contextual: bool
    names: tuple[str, ...]
    node: str


@dataclass(frozen=True)
class Program:
    """Steps with the slots they start from: constants in `template`, held tensors by index, inputs by position."""

    template: tuple[Any, ...]
    loads: tuple[tuple[int, int], ...]
    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Body:
    """A subgraph of If, Loop or Scan: a program whose inputs are `formal` own ones, then captured outer values.

    picks: positions, among all values that the node captures, of those that this body reads.
    """

    program: Program
    formal: int
    picks: tuple[int, ...]

    def __call__(self, inputs: Sequence[Any], captured: Sequence[Any], context: "Context") -> list[Any]:
        return run(self.program, [*inputs, *(captured[pick] for pick in self.picks)], context)


@dataclass(frozen=True)
class Context:
    """The state of one forward pass: tensors held by the network, hooks, and what training changes.

    training: the network is in train mode; batch_statistics: BatchNormalization uses and updates them.
    """

    held: Sequence[Tensor] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gates: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    captured: dict[str, Any] = field(default_factory=dict)
    training: bool = False
    batch_statistics: bool = False


def run(program: Program, inputs: Sequence[Any], context: Context) -> list[Any]:
    """The outputs of `program`.

    Raises: BridgeError that names the node whose function failed.
    """
    values = list(program.template)
    for slot, index in program.loads:
        values[slot] = context.held[index]
    for slot, value in zip(program.inputs, inputs, strict=True):
        values[slot] = value
    hooked = bool(context.gates or context.wanted)
    if torch.compiler.is_compiling():
        for step in program.steps:
            _execute(step, values, context, hooked)
    else:
        _run_guarded(program.steps, values, context, hooked)
    return [values[slot] for slot in program.outputs]


def _run_guarded(steps: Sequence[Step], values: list[Any], context: Context, hooked: bool) -> None:
    for step in steps:
        try:
            _execute(step, values, context, hooked)
        except UnsupportedFormError as error:
            raise BridgeError(
                f"{step.node}: {error}; it can be pruned, but not trained through: "
                "choose a method that needs weights only, such as l1, and --recover reconstruct"
            ) from error
        except (BridgeError, torch.OutOfMemoryError):
            raise
        except _FAILURES as error:
            if not any(isinstance(values[slot], Tensor) and values[slot].dtype in _WIDER for slot in step.inputs):
                raise BridgeError(_failure(step, values, error)) from error
            _execute_widened(step, values, context, hooked, error)


def _execute(step: Step, values: list[Any], context: Context, hooked: bool) -> None:
    arguments = [values[slot] for slot in step.inputs]
    results = step.function(*arguments, context=context) if step.contextual else step.function(*arguments)
    if not isinstance(results, tuple):
        results = (results,)
    for slot, result in zip(step.outputs, results):  # noqa: B905  a function may give more than the node names
        values[slot] = result
    if hooked:
        _hook(step, values, context)
    for slot in step.dead:
        values[slot] = None


def _execute_widened(step: Step, values: list[Any], context: Context, hooked: bool, reason: Exception) -> None:
    """torch has few functions for unsigned integers beyond 8 bits: compute in signed ones, and go back."""
    kept = [values[slot] for slot in step.inputs]
    narrow = next(value.dtype for value in kept if isinstance(value, Tensor) and value.dtype in _WIDER)
    for slot, value in zip(step.inputs, kept, strict=True):
        if isinstance(value, Tensor) and value.dtype in _WIDER:
            values[slot] = value.to(_WIDER[value.dtype])
    try:
        _execute(step._replace(dead=()), values, context, False)
    except _FAILURES as error:
        raise BridgeError(_failure(step, values, reason)) from error
    for slot in step.outputs:
        if isinstance(values[slot], Tensor) and values[slot].dtype == _WIDER[narrow]:
            values[slot] = values[slot].to(narrow)
    for slot, value in zip(step.inputs, kept, strict=True):
        values[slot] = value
    if hooked:
        _hook(step, values, context)
    for slot in step.dead:
        values[slot] = None


def _hook(step: Step, values: list[Any], context: Context) -> None:
    for slot, name in zip(step.outputs, step.names, strict=True):
        gate = context.gates.get(name)
        if gate is not None:
            values[slot] = gate(values[slot])
        if name in context.wanted:
            context.captured[name] = host.as_tensor(values[slot])


def _failure(step: Step, values: list[Any], error: Exception) -> str:
    shapes = ", ".join(_describe(values[slot]) for slot in step.inputs)
    line = first_line(error)
    if isinstance(error, LookupError):  # its text is the key alone
        line = f"nothing is known for {line}"
    return f"{step.node} fails on inputs {shapes}: {line}; check the shapes and types of what is fed"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "nothing" if value is None else repr(value)[:60]
