"""How good a network is on held-out samples: the metric that chooses the best epoch, and the loss that breaks ties."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge import Network
from onnxprune.data import Samples
from onnxprune.metrics import AGREEMENT, RELATIVE_ERROR, TOP1
from onnxprune.recover.feeding import tensors_of, walk
from onnxprune.recover.losses import Task, distillation, logits_of, regression

Metric = Callable[..., float]


@dataclass(frozen=True)
class Verdict:
    """A metric and a loss on held-out samples; `sign` is -1 where a smaller metric is better."""

    metric: float
    loss: float
    sign: int = 1

    def better_than(self, other: "Verdict") -> bool:
        return (self.sign * self.metric, -self.loss) > (other.sign * other.metric, -other.loss)


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
    """Runs a network on `samples` in full precision; `originals` (N, ...) is what the teacher says there."""

    model: ir.Model
    task: Task
    samples: Samples
    originals: Mapping[str, Tensor]
    device: torch.device
    batch_size: int
    metric: Metric | None = None

    @property
    def name(self) -> str:
        if self.metric is not None:
            return getattr(self.metric, "__name__", "metric")
        if self.task.logits is None:
            return RELATIVE_ERROR
        return AGREEMENT if self.samples.labels is None else TOP1

    @torch.no_grad()
    def __call__(self, network: Network) -> Verdict:
        outputs = self._outputs(network)
        loss = self._loss(outputs)
        if self.metric is not None:
            arrays, originals = ({k: v.cpu().numpy() for k, v in y.items()} for y in (outputs, self.originals))
            return Verdict(float(self.metric(arrays, originals, self.samples.labels)), loss)
        if self.task.logits is None:
            return Verdict(self._relative_error(outputs), loss, sign=-1)
        z = logits_of(self.task, outputs).argmax(1)
        labels: Any = self.samples.labels
        right = logits_of(self.task, self.originals).argmax(1) if labels is None else torch.from_numpy(labels)
        return Verdict(float((z == right.to(z.device)).double().mean()), loss)

    def _outputs(self, network: Network) -> dict[str, Tensor]:
        network.eval()
        parts = []
        for feeds, _ in walk(self.samples, self.model, self.batch_size):
            values = network(tensors_of(feeds, self.device))
            parts.append({name: values[name].float() for name in self.task.outputs})
        return {name: torch.cat([part[name] for part in parts])[: len(self.samples)] for name in self.task.outputs}

    def _loss(self, outputs: Mapping[str, Tensor]) -> float:
        if self.task.logits is None:
            return float(regression(outputs, self.originals, self.task.outputs, self.task.scales or {}))
        return float(distillation(logits_of(self.task, outputs), logits_of(self.task, self.originals), 1.0))

    def _relative_error(self, outputs: Mapping[str, Tensor]) -> float:
        """Mean over samples of |y - original| / |original|, all outputs joined."""
        y, t = (torch.cat([v[n].flatten(1) for n in self.task.outputs], 1) for v in (outputs, self.originals))
        errors = (y - t).norm(dim=1) / t.norm(dim=1).clamp_min(float(np.finfo(np.float32).tiny))
        return float(errors.double().mean())
