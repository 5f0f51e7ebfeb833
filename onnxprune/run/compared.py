"""How far cuts of a model are from the original on samples that nothing was fitted to.

Classifiers are compared by their outputs as they are. What classifies nothing is compared by the parts of its outputs
(outputs/lost.py), decisions by the values that they are made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples
from onnxprune.graph import sessions
from onnxprune.outputs import answers, metrics
from onnxprune.run.subject import Subject

if TYPE_CHECKING:
    from onnxprune.outputs.lost import Originals


@dataclass(frozen=True)
class Compared:
    """The original's answers on `held`; known: their parts with their units, where those are what is compared."""

    subject: Subject
    held: Samples
    said: Mapping[str, np.ndarray]
    known: "Originals | None" = None

    def answers(self, model: ir.Model) -> Mapping[str, np.ndarray]:
        """What a cut of the original says, by the names of `said`."""
        return _said(self.subject, model, self.held)

    def lost(self, model: ir.Model) -> np.ndarray | None:
        """The loss (N,) by the parts of the outputs; None where outputs are compared as they are."""
        if self.known is None:
            return None
        from onnxprune.outputs import lost

        return lost.lost(self.answers(model), self.known)

    def average(self, model: ir.Model) -> float | None:
        """The mean of `lost`; None where outputs are compared as they are."""
        if self.known is None:
            return None
        from onnxprune.outputs import lost

        return lost.average(self.answers(model), self.known)


def compared(subject: Subject, held: Samples) -> Compared:
    """The original as what cuts of it are compared with on `held`."""
    said = _said(subject, subject.model, held)
    if subject.outputs.classified or not has_torch():
        return Compared(subject, held, said)
    from onnxprune.outputs import lost  # loads torch

    return Compared(subject, held, said, lost.originals(said, subject.outputs))


def _said(subject: Subject, model: ir.Model, held: Samples) -> Mapping[str, np.ndarray]:
    """Values that parts of the outputs look at; all outputs where it is not known what they are."""
    found = answers.answers(model, held, subject.outputs) if subject.outputs.entries else {}
    return found or metrics.outputs_on(sessions.open_session(model), held)


def has_torch() -> bool:
    """Whether torch is installed."""
    return find_spec("torch") is not None
