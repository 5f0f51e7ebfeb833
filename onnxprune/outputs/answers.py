"""A model's answers on samples, for all parts of its outputs, and the original's answers as a reference."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import graph
from onnxprune.data import Samples
from onnxprune.data.sequences import AT_ONCE, handed_back
from onnxprune.graph import extras, sessions
from onnxprune.graph.inputs import batch_size_of
from onnxprune.outputs.beside import as_scores
from onnxprune.outputs.decisions import behind
from onnxprune.outputs.kinds import CLASSES, Outputs, Part
from onnxprune.outputs.metrics import everything, mean_row
from onnxprune.system.memory import ANSWERS_BYTES, may_hold

Values = Mapping[str, np.ndarray]


def names_in(model: ir.Model, outputs: Outputs) -> dict[str, str]:
    """Value of `outputs` -> its name in `model`, which may have been rewritten: decisions are found by their place."""
    own = {value.name for value in model.graph.outputs}
    made = {value.name for node in model.graph for value in node.outputs}
    wanted = {part.value: None for part in outputs.parts}
    inner = [name for name in outputs.inner if name in wanted]
    found = {name: name for name in wanted if name in own or name in made}
    here = list(behind(model))
    if any(name not in found for name in inner) and len(here) == len(inner):
        found.update(zip(inner, here, strict=True))
    return found


def answers(
    model: ir.Model | Path, samples: Samples, outputs: Outputs, batch: int | None = None
) -> dict[str, np.ndarray]:
    """Value name -> (N, ...) for what parts look at; values that change their size with the sample are left out.

    Samples come first whatever axis the model has them on, see `Outputs.by_sample`.

    batch: the only one that the model takes, where it does not tell.
    """
    loaded = model if isinstance(model, ir.Model) else graph.load(model)
    names = names_in(loaded, outputs)
    own = {value.name for value in loaded.graph.outputs}
    extra = [name for name in names.values() if name not in own]
    # Of a file with maps the tensors are compared that stand behind them.
    session = sessions.open_session(loaded if extra or extras.of(loaded).maps else model, extra_outputs=extra)
    pairs = handed_back(loaded) if samples.steps > 1 else {}
    if pairs:
        said: Mapping[str, Any] = along_sequences(session, samples, pairs)
    else:
        said = everything(sessions.hold_batch(session, batch), samples)
    found: dict[str, np.ndarray] = {}
    moved = outputs.sample_axes
    if moved and not pairs:
        said = {**said, **_one_by_one(session, samples, {names[name]: k for name, k in moved.items() if name in names})}
    for name, here in names.items():
        if here not in said:
            continue
        y = said[here]
        if isinstance(y, list):
            if len(y) != len(samples) or len({np.shape(a) for a in y}) != 1:
                continue
            y = np.stack(y)
        if y.dtype.kind in "fiub":  # texts are compared by the numbers behind them
            found[name] = y
    return found


def _one_by_one(
    session: ort.InferenceSession, samples: Samples, axes: Mapping[str, int]
) -> dict[str, list[np.ndarray]]:
    """The named outputs of every sample, which is position 0 on these axes: what a larger batch means is not asked."""
    runs = [sessions.run(session, samples.batch(np.arange(k, k + 1))) for k in range(len(samples))]
    return {name: [np.take(run[name], 0, axis) for run in runs] for name, axis in axes.items()}


def along_sequences(session: ort.InferenceSession, samples: Samples, pairs: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Outputs (N x T, ...) of steps of sequences, each model handing on the states that it has made itself.

    pairs: input -> output that is handed back as it. Outputs without a row per sequence are left out.
    """
    count, steps = len(samples) // samples.steps, samples.steps
    at_once = batch_size_of(sessions.session_inputs(session)) or AT_ONCE
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, count, at_once):
        block = np.arange(start, min(start + at_once, count)) * steps
        said: list[Mapping[str, np.ndarray]] = []
        for t in range(steps):
            feeds = dict(samples.batch(block + t))
            if said:
                feeds |= {name: said[-1][output] for name, output in pairs.items()}
            said.append(sessions.run(session, feeds))
        rows = [name for name, y in said[0].items() if isinstance(y, np.ndarray) and y.shape[:1] == block.shape]
        alike = [name for name in rows if len({run[name].shape for run in said}) == 1]
        parts.append({name: np.concatenate(np.stack([run[name] for run in said], 1)) for name in alike})
    common = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in common}


@dataclass(frozen=True)
class Reference:
    """The original's answers on samples, and their mean, which is all that a null model answers."""

    samples: Samples
    outputs: Outputs
    said: Values
    ends: dict[Any, tuple[float, float]] = field(default_factory=dict, compare=False)  # group -> null's and original's

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are compared; of values with samples on the first axis, as those in `said`."""
        return self.outputs.by_sample.parts

    def classes(self) -> np.ndarray | None:
        """The answer (N,) of each sample, by the first part that has one for each; None where there is none."""
        for part in self.parts:
            if part.kind == CLASSES and part.value in self.said:
                return numbers_of(part, self.said[part.value])[:, 0].argmax(-1)
        return None

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The null model's answers, one row for all samples."""
        return {name: np.broadcast_to(mean_row(y), y.shape) for name, y in self.said.items()}


def reference(model: ir.Model | Path, samples: Samples, outputs: Outputs, batch: int | None = None) -> Reference | None:
    """The answers of `model` on `samples`, on fewer where they would not fit into memory; None where it gives none."""
    samples = fitting(model, samples, outputs, batch)
    said = answers(model, samples, outputs, batch)
    return Reference(samples, outputs, said) if said else None


def fitting(model: ir.Model | Path, samples: Samples, outputs: Outputs, batch: int | None = None) -> Samples:
    """`samples`, or fewer of them where the answers of `model` on all would not fit into memory."""
    few = answers(model, samples.subset(np.arange(min(2, len(samples)))), outputs, batch)
    size = sum(y.nbytes for y in few.values()) // max(1, min(2, len(samples)))
    count = min(len(samples), max(2, may_hold(ANSWERS_BYTES) // max(1, size)))
    return samples if count == len(samples) else samples.subset(np.arange(count))


def numbers_of(part: Part, y: np.ndarray) -> np.ndarray:
    """The part's numbers (N, places, C) of a value's (N, ...), places in one axis; scores are 0 to 1."""
    if part.batch:
        part, y = part.by_sample, np.moveaxis(y, part.batch, 0)
    shift = 0 if part.rows else 1
    if part.along is not None:
        y = y[(slice(None),) * (part.along + shift) + (slice(part.start, part.stop),)]
    axis = (part.axis if part.axis is not None else y.ndim - 1 - shift) + shift
    y = np.moveaxis(y, axis, -1) if y.ndim > 1 else y[:, None]
    return as_scores(part, y.reshape(len(y), -1, y.shape[-1]), sigmoid, softmax) if y.ndim > 1 else y


def sigmoid(y: np.ndarray) -> np.ndarray:
    """Numbers of 0 to 1 for logits."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 / infinite the 0 that is meant
        return 1 / (1 + np.exp(-y))


def softmax(y: np.ndarray) -> np.ndarray:
    """Probabilities for logits, over the last axis."""
    y = np.exp(y - y.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)
