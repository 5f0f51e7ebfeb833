"""The small training loop of the methods that learn: SGD or Adam, distillation from the original model.

    L = distance to the teacher by the kinds of the outputs (KL T^2 for classes) + weight * CE(labels)

The teacher's outputs are computed once, unless images are flipped or shifted. Recovery afterwards has a loop of its
own.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, cos, log2, pi

import numpy as np
import torch
from torch import Tensor

from onnxprune.bridge.network import Network
from onnxprune.bridge.tensors import is_half, with_channels_last
from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.methods import objective
from onnxprune.methods.base import Context
from onnxprune.recover.augment import augment
from onnxprune.recover.settings import Settings as Augmentation
from onnxprune.system.interrupts import heed
from onnxprune.system.memory import at_most
from onnxprune.system.progress import progress

TEMPERATURE = 2.0
RMS = 0.1  # of weights, as in narrow layers with norms
CLIP = 1.0  # largest gradient norm; folded networks have nothing else that tames a step


@dataclass(frozen=True)
class Course:
    """How long and how fast: `train_samples` 0 uses all. flip, crop: images flipped, and shifted by up to so many
    pixels. bf16: convolutions and products in bf16, images with channels last."""

    epochs: int = 3
    lr: float = 1e-3
    batch_size: int = 64
    train_samples: int = 0
    label_weight: float = 1.0
    flip: bool = False
    crop: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class Step:
    """Where a run stands: `progress` rises from 0 to 1; `first` is true on the first step of an epoch."""

    index: int
    total: int
    epoch: int
    first: bool

    @property
    def progress(self) -> float:
        return self.index / max(1, self.total)


class Lessons:
    """The samples with what the original model says about them."""

    def __init__(self, context: Context, course: Course, *, teach: bool = True) -> None:
        assert context.samples is not None
        count = course.train_samples or len(context.samples)
        self.context = context
        self.samples: Samples = context.samples.subset(objective.picked(context.samples, count, context.seed))
        self.device, self.seed = context.device, context.seed
        self.fixed = fixed_batch(context.model)
        self.batch_size = self.fixed or at_most(min(course.batch_size, len(self.samples)))
        self.label_weight = course.label_weight
        self.augmentation = Augmentation(seed=context.seed, flip=course.flip, crop=course.crop)
        self.bf16 = course.bf16
        self.drawn = 0  # batches that were augmented
        self.teacher: Network | None = None  # asked batch by batch, where images move or outputs have no rows
        self.answers: dict[str, Tensor] = {}
        if teach:
            teacher = Network(context.model, trainable=()).to(self.device).eval()
            if self.augmentation.augments or not all(part.rows and not part.batch for part in context.outputs.parts):
                self.teacher = teacher
            else:
                self.answers = self._taught(teacher)

    @property
    def steps_per_epoch(self) -> int:
        return ceil(len(self.samples) / self.batch_size)

    def blocks(self, epoch: int) -> Iterable[np.ndarray]:
        """Sample numbers of the batches of an epoch, in its own order."""
        seed = self.seed * 7919 + epoch
        return batches(self.samples, self.batch_size, fixed=self.fixed, shuffle=True, seed=seed)

    def loss(self, network: Network, block: np.ndarray) -> Tensor:
        """The loss of a batch."""
        feeds, labels = objective.tensors(self.samples, block, self.device)
        if self.augmentation.augments:
            feeds, _ = augment(feeds, self.augmentation, self.drawn)
            self.drawn += 1
        if self.teacher is not None:
            answers = self._said(self.teacher, feeds)
        else:
            rows = torch.from_numpy(block)
            answers = {name: y[rows].to(self.device) for name, y in self.answers.items()}
        values = self._values(network, feeds)
        if not answers:  # from scratch: then labels, or the model's own answers, are all there is
            return objective.loss(self.context, values, labels)
        return objective.distance(self.context, values, answers, labels, self.label_weight, TEMPERATURE)

    def _taught(self, teacher: Network) -> dict[str, Tensor]:
        """The teacher's answers on all samples, in order."""
        parts: list[dict[str, Tensor]] = []
        kept = 0
        for block in batches(self.samples, self.batch_size, fixed=self.fixed):
            rows = min(len(block), len(self.samples) - kept)
            said = self._said(teacher, objective.tensors(self.samples, block, self.device)[0])
            parts.append({name: y[:rows].cpu() for name, y in said.items()})
            kept += rows
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _values(self, network: Network, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.bf16:
            return objective.said(self.context, network, feeds)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            values = objective.said(self.context, network, with_channels_last(feeds))
        return {name: y.float() if is_half(y) else y for name, y in values.items()}

    @torch.no_grad()
    def _said(self, teacher: Network, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        values = self._values(teacher, feeds)
        known = {part.value for part in self.context.outputs.parts}
        return {name: y for name, y in values.items() if name in known and y.is_floating_point() and y.ndim}


def adam(network: Network, lr: float) -> torch.optim.Adam:
    """Adam for trained weights. The rate of a tensor is `lr`, and in proportion less where its rms is below RMS.

    A step of Adam moves every weight by about the rate: 1e-3 is a hundredth of the weights of narrow layers, and all
    there is of those of wide ones without norms. Biases and norms take `lr` as it is.
    """
    rates: dict[float, list[Tensor]] = {}
    for p in network.parameters_by_name.values():
        rms = float(p.detach().square().mean().sqrt()) if p.ndim > 1 else RMS
        factor = 2.0 ** round(log2(min(1.0, max(rms, 1e-6) / RMS)))  # a few groups: each is a kernel on a GPU
        rates.setdefault(lr * factor, []).append(p)
    return torch.optim.Adam([{"params": tensors, "lr": rate} for rate, tensors in rates.items()], lr=lr)


def told(history: list[float]) -> str:
    """The losses of `run` in words."""
    return f"training loss {history[0]:.3g} in the first epoch, {history[-1]:.3g} in the last of {len(history)}"


def run(
    context: Context,
    network: Network,
    lessons: Lessons,
    course: Course,
    optimizers: Iterable[torch.optim.Optimizer],
    *,
    name: str,
    penalty: Callable[[Step], Tensor | None] = lambda step: None,
    before: Callable[[Step], None] = lambda step: None,
    after: Callable[[Step], None] = lambda step: None,
    shrink_gradients: Callable[[Step], None] = lambda step: None,
) -> list[float]:
    """Trains for the epochs of `course`; the mean task loss of each epoch.

    penalty: added to the loss. before, after: called around every step; shrink_gradients between backward and step.
    Learning rates fall along a cosine from their first value to a twentieth of it.
    """
    optimizers = list(optimizers)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    total = course.epochs * lessons.steps_per_epoch
    history: list[float] = []
    with progress(name, "step", total, bar=context.progress) as shown:
        for epoch in range(course.epochs):
            losses = []
            for k, block in enumerate(lessons.blocks(epoch)):
                heed()
                step = Step(shown.done, total, epoch, k == 0)
                _set_rates(optimizers, rates, step.progress)
                before(step)
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                task = lessons.loss(network, block)
                extra = penalty(step)
                (task if extra is None else task + extra).backward()
                shrink_gradients(step)
                for optimizer in optimizers:  # each on its own: one must not use up the norm of the others
                    torch.nn.utils.clip_grad_norm_(
                        [p for group in optimizer.param_groups for p in group["params"]], CLIP
                    )
                    optimizer.step()
                after(step)
                losses.append(float(task.detach()))
                shown.update()
                shown.tell(f"loss {losses[-1]:.3f}")
            history.append(float(np.mean(losses)))
    return history


def _set_rates(optimizers: Iterable[torch.optim.Optimizer], rates: list[list[float]], progress: float) -> None:
    factor = 0.05 + 0.95 * (1 + cos(pi * progress)) / 2
    for optimizer, firsts in zip(optimizers, rates, strict=True):
        for group, first in zip(optimizer.param_groups, firsts, strict=True):
            group["lr"] = first * factor
