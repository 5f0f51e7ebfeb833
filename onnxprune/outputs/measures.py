"""Metrics by kind: how much of what the original says a model still says, sample by sample.

    classes       agreement of answers
    sequence      agreement per place; where one class fills the gaps (CTC), agreement of the texts that are left
    segmentation  mean intersection over union of the classes of a sample
    scores        overlap: sum of smaller / sum of larger, the original's against the model's
    embedding     rank correlation of a sample's similarities to all others
    signal        share of the variance explained: 1 - |y - t|^2 / |t - mean|^2; beside it the signal-to-noise ratio

Boxes are measured with the scores beside them: see detections.py and accuracies.py.
Legend: N samples, P places, C classes, D features; y the model's numbers, t the original's.
"""

from collections.abc import Callable, Sequence
from math import log10

import numpy as np

from onnxprune.outputs import kinds
from onnxprune.outputs.metrics import AGREEMENT

MOST_COMPARED = 500  # vectors that are compared with each other
GAPS = 0.3  # share of places that one class fills where it stands for a gap between letters

# A metric: (the model's numbers, the original's) -> values per sample (N,), and more figures by name.
Found = tuple[np.ndarray, dict[str, float]]
Measure = Callable[[np.ndarray, np.ndarray], Found]


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
