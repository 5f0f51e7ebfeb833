"""How much of what the original says a model still says, part by part, between a null model and the original.

    share kept = (value - null) / (original - null)

The null model answers every sample alike: with the mean of the original's outputs. A metric that it does well by
tells nothing. Several outputs, or parts of one, each have their own metric (measures.py); what counts is the worst
share. Boxes with scores beside them are measured together: by the average precision of detections where both are
decoded, else by the share of variance explained, places weighted by the original's scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from onnxprune.outputs import detections, kinds
from onnxprune.outputs.answers import Reference, Values, numbers_of, sigmoid
from onnxprune.outputs.beside import scores_beside
from onnxprune.outputs.kinds import Part
from onnxprune.outputs.measures import MEASURES, Found, explained, intersection
from onnxprune.outputs.metrics import (
    AGREEMENT,
    SHARE_KEPT,
    TOP1,
    Z95,
    Accuracy,
    PartAccuracy,
    share_kept,
    wilson_interval,
)

HALF = 0.5  # the score from which on the answer is yes


def measure(said: Values, original: Reference) -> list[PartAccuracy]:
    """How far the answers `said` are the original's, part by part."""
    return [_accuracy(group, said, original) for group in _groups(original) if _comparable(group, said, original)]


def _comparable(group: "Group", said: Values, original: Reference) -> bool:
    return all(p.value in said and said[p.value].shape == original.said[p.value].shape for p in group.parts)


@dataclass(frozen=True)
class Group:
    """Parts that are measured together: one, or boxes with their scores."""

    parts: tuple[Part, ...]
    beside: Part | None = None  # scores that weigh the places of boxes or landmarks

    @property
    def name(self) -> str:
        return " with ".join(part.name for part in self.parts)


def _groups(original: Reference) -> Iterator[Group]:
    parts = [part for part in original.parts if part.value in original.said]
    joint = {entry.name for entry in original.outputs.entries if entry.kind == kinds.JOINT}
    pairs: dict[Part, tuple[Part, ...]] = {}
    alone: list[Part] = []
    for part in parts:
        near = scores_beside(part, parts, lambda p: _shape(p, original.said))
        if not near:
            alone.append(part)
        elif part.kind == kinds.BOXES and (part.value in joint or part.value in original.outputs.inner):
            pairs[part] = near
        else:
            yield Group((part,), near[0])
    taken = {part for near in pairs.values() for part in near}
    for boxes, near in pairs.items():
        yield Group((boxes, *near))
    yield from (Group((part,)) for part in alone if part not in taken)


def _shape(part: Part, said: Values) -> tuple[int, ...]:
    """The shape of the part's value as the model gives it for a sample, or for several where it has a row for each."""
    shape = said[part.value].shape
    return shape if part.rows else shape[1:]


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
    y, t = (numbers_of(first, values[first.value]) for values in (said, original.said))
    if group.beside is not None:
        return explained(y, t, numbers_of(group.beside, original.said[group.beside.value]).max(-1))
    return MEASURES.get(first.kind, ("explained", explained))[1](y, t)


def _ends(group: Group, original: Reference) -> tuple[float, float]:
    """A group's metric of the null model and of the original; computed once."""
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
    said_boxes = numbers_of(boxes, original.said[boxes.value])
    centered = boxes.form == "centers" or (not boxes.form and detections.is_centered(said_boxes))
    wanted_scores = _scores(group.parts[1:], original.said)
    sure, faint = detections.thresholds(list(wanted_scores))

    def of(values: Values) -> list[detections.Found]:
        places = detections.corners(numbers_of(boxes, values[boxes.value]), centered)
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
    found = [numbers_of(part, values[part.value]).astype(np.float64) for part in parts]
    found = [sigmoid(y) if y.min() < 0 or y.max() > 1 else y for y in found]
    widest = max(found, key=lambda y: y.shape[-1])
    for y in found:
        if y is not widest and y.shape[-1] == 1:
            widest = widest * y
    return widest


def unexplained(said: Values, original: Reference) -> list[float]:
    """Share of the variance of each part's numbers that is not the original's, where answers tell nothing."""
    found = []
    for part in original.parts:
        if _comparable(Group((part,)), said, original) and original.said[part.value].dtype.kind == "f":
            y, t = numbers_of(part, said[part.value]), numbers_of(part, original.said[part.value])
            found.append(1 - float(explained(y, t)[0].mean()))
    return found


# With labels ------------------------------------------------------------------------------------------------------


def labelled(original: Reference) -> Part | None:
    """The part that the samples' labels are answers of; None where no part has classes at the labels' places."""
    labels = original.samples.labels
    if labels is None or labels.dtype.kind not in "iub":
        return None
    for part in original.parts:
        if part.value not in original.said:
            continue
        y = original.said[part.value]
        places = numbers_of(part, y).shape[1] if part.kind in kinds.CHOSEN else y[0].size
        fits = part.kind in kinds.CHOSEN or (part.kind == kinds.DECISION and y.dtype.kind in "iu")
        fits = fits or (kinds.says_yes_or_no(part) and y[0].size == 1 and bool(np.isin(labels, (0, 1)).all()))
        if fits and labels[0].size == places:
            return part
    return None


def measure_labels(said: Values, original: Reference, part: Part) -> PartAccuracy:
    """Share of right answers of `part`, the labels' positions of a sample averaged."""
    wanted = np.asarray(original.samples.labels).reshape(len(original.samples), -1).astype(np.int64)
    chosen = part.kind in kinds.CHOSEN
    classes = numbers_of(part, original.said[part.value]).shape[-1] if chosen else np.iinfo(np.int64).max
    yes_or_no = kinds.says_yes_or_no(part)
    counted = (wanted >= 0) & (wanted < classes)  # masks name what is not judged by a number beyond the classes

    def right(values: Values) -> np.ndarray:
        y = values[part.value]
        answers = numbers_of(part, y).argmax(-1) if chosen else y.reshape(len(y), -1)
        if yes_or_no:
            answers = numbers_of(part, y).reshape(len(y), -1) > HALF
        hits = (answers == wanted) & counted
        return hits.sum(1) / np.maximum(counted.sum(1), 1)

    more: dict[str, float] = {}
    if part.kind == kinds.SEGMENTATION:
        more["mean_iou"] = float(
            intersection(numbers_of(part, said[part.value]).argmax(-1), wanted, classes, counted).mean()
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
