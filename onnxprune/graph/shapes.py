"""Shapes of every value, observed at two sizes.

Static inference is the fast path. Where it leaves holes, or where shapes are computed in the graph, the model is
run in onnxruntime at two probe sizes with every intermediate value recorded. What is equal in both runs is a
constant of the model; what differs is dynamic.
"""

import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import graph
from onnxprune.errors import GraphError, OutOfMemoryError
from onnxprune.graph import bodies, body_shapes, extras, probes, sessions, simplify
from onnxprune.graph.body_shapes import INTEGERS, NOT_TENSORS
from onnxprune.graph.custom_ops import session_options
from onnxprune.graph.inputs import batch_axes, input_infos, texts
from onnxprune.graph.tensors import size_bytes
from onnxprune.system.isolation import CrashedError, isolated
from onnxprune.system.memory import LARGE_MODEL_BYTES, SMALL_WEIGHT_BYTES, memory_limit

SMALL = 4096  # integer tensors of up to this many elements are recorded: shapes, axes, indices

MAX_SECONDS = 60.0  # for all tries together
MOST_BYTES = 4_000_000_000  # a try may take this, or eight times the weights: large images are tried, not needed

# Ops whose integer inputs decide output shapes; these inputs have to be known as numbers.
SHAPED_BY_INPUT = frozenset(
    ("Reshape Expand Slice Pad Tile Resize Upsample ConstantOfShape Split TopK OneHot Range Unsqueeze Squeeze").split()
)

SHAPE_SUFFIX = "@shape"
MOST_FORCED = 16  # branches that were not taken and are run on their own
LENGTH = 16
LARGER = (2, 3)  # times as large are the sizes at which branches may run that did not


@dataclass(frozen=True)
class Shapes:
    """Shapes of all values: sizes at the first probe, which of them change, and the contents of small integers."""

    sizes: dict[str, tuple[int, ...]]
    dynamic: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    contents: dict[str, np.ndarray] = field(default_factory=dict)
    again: dict[str, np.ndarray] = field(default_factory=dict)  # contents at the second probe, where they differ
    probe: dict[str, tuple[int, ...]] = field(default_factory=dict)  # graph input -> shape
    second: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the other probe that works, if one does
    moving: dict[str, tuple[bool, ...]] = field(default_factory=dict)  # sizes that differ between steps of a body
    forced: tuple[dict[str, bool], ...] = ()  # choices of Ifs, by name, with which the model ran as well
    notes: tuple[str, ...] = ()  # what was done in a lesser way than it should be, for the report

    def sample_bytes(self, names: Iterable[str]) -> int:
        """Bytes of one sample of some values, as float32; those of which no shape is known count nothing."""
        return 4 * sum(prod(shape[1:]) for name in set(names) if (shape := self.sizes.get(name)))


def observe(model: ir.Model, samples: Mapping[str, Sequence[int]] | None = None, *, tries: int | None = None) -> Shapes:
    """Shapes of all values of a normalized `model`; `samples` are input shapes that are known to work.

    tries: how many sizes are tried, None for all that there are.

    Raises: GraphError when the model runs at none of the sizes that were tried.
    """
    symbolic = probes.is_symbolic(model.graph.inputs)
    if not symbolic and not _needs_running(model):
        static = _if_all_known(model, extras.of(model).inferred) or _infer(model)
        if static is not None:
            return static
    found = _run(model, symbolic, samples, tries)
    extras.note(model, *found.notes)
    return found


def _needs_running(model: ir.Model) -> bool:
    """Whether some shape is computed in the graph, or some operator is outside static inference."""
    for node in model.graph:
        if node.domain not in ("", "ai.onnx", "com.microsoft") or bodies.of(node):
            return True
        if node.op_type in SHAPED_BY_INPUT and any(v is not None and not v.is_initializer() for v in node.inputs[1:]):
            return True
    return False


# Static ---------------------------------------------------------------------------------------------------------


def _infer(model: ir.Model) -> Shapes | None:
    """Shapes by static inference, None where it leaves a hole."""
    proto = graph.skeleton(model, 1024)[0]
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    made = simplify.inferred(model, proto, "it was run instead, to see its shapes")
    return None if made is None else _if_all_known(model, simplify.sizes_in(made.graph))


def _if_all_known(model: ir.Model, sizes: Mapping[str, tuple[int, ...]]) -> Shapes | None:
    """Shapes of `sizes`, None where these leave out some value."""
    asked = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs if value.name))
    if not sizes or not all(value.name in sizes for value in asked):
        return None
    stored = {
        name: tuple(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    probe = {value.name or "": sizes[value.name or ""] for value in model.graph.inputs}
    return Shapes({**sizes, **stored}, probe=probe, second=probe)


def inferred(model: ir.Model, probe: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Sizes of values inside bodies when inputs have those of `probe`, the batch at one; 1 where none is known."""
    proto = graph.skeleton(model, 1024)[0]
    inputs = {value.name: value for value in proto.graph.input}
    axes = batch_axes(input_infos(model))
    for name, sizes in probe.items():
        own = [1 if k == axes.get(name) else size for k, size in enumerate(sizes)]
        kind = inputs[name].type.tensor_type.elem_type
        inputs[name].CopyFrom(onnx.helper.make_tensor_value_info(name, kind, own))
    proto = simplify.inferred(model, proto, "inside bodies the sizes in the file were taken") or proto
    found: dict[str, tuple[int, ...]] = {}
    for value in _values_in_bodies(proto.graph):
        if value.type.tensor_type.HasField("shape"):
            found[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return found


def _values_in_bodies(graph_: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    for attribute in (attribute for node in graph_.node for attribute in node.attribute):
        for body in (attribute.g, *attribute.graphs):
            yield from (*body.input, *body.value_info, *body.output)
            yield from _values_in_bodies(body)


def _compare(one: Mapping[str, tuple[int, ...]], two: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[bool, ...]]:
    dynamic: dict[str, tuple[bool, ...]] = {}
    for name, sizes in one.items():
        other = two.get(name, sizes)
        same_rank = len(other) == len(sizes)
        flags = tuple(a != b for a, b in zip(sizes, other, strict=True)) if same_rank else (True,) * len(sizes)
        if any(flags):
            dynamic[name] = flags
    return dynamic


# Running --------------------------------------------------------------------------------------------------------


def _run(model: ir.Model, symbolic: bool, samples: Mapping[str, Sequence[int]] | None, tries: int | None) -> Shapes:
    """Shapes from two runs. Sizes at which onnxruntime ends the process (it divides by zero) are passed over."""
    current = mmap.mmap(-1, 8)  # seen from the copy of this process in which the model runs
    start, end, here = 0, time.monotonic() + MAX_SECONDS, os.getpid()
    while True:
        current[:] = start.to_bytes(8, "little")
        try:
            return isolated(lambda: _bounded(here, model, symbolic, samples, current, end, tries))
        except CrashedError as crash:
            at = int.from_bytes(current[:], "little")
            if at == start or time.monotonic() > end:
                raise GraphError(f"onnxruntime ends with {crash} on this model; it cannot be observed") from crash
            start = at


def _bounded(caller: int, model: ir.Model, *search: Any) -> Shapes:
    """Runs `_search`; in a process of its own with no more memory than a run of the model can need."""
    if os.getpid() == caller:  # others may be at work beside us
        return _search(model, *search)
    with memory_limit(max(MOST_BYTES, 8 * size_bytes(model))):
        return _search(model, *search)


def _search(
    model: ir.Model,
    symbolic: bool,
    samples: Mapping[str, Sequence[int]] | None,
    current: mmap.mmap,
    end: float,
    tries: int | None,
) -> Shapes:
    """Shapes at the first sizes that the model accepts. `current` counts those tried, some before this call."""
    inputs = list(model.graph.inputs)
    session = _recording_session(model)
    failure, start = "", int.from_bytes(current[:], "little")
    for number, (first, seconds) in enumerate(probes.pairs(model, samples)):
        if number < start:
            continue
        if tries is not None and number >= tries:
            break
        current[:] = (number + 1).to_bytes(8, "little")
        one, failure = _attempt(session, inputs, first, failure)
        if one is None and time.monotonic() < end:
            continue
        if one is None:
            break
        for second in seconds if symbolic else ():
            two, _ = _attempt(session, inputs, second, failure)
            if two is not None and _ranks(two) == _ranks(one):
                if _vanishing(one, two) > _vanishing(two, one):  # an axis that is one long couples with nothing
                    one, two, first, second = two, one, second, first
                found = _recorded(model, one, two, first, second)
                break
        else:
            found = _recorded(model, one, one, first, {} if symbolic else first)
        found = _with_other_branches(model, session, found)
        return replace(found, notes=extras.of(model).notes)  # this may be a copy of the process
    if not any(_is_weight(value) for value in model.graph.initializers.values()):
        raise GraphError("the model holds no weights, so there is nothing to prune; it was not changed")
    told = f"At the likeliest: {failure}" if failure else "None was tried"
    raise GraphError(f"the model runs at none of the sizes that were tried; give samples with --data. {told}")


def _is_weight(value: ir.Value) -> bool:
    """Whether an initializer is more than a setting: floats, or integers that a quantized layer multiplies with."""
    tensor = value.const_value
    return tensor is not None and tensor.size > 16 and (tensor.dtype.is_floating_point() or tensor.dtype.itemsize == 1)


def _attempt(
    session: ort.InferenceSession, inputs: Sequence[ir.Value], probe: Mapping[str, tuple[int, ...]], failure: str
) -> tuple[dict[str, np.ndarray] | None, str]:
    try:
        return sessions.run(session, feeds(inputs, probe)), failure
    except (GraphError, OutOfMemoryError) as error:
        # What is missing in onnxruntime fails at all sizes; else the likeliest sizes tell most.
        return None, str(error) if not failure or "NOT_IMPLEMENTED" in str(error) else failure


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """`model` with its large weights filled in as it runs: sizes do not depend on their numbers, memory does."""
    proto, hidden = graph.skeleton(model, SMALL_WEIGHT_BYTES)
    inputs = [value for value in proto.graph.input if value.name not in hidden]
    nodes = list(proto.graph.node)
    del proto.graph.input[:], proto.graph.node[:]
    proto.graph.input.extend(inputs)
    waiting = dict(hidden)
    for node in nodes:
        for name in _names_read(node):
            if name in waiting:  # right in front of its first use, so few are held at a time
                _fill(proto.graph, waiting.pop(name))
        proto.graph.node.append(node)
    return proto


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The inputs of `node` and of all nodes in its bodies."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names_read(inner)


def _fill(graph_: onnx.GraphProto, value: ir.Value) -> None:
    name, tensor = value.name or "", value.const_value
    assert tensor is not None, name
    sizes = np.array(tensor.shape.numpy(), np.int64)
    graph_.initializer.append(onnx.numpy_helper.from_array(sizes, f"{name}@sizes"))
    fill = onnx.helper.make_tensor("value", tensor.dtype, [1], [0.01 if tensor.dtype.is_floating_point() else 0])
    graph_.node.append(onnx.helper.make_node("ConstantOfShape", [f"{name}@sizes"], [name], value=fill))


def _ranks(outputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: len(sizes) for name, sizes in _sizes(outputs).items()}


def _vanishing(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> int:
    """Number of axes that are one long in `one` and longer in `two`."""
    left, right = _sizes(one), _sizes(two)
    return sum(a == 1 < b for name in left for a, b in zip(left[name], right.get(name, ()), strict=False))


def _recording_session(model: ir.Model) -> ort.InferenceSession:
    """A session that records values, those inside bodies too where onnxruntime accepts the records there."""
    if any(map(bodies.of, model.graph)):
        try:
            return _instrumented_session(model, {})
        except GraphError as error:
            extras.note(model, f"{error}, when values inside bodies are recorded: the bodies are left as they are")
    return _instrumented_session(model)


def _with_other_branches(model: ir.Model, session: ort.InferenceSession, found: Shapes) -> Shapes:
    """`found`, and what is seen in branches that the model did not take; at larger sizes where more of them run."""
    if not any(map(bodies.of, model.graph)):
        return found
    branches = _Branches(model)
    best, left = branches.seen(found)
    for factor in LARGER if left and found.second else ():
        probe = _larger(model, found.probe, factor)
        for second in (_larger(model, found.second, factor), found.second):
            one, two = (_attempt(session, list(model.graph.inputs), sizes, "")[0] for sizes in (probe, second))
            if one is not None and two is not None and _ranks(one) == _ranks(two):
                larger, fewer = branches.seen(_recorded(model, one, two, probe, second))
                if fewer < left:
                    best, left = larger, fewer
    return best


def _larger(model: ir.Model, probe: Mapping[str, tuple[int, ...]], factor: int) -> dict[str, tuple[int, ...]]:
    """`probe` with all lengths that are free `factor` times as large; small ones are of batches and the like."""
    found = {}
    for value in model.graph.inputs:
        name = value.name or ""
        free = [not isinstance(size, int) for size in probes.symbolic_shape(value)]
        sizes = zip(probe[name], free, strict=True)
        found[name] = tuple(size * factor if moves and size >= LENGTH else size for size, moves in sizes)
    return found


class _Branches:
    """Branches that a model does not take itself, each run as if it were always taken."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = graph.skeleton(model, 1024)[0].graph
        self.sessions: dict[str, ort.InferenceSession] = {}

    def seen(self, found: Shapes) -> tuple[Shapes, int]:
        """(`found`, and what is seen where the other branches are; how many of these do not run at its sizes)."""
        failed: list[dict[str, bool]] = []
        while len(failed) + len(found.forced) < MOST_FORCED:
            missing = (each for each in body_shapes.unseen_branches(self.graph, found.sizes) if each not in failed)
            choices = next(missing, None)
            if choices is None:
                break
            try:
                found = _joined(found, self._run(found, choices), choices)
            except (GraphError, OutOfMemoryError):
                failed.append(choices)
        return found, len(list(body_shapes.unseen_branches(self.graph, found.sizes)))

    def _run(self, found: Shapes, choices: dict[str, bool]) -> Shapes:
        key = str(choices)
        if key not in self.sessions:
            self.sessions[key] = _instrumented_session(self.model, choices)
        inputs, session = list(self.model.graph.inputs), self.sessions[key]
        both = (found.probe, found.second or found.probe)
        one, two = (sessions.run(session, feeds(inputs, probe)) for probe in both)
        return _recorded(self.model, one, two, found.probe, found.second)


def _joined(found: Shapes, forced: Shapes, choices: dict[str, bool]) -> Shapes:
    """`found`, and what a run with `choices` tells of other values."""
    names = {f.name for f in fields(Shapes)} - {"sizes", "probe", "second", "forced", "notes"}
    others = {
        name: {k: v for k, v in getattr(forced, name).items() if k not in found.sizes} | getattr(found, name)
        for name in names
    }
    return replace(found, sizes=forced.sizes | found.sizes, forced=(*found.forced, choices), **others)


def _instrumented_session(model: ir.Model, choices: Mapping[str, bool] | None = None) -> ort.InferenceSession:
    """A session of `model` with the shape of every computed value, and the contents of integer ones, as outputs.

    choices: branches to take, by name of an If; with any, or none to take, also what is inside bodies; None: not.
    """
    session, refused = sessions.in_either_precision(model, lambda m: _instrumented(m, choices))
    if refused is not None:
        extras.note(model, f"run, and proven, in single precision: as it is stored, {refused}")
    return session


def _instrumented(model: ir.Model, choices: Mapping[str, bool] | None) -> ort.InferenceSession:
    settings = session_options()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    settings.intra_op_num_threads = sessions.few_threads()
    settings.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # shapes are taken at once, and values let go
    on_disk = any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    proto = _without_weights(model) if on_disk or size_bytes(model) > LARGE_MODEL_BYTES else ir.to_proto(model)
    typed = graph.skeleton(model, 1024)[0]
    typed = simplify.inferred(model, typed, "the types in the file were taken", numbers=False) or typed
    kinds = {v.name: v.type for v in (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)}
    outputs = {value.name for value in proto.graph.output}
    extra: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type in NOT_TENSORS:
            continue
        for name in filter(None, node.output):
            kind = kinds.get(name)
            if kind is not None and not kind.HasField("tensor_type"):
                continue
            extra.append(onnx.helper.make_node("Shape", [name], [name + SHAPE_SUFFIX]))
            proto.graph.output.append(onnx.ValueInfoProto(name=name + SHAPE_SUFFIX))
            if kind is not None and kind.tensor_type.elem_type in INTEGERS and name not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    proto.graph.node.extend(extra)
    if choices is not None:
        kinds.update({value.name: value.type for value in _values_in_bodies(typed.graph)})
        body_shapes.record(proto.graph, model.opset_imports.get("", 1), kinds, choices)
    try:
        return ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen pybind types without a common base
        opset = model.opset_imports.get("", 7)
        old = f"; it has opset {opset}: convert it to 7 or later with onnx.version_converter" if opset < 7 else ""
        raise GraphError(f"{sessions.refusal(error)}{old}") from error


def _recorded(
    model: ir.Model,
    one: Mapping[str, np.ndarray],
    two: Mapping[str, np.ndarray],
    probe: dict[str, tuple[int, ...]],
    second: dict[str, tuple[int, ...]],
) -> Shapes:
    """The shapes that two runs recorded: sizes equal in both are constants, others dynamic."""
    sizes, other = _sizes(one), _sizes(two)
    inside, inside_again = body_shapes.read(one), body_shapes.read(two)
    sizes.update(inside.sizes)
    other.update(inside_again.sizes)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            sizes[name] = tuple(value.const_value.shape.numpy())
    sizes.update(probe)
    other.update(second or probe)
    contents = {
        name: array
        for name, array in one.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "iub" and array.size <= SMALL
    }
    contents = {name: array for name, array in contents.items() if "@body." not in name}
    again = {name: two[name] for name, array in contents.items() if not np.array_equal(array, two[name])}
    # What only one of both runs tells of is no constant.
    told = {name: array for name, array in inside.contents.items() if name in inside_again.contents}
    contents.update(told)
    again.update(
        {k: inside_again.contents[k] for k, v in told.items() if not np.array_equal(v, inside_again.contents[k])}
    )
    moving = {**inside.moving, **inside_again.moving}
    return Shapes(sizes, _compare(sizes, other), contents, again, probe, second, moving)


def _sizes(outputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(SHAPE_SUFFIX): tuple(map(int, array))
        for name, array in outputs.items()
        if name.endswith(SHAPE_SUFFIX)
    }


def feeds(inputs: Sequence[ir.Value], probe: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for graph inputs of the given shapes: normal floats, zeros and ones elsewhere.

    Single numbers are settings such as a ratio or a length, so they are positive.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for value in inputs:
        name = value.name or ""
        dtype = value.dtype.numpy() if value.dtype not in (None, ir.DataType.BFLOAT16) else np.dtype(np.float32)
        if prod(probe[name]) == 1 and dtype.kind in "fiu":
            arrays[name] = np.full(probe[name], 0.5 if dtype.kind == "f" else 1, dtype)
        elif dtype.kind == "f":
            arrays[name] = rng.normal(size=probe[name]).astype(dtype)
        elif dtype.kind in "iu" and len(probe[name]) == 1:
            arrays[name] = np.ones(probe[name], dtype)
        elif dtype.kind in "iub":
            arrays[name] = rng.integers(0, 2, size=probe[name]).astype(dtype)
        else:
            arrays[name] = texts(probe[name], rng)
    return arrays
