"""Boxes with class scores, compared as detections: per sample, and without labels against those of the original.

Legend: N samples, A places (anchors), C classes, D detections of one sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOUS = tuple(0.5 + 0.05 * k for k in range(10))  # as COCO averages over
SURE = 0.25  # score from which on a detection is shown to users
FAINT = 0.05  # and from which on it counts for average precision, both as shares of the original's surest
MOST = 100  # detections of a sample
LOOKED_AT = 300  # places of a sample that may become one
SAME = 0.6  # overlap from which on two boxes of a class are one thing


@dataclass(frozen=True)
class Found:
    """Detections of one sample, the surest first: boxes (D, 4) as x1 y1 x2 y2, scores (D,), classes (D,)."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def above(self, least: float) -> "Found":
        """Those of at least this score."""
        kept = self.scores >= least
        return Found(self.boxes[kept], self.scores[kept], self.classes[kept])


def corners(boxes: np.ndarray, centered: bool) -> np.ndarray:
    """Boxes (..., 4) as x1 y1 x2 y2; centered: they are given as center and size."""
    one, two = boxes[..., :2], boxes[..., 2:]
    if centered:
        one, two = one - two / 2, one + two / 2
    return np.concatenate([np.minimum(one, two), np.maximum(one, two)], axis=-1)


def is_centered(boxes: np.ndarray) -> bool:
    """Whether boxes (..., 4) are a center and a size: as corners, some would end before they begin."""
    flat = boxes.reshape(-1, 4)
    return bool(((flat[:, 2] < flat[:, 0]) | (flat[:, 3] < flat[:, 1])).mean() > 0.01)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (D, E) of boxes a (D, 4) and b (E, 4)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=-1) for x in (a, b)]
    return both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-12)


def found(boxes: np.ndarray, scores: np.ndarray, least: float) -> Found:
    """Detections of one sample: boxes (A, 4) as corners, scores (A, C) -> the surest of each thing."""
    best = scores.max(axis=1)
    places = np.argsort(-best, kind="stable")[:LOOKED_AT]
    places = places[best[places] >= least]
    classes, kept = scores[places].argmax(axis=1), np.ones(len(places), bool)
    near = (overlaps(boxes[places], boxes[places]) > SAME) & (classes[:, None] == classes[None])
    for k in range(len(places)):
        if kept[k]:
            kept[k + 1 :] &= ~near[k, k + 1 :]
    places, classes = places[kept][:MOST], classes[kept][:MOST]
    return Found(boxes[places], best[places], classes)


def precision(ours: Found, wanted: Found) -> float:
    """Average precision of detections against the `wanted` ones, mean over IOUS; 1 or 0 where nothing is wanted."""
    if not len(wanted.scores):
        return float(not len(ours.scores))
    if not len(ours.scores):
        return 0.0
    pairs = overlaps(ours.boxes, wanted.boxes) * (ours.classes[:, None] == wanted.classes[None])
    return float(np.mean([_precision_at(_matched(pairs, iou), len(wanted.scores)) for iou in IOUS]))


def f1(ours: Found, wanted: Found, iou: float = 0.5) -> float:
    """2 hits / (ours + wanted) at one overlap; 1 where there are none of either."""
    total = len(ours.scores) + len(wanted.scores)
    if not total or not len(ours.scores) or not len(wanted.scores):
        return float(not total)
    pairs = overlaps(ours.boxes, wanted.boxes) * (ours.classes[:, None] == wanted.classes[None])
    return 2 * float(_matched(pairs, iou).sum()) / total


def _matched(pairs: np.ndarray, iou: float) -> np.ndarray:
    """Which of ours, in their order, take a free wanted one that they overlap enough: (D,) booleans."""
    free, hits = np.ones(pairs.shape[1], bool), np.zeros(len(pairs), bool)
    for k, row in enumerate(pairs):
        at = int(np.argmax(row * free))
        if free[at] and row[at] >= iou:
            hits[k], free[at] = True, False
    return hits


def _precision_at(hits: np.ndarray, wanted: int) -> float:
    """Area under precision over recall, precision made falling."""
    right = np.cumsum(hits)
    precisions = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(precisions[hits].sum() / wanted)


def thresholds(scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """(sure, faint): the scores from which on detections are shown and counted, by the original's scores (A, C)."""
    surest = float(np.median([y.max() for y in scores])) if len(scores) else 1.0
    return min(SURE, surest / 2), min(FAINT, surest / 10)
