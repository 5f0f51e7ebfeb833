"""Rules that SNACS applies to its scores: limits per layer, connections to keep, and protected filters.

Connectivity scores are (J, G) per layer, child groups by parent groups; a keep mask has that shape, True = keep.
Source: SNACS code (gen_mask, gamma_sensitivity5, retrain_stage3_sens) as restated in methods section 5.7 and 5.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from sklearn.svm import SVC

from onnxprune.errors import UsageError
from onnxprune.outputs import accuracies, answers

LIMIT_GRID = tuple(p / 100 for p in range(5, 100, 10))  # of the scan in a run
GRID = tuple(p / 100 for p in range(1, 98, 2))  # shares of a layer's scores that the limit scan prunes
DROP = 0.7
LIMIT_SAMPLES = 400  # by which a layer's limit is found
LEAST_PER_CLASS = 4  # of these samples, on average, for a classifier to learn from
TOLERANCE = {"finetune": 0.5}  # training repairs more than least squares and constants can
TOLERANCE_UNTUNED = 0.2


def untrained(recover: str) -> float:
    """Share of the answers that the network may change before the recovery that follows."""
    return TOLERANCE.get(recover, TOLERANCE_UNTUNED)


def limit_rows(count: int) -> np.ndarray:
    """Which of `count` samples the limits are found by: evenly spread."""
    return np.linspace(0, count - 1, min(LIMIT_SAMPLES, count)).astype(int)


def accuracy_limit(accuracy: Callable[[float], float], grid: Sequence[float] = GRID, drop: float = DROP) -> float:
    """Largest p of the grid with acc(p) >= max - drop (max - min), acc being measured with the lowest p pruned.

    A layer whose curve is flat gets the largest p: by this rule nothing it loses can be seen.
    """
    curve = np.array([accuracy(p) for p in grid])
    allowed = curve >= curve.max() - drop * (curve.max() - curve.min())
    return float(np.asarray(grid)[allowed].max())


def error_limit(error: Callable[[float], float], tolerance: float, grid: Sequence[float] = GRID) -> float:
    """Largest p of the grid with error(p) <= tolerance, 0 if there is none; needs no labels. [ours]"""
    allowed = [p for p in grid if error(p) <= tolerance]
    return max(allowed, default=0.0)


def largest_share(pruned: Callable[[float], np.ndarray], children: np.ndarray, classes: np.ndarray | None) -> float:
    """Largest share at which `pruned(share)` (N, C) serves like `children` (N, C): by classes (N,), else by error."""
    if classes is not None and len(np.unique(classes)) > 1:
        accuracy = class_accuracy(children, classes)
        return accuracy_limit(lambda share: accuracy(pruned(share)), LIMIT_GRID)
    norm = max(float(np.linalg.norm(children - children.mean(0))), 1e-12)
    return error_limit(lambda share: float(np.linalg.norm(pruned(share) - children)) / norm, 0.5, LIMIT_GRID)


def class_accuracy(children, labels) -> Callable[[np.ndarray], float]:
    """A function: pruned child activations (N, C) -> accuracy of a classifier fitted to the unpruned ones.

    Labels (N,) may be the model's own argmax. Negative activations are clipped to 0 and the classifier is an RBF SVC
    at tol 1e-5, as the authors do.
    """
    fitted = SVC(kernel="rbf", tol=1e-5)
    fitted.fit(np.maximum(children, 0), labels)
    return lambda pruned: float(np.mean(fitted.predict(np.maximum(pruned, 0)) == labels))


def lowest_pruned(scores: np.ndarray, fraction: float) -> np.ndarray:
    """Keep mask without the lowest fraction of the scores; equal scores go in order of position."""
    keep = np.ones(scores.size, dtype=bool)
    keep[np.argsort(scores, axis=None, kind="stable")[: round(fraction * scores.size)]] = False
    return keep.reshape(scores.shape)


def select_connections(
    scores: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    fraction: float,
    protected: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Keep masks (J, G) per layer under one global threshold and each layer's upper limit (gen_mask).

    delta is the value at round(fraction #unique) of all layers' unique scores. A layer whose share of scores <= delta
    reaches its limit takes its own threshold instead, the value at round(limit #unique) of its unique scores.
    Scores <= the threshold go. A fraction or limit of 0 removes nothing; the code would remove the lowest. [ours]
    Protected child groups, boolean (J,) per layer, keep all their connections.
    """
    check_fraction(fraction, "fraction")
    for name, limit in limits.items():
        check_fraction(limit, f"limit of '{name}'")
    if missing := sorted(set(scores) - set(limits)):
        raise UsageError(f"{len(missing)} of {len(scores)} layers have scores but no limit, '{missing[0]}' first")
    if not scores:
        return {}
    delta = value_at(np.concatenate([np.ravel(s) for s in scores.values()]), fraction)
    masks = {}
    for name, layer in scores.items():
        capped = np.mean(layer <= delta) >= limits[name]
        masks[name] = layer > (value_at(layer, limits[name]) if capped else delta)
        if protected is not None and name in protected:
            masks[name] = masks[name] | np.asarray(protected[name], dtype=bool)[:, None]
    return masks


def value_at(values: np.ndarray, fraction: float) -> float:
    """The value at index round(fraction #unique) of the sorted unique values; -inf at fraction 0."""
    if fraction <= 0:
        return -np.inf
    unique = np.unique(values)
    return float(unique[min(round(fraction * len(unique)), len(unique) - 1)])


def automatic_fraction(error: Callable[[float], float], tolerance: float, steps: int = 7) -> float:
    """Largest fraction, to 2^-steps, at which the network with all layers pruned together has error <= tolerance.

    Each layer's limit was found with that layer alone; this one is the constraint on all of them acting jointly.
    The error is taken to grow with the fraction, so that bisection finds it in `steps` runs. [ours]
    """
    if error(1.0) <= tolerance:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) <= tolerance else (low, middle)
    return low


def protected_children(next_weights, rms, fraction: float = 0.05, child_groups: np.ndarray | None = None) -> np.ndarray:
    """Boolean (J,): the child groups that the next layer leans on most, exempt from pruning.

    next_weights (O, C): |w| of the next layer over its kernel, for several consumers stacked; rms (C,): root mean
    square of each child's activation; child_groups (C,): group ids, None for each child alone.

        lambda_j = mean over o of sum over c in j of |w_oc| rms_c / sum over all c of |w_oc| rms_c

    The highest ceil(fraction J) are protected, as in the paper's abstract; one published script takes the lowest.
    The factor rms is ours.
    """
    check_fraction(fraction, "protected fraction")
    strength = np.abs(np.asarray(next_weights, dtype=np.float64)) * np.asarray(rms, dtype=np.float64)
    sums = strength.sum(1, keepdims=True)
    per_child = (strength / np.where(sums > 0, sums, 1)).mean(0)
    ids = np.arange(len(per_child)) if child_groups is None else np.asarray(child_groups)
    sensitivity = np.bincount(ids, per_child)
    keep = np.zeros(len(sensitivity), dtype=bool)
    keep[np.argsort(-sensitivity, kind="stable")[: int(np.ceil(fraction * len(sensitivity)))]] = True
    return keep


def check_fraction(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{what} is {value}; it must lie between 0 and 1")


def disagreement(model: ir.Model, reference: answers.Reference | None) -> float:
    """The share of the original's answers that `model` gives differently, for the part that suffers most."""
    if reference is None:  # nothing that can be compared: the limits of the layers alone decide
        return 0.0
    said = answers.answers(model, reference.samples, reference.outputs)
    found = accuracies.measure(said, reference)
    telling = [part.original - part.value for part in found if part.share is not None]
    return max(telling or accuracies.unexplained(said, reference), default=0.0)
