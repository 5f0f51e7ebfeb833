"""How good a model is on samples: top-1, agreement with the original, relative error, each with a 95 % interval.

Legend: N samples, C classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import onnxruntime as ort

from onnxprune.data.inputs import batch_size_of
from onnxprune.data.samples import Samples, batches
from onnxprune.errors import DataError
from onnxprune.runtime import run, session_inputs

Z95 = 1.959963984540054  # the normal quantile of 0.975
TOP1, AGREEMENT, RELATIVE_ERROR = "top1", "agreement", "relative_error"
LOWER_IS_BETTER = frozenset({RELATIVE_ERROR})
Original = Mapping[str, np.ndarray] | ort.InferenceSession


@dataclass(frozen=True)
class Accuracy:
    """A metric's mean over samples, with the interval that holds the true mean in 95 of 100 such samples.

    `metric` is top1 or agreement (fractions, larger is better) or relative_error (smaller is better).
    """

    metric: str
    value: float
    samples: int
    interval95: tuple[float, float]

    def drop_from(self, original: "Accuracy") -> float:
        """Points lost against `original` (1 point = 0.01), negative where better."""
        lost = original.value - self.value
        return 100 * (-lost if self.metric in LOWER_IS_BETTER else lost)


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion, `correct` of `n` (Wilson, JASA 1927).

    Unlike the normal interval it stays within [0, 1] and keeps a width when all or none are right.
    Raises: DataError unless 0 <= correct <= n and n > 0.
    """
    if n < 1 or not 0 <= correct <= n:
        raise DataError(f"{correct:g} correct of {n} samples is no proportion; measure on at least one sample")
    # center = (p + z^2/2n) / (1 + z^2/n), half = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    p, z2 = correct / n, Z95**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Rounding must not push the interval off the value that it surrounds.
    return min(max(0.0, center - half), p), max(min(1.0, center + half), p)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of non-negative `values` (N,) by the normal approximation; N = 1 gives the value."""
    mean = float(np.mean(values))
    half = Z95 * float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    return max(0.0, mean - half), mean + half


def top1(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per sample, the share of right answers: logits (N, C, ...), labels (N, ...) -> (N,) of 0 to 1.

    With trailing axes (segmentation) the positions of a sample are averaged.
    """
    if logits.ndim < 2 or logits.shape[:1] + logits.shape[2:] != labels.shape:
        raise DataError(
            f"the model's output has shape {logits.shape} and the labels {labels.shape}; "
            "labels need the output's shape without its class axis 1, or leave them out"
        )
    if logits.shape[1] < 2:
        raise DataError(
            f"the model's output has shape {logits.shape}, one class; leave the labels out to measure its error"
        )
    return _share(logits.argmax(1) == labels)


def agreement(logits: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Per sample, the share of answers equal to the original's: logits and original (N, C, ...) -> (N,)."""
    return _share(logits.argmax(1) == original.argmax(1))


def _share(right: np.ndarray) -> np.ndarray:
    return right.reshape(len(right), -1).mean(axis=1)


def relative_error(y: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Per sample, |y - original| / |original| in L2 norms over all other axes: (N, ...) -> (N,)."""
    y, original = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (y, original))
    norm = np.linalg.norm(original, axis=1)
    return np.linalg.norm(y - original, axis=1) / np.maximum(norm, np.finfo(np.float32).tiny)


def evaluate(
    session: ort.InferenceSession,
    samples: Samples,
    original_outputs: Original | None = None,
    *,
    batch_size: int = 64,
) -> Accuracy | None:
    """The session's accuracy on `samples`, batch by batch; None where nothing tells right from wrong.

    With labels: top1. Without: agreement with the original if the first output is a row of classes, else the
    relative error of all outputs. `original_outputs` is the original's session, run beside this one, or all its
    outputs by name in the order of the samples.
    """
    if samples.labels is None and original_outputs is None:
        return None
    parts = [
        _compare(rows, outputs, samples.labels, reference)
        for rows, outputs, reference in _walk(session, samples, original_outputs, batch_size)
    ]
    if not parts:
        raise DataError("no samples to measure on; give at least one")
    return summarize(parts[0][0], np.concatenate([values for _, values in parts]))


def summarize(metric: str, values: np.ndarray) -> Accuracy:
    """The accuracy of per-sample `values` (N,)."""
    count, mean = len(values), float(np.mean(values))
    if metric in LOWER_IS_BETTER:
        return Accuracy(metric, mean, count, mean_interval(values))
    return Accuracy(metric, mean, count, wilson_interval(float(np.sum(values)), count))


def outputs_on(session: ort.InferenceSession, samples: Samples, *, batch_size: int = 64) -> dict[str, np.ndarray]:
    """All outputs of `session` on `samples` by name, (N, ...), in the order of the samples."""
    parts = [outputs for _, outputs, _ in _walk(session, samples, None, batch_size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _walk(session, samples: Samples, original: Original | None, batch_size: int) -> Iterator[tuple]:
    """(sample numbers, outputs, the original's outputs or None) batch by batch; filled-up rows are cut off again."""
    both = [s for s in (session, original) if isinstance(s, ort.InferenceSession)]
    fixed = next((size for s in both if (size := batch_size_of(session_inputs(s))) is not None), None)
    start, count = 0, len(samples)
    for block in batches(samples, batch_size, fixed=fixed):
        feeds, rows = samples.batch(block), min(len(block), count - start)
        outputs = _rows(run(session, feeds), rows, len(block))
        reference = None
        if isinstance(original, ort.InferenceSession):
            reference = _rows(run(original, feeds), rows, len(block))
        elif original is not None:
            reference = {name: original[name][start : start + rows] for name in outputs}
        yield block[:rows], outputs, reference
        start += rows


def _rows(outputs: Mapping[str, np.ndarray], rows: int, batch: int) -> dict[str, np.ndarray]:
    for name, y in outputs.items():
        if np.shape(y)[:1] != (batch,):
            raise DataError(
                f"output '{name}' has shape {np.shape(y)} for a batch of {batch} samples; "
                "accuracy needs one row per sample"
            )
    return {name: np.asarray(y)[:rows] for name, y in outputs.items()}


def _compare(rows: np.ndarray, outputs, labels: np.ndarray | None, reference) -> tuple[str, np.ndarray]:
    """(metric, values per sample) of one batch."""
    y = next(iter(outputs.values()))
    if labels is not None:
        return TOP1, top1(_classes(y), labels[rows])
    if _is_classes(y):
        name = next(iter(outputs))
        return AGREEMENT, agreement(_classes(y), _classes(np.asarray(reference[name])))
    joined, original = (
        np.concatenate([np.asarray(side[name], np.float64).reshape(len(rows), -1) for name in outputs], axis=1)
        for side in (outputs, reference)
    )
    return RELATIVE_ERROR, relative_error(joined, original)


def _is_classes(y: np.ndarray) -> bool:
    return y.dtype.kind == "f" and y.ndim >= 2 and y.shape[1] > 1 and all(size == 1 for size in y.shape[2:])


def _classes(y: np.ndarray) -> np.ndarray:
    """(N, C) of (N, C, 1, 1); other shapes as they are."""
    return y.reshape(y.shape[:2]) if _is_classes(y) else y
