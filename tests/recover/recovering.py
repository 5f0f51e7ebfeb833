"""The embedded classifier, its samples, and plans for it that cost it its accuracy."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, analyze
from onnxprune.data import Samples, input_infos, load_samples, split
from onnxprune.graph import sessions
from onnxprune.outputs import metrics

MODELS = Path(__file__).parents[2] / "models"


class Digits(NamedTuple):
    """A normalized digits model with its coupling and samples: to tune on, to choose on, never seen."""

    model: ir.Model
    coupling: Coupling
    tune: Samples
    held: Samples
    test: Samples

    def accuracy(self, model: ir.Model) -> float:
        found = metrics.evaluate(sessions.open_session(model, threads=1), self.test)
        assert found is not None
        return found.value

    def error(self, model: ir.Model) -> float:
        """Mean squared difference of the logits to the dense model's on unseen samples."""
        y, t = (
            metrics.outputs_on(sessions.open_session(m, threads=1), self.test)["logits"] for m in (model, self.model)
        )
        return float(np.square(y - t).mean())

    def unlabelled(self, samples: Samples) -> Samples:
        x = samples.batch(np.arange(len(samples)))
        return load_samples(x, input_infos(self.model))


def digits_of(name: str) -> Digits:
    model = graph.normalize(graph.load(MODELS / name))
    tune, held = split(load_samples("digits", input_infos(model)), 0.2)
    return Digits(model, analyze(model), tune, held, load_samples("digits:test", input_infos(model)))


def random_keep(coupling: Coupling, share: float, seed: int = 0) -> dict[Dim, np.ndarray]:
    """`share` of the units of every free Dim, at least one, chosen at random."""
    rng = np.random.default_rng(seed)
    keep = {}
    for dim in coupling.free:
        mask = np.zeros(dim.size, bool)
        mask[rng.permutation(dim.size)[: max(1, round(dim.size * share))]] = True
        keep[dim] = mask
    return keep
