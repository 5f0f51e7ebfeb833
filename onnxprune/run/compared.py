"""How far cuts of a model, cheaply recovered, are from the original on samples that nothing was fitted to.

Classifiers are compared by their outputs as they are. What classifies nothing is compared by the parts of its outputs
(outputs/lost.py), decisions by the values that they are made of.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune import surgery
from onnxprune.data import Samples, split
from onnxprune.errors import UsageError
from onnxprune.graph import sessions
from onnxprune.outputs import answers, metrics
from onnxprune.plan.select import Selection
from onnxprune.recover import constants
from onnxprune.recover.refit import reconstruct
from onnxprune.run.subject import Subject

if TYPE_CHECKING:
    from onnxprune.outputs.lost import Originals

FITTED = 256  # samples that a cut is refitted on before it is compared
JUDGED_SHARE = 0.25  # of the samples, on which cuts are compared: few samples tell cuts apart by chance
BETTER = 1.0  # standard errors of the differences by which one has to be better


class Tried:
    """Something that was tried, and what it loses on each sample (N,)."""

    losses: np.ndarray

    @property
    def loss(self) -> float:
        """The mean over the samples."""
        return float(self.losses.mean())

    def beats(self, other: "Tried") -> bool:
        """Whether it loses less than `other` on the same samples, by more than chance explains."""
        gaps = self.losses - other.losses
        return float(gaps.mean()) < -BETTER * float(gaps.std()) / len(gaps) ** 0.5


def learned_and_judged(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """(samples that the cuts of a trial are refitted on, those that they are compared on)."""
    return split(samples, JUDGED_SHARE, seed)


def first(samples: Samples, most: int) -> Samples:
    """At most so many of the samples; of sequences whole ones, at least one."""
    most = max(1, most // samples.steps) * samples.steps
    return samples.subset(np.arange(min(most, len(samples))))


def refitted(
    selection: Selection,
    learned: Samples,
    seed: int,
    dense: ir.Model | None = None,
    gone: Collection[str] = (),
) -> ir.Model:
    """The cut by a selection, its biases corrected and its weights refitted, on FITTED samples at most.

    dense, gone: see `reconstruct.refit`.
    """
    model = surgery.cut(selection)
    constants.push(selection, model, learned, limit=FITTED // 2)
    reconstruct.refit(selection, model, learned, limit=FITTED, seed=seed, dense=dense, gone=gone, tried=True)
    return model


@dataclass(frozen=True)
class Compared:
    """The original's answers on `held`; known: their parts with their units, where those are what is compared."""

    subject: Subject
    held: Samples
    said: Mapping[str, np.ndarray]
    known: "Originals | None" = None

    def answers(self, model: ir.Model) -> Mapping[str, np.ndarray]:
        """The answers of a cut of the original, by the names of `said`."""
        return _said(self.subject, model, self.held)

    def losses(self, model: ir.Model) -> np.ndarray:
        """The losses of a cut of the original on each sample (N,)."""
        if self.known is None:
            return distances(self.answers(model), self.said)
        from onnxprune.outputs import lost

        return lost.lost(self.answers(model), self.known)

    def average(self, model: ir.Model) -> float | None:
        """The mean of `losses`; None where outputs are compared as they are."""
        if self.known is None:
            return None
        from onnxprune.outputs import lost

        return lost.average(self.answers(model), self.known)


def compared(subject: Subject, held: Samples) -> Compared:
    """The original as what cuts of it are compared with on `held`, or as many of it as there is memory for."""
    held = answers.fitting(subject.model, held, subject.outputs)
    said = _said(subject, subject.model, held)
    if subject.outputs.classified or not has_torch():
        return Compared(subject, held, said)
    from onnxprune.outputs import lost  # loads torch

    return Compared(subject, held, said, lost.originals(said, subject.outputs))


def _said(subject: Subject, model: ir.Model, held: Samples) -> Mapping[str, np.ndarray]:
    """Values that parts of the outputs look at; all outputs where it is not known what they are."""
    found = answers.answers(model, held, subject.outputs) if subject.outputs.entries else {}
    return found or metrics.outputs_on(sessions.open_session(model), held)


def distances(outputs: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far outputs are from the original's on each sample (N,): between distributions over classes half of the sum
    of differences, else the relative error; the mean over all outputs of floats."""
    found = [
        _between_classes(y, t) if metrics.is_classes(t) else metrics.relative_error(y, t)
        for (name, t), y in ((item, outputs[item[0]]) for item in original.items())
        if t.dtype.kind == "f" and y.shape == t.shape and t.ndim > 0
    ]
    if not found:
        raise UsageError("--allocate measured: no output of the model can be compared; choose method or uniform")
    return np.mean(found, axis=0)


def _between_classes(y: np.ndarray, t: np.ndarray) -> np.ndarray:
    p, q = (_probabilities(z.reshape(len(z), -1).astype(np.float64), t) for z in (y, t))
    return 0.5 * np.abs(p - q).sum(axis=1)


def _probabilities(z: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Rows that sum to one: as they are where the original's do, else their softmax."""
    return z if metrics.is_distribution(original.reshape(len(original), -1)) else answers.softmax(z)


def has_torch() -> bool:
    """Whether torch is installed."""
    return find_spec("torch") is not None
