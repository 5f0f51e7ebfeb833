"""One fine-tuning run: the loop over epochs and steps, its state, and how it is judged on held-out samples."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxprune.bridge import Network
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples, fixed_batch, input_infos
from onnxprune.data.samples import ahead
from onnxprune.errors import UsageError
from onnxprune.graph.inputs import batch_axes
from onnxprune.outputs.losses import Task, labels_loss, regression, teaching
from onnxprune.recover import distributed
from onnxprune.recover.augment import Draws, Mix, augment, changed, draw
from onnxprune.recover.judging import Epoch, Judge, Verdict
from onnxprune.recover.settings import LEAST_STEPS, Settings
from onnxprune.recover.state import Start, keep, resume
from onnxprune.recover.teacher import Teacher, precision
from onnxprune.system.interrupts import heed
from onnxprune.system.memory import give_up, out_of_memory, smaller
from onnxprune.system.plugins import name_of
from onnxprune.system.progress import Progress, progress


class Average:
    """An exponential moving average of tensors; young averages forget faster, so that the start leaves no trace."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Moves the averages towards `tensors`, faster in the first steps than `decay` says."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = [tensors[name].detach() for name in self.tensors]
        # One kernel on a GPU instead of hundreds.
        torch._foreach_lerp_(list(self.tensors.values()), now, 1 - decay)  # type: ignore[attr-defined]


@dataclass(eq=False)
class Run:
    """All that a run works with, and its state: `step` counts over all epochs."""

    model: ir.Model
    network: Network
    module: nn.Module  # the network, under DistributedDataParallel where there are several processes
    teacher: Teacher
    task: Task
    settings: Settings
    samples: Samples
    judge: Judge
    device: torch.device
    masks: Mapping[str, Tensor]
    place: Path | None  # of its checkpoint, see state.py
    start: Start
    average: Average = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    versions: list[Draws] = field(init=False)  # of the samples, where each epoch shows one of a few
    best: dict[str, Tensor] = field(init=False)  # of the start and all epochs, by the judge's mean loss
    best_verdict: Verdict = field(init=False)
    initial: Verdict = field(init=False)
    last: Verdict = field(init=False)
    best_epoch: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    step: int = 0
    lost: float = 0.0  # sum of the losses of this epoch
    spent: float = 0.0  # seconds of this epoch before it was interrupted
    at_once: int | None = None  # samples that memory does for, or the model's fixed batch, where that is less
    began: float = 0.0  # when training began or went on, by time.monotonic(), and the step that it began with
    first: int = 0

    def __post_init__(self) -> None:
        self.at_once = fixed_batch(self.model)
        self.optimizer = make_optimizer(self.network.parameters_by_name, self.settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.settings.amp == "fp16")
        self.apply_masks()
        s, count = self.settings, len(self.samples)
        self.versions = [draw(s, (s.seed, 0, k), count) for k in range(s.versions or 0)] if s.augments else []
        assert self.settings.ema is not None
        self.average = Average(self.tensors(), self.settings.ema)
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and running statistics by initializer name."""
        return {**self.network.parameters_by_name, **self.network.statistics_by_name}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets all parameters and statistics."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Sets weights that have to stay zero to zero again, which a step has moved."""
        parameters = self.network.parameters_by_name
        for name, mask in self.masks.items():
            parameters[name].mul_(mask)


def train(run: Run) -> str:
    """Trains to the end, or to where it stops early; why it stopped. The network then holds the weights to keep."""
    settings = run.settings
    assert settings.epochs is not None
    if not resume(run):
        run.initial = run.best_verdict = run.last = _verdict(run)
    run.began, run.first = time.monotonic(), run.step
    with progress("fine-tuning", "step", settings.epochs * _steps(run), bar=_shows(run), done=run.step) as shown:
        for epoch in range(len(run.epochs), settings.epochs):
            if _stale(run) or _out_of_time(run):
                break
            _train_epoch(run, epoch, shown)
            keep(run)
    if not run.last.clearly_worse_than(run.best_verdict):
        run.best, run.best_verdict, run.best_epoch = run.average.tensors, run.last, len(run.epochs)
    run.load(run.best)
    if _out_of_time(run):
        return "time over"
    return "no improvement" if len(run.epochs) < settings.epochs else "all epochs done"


def _shows(run: Run) -> bool:
    return run.settings.progress and distributed.world()[0] == 0


def _stale(run: Run) -> bool:
    """Whether the last `patience` epochs brought nothing."""
    patience = run.settings.patience
    return patience > 0 and len(run.epochs) - run.best_epoch >= patience


def _steps_in_time(run: Run) -> float:
    """The step at which the time that was given is over, by the pace of this session; infinite without such a time.

    The learning rate falls towards that step, so a run that turns out slower than its first steps promised still ends
    as one should, at the lowest rates. Several processes go by their number of epochs: they must take equal steps.
    """
    done = run.step - run.first
    if run.settings.seconds is None or distributed.world()[1] > 1 or done < LEAST_STEPS:
        return math.inf
    spent = time.monotonic() - run.began
    return run.first + math.floor(done * run.settings.seconds / max(spent, 1e-9))


def _out_of_time(run: Run) -> bool:
    return run.step >= _steps_in_time(run)


def _local_batch(run: Run) -> int:
    assert run.settings.batch_size is not None
    return max(1, run.settings.batch_size // distributed.world()[1])


def _steps(run: Run) -> int:
    return max(1, len(run.samples) // distributed.world()[1] // _local_batch(run))


def _train_epoch(run: Run, epoch: int, shown: Progress) -> None:
    """One pass over the samples, step by step."""
    started, saved = time.monotonic() - run.spent, time.monotonic()
    steps = _steps(run)
    total = planned = steps * (run.settings.epochs or 1)
    for feeds, numbers in batches_of(run, epoch, run.step - epoch * steps):
        heed()
        run.module.train()
        shown.expect(total := min(planned, _steps_in_time(run)))
        if run.step >= total:
            break
        lr = rate(run.step, total, run.settings)
        run.lost += step_on(run, feeds, numbers, lr)
        run.step += 1
        shown.update()
        done = run.step - epoch * steps
        if done % 10 == 0 or done == steps:
            shown.tell(_postfix(run, run.lost / done))
        if run.place and time.monotonic() - saved >= run.settings.checkpoint_seconds and done < steps:
            run.spent, saved = time.monotonic() - started, time.monotonic()
            keep(run)
    _end_epoch(run, epoch, rate(run.step - 1, max(total, run.step), run.settings), started)
    shown.tell(_postfix(run, run.epochs[-1].loss))


def _postfix(run: Run, loss: float) -> str:
    last = run.epochs[-1].metric if run.epochs else run.initial.metric
    return f"epoch {min(len(run.epochs) + 1, run.settings.epochs or 1)}, loss {loss:.4f}, {run.judge.name} {last:.4f}"


def batches_of(run: Run, epoch: int, first: int) -> Iterator[tuple[Mapping[str, np.ndarray], np.ndarray]]:
    """This process's share of the batches of an epoch, from number `first` on."""
    order = distributed.order(len(run.samples), epoch, run.settings.seed)
    size = _local_batch(run)
    # Fewer samples than a model's fixed batch: they are repeated.
    order = np.resize(order, max(len(order), size))
    return ahead(run.samples, [order[k * size : (k + 1) * size] for k in range(first, _steps(run))])


def step_on(run: Run, arrays: Mapping[str, np.ndarray], numbers: np.ndarray, lr: float) -> float:
    """The loss of a batch, of which one step was taken. Raises: UsageError where it is no longer finite."""
    rank, size = distributed.world()
    feeds = tensors_of(arrays, run.device, channels_last=bool(run.settings.channels_last))
    version, mix = _version(run), None
    if version is None:
        feeds, mix = augment(feeds, run.settings, run.step, rank, size)
    elif run.versions:
        feeds, mix = changed(feeds, run.versions[version].of(numbers))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    number = _gradients(run, Batch(feeds, numbers, _labels(run, numbers), mix))
    run.scaler.unscale_(run.optimizer)
    clip(run.network.parameters_by_name.values(), run.settings.clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.apply_masks()
    run.average.update(run.tensors(), run.step)
    if not np.isfinite(number) and not run.scaler.is_enabled():
        raise UsageError(
            f"fine-tuning: the loss became {number} at step {run.step}, learning rate {lr:g}; give a smaller one"
        )
    return number


def _version(run: Run) -> int | None:
    """Which version of each sample this step is shown; None where it is a new one."""
    shown = run.settings.shown
    return None if shown == math.inf else int(run.step // _steps(run) % shown)


def loss_on(run: Run, arrays: Mapping[str, np.ndarray], numbers: np.ndarray) -> float:
    """The loss of a batch as it is, in the pieces that training takes it in."""
    feeds = tensors_of(arrays, run.device, channels_last=bool(run.settings.channels_last))
    batch, count = Batch(feeds, numbers, _labels(run, numbers), None), len(numbers)
    return sum(_forward(run, piece, len(piece.numbers) / count) for piece in _pieces(run, batch))


def _forward(run: Run, piece: "Piece", share: float) -> float:
    with precision(run.settings, run.device):
        values = run.task.by_sample(run.network(piece.feeds, capture=run.task.captured))
    return share * float(_loss(run, values, lambda: run.teacher.says(piece.feeds), piece))


@dataclass(frozen=True)
class Batch:
    """The samples of one step: their inputs, numbers and labels, and how they were mixed."""

    feeds: Mapping[str, Tensor]
    numbers: np.ndarray
    labels: Tensor | None
    mix: Mix | None

    def rows(self, axes: Mapping[str, int | None], start: int, stop: int) -> "Piece":
        """Samples `start` to `stop`; axes: of the inputs, along which samples are stacked."""

        def part(name: str, x: Tensor) -> Tensor:
            axis = axes.get(name)
            return x if axis is None else x.narrow(axis, start, stop - start)

        labels, mix = self.labels, self.mix
        return Piece(
            {name: part(name, x) for name, x in self.feeds.items()},
            self.numbers[start:stop],
            None if labels is None else labels[start:stop],
            None if labels is None or mix is None else labels[mix.partner][start:stop],
            None if mix is None else mix.weight[start:stop],
        )


@dataclass(frozen=True)
class Piece:
    """How many samples go through the network at once: all of a batch, or fewer where memory is short."""

    feeds: dict[str, Tensor]
    numbers: np.ndarray
    labels: Tensor | None
    others: Tensor | None  # labels of what the samples were mixed with
    weight: Tensor | None


def _gradients(run: Run, batch: Batch) -> float:
    """Puts the gradients of the batch's mean loss into the parameters; the loss.

    Where memory does not do for the whole batch the gradients of smaller pieces are added up, from then on.
    """
    (rank, size), count = distributed.world(), len(batch.numbers)
    where = f"fine-tuning, step {run.step + 1}"
    while True:
        run.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(run.settings.seed * 1_000_003 + run.step * size + rank)  # dropout: a function of the step
        try:
            return sum(_backward(run, piece, len(piece.numbers) / count) for piece in _pieces(run, batch))
        except Exception as error:
            if not out_of_memory(error):
                raise
            limit = min(run.at_once or count, count)
            # Other processes wait for this one's gradients: they cannot all start over.
            if limit == 1 or size > 1 or fixed_batch(run.model) is not None:
                raise give_up(error, where, limit, fixed=fixed_batch(run.model) is not None) from error
        run.optimizer.zero_grad(set_to_none=True)
        run.at_once = smaller(limit, where)


def _pieces(run: Run, batch: Batch) -> Iterator[Piece]:
    """The batch in as many pieces as memory, or a model of fixed batch, asks for."""
    count = len(batch.numbers)
    pieces = -(-count // min(run.at_once or count, count))
    ends = [count * k // pieces for k in range(pieces + 1)]
    axes = batch_axes(input_infos(run.model)) if pieces > 1 else {}
    return (batch.rows(axes, *ends[k : k + 2]) for k in range(pieces))


def _backward(run: Run, piece: Piece, share: float) -> float:
    """Adds the gradients of a piece, which is that share of its batch; its share of the loss."""
    with precision(run.settings, run.device):
        values = run.task.by_sample(run.module(piece.feeds, capture=run.task.captured))
    taught = partial(run.teacher.targets, piece.feeds, piece.numbers, _version(run))
    loss = share * _loss(run, values, taught, piece)
    run.scaler.scale(loss).backward()
    return float(loss.detach())


def _labels(run: Run, numbers: np.ndarray) -> Tensor | None:
    labels = run.samples.labels
    return None if labels is None else torch.from_numpy(labels[numbers]).to(run.device)


def _loss(run: Run, values, taught: Callable[[], dict[str, Tensor]], piece: Piece) -> Tensor:
    """taught: what the teacher says; it is not asked where labels alone count."""
    settings, task, labels = run.settings, run.task, piece.labels
    right = None
    if settings.loss is None and labels is not None and settings.labels > 0:
        right = labels_loss(task, values, labels, piece.others, piece.weight)
    if right is not None and settings.labels == 1 and not task.points:
        return right
    targets = taught()
    if settings.loss is not None:
        loss = _own_loss(settings.loss, settings.loss(values, targets, labels))
    else:
        loss = teaching(task, values, targets, settings.temperature or task.temperature)
        if right is not None:
            loss = (1 - settings.labels) * loss + settings.labels * right
    if task.points:
        loss = loss + settings.features * regression(values, targets, task.points, task.scales or {})
    return loss


def _own_loss(function: Callable[..., Tensor], loss: Tensor) -> Tensor:
    """The loss that the user's function gave. Raises: UsageError where it is no number that can be minimized."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        what += " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise UsageError(f"--loss {name_of(function)}: gave {what}; return one number, computed by torch from outputs")
    return loss.reshape(())


def _end_epoch(run: Run, epoch: int, lr: float, started: float) -> None:
    """Judges the averaged weights of the epoch, and keeps them where they are the best."""
    current = {name: tensor.detach().clone() for name, tensor in run.tensors().items()}
    run.load(run.average.tensors)
    run.last = verdict = _verdict(run)
    if verdict.loss < run.best_verdict.loss:
        run.best, run.best_verdict, run.best_epoch = (
            {name: tensor.clone() for name, tensor in run.average.tensors.items()},
            verdict,
            epoch + 1,
        )
    run.load(current)
    done = max(1, run.step - epoch * _steps(run))
    loss, seconds = run.lost / done, time.monotonic() - started
    share = done / _steps(run)
    run.epochs.append(Epoch(epoch + 1, loss, verdict.metric, verdict.loss, lr, seconds, share))
    run.lost, run.spent = 0.0, 0.0


def _verdict(run: Run) -> Verdict:
    """The judge's verdict on the network as it is; one process judges for all."""
    mine = asdict(run.judge(run.network)) if distributed.world()[0] == 0 else None
    return Verdict(**distributed.agreed(mine, run.device))


# The optimizer, its schedule and the moving average of weights ----------------------------------------------------


def make_optimizer(parameters: Mapping[str, Tensor], settings: Settings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; biases and norms do not decay."""
    assert settings.lr is not None
    assert settings.weight_decay is not None
    kernels = [p for p in parameters.values() if p.ndim > 1]
    others = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.lr)


def rate(step: int, total: float, settings: Settings) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine down to a hundredth of the peak."""
    assert settings.lr is not None
    warm = max(1, round(settings.warmup * total))
    if step < warm:
        return settings.lr * (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    return settings.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def clip(parameters: Iterable[Tensor], largest: float) -> None:
    """Scales gradients down to a norm of `largest`; 0 leaves them."""
    if largest > 0:
        torch.nn.utils.clip_grad_norm_(list(parameters), largest)
