"""How good a network is on held-out samples, and whether it is clearly worse than another.

What fine-tuning ends with is kept unless a fair test says that it is clearly worse than what it started from. A fair
test uses inputs that the original does not know by heart (see `fair`), samples that nothing was fitted to, and wants a
difference that chance does not make: on a few hundred samples two good networks differ by chance all the time.

Classifiers are judged by their answers. Everything else is judged by the metrics of the outputs' kinds, between a null
model, which answers every sample with the mean of the original's outputs, and the original; where these tell nothing
on the samples, by the relative error. Boxes are compared by the loss that is trained: on mixtures, where the original
itself finds little, their average precision can fall while it rises on photographs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge import Network
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples, fixed_batch
from onnxprune.data.samples import walk
from onnxprune.outputs import accuracies, lost
from onnxprune.outputs.answers import Reference
from onnxprune.outputs.kinds import BOXES, Outputs
from onnxprune.outputs.losses import Task, logits_of
from onnxprune.outputs.metrics import AGREEMENT, RELATIVE_ERROR, SHARE_KEPT, Metric, has_lists, joined, judged
from onnxprune.recover.fair import Mixed
from onnxprune.system.memory import halving
from onnxprune.system.plugins import name_of

CLEAR = 2.5  # standard errors: of differences between equals one in 160 is larger


@dataclass(frozen=True)
class Verdict:
    """A metric for the reader, and the losses (N,) by which networks are compared, sample by sample.

    losses: disagreement or error per sample, smaller is better; a single one where nothing is known per sample.
    """

    metric: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """The mean over the samples."""
        return float(np.mean(self.losses))

    def clearly_worse_than(self, other: "Verdict") -> bool:
        """Whether the same samples lose more by more than chance explains: the mean against its standard error."""
        return self.excess_over(other) > CLEAR

    def excess_over(self, other: "Verdict") -> float:
        """Mean difference of the losses in standard errors; infinite where no sample differs from the others."""
        gaps = np.subtract(self.losses, other.losses)
        mean = float(gaps.mean())
        error = float(gaps.std(ddof=1)) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
        if error == 0.0:
            return 0.0 if mean == 0.0 else float(np.copysign(np.inf, mean))
        return mean / error


@dataclass(frozen=True)
class Epoch:
    """The result of one pass over the samples; `metric` and `held_loss` are of the averaged weights, by the judge.

    share: of the samples that were seen before the time was over; 1 for a whole pass.
    """

    epoch: int
    loss: float
    metric: float
    held_loss: float
    lr: float
    seconds: float
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Judge:
    """Runs a network on `samples` in full precision; `originals` (N, ...) is what the teacher says there.

    metric: the user's own, of all outputs; `everything` is what the teacher says there.
    reference: what the metrics of the outputs' kinds compare with, where they tell anything. distances: what losses of
    boxes and what stands beside them are compared with, where there are any.
    """

    model: ir.Model
    task: Task
    samples: Samples
    originals: Mapping[str, Tensor]
    device: torch.device
    batch_size: int
    metric: Metric | None = None
    everything: Mapping[str, Any] | None = None
    reference: Reference | None = None
    distances: lost.Originals | None = None

    @property
    def name(self) -> str:
        """The name of the metric in reports."""
        if self.metric is not None:
            return name_of(self.metric)
        if self.task.logits is not None:
            return AGREEMENT
        return RELATIVE_ERROR if self.reference is None else SHARE_KEPT

    @property
    def told(self) -> str:
        """On what it judges, for the reader."""
        mixed, apart = "new inputs mixed of your samples", "samples that nothing was tuned on"
        return f"{len(self.samples)} {mixed if isinstance(self.samples, Mixed) else apart}"

    @torch.no_grad()
    def __call__(self, network: Network) -> Verdict:
        if self.metric is not None:
            said = all_outputs(network, self.samples, self.model, self.device, self.batch_size)
            values = judged(self.metric, said, self.everything, self.samples.labels)
            return Verdict(float(values.mean()), tuple((-np.atleast_1d(values)).tolist()))
        outputs = self._outputs(network)
        if self.task.logits is None and self.reference is not None:
            said = {name: y.cpu().numpy() for name, y in outputs.items()}
            kept = accuracies.by_sample(said, self.reference)
            if kept is not None:
                losses = 1 - kept if self.distances is None else lost.lost(said, self.distances)
                return Verdict(float(kept.mean()), self._by_sample(losses))
        if self.task.logits is None:
            errors = self._relative_errors(outputs)
            return Verdict(float(errors.mean()), self._by_sample(errors))
        z, t = (logits_of(self.task, values).argmax(1) for values in (outputs, self.originals))
        wrong = (z != t.to(z.device)).double().cpu().numpy()
        return Verdict(1 - float(wrong.mean()), self._by_sample(wrong))

    def _by_sample(self, losses: np.ndarray) -> tuple[float, ...]:
        """The mixtures of a sample depend on one another: their mean counts once."""
        turns = self.samples.partners if isinstance(self.samples, Mixed) else 1
        return tuple(losses.reshape(turns, -1).mean(axis=0).tolist())

    def _outputs(self, network: Network) -> dict[str, Tensor]:
        network.eval()

        def said(batch: int) -> list[dict[str, Tensor]]:
            parts = []
            for feeds, _ in walk(self.samples, self.model, batch):
                values = self.task.by_sample(network(tensors_of(feeds, self.device), capture=self.task.inner))
                parts.append({name: values[name].float() for name in self.task.outputs})
            return parts

        parts = halving(said, self.batch_size, "judging on held-out samples", fixed=fixed_batch(self.model) is not None)
        return {name: torch.cat([part[name] for part in parts])[: len(self.samples)] for name in self.task.outputs}

    def _relative_errors(self, outputs: Mapping[str, Tensor]) -> np.ndarray:
        """|y - original| / |original| of each sample, mean over the parts: pixels must not drown class scores."""
        errors = []
        for part in self.task.parts:
            y, t = (part.of(v[part.value]) for v in (outputs, self.originals))
            y, t = (v.reshape(len(v), -1) for v in (y, t))
            errors.append((y - t).norm(dim=1) / t.norm(dim=1).clamp_min(float(np.finfo(np.float32).tiny)))
        return torch.stack(errors).mean(0).double().cpu().numpy()


def reference_of(samples: Samples, outputs: Outputs | None, said: Mapping[str, Tensor]) -> Reference | None:
    """What the teacher `said` (N, ...) on samples, for the metrics of its outputs' kinds; None where they tell nothing.

    They tell nothing where a null model does about as well as the original.
    """
    if outputs is None:
        return None
    arrays = {name: y.float().cpu().numpy() for name, y in said.items()}
    found = Reference(samples, outputs, arrays)
    return None if accuracies.by_sample(arrays, found) is None else found


def distances_of(reference: Reference | None) -> lost.Originals | None:
    """The original's answers, for losses of boxes; None where no part holds boxes."""
    if reference is None or not any(part.kind == BOXES for part in reference.outputs.parts):
        return None
    return lost.originals(reference.said, reference.outputs)


@torch.no_grad()
def all_outputs(
    network: Network, samples: Samples, model: ir.Model, device: torch.device, batch_size: int
) -> dict[str, np.ndarray | list[np.ndarray]]:
    """All outputs of `network` on `samples`, as `metrics.everything` gives those of a session."""
    network.eval()

    def said(batch: int) -> dict[str, np.ndarray | list[np.ndarray]]:
        parts, sizes = [], []
        for feeds, numbers in walk(samples, model, batch):
            parts.append({name: y.cpu().numpy() for name, y in network(tensors_of(feeds, device)).items()})
            sizes.append(len(numbers))
        found = joined(parts, sizes, len(samples))
        return said(1) if batch > 1 and fixed_batch(model) is None and has_lists(found) else found

    return halving(said, batch_size, "judging on held-out samples", fixed=fixed_batch(model) is not None)
