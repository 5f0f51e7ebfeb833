"""How good a model is on samples: top-1, agreement with the original, relative error, each with a 95 % interval.

Legend: N samples, C classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune.data.samples import Samples, batches
from onnxprune.errors import DataError, UsageError
from onnxprune.graph.inputs import batch_size_of
from onnxprune.graph.sessions import run, session_inputs
from onnxprune.options import RELATIVE_ERROR
from onnxprune.system.memory import INPUTS_BYTES, batch_for, halving
from onnxprune.system.plugins import name_of

Z95 = 1.959963984540054  # the normal quantile of 0.975
TOP1, AGREEMENT = "top1", "agreement"
SHARE_KEPT = "share_kept"  # the worst of several parts
TELLING = 0.05  # of the larger end of a metric's scale, by which null model and original have to lie apart
LOWER_IS_BETTER = frozenset({RELATIVE_ERROR})
BATCH = 64
Original = Mapping[str, np.ndarray] | ort.InferenceSession
# The user's own: of (outputs, the original's outputs, labels or None) by name, a number or one per sample, larger is
# better. Outputs without a row per sample, such as detections, are lists of one array per sample.
Metric = Callable[..., Any]


@dataclass(frozen=True)
class PartAccuracy:
    """One metric of one part: of the model, of the null model and of the original, and the share kept between them."""

    part: str
    kind: str
    metric: str
    value: float
    null: float
    original: float
    share: float | None  # None where the metric cannot tell null model and original apart
    samples: int
    interval95: tuple[float, float] | None = None
    more: Mapping[str, float] | None = None


def share_kept(value: float, null: float, original: float) -> float | None:
    """(value - null) / (original - null); None where a model that answers every sample alike does as the original."""
    if abs(original - null) <= TELLING * max(abs(original), abs(null)):
        return None
    return (value - null) / (original - null)


@dataclass(frozen=True)
class Accuracy:
    """A metric's mean over samples, with the interval that holds the true mean in 95 of 100 such samples.

    `metric` is one of measures.py (larger is better), relative_error (smaller is better), or the user's own as
    module:function (larger is better; no interval where it gives one number for all samples). share_kept stands where
    several parts are measured, each in its own units: it is the worst of their shares.
    null, original: what a null model and the original have; share: what is kept between the two, None where the
    metric cannot tell them apart or nothing is known of a null model.
    """

    metric: str
    value: float
    samples: int
    interval95: tuple[float, float] | None
    null: float | None = None
    original: float | None = None
    share: float | None = None
    parts: tuple[PartAccuracy, ...] = ()

    def against(self, null: float, original: float) -> "Accuracy":
        """This accuracy with the two ends of its scale."""
        return replace(self, null=null, original=original, share=share_kept(self.value, null, original))

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
    low, high = _normal_interval(values)
    return max(0.0, low), high


def _normal_interval(values: np.ndarray) -> tuple[float, float]:
    mean = float(np.mean(values))
    half = Z95 * float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half


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
    batch_size: int = BATCH,
    regression: bool = False,
) -> Accuracy | None:
    """The session's accuracy on `samples`, batch by batch; None where nothing tells right from wrong.

    With labels: top1. Without: agreement with the original if the first output is a row of classes, else the
    relative error of all outputs that have a row per sample. `original_outputs` is the original's session, run beside
    this one, or all its outputs by name in the order of the samples. regression: the relative error, labels or not.
    """
    if original_outputs is None and (regression or samples.labels is None):
        return None
    labels = None if regression else samples.labels

    def compared(batch: int) -> list[tuple[str, np.ndarray]]:
        walked = _walk(session, samples, original_outputs, batch, strict=labels is not None)
        return [
            _compare(rows, outputs, labels, reference, regression) for rows, outputs, reference in walked if outputs
        ]

    if not len(samples):
        raise DataError("no samples to measure on; give at least one")
    parts = halving(compared, min(batch_size, len(samples)), "measuring accuracy", fixed=_fixed(session) is not None)
    if not parts:  # no output has a row per sample
        return None
    return summarize(parts[0][0], np.concatenate([values for _, values in parts]))


def null_error(said: Mapping[str, np.ndarray]) -> float:
    """The relative error of what answers every sample with the mean of `said`."""
    rows = [np.asarray(y, np.float64).reshape(len(y), -1) for y in said.values() if y.dtype.kind == "f"]
    y = np.concatenate(rows, axis=1) if rows else np.zeros((1, 1))
    return float(relative_error(np.broadcast_to(y.mean(0), y.shape), y).mean())


def summarize(metric: str, values: np.ndarray) -> Accuracy:
    """The accuracy of per-sample `values` (N,)."""
    count, mean = len(values), float(np.mean(values))
    if metric in LOWER_IS_BETTER:
        return Accuracy(metric, mean, count, mean_interval(values))
    return Accuracy(metric, mean, count, wilson_interval(float(np.sum(values)), count))


def outputs_on(session: ort.InferenceSession, samples: Samples, *, batch_size: int = BATCH) -> dict[str, np.ndarray]:
    """All outputs of `session` on `samples` by name, (N, ...), in the order of the samples."""

    def walked(batch: int) -> list[dict[str, np.ndarray]]:
        return [outputs for _, outputs, _ in _walk(session, samples, None, batch)]

    parts = halving(walked, batch_size, "running the model", fixed=_fixed(session) is not None)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# The user's own metric --------------------------------------------------------------------------------------------


def by_user(metric: Metric, session: ort.InferenceSession, samples: Samples, original: Any = None) -> Accuracy:
    """The session's accuracy by the user's own `metric`; `original` is what `everything` says of the original."""
    outputs = everything(session, samples)
    originals: Any = outputs if original is None else original
    values = judged(metric, outputs, originals, samples.labels)
    interval = _normal_interval(values) if values.ndim else None
    found = Accuracy(name_of(metric), float(values.mean()), len(samples), interval)
    if has_lists(originals) or any(y.dtype.kind not in "fiub" for y in originals.values()):
        return found  # there is no mean of what differs in size
    null = {name: np.broadcast_to(mean_row(np.asarray(y)), y.shape) for name, y in originals.items()}
    ends = (judged(metric, said, originals, samples.labels) for said in (null, originals))
    return found.against(*(float(values.mean()) for values in ends))


def mean_row(y: np.ndarray) -> np.ndarray:
    """The mean (1, ...) of y (N, ...); of integers, which have none, the most frequent row."""
    if y.dtype.kind == "f":
        return y.mean(axis=0, dtype=np.float64, keepdims=True).astype(y.dtype)
    rows, counts = np.unique(y.reshape(len(y), -1), axis=0, return_counts=True)
    return rows[counts.argmax()].reshape(1, *y.shape[1:])


def judged(metric: Metric, outputs: Any, originals: Any, labels: np.ndarray | None) -> np.ndarray:
    """The numbers that a user's `metric` returns: () or (N,), finite. Raises: UsageError for anything else."""
    found = metric(outputs, originals, labels)
    try:
        values = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if values.ndim > 1 or not values.size or not np.isfinite(values).all():
        told = f"numbers of shape {values.shape}" if values.ndim > 1 else repr(found)[:80]
        raise UsageError(f"--metric {name_of(metric)}: gave {told}; return one finite number, or one per sample")
    return values


def everything(session: ort.InferenceSession, samples: Samples) -> dict[str, np.ndarray | list[np.ndarray]]:
    """All outputs by name: (N, ...), or lists of one array per sample where they have no row for each."""
    fixed = _fixed(session)

    def walked(batch: int) -> tuple[list[dict[str, np.ndarray]], list[int]]:
        blocks = list(batches(samples, batch, fixed=fixed))
        return [run(session, samples.batch(block)) for block in blocks], [len(block) for block in blocks]

    def both(batch: int) -> dict[str, np.ndarray | list[np.ndarray]]:
        found = joined(*walked(batch), len(samples))
        return joined(*walked(1), len(samples)) if batch > 1 and not fixed and has_lists(found) else found

    size = sum(array.nbytes for array in samples.batch(np.arange(min(1, len(samples)))).values())
    batch = batch_for(size, INPUTS_BYTES, min(BATCH, max(1, len(samples))))
    return halving(both, batch, "measuring accuracy", fixed=fixed is not None)


def has_lists(outputs: Mapping[str, Any]) -> bool:
    return any(isinstance(y, list) for y in outputs.values())


def joined(
    parts: Sequence[Mapping[str, np.ndarray]], sizes: Sequence[int], count: int
) -> dict[str, np.ndarray | list[np.ndarray]]:
    """Outputs of batches of `sizes` as those of `count` samples: (N, ...), or lists of one array per batch."""
    found: dict[str, np.ndarray | list[np.ndarray]] = {}
    for name in parts[0]:
        arrays = [np.asarray(part[name]) for part in parts]
        rows = all(y.shape[:1] == (size,) for y, size in zip(arrays, sizes, strict=True))
        alike = len({y.shape[1:] for y in arrays}) == 1
        found[name] = np.concatenate(arrays)[:count] if rows and alike else arrays
    return found


def _fixed(*sessions: Any) -> int | None:
    """The batch size that one of the sessions is fixed to."""
    both = [s for s in sessions if isinstance(s, ort.InferenceSession)]
    return next((size for s in both if (size := batch_size_of(session_inputs(s))) is not None), None)


def _walk(
    session, samples: Samples, original: Original | None, batch_size: int, *, strict: bool = True
) -> Iterator[tuple]:
    """(sample numbers, outputs, the original's outputs or None) batch by batch; filled-up rows are cut off again."""
    fixed = _fixed(session, original)
    start, count = 0, len(samples)
    for block in batches(samples, batch_size, fixed=fixed):
        feeds, rows = samples.batch(block), min(len(block), count - start)
        outputs = _rows(run(session, feeds), rows, len(block), strict)
        reference = None
        if isinstance(original, ort.InferenceSession):
            reference = _rows(run(original, feeds), rows, len(block), strict)
        elif original is not None:
            reference = {name: original[name][start : start + rows] for name in outputs}
        yield block[:rows], outputs, reference
        start += rows


def _rows(outputs: Mapping[str, np.ndarray], rows: int, batch: int, strict: bool) -> dict[str, np.ndarray]:
    """The first `rows` rows; an output without a row per sample is an error, or left out where not `strict`."""
    arrays = {name: _array(y) for name, y in outputs.items()}
    fits = {name: y is not None and y.shape[:1] == (batch,) for name, y in arrays.items()}
    for name, y in arrays.items():
        if strict and not fits[name]:
            found = "is a sequence" if y is None else f"has shape {y.shape}"
            raise DataError(
                f"output '{name}' {found} for a batch of {batch} samples; "
                "accuracy needs one row per sample, or a --metric of your own"
            )
    return {name: y[:rows] for name, y in arrays.items() if y is not None and fits[name]}


def _array(y: Any) -> np.ndarray | None:
    """An output as an array: maps, one per sample, as rows of their values; other sequences are none."""
    if not isinstance(y, list):
        return np.asarray(y)
    maps = bool(y) and all(isinstance(row, dict) for row in y)
    return np.array([list(row.values()) for row in y]) if maps else None


def _compare(
    rows: np.ndarray, outputs, labels: np.ndarray | None, reference, regression: bool
) -> tuple[str, np.ndarray]:
    """(metric, values per sample) of one batch."""
    y = next(iter(outputs.values()))
    if labels is not None:
        decided = y.dtype.kind in "iu" and y.shape == labels[rows].shape  # the class itself, as tabular models give
        return TOP1, _share(y == labels[rows]) if decided else top1(_classes(y), labels[rows])
    if is_classes(y) and not regression:
        name = next(iter(outputs))
        return AGREEMENT, agreement(_classes(y), _classes(np.asarray(reference[name])))
    # Outputs whose size depends on the input cannot be subtracted where the sizes differ, nor can texts.
    names = [name for name in outputs if name in reference and outputs[name].shape == reference[name].shape]
    texts = [name for name in names if outputs[name].dtype.kind not in "fiub"]
    names = [name for name in names if name not in texts]
    if texts and not names:
        return AGREEMENT, _share(outputs[texts[0]] == reference[texts[0]])
    if not names:
        return RELATIVE_ERROR, np.ones(len(rows))
    y_all, original = (
        np.concatenate([np.asarray(side[name], np.float64).reshape(len(rows), -1) for name in names], axis=1)
        for side in (outputs, reference)
    )
    return RELATIVE_ERROR, relative_error(y_all, original)


def is_classes(y: np.ndarray) -> bool:
    """Whether `y` is a row of classes for each sample."""
    # (N, A, 1) is a number for each of A places, as detectors give.
    return y.dtype.kind == "f" and y.ndim in (2, 4) and y.shape[1] > 1 and all(size == 1 for size in y.shape[2:])


def is_distribution(y: np.ndarray) -> bool:
    """Whether the rows of y (N, C) are probabilities that sum to one."""
    return bool((y >= 0).all()) and np.allclose(y.sum(axis=1), 1, atol=1e-3)


def _classes(y: np.ndarray) -> np.ndarray:
    """(N, C) of (N, C, 1, 1); other shapes as they are."""
    return y.reshape(y.shape[:2]) if is_classes(y) else y
