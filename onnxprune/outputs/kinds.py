"""What each output of a model is, with the reason in words: decided here once, read by scores, losses and metrics.

    classes       class scores along an axis, one answer per sample
    sequence      class scores along an axis, one answer per place of one other axis, as text recognition gives
    segmentation  class scores along an axis, one answer per place of a map
    scores        independent numbers of 0 to 1: tags, objectness, class scores of a detector
    boxes         4 coordinates along an axis
    embedding     a vector that is compared with others
    signal        numbers: sound, pictures, coordinates, regression
    joint         parts of different kinds along one axis
    decision      what was chosen from values inside (ArgMax, TopK, NonMaxSuppression, comparisons), its parts
    state         handed back to the model as an input of the next run
    pass-through  a copy of an input; constant: the same for every sample. Neither says anything of the model

The graph speaks first (what stands at an output's end), then samples (along which axis numbers sum to 1, what is
constant or a copy of an input). Axes are those of the model's own value, batch axis included.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples, fixed_batch
from onnxprune.errors import UsageError
from onnxprune.graph import extras, sessions, shapes, states

CLASSES, SEQUENCE, SEGMENTATION, SCORES, BOXES = "classes", "sequence", "segmentation", "scores", "boxes"
EMBEDDING, SIGNAL, JOINT, DECISION, STATE = "embedding", "signal", "joint", "decision", "state"
PASSED, CONSTANT = "pass-through", "constant"
KINDS = [
    CLASSES, SEQUENCE, SEGMENTATION, SCORES, BOXES, EMBEDDING, SIGNAL, JOINT, DECISION, STATE, PASSED, CONSTANT,
]  # fmt: skip
CHOSEN = frozenset({CLASSES, SEQUENCE, SEGMENTATION})  # one of several along an axis
SILENT = frozenset({PASSED, CONSTANT})
LOOKED_AT = 32  # samples that kinds are decided on
ENOUGH = 16  # samples that all having one answer says something
PLENTY = 1000  # classes of a sequence from which on nothing else than a vocabulary is likely

SAME_VALUES = frozenset({"Identity", "Cast", "Dropout", "Clip"})
SAME_NUMBERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
MOVES = SAME_VALUES | SAME_NUMBERS | {"Transpose", "Gather", "GatherND", "GatherElements", "Slice", "Concat", "Split"}
DECIDES = frozenset({"ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Compress", "Hardmax"})
SIZES = frozenset({"Shape", "Size"})
INDICES = SIZES | {"ArgMax", "ArgMin", "NonZero", "NonMaxSuppression"}
LAYERS = frozenset({"Gemm", "MatMul", "Conv", "Add", "FusedMatMul", "FusedConv", "FusedGemm"})
NORMS = frozenset(
    {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "LpNormalization",
     "BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "ReduceMean", "Relu", "Tanh"}
)  # fmt: skip
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
DEEPEST = 24  # nodes between an output and the decision that it was made by


@dataclass(frozen=True)
class Part:
    """Numbers of one kind: all of a value, or positions `start` to `stop` on its axis `along`.

    axis: along which classes, coordinates or features stand. form: of classes, `logits`, `probabilities` or `log`;
    of boxes, where NonMaxSuppression tells it, `corners` or `centers`.
    rows: whether the value has a row per sample on axis 0; otherwise it is made sample by sample.
    """

    value: str
    kind: str
    axis: int | None = None
    along: int | None = None
    start: int = 0
    stop: int | None = None
    form: str = ""
    rows: bool = True

    def of(self, y: Any) -> Any:
        """The part of its value `y`, an array or a tensor."""
        if self.along is None:
            return y
        return y[(slice(None),) * (self.along % y.ndim) + (slice(self.start, self.stop),)]

    @property
    def name(self) -> str:
        """The value, and which positions of it."""
        if self.along is None:
            return self.value
        return f"{self.value}[{self.start}:{'' if self.stop is None else self.stop}]"


@dataclass(frozen=True)
class Output:
    """One output: its kind, the axis of its classes, the parts that scores, losses and metrics look at, and why."""

    name: str
    kind: str
    axis: int | None
    parts: tuple[Part, ...]
    reason: str
    decides_on: tuple[str, ...] = ()  # names of the values inside that a decision is made of
    given: bool = False  # said by --output

    def __str__(self) -> str:
        where = "" if self.axis is None else f" along axis {self.axis}"
        inner = ""
        if self.kind == JOINT or self.decides_on:
            inner = " (" + ", ".join(f"{part.name} {part.kind}" for part in self.parts) + ")"
        return f"{self.name}: {self.kind}{where}{inner}, for {self.reason}"


@dataclass(frozen=True)
class Outputs:
    """All outputs of a model, in its order."""

    entries: tuple[Output, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is compared, each once: states only where there is nothing else, copies of inputs never."""
        found = {part: None for entry in self.entries if entry.kind not in SILENT for part in entry.parts}
        lasting = tuple(part for part in found if part.kind != STATE)
        return lasting or tuple(found)

    @property
    def learned(self) -> tuple[Part, ...]:
        """What is trained on: the parts, and the states, which the next run reads."""
        return tuple({part: None for e in self.entries if e.kind not in SILENT for part in e.parts})

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of values inside the model that parts look at."""
        outputs = {entry.name for entry in self.entries}
        return tuple(dict.fromkeys(part.value for part in self.learned if part.value not in outputs))

    def as_json(self) -> list[dict[str, Any]]:
        """The outputs in JSON's types."""
        return [
            {
                "name": entry.name,
                "kind": entry.kind,
                "axis": entry.axis,
                "reason": entry.reason,
                "given": entry.given,
                "decides_on": list(entry.decides_on),
                "parts": [
                    {"name": p.name, "value": p.value, "kind": p.kind, "axis": p.axis, "form": p.form or None}
                    for p in entry.parts
                ],
            }
            for entry in self.entries
        ]


def describe(
    model: ir.Model,
    samples: Samples | None = None,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Outputs:
    """What each output of a normalized `model` is, by its graph and, where there are any, by `samples`.

    sizes: of all values, as observed; overrides: output name -> KIND or KIND:axis, as --output gives them.
    Raises: UsageError for overrides that name no output or no kind.
    """
    sizes = shapes.observe(model).sizes if sizes is None else sizes
    asked = check_overrides(overrides or {}, [value.name or "" for value in model.graph.outputs])
    labelled = samples is not None and samples.labels is not None
    look = _Look(model, sizes, _seen(model, samples), labelled)
    entries = [look.output(value) for value in model.graph.outputs]
    entries = [_overridden(entry, *asked[entry.name], look) if entry.name in asked else entry for entry in entries]
    return Outputs(tuple(_beside_others(entries, sizes)))


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


def _overridden(entry: Output, kind: str, axis: int | None, look: "_Look") -> Output:
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


def _beside_others(entries: list[Output], sizes: Mapping[str, Sequence[int]]) -> Iterator[Output]:
    """Bare numbers beside outputs that end in Softmax or Sigmoid are no classes, and neither are heads of a pyramid."""
    ended = any(part.form == "probabilities" or part.kind == SCORES for entry in entries for part in entry.parts)
    maps = [entry for entry in entries if entry.kind == SEGMENTATION]
    for entry in entries:
        bare = len(entry.parts) == 1 and entry.parts[0].form == "logits" and not entry.decides_on and not entry.given
        if not bare or not (ended or (entry.kind == SEGMENTATION and len(maps) > 1)):
            yield entry
            continue
        size = tuple(sizes.get(entry.name, ()))
        kind, axis = (BOXES, len(size) - 1) if size[-1:] == (4,) else (SIGNAL, None)
        why = (
            "it is a bare layer beside outputs that end in Softmax or Sigmoid" if ended else "it is one of several maps"
        )
        part = replace(entry.parts[0], kind=kind, axis=axis, form="")
        yield replace(entry, kind=kind, axis=axis, parts=(part,), reason=why)


# Samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Inputs and values of some samples: name -> one array per run of `size` samples."""

    size: int
    inputs: Mapping[str, Sequence[np.ndarray]]
    values: Mapping[str, Sequence[np.ndarray]]


def _seen(model: ir.Model, samples: Samples | None) -> Seen | None:
    """What the model says on some samples, at its outputs and behind its decisions."""
    if samples is None or not len(samples):
        return None
    size = fixed_batch(model) or (2 if len(samples) > 1 else 1)
    runs = max(1, min(LOOKED_AT, len(samples)) // size)
    extra = [name for name in behind(model) if name not in {value.name for value in model.graph.outputs}]
    session = sessions.open_session(model, extra_outputs=extra, threads=sessions.few_threads())
    spread = np.linspace(0, len(samples) - 1, runs * size).astype(int)
    feeds = [samples.batch(spread[k * size : (k + 1) * size]) for k in range(runs)]
    said = [sessions.run(session, feed) for feed in feeds]
    return Seen(
        size,
        {name: [feed[name] for feed in feeds] for name in feeds[0]},
        {name: [run[name] for run in said] for name in said[0]},
    )


def behind(model: ir.Model) -> dict[str, str]:
    """Name of each value that an output decides on -> the operator that decides."""
    return {name: op for value in model.graph.outputs for name, op, _ in decided_on(value)}


def decided_on(output: ir.Value) -> list[tuple[str, str, ir.Node]]:
    """(value, deciding operator, its node) of every float value that `output` is a choice of or from."""
    whole = not _is_float(output)
    found: list[tuple[str, str, ir.Node]] = []
    chosen_from: list[tuple[str, str, ir.Node]] = []
    front, visited = [output], {output}
    for _ in range(DEEPEST):
        reached: list[ir.Value] = []
        for node in (node for value in front if (node := value.producer()) is not None):
            floats = _floats(node)
            if floats and (node.op_type in DECIDES or (whole and node.op_type not in SIZES)):
                most = 2 if node.op_type == "NonMaxSuppression" else 1 if node.op_type in DECIDES else len(floats)
                found += [(v.name or "", node.op_type, node) for v in floats[:most]]
                continue
            if node.op_type.startswith("Gather") and floats and node.inputs[0] is floats[0]:
                chosen_from.append((floats[0].name or "", node.op_type, node))
            if node.op_type not in SIZES and (node.op_type in MOVES or not _is_float(node.outputs[0])):
                reached += [v for v in node.inputs if v is not None and not v.is_initializer()]
        front = [v for v in dict.fromkeys(reached) if v not in visited]
        visited.update(front)
        if not front:
            break
    # Of what a TopK over anchors has chosen, NonMaxSuppression chooses again: that one is nearest to the answer.
    last = [entry for entry in found if entry[1] == "NonMaxSuppression"]
    kept = last or (found and [*found, *chosen_from[-1:]])
    return list({entry[0]: entry for entry in kept}.values())


def _floats(node: ir.Node) -> list[ir.Value]:
    """Float inputs of a node that are made by the model."""
    return [v for v in node.inputs if v is not None and v.producer() is not None and _is_float(v) and _varies(v)]


def _varies(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type not in ("Constant", "ConstantOfShape")


def _is_float(value: ir.Value) -> bool:
    """Whether a value holds floats, as far as its type or what makes it tells."""
    if value.dtype is not None:
        return value.dtype.is_floating_point()
    node = value.producer()
    return node is None or not (node.op_type in INDICES or (node.op_type == "TopK" and value is node.outputs[1]))


# Deciding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """The model, sizes of its values, and what was seen on samples."""

    model: ir.Model
    sizes: Mapping[str, Sequence[int]]
    seen: Seen | None
    labelled: bool = False

    def output(self, value: ir.Value) -> Output:
        """What one output is."""
        name = value.name or ""
        copied = self._copied(value)
        if copied:
            return Output(name, PASSED, None, (), copied)
        state = self._state(value)
        if state:
            return Output(name, STATE, None, (Part(name, STATE, rows=self.rows(name)),), state)
        decided = decided_on(value)
        if decided:
            return self._decision(value, decided)
        if value.dtype is not None and not _is_float(value):
            part = Part(name, DECISION, rows=self.rows(name))
            return Output(
                name, DECISION, None, (part,), f"it holds {value.dtype.name.lower()}, no float lies behind it"
            )
        if self._constant(name):
            return Output(name, CONSTANT, None, (), "it is the same for every sample that was seen")
        parts, reason = self.parts(value)
        kind = parts[0].kind if len(parts) == 1 else JOINT
        axis = parts[0].axis if len(parts) == 1 else parts[0].along
        return Output(name, kind, axis, parts, reason)

    def arrays(self, name: str) -> list[np.ndarray]:
        """What was seen of a value."""
        return [np.asarray(y) for y in self.seen.values.get(name, ())] if self.seen is not None else []

    def rows(self, name: str) -> bool:
        """Whether a value has a row per sample on axis 0, as far as was seen."""
        arrays = self.arrays(name)
        assert self.seen is not None or not arrays
        return all(y.ndim > 0 and y.shape[0] == self.seen.size for y in arrays)  # type: ignore[union-attr]

    def _copied(self, value: ir.Value) -> str | None:
        source = _through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"})
        if source.is_graph_input():
            return f"it is a copy of the input '{source.name}'"
        arrays = self.arrays(value.name or "")
        for name, given in self.seen.inputs.items() if self.seen is not None else ():
            if arrays and all(np.array_equal(a, np.asarray(b)) for a, b in zip(arrays, given, strict=True)):
                return f"it equals the input '{name}' on every sample that was seen"
        return None

    def _constant(self, name: str) -> bool:
        arrays = self.arrays(name)
        if len(arrays) < 2 or any(y.shape != arrays[0].shape for y in arrays):
            return False
        differs = any(not np.array_equal(a, b) for a, b in zip(self._inputs(0), self._inputs(1), strict=True))
        return differs and all(np.array_equal(y, arrays[0]) for y in arrays)

    def _inputs(self, run: int) -> list[np.ndarray]:
        assert self.seen is not None
        return [np.asarray(arrays[run]) for arrays in self.seen.inputs.values()]

    def _state(self, value: ir.Value) -> str | None:
        for given, output, why in extras.of(self.model).states:
            if output == value.name:
                return f"it is handed back as the input '{given}': {why}"
        inputs = [v for v in self.model.graph.inputs if v.name not in self.model.graph.initializers]
        if len(inputs) < 2 or len(self.model.graph.outputs) < 2:
            return None
        source = _through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose", "Concat"})
        node, size = source.producer(), tuple(self.sizes.get(value.name or "", ()))
        given = [v for v in inputs if v.dtype == value.dtype and len(self.sizes.get(v.name or "", ())) == len(size)]
        alike = [v for v in given if tuple(self.sizes.get(v.name or "", ())) == size]
        if node is not None and node.op_type in RECURRENT and source is not node.outputs[0] and alike:
            return f"it is the state of {node.op_type} '{node.name}', of the size of the input '{alike[0].name}'"
        if value is not self.model.graph.outputs[0] and len(size) > 1:
            paired = [v for v in given if _stem(v.name or "") == _stem(value.name or "") and v in inputs[1:]]
            for v in paired[:1]:
                return f"its name goes with that of the input '{v.name}'"
        return None

    def _decision(self, value: ir.Value, decided: list[tuple[str, str, ir.Node]]) -> Output:
        found = [self._behind(*entry, at) for at, entry in enumerate(decided)]
        names, op = tuple(part.value for part in found), decided[0][1]
        node = decided[0][2].name
        reason = f"{op} '{node}' decides it on {' and '.join(repr(name) for name in names)}"
        return Output(value.name or "", DECISION, None, tuple(found), reason, names)

    def _behind(self, name: str, op: str, node: ir.Node, at: int) -> Part:
        """What the `at`-th value is that `op` decides on."""
        rank = len(self.sizes.get(name, ()))
        rows = self.rows(name)
        if op == "NonMaxSuppression":
            form = "centers" if node.attributes.get_int("center_point_box", 0) else "corners"
            return Part(name, BOXES, 2, form=form, rows=rows) if at == 0 else Part(name, SCORES, 1, rows=rows)
        if op in ("ArgMax", "ArgMin", "TopK", "Hardmax"):
            axis = node.attributes.get_int("axis", 0 if op.startswith("Arg") else -1) % max(1, rank)
            if axis or not rows:
                return self._choice(name, axis)
        value = next(v for v in node.inputs if v is not None and v.name == name)
        return self.parts(value)[0][0]

    def _choice(self, name: str, axis: int) -> Part:
        """Class scores along `axis` of a value: the kind follows from how many places have a choice of their own."""
        size = self.sizes.get(name, ())
        first = 1 if self.rows(name) else 0
        places = [n for k, n in enumerate(size) if k >= first and k != axis and n != 1]
        kind = CLASSES if not places else SEQUENCE if len(places) == 1 else SEGMENTATION
        return Part(name, kind, axis, form=self.form(name, axis), rows=self.rows(name))

    def form(self, name: str, axis: int | None) -> str:
        """What class scores are: by what ends them, and by what was seen."""
        if axis is None:
            return ""
        value = next((v for v in self._values() if v.name == name), None)
        node = None if value is None else _through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"}).producer()
        ended = {"Softmax": "probabilities", "LogSoftmax": "log"}.get(node.op_type if node else "")
        summed = self._sums_to_one(name)
        return ended or ("probabilities" if summed == axis else "logits")

    def _values(self) -> Iterator[ir.Value]:
        return (value for node in self.model.graph for value in node.outputs)

    def _sums_to_one(self, name: str) -> int | None:
        """The axis along which numbers of 0 to 1 sum to 1 on every sample; None where there is none."""
        arrays = self.arrays(name)
        if not arrays or any(y.ndim < 2 or y.dtype.kind != "f" or not y.size for y in arrays):
            return None
        if any(float(y.min()) < -1e-6 or float(y.max()) > 1 + 1e-3 for y in arrays):
            return None
        axes = range(1, arrays[0].ndim)
        fits = [k for k in axes if all(y.shape[k] > 1 and np.allclose(y.sum(k), 1, atol=2e-3) for y in arrays)]
        return fits[0] if fits else None

    # One value: by what stands at its end, then by its numbers.

    def parts(self, value: ir.Value) -> tuple[tuple[Part, ...], str]:
        """The parts of a float value, and why they are taken for that."""
        joint = self._joint(value)
        if joint is not None:
            return joint
        part, reason = self.single(value)
        if part.kind == SIGNAL and (split := self._split_by_numbers(part)):
            return split, "its first rows are no numbers of 0 to 1, and all others are"
        return (part,), reason

    def _joint(self, value: ir.Value) -> tuple[tuple[Part, ...], str] | None:
        """Parts of a Concat of unlike parts, whatever moved them afterwards; None for other values."""
        source = _through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"})
        node = source.producer()
        if node is None or node.op_type != "Concat":
            return None
        inputs = [v for v in node.inputs if v is not None]
        rank = len(self.sizes.get(source.name or "", ()))
        axis = node.attributes.get_int("axis", 0) % max(1, rank)
        widths = [self._size(v, axis) for v in inputs]
        if not all(widths):
            return None
        ends = [self.end_of(v, axis) for v in inputs]
        if len(set(ends)) < 2:  # levels of a pyramid, one behind the other: parts stand in each of them alike
            inner = [self._joint(v) for v in inputs]
            first = inner[0]
            if first is None or any(other is None or _layout(other[0]) != _layout(first[0]) for other in inner):
                return None
            moved = [self._moved(part, part.along, source, value) for part in first[0]]
            return (tuple(p for p in moved if p), first[1]) if all(moved) else None
        found, start = [], 0
        for kind, width in zip(ends, widths, strict=True):
            place = _merged(found[-1], kind, start, width) if found else None
            part = Part(source.name or "", kind, axis, axis, start, start + width)
            found[-1:] = [place] if place is not None else [*found[-1:], part]
            start += width
        # Four columns of a row are no box, unless scores stand beside them.
        if len(found) < 2 or (rank < 3 and not {SCORES, CLASSES} & set(ends)):
            return None
        moved = [self._moved(part, axis, source, value) for part in found]
        kept = tuple(p for p in moved if p)
        names = ", ".join(f"{p.stop - p.start} of {p.kind}" for p in found if p.stop is not None)
        return (kept, f"Concat '{node.name}' joins {names}") if len(kept) == len(found) else None

    def _moved(self, part: Part, axis: int | None, source: ir.Value, value: ir.Value) -> Part | None:
        """`part` of `source` as a part of `value`, which is made of it by Transpose, Reshape and the like."""
        at = None if axis is None else self.mapped(value, source, axis)
        if at is None:
            return None
        rows = self.rows(value.name or "")
        return replace(part, value=value.name or "", axis=at, along=at, rows=rows)

    def _size(self, value: ir.Value, axis: int) -> int:
        size = self.sizes.get(value.name or "", ())
        return int(size[axis]) if axis < len(size) else 0

    def end_of(self, value: ir.Value, axis: int) -> str:
        """The kind of an input of Concat, which has its own numbers along `axis`."""
        node = _through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"}).producer()
        op = node.op_type if node is not None else ""
        if op in ("Sigmoid", "HardSigmoid"):
            return SCORES
        if op == "Softmax":
            return CLASSES
        return BOXES if self._size(value, axis) == 4 else SIGNAL

    def mapped(self, value: ir.Value, source: ir.Value, axis: int) -> int | None:
        """The axis of `value` on which axis `axis` of `source` stands; None where it is merged with others."""
        chain: list[ir.Node] = []
        at = value
        while at is not source:
            node = at.producer()
            if node is None or node.inputs[0] is None:
                return None
            chain.append(node)
            at = node.inputs[0]
        for node in reversed(chain):
            if node.op_type == "Transpose":
                order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
                rank = len(self.sizes.get(node.outputs[0].name or "", ()))
                axis = list(order).index(axis) if order is not None else rank - 1 - axis
            elif node.op_type in SAME_NUMBERS:
                found = self._reshaped(node, axis)
                if found is None:
                    return None
                axis = found
        return axis

    def _reshaped(self, node: ir.Node, axis: int) -> int | None:
        x, y = (tuple(self.sizes.get(v.name or "", ())) for v in (node.inputs[0], node.outputs[0]) if v is not None)
        before = prod(x[:axis])
        return next((k for k, n in enumerate(y) if n == x[axis] and prod(y[:k]) == before), None)

    def single(self, value: ir.Value) -> tuple[Part, str]:
        """A value of one kind, and why."""
        name = value.name or ""
        source = _through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"})
        node = source.producer()
        op = node.op_type if node is not None else ""
        size = tuple(self.sizes.get(name, ()))
        if node is not None and op in ("Softmax", "LogSoftmax"):
            axis = self.mapped(
                value, source, _softmax_axis(node, self.model, len(self.sizes.get(source.name or "", ())))
            )
            if axis is not None and (axis or not self.rows(name)):
                return self._choice(name, axis), f"{op} '{node.name}' ends it"
        summed = self._sums_to_one(name)
        if summed is not None:
            return self._choice(name, summed), f"its numbers sum to 1 along axis {summed} on every sample"
        rows = self.rows(name)
        if (sigmoid := _sigmoid_of(value)) is not None:
            node, op = sigmoid, sigmoid.op_type
            axis = 1 if len(size) in (2, 4) else len(size) - 1
            return Part(name, SCORES, axis if len(size) > 1 else None, rows=rows), f"{op} '{node.name}' ends it"
        if len(size) > 1 and self._unit(name):
            return Part(name, EMBEDDING, len(size) - 1, rows=rows), "its vectors have length 1"
        return self._bare(name, op, node, size, rows)

    def _bare(self, name: str, op: str, node: ir.Node | None, size: tuple[int, ...], rows: bool) -> tuple[Part, str]:
        """A value that no Softmax, Sigmoid or normalization ends."""
        what = f"{op} '{node.name}' ends it" if node is not None else "nothing makes it"
        flat = len(size) > 1 and size[1:2] != (1,) and all(n == 1 for n in size[2:])
        words = name.lower()
        if flat and rows:
            vector = op in NORMS or "embed" in words or "feat" in words
            if vector:
                return Part(name, EMBEDDING, 1), f"{what}: a vector per sample, no class scores"
            if self._one_answer(name):
                return Part(name, SIGNAL), "its largest number stands at one place on every sample: it chooses nothing"
            return self._choice(name, 1), f"it is one row of {prod(size[1:])} numbers per sample, and {what}"
        if len(size) == 3 and size[2] > 1 and rows:
            if op in NORMS or "hidden" in words or "embed" in words:
                return Part(name, EMBEDDING, 2), f"{what}: a vector at each of {size[1]} places"
            if size[2] >= PLENTY or (op in LAYERS and _has_bias(node) and size[1] > 1):
                return self._choice(name, 2), f"{what}: {size[2]} scores at each of {size[1]} places"
        if len(size) == 4 and rows and size[1] not in (1, 3) and op in ("Conv", "Resize", "Upsample", "ConvTranspose"):
            return self._choice(name, 1), f"it is a map of {size[1]} numbers at each place, and {what}"
        if len(size) > 1 and size[-1] == 4 and ("box" in words or not rows):
            return Part(name, BOXES, len(size) - 1, rows=rows), "it holds 4 numbers at each place"
        return Part(name, SIGNAL, rows=rows), f"{what}, and nothing says that it is anything else than numbers"

    def _one_answer(self, name: str) -> bool:
        """Whether a row of numbers is largest at one place on all of enough samples, none labelled."""
        arrays = self.arrays(name)
        if self.labelled or sum(map(len, arrays)) < ENOUGH:
            return False
        return len({int(k) for y in arrays for k in y.reshape(len(y), -1).argmax(1)}) == 1

    def _unit(self, name: str) -> bool:
        arrays = self.arrays(name)
        return bool(arrays) and all(
            y.ndim > 1
            and y.dtype.kind == "f"
            and y.shape[-1] > 4
            and np.allclose(np.linalg.norm(y, axis=-1), 1, atol=1e-3)
            for y in arrays
        )

    def _split_by_numbers(self, part: Part) -> tuple[Part, ...]:
        """Boxes of 4 or 5 wider numbers before scores of 0 to 1 along an axis; nothing where it looks otherwise."""
        arrays = self.arrays(part.value)
        if not arrays or not part.rows or any(y.ndim != 3 or y.dtype.kind != "f" for y in arrays):
            return ()
        for axis in (1, 2):
            others = tuple(k for k in range(3) if k != axis)
            low, high = (np.stack([f(y, axis=others) for y in arrays]) for f in (np.min, np.max))
            inside = (low.min(0) >= 0) & (high.max(0) <= 1)
            count = len(inside)
            if count > 4 and not inside[:4].any() and inside[4:].all() and high[:, :4].max() > 2:
                cuts = ((BOXES, 0, 4), (SCORES, 4, count))
                return tuple(Part(part.value, kind, axis, axis, a, b) for kind, a, b in cuts)
        return ()


def _merged(last: Part, kind: str, start: int, width: int) -> Part | None:
    """`last` made longer by a neighbor of the same kind, None where it differs; two runs of scores stay apart."""
    if last.kind != kind or (kind == SCORES and (last.stop or 0) - last.start != width):
        return None
    return replace(last, stop=start + width)


def _layout(parts: Sequence[Part]) -> tuple[Any, ...]:
    return tuple((p.kind, p.along, p.start, p.stop) for p in parts)


def _has_bias(node: ir.Node | None) -> bool:
    return node is not None and (node.op_type == "Add" or len([v for v in node.inputs if v is not None]) > 2)


def _sigmoid_of(value: ir.Value) -> ir.Node | None:
    """The Sigmoid that ends `value`, maybe behind a mean of its numbers, which lies between 0 and 1 as they do."""
    for _ in range(DEEPEST):
        node = value.producer()
        if node is None or node.op_type in ("Sigmoid", "HardSigmoid"):
            return node
        if node.op_type == "If":
            value = node.attributes["then_branch"].as_graph().outputs[0]
        elif node.op_type in SAME_VALUES | SAME_NUMBERS | {"Transpose", "ReduceMean"} and node.inputs[0] is not None:
            value = node.inputs[0]
        else:
            return None
    return None


def _through(value: ir.Value, operators: frozenset[str]) -> ir.Value:
    """The value nearest to the inputs that `value` is made of by such operators alone."""
    while (node := value.producer()) is not None and node.inputs[0] is not None:
        if node.op_type not in operators and not states.fills(node):
            break
        value = node.inputs[0]
    return value


def _softmax_axis(node: ir.Node, model: ir.Model, rank: int) -> int:
    default = -1 if model.opset_imports.get("", 13) >= 13 else 1
    return node.attributes.get_int("axis", default) % max(1, rank)


def _stem(name: str) -> str:
    """The name of a state without what tells before from after: r1i and r1o, state and stateN, past_0 and present_0."""
    words = re.sub("past|present", "", name.lower())
    return re.sub(r"[_.:]?(input|output|in|out|next|new|prev|i|o|n)$", "", words)
