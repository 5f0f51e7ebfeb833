"""What fine-tuning minimizes: the distance to the original model, and to labels where there are any.

Letters: N batch, C classes, T temperature; z the tuned model's logits, t the original's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.recover.augment import Mix

Values = Mapping[str, Tensor]
SMALL = 1e-6


@dataclass(frozen=True)
class Task:
    """What the outputs are: `logits` names the output of a classifier, `probabilities` where a Softmax ends it.

    points: intermediate values of equal shape in both models; scales: their spread and that of regressed outputs.
    """

    outputs: tuple[str, ...]
    logits: str | None
    probabilities: bool = False
    points: tuple[str, ...] = ()
    scales: Mapping[str, float] | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of everything the loss compares."""
        return (*self.outputs, *self.points)


def task_of(model: ir.Model, outputs: Values) -> Task:
    """The task of a model, seen on its outputs for one batch: one float (N, C) output, C > 1, is a classifier."""
    names = tuple(name for name, y in outputs.items() if y.is_floating_point())
    first = outputs[names[0]] if names else None
    if (
        len(outputs) != 1
        or first is None
        or first.flatten(1).shape[1] < 2
        or first.flatten(1).shape[1] != first.shape[1]
    ):
        return Task(names, None)
    producer = next(value.producer() for value in model.graph.outputs if value.name == names[0])
    return Task(names, names[0], probabilities=producer is not None and producer.op_type == "Softmax")


def logits_of(task: Task, values: Values) -> Tensor:
    """(N, C) logits of a classifier."""
    assert task.logits is not None
    z = values[task.logits].flatten(1).float()
    return z.clamp_min(SMALL).log() if task.probabilities else z


def distillation(z: Tensor, t: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(z / T)), mean over samples (Hinton et al. 2015, section 2)."""
    p, q = F.log_softmax(z / temperature, 1), F.log_softmax(t / temperature, 1)
    return temperature**2 * F.kl_div(p, q, reduction="batchmean", log_target=True)


def regression(values: Values, targets: Values, names: Sequence[str], scales: Mapping[str, float]) -> Tensor:
    """Mean over names of the squared error in units of the target's variance."""
    terms = [F.mse_loss(values[name].float(), targets[name].float()) / scales[name] for name in names]
    return torch.stack(terms).mean()


def classification(z: Tensor, labels: Tensor, mix: Mix | None) -> Tensor:
    """Cross-entropy with labels (N,), those of mixed samples by their shares."""
    if mix is None:
        return F.cross_entropy(z, labels)
    own, other = (F.cross_entropy(z, y, reduction="none") for y in (labels, labels[mix.partner]))
    return (mix.weight * own + (1 - mix.weight) * other).mean()


def scales_of(values: Values, names: Sequence[str]) -> dict[str, float]:
    """The variance of each named value, never zero."""
    return {name: max(float(values[name].float().var(correction=0)), SMALL) for name in names}


def shared_points(cut_model: ir.Model, teacher: ir.Model, most: int = 4) -> tuple[str, ...]:
    """Names of up to `most` activations of equal shape in both models, evenly spread: ends of uncut stages."""
    known = {value.name: value.shape for node in teacher.graph for value in node.outputs}
    found = [name for name, shape in _activations(cut_model) if name in known and known[name] == shape]
    if len(found) <= most:
        return tuple(found)
    return tuple(found[round((k + 1) * len(found) / (most + 1))] for k in range(most))


def _activations(model: ir.Model) -> Iterator[tuple[str, ir.Shape]]:
    outputs = set(model.graph.outputs)
    for node in model.graph:
        value = node.outputs[0]
        sizes = list(value.shape) if value.shape is not None else []
        # Sums end residual blocks; everything inside a block may be represented otherwise by fewer units.
        if (
            node.op_type in ("Add", "Relu")
            and len(sizes) >= 3
            and value not in outputs
            and value.dtype == ir.DataType.FLOAT
        ):
            assert value.shape is not None
            yield value.name or "", value.shape
