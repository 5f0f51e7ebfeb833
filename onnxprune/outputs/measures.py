"""How much of what the original says a model still says: by the kind of each output, between a null model and it.

    share kept = (value - null) / (original - null)

The null model answers every sample alike: with the mean of the original's outputs. A metric that it does well by
tells nothing. Several outputs, or parts of one, each have their own metric; what counts is the worst share.

    classes       agreement of answers, top-1 with labels
    sequence      agreement per place; where one class fills the gaps (CTC), agreement of the texts that are left
    segmentation  mean intersection over union of the classes of a sample
    scores        overlap: sum of smaller / sum of larger, the original's against the model's
    boxes         with scores beside them: average precision of detections; else the share of variance explained,
                  places weighted by the original's scores where those belong to them
    embedding     rank correlation of a sample's similarities to all others
    signal        share of the variance explained: 1 - |y - t|^2 / |t - mean|^2; beside it the signal-to-noise ratio

Legend: N samples, C classes, D features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log10, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import graph
from onnxprune.data import Samples
from onnxprune.data.sequences import AT_ONCE, handed_back
from onnxprune.graph import sessions
from onnxprune.graph.inputs import batch_size_of
from onnxprune.outputs import detections, kinds
from onnxprune.outputs.kinds import Outputs, Part
from onnxprune.outputs.metrics import (
    AGREEMENT,
    SHARE_KEPT,
    TOP1,
    Z95,
    Accuracy,
    PartAccuracy,
    everything,
    mean_row,
    share_kept,
    wilson_interval,
)

MOST_BYTES = 1 << 30  # of the original's answers that are kept
MOST_COMPARED = 500  # vectors that are compared with each other
GAPS = 0.3  # share of places that one class fills where it stands for a gap between letters
Values = Mapping[str, np.ndarray]


# Answers ----------------------------------------------------------------------------------------------------------


def names_in(model: ir.Model, outputs: Outputs) -> dict[str, str]:
    """Value of `outputs` -> its name in `model`, which may have been rewritten: decisions are found by their place."""
    own = {value.name for value in model.graph.outputs}
    made = {value.name for node in model.graph for value in node.outputs}
    wanted = {part.value: None for part in outputs.parts}
    inner = [name for name in outputs.inner if name in wanted]
    found = {name: name for name in wanted if name in own or name in made}
    here = list(kinds.behind(model))
    if any(name not in found for name in inner) and len(here) == len(inner):
        found.update(zip(inner, here, strict=True))
    return found


def answers(
    model: ir.Model | Path, samples: Samples, outputs: Outputs, batch: int | None = None
) -> dict[str, np.ndarray]:
    """Value name -> (N, ...) for what parts look at; values that change their size with the sample are left out.

    batch: the only one that the model takes, where it does not tell.
    """
    loaded = model if isinstance(model, ir.Model) else graph.load(model)
    names = names_in(loaded, outputs)
    own = {value.name for value in loaded.graph.outputs}
    extra = [name for name in names.values() if name not in own]
    session = sessions.open_session(loaded if extra else model, extra_outputs=extra)
    pairs = handed_back(loaded) if samples.steps > 1 else {}
    if pairs:
        said: Mapping[str, Any] = along_sequences(session, samples, pairs)
    else:
        said = everything(sessions.hold_batch(session, batch), samples)
    found: dict[str, np.ndarray] = {}
    for name, here in names.items():
        if here not in said:
            continue
        y = said[here]
        if not isinstance(y, list) and y.dtype.kind not in "fiub":
            continue
        if isinstance(y, list):
            if len(y) != len(samples) or len({a.shape for a in y}) != 1:
                continue
            y = np.stack(y)
        found[name] = y
    return found


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
    """What the original says on samples, and the mean of it, which is all that a null model says."""

    samples: Samples
    outputs: Outputs
    said: Values
    ends: dict[Any, tuple[float, float]] = field(default_factory=dict, compare=False)  # group -> null's and original's

    def classes(self) -> np.ndarray | None:
        """The answer (N,) of each sample, by the first part that has one for each; None where there is none."""
        for part in self.outputs.parts:
            if part.kind == kinds.CLASSES and part.value in self.said:
                return _moved(part, self.said[part.value])[:, 0].argmax(-1)
        return None

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The null model's answers, one row for all samples."""
        return {name: np.broadcast_to(mean_row(y), y.shape) for name, y in self.said.items()}


def reference(model: ir.Model | Path, samples: Samples, outputs: Outputs, batch: int | None = None) -> Reference | None:
    """What `model` says on `samples`, on fewer of them where that would not fit into memory; None where nothing is."""
    few = answers(model, samples.subset(np.arange(min(2, len(samples)))), outputs, batch)
    size = sum(y.nbytes for y in few.values()) // max(1, min(2, len(samples)))
    count = min(len(samples), max(2, MOST_BYTES // max(1, size)))
    samples = samples if count == len(samples) else samples.subset(np.arange(count))
    said = answers(model, samples, outputs, batch)
    return Reference(samples, outputs, said) if said else None


# One part ---------------------------------------------------------------------------------------------------------

# A metric: (the model's numbers, the original's) -> values per sample (N,), and more figures by name.
Found = tuple[np.ndarray, dict[str, float]]
Measure = Callable[[np.ndarray, np.ndarray], Found]


def _moved(part: Part, y: np.ndarray) -> np.ndarray:
    """The part's numbers (N, places, C) of a value's (N, ...), places in one axis."""
    shift = 0 if part.rows else 1
    if part.along is not None:
        y = y[(slice(None),) * (part.along + shift) + (slice(part.start, part.stop),)]
    axis = (part.axis if part.axis is not None else y.ndim - 1 - shift) + shift
    y = np.moveaxis(y, axis, -1) if y.ndim > 1 else y[:, None]
    return y.reshape(len(y), -1, y.shape[-1]) if y.ndim > 1 else y


def agreement(y: np.ndarray, t: np.ndarray) -> Found:
    """Share of places with the original's answer: (N, P, C) both."""
    return (y.argmax(-1) == t.argmax(-1)).mean(axis=1), {}


def intersection(
    answers: np.ndarray, wanted: np.ndarray, classes: int, ignored: np.ndarray | None = None
) -> np.ndarray:
    """Mean intersection over union (N,) over the classes that a sample's answers or wanted ones (N, P) have."""
    shares = []
    for row, right in zip(answers, wanted, strict=True):
        counted = np.ones(len(right), bool) if ignored is None else (right >= 0) & (right < classes)
        pairs = np.bincount(row[counted] * classes + right[counted], minlength=classes**2).reshape(classes, classes)
        union = pairs.sum(0) + pairs.sum(1) - np.diag(pairs)
        there = union > 0
        shares.append(float((np.diag(pairs)[there] / union[there]).mean()) if there.any() else 1.0)
    return np.array(shares)


def segments(y: np.ndarray, t: np.ndarray) -> Found:
    """Mean intersection over union with the original's map: (N, P, C) both."""
    mine, wanted = y.argmax(-1), t.argmax(-1)
    return intersection(mine, wanted, t.shape[-1]), {"pixel_agreement": float((mine == wanted).mean())}


def gap_class(t: np.ndarray) -> int | None:
    """The class that stands for nothing between letters (CTC): the first or last one where it fills many places."""
    answers = t.argmax(-1)
    counts = np.bincount(answers.ravel(), minlength=t.shape[-1])
    most = int(counts.argmax())
    return most if most in (0, t.shape[-1] - 1) and counts[most] > GAPS * answers.size and t.shape[-1] > 2 else None


def collapsed(answers: np.ndarray, gap: int) -> list[int]:
    """Places (P,) as letters: repeats are one, gaps none."""
    first = np.concatenate([[True], answers[1:] != answers[:-1]])
    return [int(k) for k in answers[first] if k != gap]


def edits(a: Sequence[int], b: Sequence[int]) -> int:
    """Letters to put in, take out or change to make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, z in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != z))
    return row[-1]


def texts(y: np.ndarray, t: np.ndarray) -> Found:
    """1 - edits / length of the collapsed texts where one class fills gaps, else agreement per place."""
    places, gap = agreement(y, t)[0], gap_class(t)
    if gap is None:
        return places, {}
    values = []
    for row, wanted in zip(y.argmax(-1), t.argmax(-1), strict=True):
        mine, right = collapsed(row, gap), collapsed(wanted, gap)
        values.append(1 - edits(mine, right) / max(1, len(mine), len(right)))
    same = np.mean([value == 1 for value in values])
    return np.array(values), {"place_agreement": float(places.mean()), "same_text": float(same)}


def overlap(y: np.ndarray, t: np.ndarray) -> Found:
    """Sum of the smaller / sum of the larger of scores of 0 to 1; of a single one, 1 - |y - t|."""
    y, t = (np.clip(a.reshape(len(a), -1), 0, 1).astype(np.float64) for a in (y, t))
    if y.shape[1] == 1:
        return 1 - np.abs(y - t)[:, 0], {}
    return np.minimum(y, t).sum(1) / np.maximum(np.maximum(y, t).sum(1), 1e-12), {}


def similarities(y: np.ndarray, t: np.ndarray) -> Found:
    """Per sample, rank correlation of its cosine similarities to all others with the original's: (N, P, D) both."""
    y, t = (a.mean(axis=1, dtype=np.float64) for a in (y, t))
    near = [(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)) for x in (y, t)]
    cosine = (near[0] * near[1]).sum(1)
    if len(t) < 4:
        return cosine, {}
    from scipy.stats import rankdata  # not part of the core, and needed only here

    rows = np.linspace(0, len(t) - 1, min(len(t), MOST_COMPARED)).astype(int)
    others = ~np.eye(len(rows), dtype=bool)
    ranks = [
        np.stack([rankdata(row[keep]) for row, keep in zip(np.round(x[rows] @ x[rows].T, 9), others, strict=True)])
        for x in near
    ]
    centered = [r - r.mean(1, keepdims=True) for r in ranks]
    norms = np.linalg.norm(centered[0], axis=1) * np.linalg.norm(centered[1], axis=1)
    values = (centered[0] * centered[1]).sum(1) / np.maximum(norms, 1e-12)
    return values, {"cosine": float(cosine.mean())}


def explained(y: np.ndarray, t: np.ndarray, weight: np.ndarray | None = None) -> Found:
    """Contributions (N,) to 1 - sum |y - t|^2 / sum |t - mean|^2; weight: (N, P) of places."""
    y, t = (a.reshape(*a.shape[:2], -1).astype(np.float64) for a in (y, t))
    w = np.ones(t.shape[:2]) if weight is None else weight
    error = (w[..., None] * (y - t) ** 2).reshape(len(t), -1).sum(1)
    spread = float((w[..., None] * (t - t.mean(0)) ** 2).sum()) / len(t)
    power, noise = float((w[..., None] * t**2).sum()), float(error.sum())
    decibels = 10 * log10(power / noise) if power and noise else float("inf")
    return 1 - error / max(spread, 1e-30) if spread > 0 else np.ones(len(t)), {"snr_db": decibels}


def same(y: np.ndarray, t: np.ndarray) -> Found:
    """Share of equal numbers, of decisions that nothing continuous lies behind."""
    return (y == t).reshape(len(t), -1).mean(1), {}


MEASURES: dict[str, tuple[str, Measure]] = {
    kinds.CLASSES: (AGREEMENT, agreement),
    kinds.SEQUENCE: ("text_agreement", texts),
    kinds.SEGMENTATION: ("mean_iou", segments),
    kinds.SCORES: ("overlap", overlap),
    kinds.EMBEDDING: ("rank_correlation", similarities),
    kinds.DECISION: (AGREEMENT, same),
}


def output_kind(name: str, *, metric: str) -> Callable[[Measure], Measure]:
    """Registers the decorated function as the metric, called `metric`, of outputs of kind `name`.

    The function takes the model's numbers and the original's, (N, places, C) both, and gives a value per sample (N,),
    larger is better, and further figures by name. A kind that is new can be given with `--output NAME=KIND`.
    """

    def register(measured: Measure) -> Measure:
        if name not in kinds.KINDS:
            kinds.KINDS.append(name)
        MEASURES[name] = metric, measured
        return measured

    return register


def measure(said: Values, original: Reference) -> list[PartAccuracy]:
    """How far the answers `said` are the original's, part by part."""
    return [_accuracy(group, said, original) for group in _groups(original) if _comparable(group, said, original)]


def _comparable(group: "Group", said: Values, original: Reference) -> bool:
    return all(p.value in said and said[p.value].shape == original.said[p.value].shape for p in group.parts)


@dataclass(frozen=True)
class Group:
    """Parts that are measured together: one, or boxes with their scores."""

    parts: tuple[Part, ...]
    beside: Part | None = None  # scores that weigh the places of boxes

    @property
    def name(self) -> str:
        return " with ".join(part.name for part in self.parts)


def _groups(original: Reference) -> Iterator[Group]:
    parts = [part for part in original.outputs.parts if part.value in original.said]
    joint = {entry.name for entry in original.outputs.entries if entry.kind == kinds.JOINT}
    pairs: dict[Part, tuple[Part, ...]] = {}
    for boxes in (part for part in parts if part.kind == kinds.BOXES):
        places = _moved(boxes, original.said[boxes.value]).shape[1]
        near = tuple(
            s for s in parts
            if s.kind == kinds.SCORES and _moved(s, original.said[s.value]).shape[1] == places
        )  # fmt: skip
        decoded = boxes.value in joint or boxes.value in original.outputs.inner
        if near and decoded:
            pairs[boxes] = near
        elif near:
            yield Group((boxes,), near[0])
        else:
            yield Group((boxes,))
    taken = {part for near in pairs.values() for part in near}
    for boxes, near in pairs.items():
        yield Group((boxes, *near))
    yield from (Group((part,)) for part in parts if part.kind != kinds.BOXES and part not in taken)


def _accuracy(group: Group, said: Values, original: Reference) -> PartAccuracy:
    values, more = _values(group, said, original)
    first = group.parts[0]
    kind, (name, _) = first.kind, MEASURES.get(first.kind, ("explained", explained))
    if len(group.parts) > 1:
        kind, name = "detections", "detections_ap"
    elif first.kind == kinds.SEQUENCE and not more:
        name = AGREEMENT
    return _summed(group.name, kind, name, values, *_ends(group, original), more)


def _values(group: Group, said: Values, original: Reference) -> Found:
    """The metric (N,) of a group by what `said` says, and more figures by name."""
    first = group.parts[0]
    if len(group.parts) > 1:
        return _detected(group, said, original)
    y, t = (_moved(first, values[first.value]) for values in (said, original.said))
    if group.beside is not None:
        return explained(y, t, _moved(group.beside, original.said[group.beside.value]).max(-1))
    return MEASURES.get(first.kind, ("explained", explained))[1](y, t)


def _ends(group: Group, original: Reference) -> tuple[float, float]:
    """What the null model and the original have by a group's metric; computed once."""
    if group not in original.ends:
        ends = (float(_values(group, said, original)[0].mean()) for said in (original.null, original.said))
        original.ends[group] = (next(ends), next(ends))
    return original.ends[group]


def by_sample(said: Values, original: Reference) -> np.ndarray | None:
    """Share kept between the null model (0) and the original (1) of each sample (N,), mean over the parts.

    Parts that tell nothing are left out; None where none tells anything.
    """
    found = []
    for group in _groups(original):
        null, first = _ends(group, original)
        if _comparable(group, said, original) and share_kept(first, null, first) is not None:
            found.append((_values(group, said, original)[0] - null) / (first - null))
    return np.mean(found, axis=0) if found else None


def _summed(
    part: str, kind: str, metric: str, values: np.ndarray, null: float, first: float, more: Mapping[str, float]
) -> PartAccuracy:
    mean = float(values.mean())
    half = Z95 * float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    ends = (mean - half, min(mean + half, max(1.0, mean)))
    whole = bool(np.isin(values, (0.0, 1.0)).all())
    if whole:
        ends = wilson_interval(float(values.sum()), len(values))
    share = share_kept(mean, null, first)
    return PartAccuracy(part, kind, metric, mean, null, first, share, len(values), ends, dict(more) or None)


def _detected(group: Group, said: Values, original: Reference) -> Found:
    """Average precision of detections against the original's."""
    boxes = group.parts[0]
    said_boxes = _moved(boxes, original.said[boxes.value])
    centered = boxes.form == "centers" or (not boxes.form and detections.is_centered(said_boxes))
    wanted_scores = _scores(group.parts[1:], original.said)
    sure, faint = detections.thresholds(list(wanted_scores))

    def of(values: Values) -> list[detections.Found]:
        places = detections.corners(_moved(boxes, values[boxes.value]), centered)
        return [detections.found(b, s, faint) for b, s in zip(places, _scores(group.parts[1:], values), strict=True)]

    wanted = [one.above(sure) for one in of(original.said)]

    def precisions(found: list[detections.Found]) -> np.ndarray:
        pairs = zip(found, wanted, strict=True)
        return np.array([detections.precision(a if len(b.scores) else a.above(sure), b) for a, b in pairs])

    mine = of(said)
    f1 = float(np.mean([detections.f1(a.above(sure), b) for a, b in zip(mine, wanted, strict=True)]))
    return precisions(mine), {"f1": f1}


def _scores(parts: Sequence[Part], values: Values) -> np.ndarray:
    """Class scores (N, A, C) of 0 to 1; one that stands alone before them is multiplied in, as objectness is."""
    found = [_moved(part, values[part.value]).astype(np.float64) for part in parts]
    found = [1 / (1 + np.exp(-y)) if y.min() < 0 or y.max() > 1 else y for y in found]
    widest = max(found, key=lambda y: y.shape[-1])
    for y in found:
        if y is not widest and y.shape[-1] == 1:
            widest = widest * y
    return widest


def unexplained(said: Values, original: Reference) -> list[float]:
    """Share of the variance of each part's numbers that is not the original's, where answers tell nothing."""
    found = []
    for part in original.outputs.parts:
        if _comparable(Group((part,)), said, original) and original.said[part.value].dtype.kind == "f":
            y, t = _moved(part, said[part.value]), _moved(part, original.said[part.value])
            found.append(1 - float(explained(y, t)[0].mean()))
    return found


# With labels ------------------------------------------------------------------------------------------------------


def labelled(original: Reference) -> Part | None:
    """The part that the samples' labels are answers of; None where no part has classes at the labels' places."""
    labels = original.samples.labels
    if labels is None or labels.dtype.kind not in "iub":
        return None
    for part in original.outputs.parts:
        if part.value not in original.said:
            continue
        y = original.said[part.value]
        places = _moved(part, y).shape[1] if part.kind in kinds.CHOSEN else y[0].size
        fits = part.kind in kinds.CHOSEN or (part.kind == kinds.DECISION and y.dtype.kind in "iu")
        if fits and labels[0].size == places:
            return part
    return None


def measure_labels(said: Values, original: Reference, part: Part) -> PartAccuracy:
    """Share of right answers of `part`, the labels' positions of a sample averaged."""
    wanted = np.asarray(original.samples.labels).reshape(len(original.samples), -1).astype(np.int64)
    chosen = part.kind in kinds.CHOSEN
    classes = _moved(part, original.said[part.value]).shape[-1] if chosen else np.iinfo(np.int64).max
    counted = (wanted >= 0) & (wanted < classes)  # masks name what is not judged by a number beyond the classes

    def right(values: Values) -> np.ndarray:
        y = values[part.value]
        answers = _moved(part, y).argmax(-1) if chosen else y.reshape(len(y), -1)
        hits = (answers == wanted) & counted
        return hits.sum(1) / np.maximum(counted.sum(1), 1)

    more: dict[str, float] = {}
    if part.kind == kinds.SEGMENTATION:
        more["mean_iou"] = float(
            intersection(_moved(part, said[part.value]).argmax(-1), wanted, classes, counted).mean()
        )
    null, first = (float(right(values).mean()) for values in (original.null, original.said))
    return _summed(part.name, part.kind, TOP1, right(said), null, first, more)


def judged(said: Values, original: Reference) -> list[PartAccuracy]:
    """Accuracy by labels if they belong to one of the parts, else of every part against the original."""
    part = labelled(original)
    return measure(said, original) if part is None else [measure_labels(said, original, part)]


def accuracy(found: Sequence[PartAccuracy]) -> Accuracy | None:
    """One figure of all parts: the metric of the only one, else the worst share kept of those that tell anything."""
    if not found:
        return None
    telling = [part for part in found if part.share is not None]
    if len(found) == 1:
        (one,) = found
        only = Accuracy(one.metric, one.value, one.samples, one.interval95, parts=tuple(found))
        return only.against(one.null, one.original)
    if not telling:
        first = min(found, key=lambda part: part.value)
        blind = Accuracy(SHARE_KEPT, first.value, first.samples, first.interval95, parts=tuple(found))
        return blind.against(first.null, first.original)
    worst = min(telling, key=lambda part: part.share or 0.0)
    low, high = worst.interval95 or (worst.value, worst.value)
    ends = tuple((end - worst.null) / (worst.original - worst.null) for end in (low, high))
    kept = Accuracy(SHARE_KEPT, worst.share or 0.0, worst.samples, (ends[0], ends[1]), parts=tuple(found))
    return kept.against(0.0, 1.0)


__all__ = ["Reference", "accuracy", "answers", "judged", "labelled", "measure", "reference"]
