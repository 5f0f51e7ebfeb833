"""If, Loop, Scan and SequenceMap: their bodies are programs of their own, run with what they capture."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.program import Body
from onnxprune.bridge.tensors import number


@torch_function("If", host=(0,))
def If(condition: Any, *captured: Any, then_branch: Body, else_branch: Body, context: Any) -> tuple[Any, ...]:
    branch = then_branch if bool(number(condition)) else else_branch
    return tuple(branch((), captured, context))


@torch_function("Loop", host=(0, 1))
def Loop(trip_count: Any, condition: Any, *rest: Any, body: Body, context: Any) -> tuple[Any, ...]:
    """The final states, then the stacked scans; body: iteration, condition, states -> condition, states, scans."""
    states, captured = list(rest[: body.formal - 2]), rest[body.formal - 2 :]
    limit = None if trip_count is None else int(number(trip_count))
    go = True if condition is None else bool(number(condition))
    scans: list[list[Tensor]] = [[] for _ in range(len(body.program.outputs) - 1 - len(states))]
    count = 0
    while go and (limit is None or count < limit):
        iteration = torch.tensor(count, dtype=torch.int64, device=context.device)
        results = body([iteration, torch.tensor(True), *states], captured, context)
        go, states = bool(results[0]), results[1 : 1 + len(states)]
        for gathered, value in zip(scans, results[1 + len(states) :], strict=True):
            gathered.append(value)
        count += 1
    return (
        *states,
        *(torch.stack(gathered) if gathered else torch.zeros(0, device=context.device) for gathered in scans),
    )


@torch_function("Scan", since=9)
def Scan(
    *rest: Any,
    body: Body,
    context: Any,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """States, then scan inputs that are read slice by slice -> final states, then stacked slices."""
    formal, captured = rest[: body.formal], rest[body.formal :]
    states, sources = list(formal[: body.formal - num_scan_inputs]), formal[body.formal - num_scan_inputs :]
    axes = scan_input_axes or (0,) * num_scan_inputs
    slices = [source.unbind(axis) for source, axis in zip(sources, axes, strict=True)]
    backward = scan_input_directions or (0,) * num_scan_inputs
    slices = [tuple(reversed(s)) if back else s for s, back in zip(slices, backward, strict=True)]
    gathered: list[list[Tensor]] = [[] for _ in range(len(body.program.outputs) - len(states))]
    for parts in zip(*slices, strict=True):
        results = body([*states, *parts], captured, context)
        states = results[: len(states)]
        for values, value in zip(gathered, results[len(states) :], strict=True):
            values.append(value)
    out_axes = scan_output_axes or (0,) * len(gathered)
    out_backward = scan_output_directions or (0,) * len(gathered)
    stacked = [
        torch.stack(values[::-1] if back else values, axis)
        for values, axis, back in zip(gathered, out_axes, out_backward, strict=True)
    ]
    return (*states, *stacked)


@torch_function("Scan", since=8)
def Scan_8(
    lengths: Tensor | None,
    *rest: Any,
    body: Body,
    context: Any,
    num_scan_inputs: int,
    directions: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """With a batch axis in front: each sample is scanned by itself, over its own length."""
    formal, captured = rest[: body.formal], rest[body.formal :]
    results = []
    for sample in range(formal[0].shape[0]):
        own = [value[sample] for value in formal]
        if lengths is not None:
            split = len(own) - num_scan_inputs
            own = own[:split] + [value[: int(lengths[sample])] for value in own[split:]]
        results.append(
            Scan(
                *own,
                *captured,
                body=body,
                context=context,
                num_scan_inputs=num_scan_inputs,
                scan_input_directions=directions,
            )
        )
    return tuple(torch.stack(values) for values in zip(*results, strict=True))


@torch_function("SequenceMap")
def SequenceMap(*rest: Any, body: Body, context: Any) -> tuple[Any, ...]:
    """The body applied to the elements of the first sequence, with those of the others or whole tensors beside."""
    inputs, captured = rest[: body.formal], rest[body.formal :]
    results = []
    for place in range(len(inputs[0])):
        results.append(body([v[place] if isinstance(v, list) else v for v in inputs], captured, context))
    return tuple([result[k] for result in results] for k in range(len(body.program.outputs)))
