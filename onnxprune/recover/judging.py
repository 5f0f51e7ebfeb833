"""How good a network is on held-out samples: the metric that chooses the best epoch, and the loss that breaks ties."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge import Network
from onnxprune.data import Samples, fixed_batch
from onnxprune.outputs.losses import Task, distillation, logits_of, regression
from onnxprune.outputs.metrics import AGREEMENT, RELATIVE_ERROR, TOP1, Metric, has_lists, joined, judged
from onnxprune.recover.feeding import tensors_of, walk
from onnxprune.system.memory import halving
from onnxprune.system.plugins import name_of


@dataclass(frozen=True)
class Verdict:
    """A metric and a loss on held-out samples; `sign` is -1 where a smaller metric is better.

    noise: one standard error of the metric, where it is a share of samples. A share of some hundreds tells two epochs
    apart by a point at best; the loss, which sees how sure every answer is, tells them apart much better.
    """

    metric: float
    loss: float
    sign: int = 1
    noise: float = 0.0

    def better_than(self, other: "Verdict") -> bool:
        gap = self.sign * (self.metric - other.metric)
        if abs(gap) > max(self.noise, other.noise):
            return gap > 0
        return self.loss < other.loss


def share(right: int, count: int, loss: float) -> Verdict:
    """The verdict of `right` answers of `count`."""
    guess = (right + 1) / (count + 2)  # Laplace's: 10 of 10 is not certain either
    return Verdict(right / count, loss, noise=(guess * (1 - guess) / count) ** 0.5)


@dataclass(frozen=True)
class Epoch:
    """What one pass over the samples came to; `metric` is of the averaged weights on held-out samples."""

    epoch: int
    loss: float
    metric: float
    held_loss: float
    lr: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Judge:
    """Runs a network on `samples` in full precision; `originals` (N, ...) is what the teacher says there.

    metric: the user's own, of all outputs; `everything` is what the teacher says there.
    """

    model: ir.Model
    task: Task
    samples: Samples
    originals: Mapping[str, Tensor]
    device: torch.device
    batch_size: int
    metric: Metric | None = None
    everything: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        if self.metric is not None:
            return name_of(self.metric)
        if self.task.logits is None:
            return RELATIVE_ERROR
        return AGREEMENT if self.samples.labels is None else TOP1

    @torch.no_grad()
    def __call__(self, network: Network) -> Verdict:
        outputs = self._outputs(network)
        loss = self._loss(outputs)
        if self.metric is not None:
            said = all_outputs(network, self.samples, self.model, self.device, self.batch_size)
            return Verdict(float(judged(self.metric, said, self.everything, self.samples.labels).mean()), loss)
        if self.task.logits is None:
            return Verdict(self._relative_error(outputs), loss, sign=-1)
        z = logits_of(self.task, outputs).argmax(1)
        labels: Any = self.samples.labels
        right = logits_of(self.task, self.originals).argmax(1) if labels is None else torch.from_numpy(labels)
        return share(int((z == right.to(z.device)).sum()), len(z), loss)

    def _outputs(self, network: Network) -> dict[str, Tensor]:
        network.eval()

        def said(batch: int) -> list[dict[str, Tensor]]:
            parts = []
            for feeds, _ in walk(self.samples, self.model, batch):
                values = network(tensors_of(feeds, self.device), capture=self.task.inner)
                parts.append({name: values[name].float() for name in self.task.outputs})
            return parts

        parts = halving(said, self.batch_size, "judging on held-out samples", fixed=fixed_batch(self.model) is not None)
        return {name: torch.cat([part[name] for part in parts])[: len(self.samples)] for name in self.task.outputs}

    def _loss(self, outputs: Mapping[str, Tensor]) -> float:
        if self.task.logits is None:
            return float(regression(outputs, self.originals, self.task.outputs, self.task.scales or {}))
        return float(distillation(logits_of(self.task, outputs), logits_of(self.task, self.originals), 1.0))

    def _relative_error(self, outputs: Mapping[str, Tensor]) -> float:
        """Mean over samples of |y - original| / |original|, all outputs joined."""
        y, t = (
            torch.cat([v[n].reshape(len(v[n]), -1) for n in self.task.outputs], 1) for v in (outputs, self.originals)
        )
        errors = (y - t).norm(dim=1) / t.norm(dim=1).clamp_min(float(np.finfo(np.float32).tiny))
        return float(errors.double().mean())


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
