"""The loss of fine-tuning: the distance to the original model, and to labels where there are any.

Letters: N batch, C classes, T temperature; z the tuned model's logits, t the original's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.outputs import parts
from onnxprune.outputs.describe import describe
from onnxprune.outputs.kinds import CHOSEN, CLASSES, SIGNAL, Outputs, Part

Values = Mapping[str, Tensor]
SMALL = 1e-6
MOST_POINTS = 4
SOFTEST, LEAST_ANSWER = (4.0, 2.0, 1.0), 1 / 5  # temperatures; of all probability, what the answer keeps
DEEPEST = 32  # nodes between an output and the values that stand in for it


@dataclass(frozen=True)
class Task:
    """The outputs that losses read: `logits` names the output of a classifier, `probabilities` where a Softmax ends it.

    outputs: the values compared; `inner` those of them that are no outputs of the model but stand in for some.
    parts: of those values, each compared as its kind asks for; samples come first. sample_axes: value -> the axis on
    which the model has them, where that is another.
    points: intermediate values that both models have; positions: axis -> positions of those of which the cut model has
    only these. scales: the spread of points and of regressed outputs. temperature: see `softest`.
    """

    outputs: tuple[str, ...]
    logits: str | None
    probabilities: bool = False
    points: tuple[str, ...] = ()
    scales: Mapping[str, float] | None = None
    inner: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    sample_axes: Mapping[str, int] = field(default_factory=dict)
    positions: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)
    temperature: float = SOFTEST[0]

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of the intermediate values that the loss compares."""
        return (*self.inner, *self.points)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of everything the loss compares."""
        return (*self.outputs, *self.points)

    def by_sample(self, values: Values) -> dict[str, Tensor]:
        """`values` with samples on axis 0."""
        return {
            name: y.movedim(self.sample_axes[name], 0) if name in self.sample_axes else y for name, y in values.items()
        }

    def compared(self, values: Values) -> dict[str, Tensor]:
        """The teacher's `values` as the loss compares them: of points the positions that the cut model has."""
        found = self.by_sample({name: values[name] for name in self.wanted})
        for name, axes in self.positions.items():
            for axis, kept in axes.items():
                found[name] = found[name].index_select(axis, torch.from_numpy(kept).to(found[name].device))
        return found


def task_of(
    model: ir.Model,
    outputs: Values,
    count: int,
    seen: Callable[[Sequence[str]], Values],
    *,
    regression: bool = False,
    described: Outputs | None = None,
) -> Task:
    """The task of a model, seen on its outputs for `count` samples, by what its outputs are (`described`).

    Decisions are compared by the values that they are made of, and so is what has no row per sample or no gradient.
    seen: intermediate values by name, of those that both models have in equal shape. One part of class scores, one
    answer per sample, is a classifier.
    """
    described = described or describe(model)
    known = {**outputs, **seen(described.inner)}
    found = tuple(part for part in described.learned if comparable(known.get(part.value), count, part.batch))
    if found:
        axes = {part.value: part.batch for part in found if part.batch}
        found = tuple(part.by_sample for part in found)
        if regression:
            found = tuple({Part(part.value, SIGNAL): None for part in found})
        names = tuple(dict.fromkeys(part.value for part in found))
        inner = tuple(name for name in names if name not in outputs)
        logits, probabilities = None, False
        if len(found) == 1 and found[0].kind == CLASSES and known[names[0]].flatten(1).shape[1] > 1:
            logits, probabilities = names[0], found[0].form == "probabilities"
        return Task(names, logits, probabilities, inner=inner, parts=found, sample_axes=axes)
    names = tuple(name for name, y in outputs.items() if comparable(y, count))
    rest = [value for value in model.graph.outputs if value.name in outputs and value.name not in names]
    inner = tuple(_behind(rest, names, count, seen))
    names = (*names, *inner)
    return Task(names, None, inner=inner, parts=tuple(Part(name, SIGNAL) for name in names))


def comparable(y: Any, count: int, axis: int = 0) -> bool:
    """Whether `y` is a float tensor with a row for each of `count` samples on `axis`."""
    return isinstance(y, Tensor) and y.is_floating_point() and y.ndim > axis and y.shape[axis] == count


def _behind(
    values: Sequence[ir.Value], known: Sequence[str], count: int, seen: Callable[[Sequence[str]], Values]
) -> list[str]:
    """Names of the comparable values nearest to `values` on every way back to the inputs, up to those `known`."""
    found: list[str] = []
    visited: set[ir.Value] = set(values)
    front = list(values)
    for _ in range(DEEPEST):
        before = [v for value in front if (node := value.producer()) is not None for v in node.inputs if v is not None]
        front = [v for v in dict.fromkeys(before) if v not in visited and v.producer() and v.name not in known]
        visited.update(front)
        if not front:
            break
        good = {name for name, y in seen([v.name or "" for v in front]).items() if comparable(y, count)}
        found += [v.name or "" for v in front if v.name in good]
        front = [v for v in front if v.name not in good]
    return found


def logits_of(task: Task, values: Values) -> Tensor:
    """(N, C) logits of a classifier."""
    assert task.logits is not None
    z = values[task.logits].flatten(1).float()
    return z.clamp_min(SMALL).log() if task.probabilities else z


def teaching(task: Task, values: Values, targets: Values, temperature: float) -> Tensor:
    """How far `values` are from the original's `targets`, mean over the parts, each in its own units."""
    scales = task.scales or {}
    found = [
        parts.distance(part, task.parts, values, targets, temperature=temperature, scale=scales.get(part.name, 0.0))
        for part in task.parts
    ]
    return parts.mean(found)


def labels_loss(
    task: Task, values: Values, labels: Tensor, others: Tensor | None = None, weight: Tensor | None = None
) -> Tensor | None:
    """`classification` of the part that the labels (N, ...) are answers of; None where they are no part's."""
    for part in task.parts:
        y = parts.rows(part, values)
        wanted = parts.labels_of(part, y, labels)
        if wanted is None:
            continue
        z = parts.log_probabilities(part, y)
        if others is None or weight is None:
            return classification(z.reshape(-1, z.shape[-1]), wanted.reshape(-1))
        per_place = weight.reshape(-1, *(1,) * (z.ndim - 2)).expand(z.shape[:-1])
        partner = others.reshape(z.shape[:-1]).reshape(-1)
        return classification(z.reshape(-1, z.shape[-1]), wanted.reshape(-1), partner, per_place.reshape(-1))
    return None


def regression(values: Values, targets: Values, names: Sequence[str], scales: Mapping[str, float]) -> Tensor:
    """Mean over names of the squared error in units of the target's variance."""
    terms = [F.mse_loss(values[name].float(), targets[name].float()) / scales[name] for name in names]
    return torch.stack(terms).mean()


def classification(z: Tensor, labels: Tensor, others: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy with labels (N,); of a mixed sample `weight` with its own, the rest with its partner's (others)."""
    if others is None or weight is None:
        return F.cross_entropy(z, labels)
    own, other = (F.cross_entropy(z, y, reduction="none") for y in (labels, others))
    return (weight * own + (1 - weight) * other).mean()


def scaled(task: Task, values: Values) -> Task:
    """`task` with the units of what it compares, its temperature, and what boxes are, by the original's `values`."""
    task = replace(task, parts=parts.with_forms(task.parts, values), temperature=softest(task.parts, values))
    units = {part.name: parts.scale_of(part, task.parts, values) for part in task.parts}
    return replace(task, scales={**scales_of(values, task.wanted), **units})


@torch.no_grad()
def softest(found: Sequence[Part], values: Values) -> float:
    """The highest temperature at which the original's answers still have a fifth of all probability, in the mean.

    Softened as much as suits ten classes, thousands of letters that nobody would read there have nearly all of it, and
    a student learns how unlikely each is (Hinton et al. 2015, section 2, on logits that are far below the mean).
    """
    chosen = [parts.log_probabilities(part, parts.rows(part, values)) for part in found if part.kind in CHOSEN]
    fit = (T for T in SOFTEST if all(float((z / T).softmax(-1).amax(-1).mean()) >= LEAST_ANSWER for z in chosen))
    return next(fit, SOFTEST[-1])


def scales_of(values: Values, names: Sequence[str]) -> dict[str, float]:
    """The variance of each named value, never zero."""
    return {name: max(float(values[name].float().var(correction=0)), SMALL) for name in names}


def with_points(task: Task, names: Sequence[str], positions: Mapping[str, Mapping[int, np.ndarray]]) -> Task:
    """`task` with these intermediate values."""
    return replace(task, points=tuple(names), positions={name: positions[name] for name in names if name in positions})


def shared_points(
    cut_model: ir.Model,
    teacher: ir.Model,
    positions: Mapping[str, Mapping[int, np.ndarray]],
    most: int = MOST_POINTS,
) -> tuple[str, ...]:
    """Names of up to `most` activations that both models have, evenly spread; positions: what is left of them."""
    known = {value.name: value for node in teacher.graph for value in node.outputs}
    found = [
        name
        for name, shape in _activations(cut_model)
        if name in known and shape == _left_of(known[name].shape, positions.get(name, {}))
    ]
    if len(found) <= most:
        return tuple(found)
    return tuple(found[round((k + 1) * len(found) / (most + 1))] for k in range(most))


def _left_of(shape: ir.Shape | None, positions: Mapping[int, np.ndarray]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([len(positions[k]) if k in positions else size for k, size in enumerate(shape)])


def _activations(model: ir.Model) -> Iterator[tuple[str, ir.Shape]]:
    outputs = set(model.graph.outputs)
    for node in model.graph:
        value = node.outputs[0]
        sizes = list(value.shape) if value.shape is not None else []
        # Sums end residual blocks; in between units may share their work otherwise.
        if (
            node.op_type in ("Add", "Relu")
            and len(sizes) >= 3
            and value not in outputs
            and value.dtype == ir.DataType.FLOAT
        ):
            assert value.shape is not None
            yield value.name or "", value.shape
