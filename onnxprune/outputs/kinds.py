"""Kinds of outputs, and the parts that outputs consist of. Methods, losses and metrics read this description.

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

describe.py decides which it is. Axes are those of the model's own value, batch axis included.
"""

from dataclasses import dataclass, replace
from typing import Any

CLASSES, SEQUENCE, SEGMENTATION, SCORES, BOXES = "classes", "sequence", "segmentation", "scores", "boxes"
EMBEDDING, SIGNAL, JOINT, DECISION, STATE = "embedding", "signal", "joint", "decision", "state"
PASSED, CONSTANT = "pass-through", "constant"
KINDS = [
    CLASSES, SEQUENCE, SEGMENTATION, SCORES, BOXES, EMBEDDING, SIGNAL, JOINT, DECISION, STATE, PASSED, CONSTANT,
]  # fmt: skip
CHOSEN = frozenset({CLASSES, SEQUENCE, SEGMENTATION})  # one of several along an axis
SILENT = frozenset({PASSED, CONSTANT})


@dataclass(frozen=True)
class Part:
    """Numbers of one kind: all of a value, or positions `start` to `stop` on its axis `along`.

    axis: along which classes, coordinates or features stand. form: of classes and scores, `logits`, `probabilities` or
    `log`, where that is known; of boxes, `corners` or `centers`.
    rows: whether the value has a row per sample on its axis `batch`; otherwise it is made sample by sample.
    background: of scores that are one choice at each place, the class that means that nothing is there.
    """

    value: str
    kind: str
    axis: int | None = None
    along: int | None = None
    start: int = 0
    stop: int | None = None
    form: str = ""
    rows: bool = True
    background: int | None = None
    batch: int = 0

    def of(self, y: Any) -> Any:
        """The part of its value `y`, an array or a tensor."""
        if self.along is None:
            return y
        return y[(slice(None),) * (self.along % y.ndim) + (slice(self.start, self.stop),)]

    @property
    def by_sample(self) -> "Part":
        """The same part of the value with samples on axis 0."""
        if not self.batch:
            return self
        axis, along = (k if k is None or k > self.batch else k + 1 for k in (self.axis, self.along))
        return replace(self, batch=0, axis=axis, along=along)

    @property
    def name(self) -> str:
        """The value, and which positions of it."""
        if self.along is None:
            return self.value
        return f"{self.value}[{self.start}:{'' if self.stop is None else self.stop}]"


def says_yes_or_no(part: Part) -> bool:
    """Whether a part is scores, which answer yes or no each: one per sample may have a label of 0 or 1."""
    return part.kind == SCORES and part.along is None and part.background is None


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
        """The parts that are compared, each once: states only where there is nothing else, copies of inputs never."""
        found = {part: None for entry in self.entries if entry.kind not in SILENT for part in entry.parts}
        lasting = tuple(part for part in found if part.kind != STATE)
        return lasting or tuple(found)

    @property
    def learned(self) -> tuple[Part, ...]:
        """The parts that training reads: those that are compared, and the states, which the next run reads."""
        return tuple({part: None for e in self.entries if e.kind not in SILENT for part in e.parts})

    @property
    def by_sample(self) -> "Outputs":
        """The outputs as they are where all values have samples on axis 0."""
        return Outputs(tuple(replace(e, parts=tuple(p.by_sample for p in e.parts)) for e in self.entries))

    @property
    def sample_axes(self) -> dict[str, int]:
        """Value -> the axis of its samples, where that is not the first."""
        return {part.value: part.batch for part in self.learned if part.batch}

    @property
    def classified(self) -> bool:
        """Whether a part is class scores with one answer per sample; true where nothing is known."""
        return not self.entries or any(part.kind == CLASSES for part in self.parts)

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
