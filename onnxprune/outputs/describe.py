"""Decides what each output of a model is, and says why.

The graph speaks first (what stands at an output's end), then samples (along which axis numbers sum to 1, what is
constant or a copy of an input), then `--output`, which is always right.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples
from onnxprune.errors import UsageError
from onnxprune.graph import extras, shapes
from onnxprune.outputs.decisions import PRODUCTS, SAME_NUMBERS, SAME_VALUES, decided_on, is_float, through
from onnxprune.outputs.heads import seen_together
from onnxprune.outputs.kinds import (
    BOXES,
    CHOSEN,
    CLASSES,
    CONSTANT,
    DECISION,
    EMBEDDING,
    JOINT,
    KINDS,
    PASSED,
    SCORES,
    SEGMENTATION,
    STATE,
    Output,
    Outputs,
    Part,
)  # fmt: skip
from onnxprune.outputs.look import Look, seen_on
from onnxprune.outputs.values import parts_of

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def describe(
    model: ir.Model,
    samples: Samples | None = None,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Outputs:
    """The kind of each output of a normalized `model`, by its graph and, where there are any, by `samples`.

    sizes: of all values, as observed; overrides: output name -> KIND or KIND:axis, as --output gives them.
    Raises: UsageError for overrides that name no output or no kind.
    """
    sizes = shapes.observe(model).sizes if sizes is None else sizes
    asked = check_overrides(overrides or {}, [value.name or "" for value in model.graph.outputs])
    labels = None if samples is None or samples.labels is None else np.asarray(samples.labels)
    look = Look(model, sizes, seen_on(model, samples), labels)
    entries = [_with_batch(look, _output(look, value)) for value in model.graph.outputs]
    entries = [_overridden(entry, *asked[entry.name], look) if entry.name in asked else entry for entry in entries]
    return Outputs(tuple(seen_together(look, entries)))


def check_overrides(given: Mapping[str, str], names: Sequence[str]) -> dict[str, tuple[str, int | None]]:
    """Output name -> (kind, axis or None). Raises: UsageError."""
    found = {}
    for name, words in given.items():
        kind, _, axis = str(words).partition(":")
        if name not in names:
            raise UsageError(f"--output {name}={words}: the model has no output '{name}'; it has {', '.join(names)}")
        if kind not in KINDS or kind in (JOINT, DECISION):
            known = ", ".join(k for k in KINDS if k not in (JOINT, DECISION))
            raise UsageError(f"--output {name}={words}: '{kind}' is no kind that can be given; choose of {known}")
        try:
            found[name] = kind, int(axis) if axis else None
        except ValueError as error:
            raise UsageError(f"--output {name}={words}: the axis '{axis}' is no whole number; give {kind}:1") from error
    return found


def _overridden(entry: Output, kind: str, axis: int | None, look: Look) -> Output:
    rank = len(look.sizes.get(entry.name, ()))
    if axis is not None and not -rank <= axis < rank:
        raise UsageError(
            f"--output {entry.name}={kind}:{axis}: the output has {rank} axes; give one of {-rank} to {rank - 1}"
        )
    if axis is None and kind in (*CHOSEN, BOXES, EMBEDDING):
        own = entry.axis if entry.kind in CHOSEN else None
        axis = own if own is not None else 1 if kind in (CLASSES, SEGMENTATION) and rank > 1 else rank - 1
    axis = None if axis is None else axis % rank
    part = Part(entry.name, kind, axis, form=look.form(entry.name, axis), rows=look.rows(entry.name))
    return Output(entry.name, kind, axis, (part,), "that was said by --output", given=True)


def _output(look: Look, value: ir.Value) -> Output:
    """The entry of one output."""
    name = value.name or ""
    copied = _copied(look, value)
    if copied:
        return Output(name, PASSED, None, (), copied)
    state = _state(look, value)
    if state:
        return Output(name, STATE, None, (Part(name, STATE, rows=look.rows(name)),), state)
    decided = decided_on(value)
    if decided:
        return _decision(look, value, decided)
    if value.dtype is not None and not is_float(value):
        part = Part(name, DECISION, rows=look.rows(name))
        return Output(name, DECISION, None, (part,), f"it holds {value.dtype.name.lower()}, no float lies behind it")
    if _constant(look, name):
        return Output(name, CONSTANT, None, (), "it is the same for every sample that was seen")
    parts, reason = parts_of(look, value)
    kind = parts[0].kind if len(parts) == 1 else JOINT
    axis = parts[0].axis if len(parts) == 1 else parts[0].along
    return Output(name, kind, axis, parts, reason)


def _with_batch(look: Look, entry: Output) -> Output:
    """The output with the axis of samples of its parts, where that is not the first: (T, N, C) of text recognition."""
    found = []
    for part in entry.parts:
        axes = [] if part.rows or part.kind == STATE else list(look.batch_axes(part.value))
        known = len(axes) == 1 and axes[0] not in (part.axis, part.along)
        found.append(replace(part, rows=True, batch=axes[0]) if known else part)
    return replace(entry, parts=tuple(found))


def _copied(look: Look, value: ir.Value) -> str | None:
    source = through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"})
    if source.is_graph_input():
        return f"it is a copy of the input '{source.name}'"
    arrays = look.arrays(value.name or "")
    for name, given in look.seen.inputs.items() if look.seen is not None else ():
        if arrays and all(np.array_equal(a, np.asarray(b)) for a, b in zip(arrays, given, strict=True)):
            return f"it equals the input '{name}' on every sample that was seen"
    return None


def _constant(look: Look, name: str) -> bool:
    arrays = look.arrays(name)
    if len(arrays) < 2 or any(y.shape != arrays[0].shape for y in arrays):
        return False
    differs = any(not np.array_equal(a, b) for a, b in zip(look.inputs(0), look.inputs(1), strict=True))
    return differs and all(np.array_equal(y, arrays[0]) for y in arrays)


def _state(look: Look, value: ir.Value) -> str | None:
    for given, output, why in extras.of(look.model).states:
        if output == value.name:
            return f"it is handed back as the input '{given}': {why}"
    inputs = [v for v in look.model.graph.inputs if v.name not in look.model.graph.initializers]
    if len(inputs) < 2 or len(look.model.graph.outputs) < 2:
        return None
    source = through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose", "Concat"})
    node, size = source.producer(), tuple(look.sizes.get(value.name or "", ()))
    given = [v for v in inputs if v.dtype == value.dtype and len(look.sizes.get(v.name or "", ())) == len(size)]
    alike = [v for v in given if tuple(look.sizes.get(v.name or "", ())) == size]
    if node is not None and node.op_type in RECURRENT and source is not node.outputs[0] and alike:
        return f"it is the state of {node.op_type} '{node.name}', of the size of the input '{alike[0].name}'"
    if value is not look.model.graph.outputs[0] and len(size) > 1:
        paired = [v for v in given if _stem(v.name or "") == _stem(value.name or "") and v in inputs[1:]]
        for v in paired[:1]:
            return f"its name goes with that of the input '{v.name}'"
    return None


def _decision(look: Look, value: ir.Value, decided: list[tuple[str, str, ir.Node]]) -> Output:
    found = [_behind(look, *entry, at) for at, entry in enumerate(decided)]
    names, op = tuple(part.value for part in found), decided[0][1]
    node = decided[0][2].name
    reason = f"{op} '{node}' decides it on {' and '.join(repr(name) for name in names)}"
    return Output(value.name or "", DECISION, None, tuple(found), reason, names)


def _behind(look: Look, name: str, op: str, node: ir.Node, at: int) -> Part:
    """The part that input number `at` is of an operator `op` that decides on it."""
    rank = len(look.sizes.get(name, ()))
    rows = look.rows(name)
    if op == "NonMaxSuppression":
        form = "centers" if node.attributes.get_int("center_point_box", 0) else "corners"
        return Part(name, BOXES, 2, form=form, rows=rows) if at == 0 else Part(name, SCORES, 1, rows=rows)
    if op in ("ArgMax", "ArgMin", "TopK", "Hardmax"):
        axis = node.attributes.get_int("axis", 0 if op.startswith("Arg") else -1) % max(1, rank)
        if axis or not rows:
            return look.choice(name, axis)
    if op in PRODUCTS:  # of all samples with all samples
        return Part(name, EMBEDDING, max(0, rank - 1), rows=rows)
    value = next(v for v in node.inputs if v is not None and v.name == name)
    return parts_of(look, value)[0][0]


def _stem(name: str) -> str:
    """The name of a state without what tells before from after: r1i and r1o, state and stateN, past_0 and present_0."""
    words = re.sub("past|present", "", name.lower())
    return re.sub(r"[_.:]?(input|output|in|out|next|new|prev|i|o|n)$", "", words)
