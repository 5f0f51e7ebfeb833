"""Fine-tuning of a cut model with the original as its teacher, on samples with or without labels."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.bridge import Network
from onnxprune.data import Samples, fixed_batch
from onnxprune.errors import DataError, UsageError
from onnxprune.outputs.losses import scales_of, shared_points, task_of, with_points
from onnxprune.recover import checkpoint, distributed, probe, state
from onnxprune.recover.batchnorm import take_out, with_batchnorm
from onnxprune.recover.feeding import tensors_of
from onnxprune.recover.judging import Epoch, Judge, all_outputs
from onnxprune.recover.settings import Settings, choose
from onnxprune.recover.teacher import Teacher
from onnxprune.recover.training import Regularizer, Run, train
from onnxprune.system.memory import halving

__all__ = ["Epoch", "History", "Settings", "choose", "finetune"]


@dataclass(frozen=True)
class History:
    """How a run went: the settings as they were chosen, each epoch, and which one was kept (0: none was better).

    metric: top1, agreement, relative_error or the user's; initial: before the first step.
    """

    settings: Settings
    metric: str
    initial: float
    epochs: tuple[Epoch, ...]
    best_epoch: int
    best: float
    seconds: float
    stopped: str


def finetune(
    cut_model: ir.Model,
    teacher: ir.Model,
    samples: Samples,
    held: Samples,
    settings: Settings | None = None,
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    positions: Mapping[str, Mapping[int, np.ndarray]] | None = None,
    regularizer: Regularizer | None = None,
) -> History:
    """Trains `cut_model`, in place, to answer as `teacher` does; the epoch that does best on `held` is kept.

    masks: initializer -> booleans of its shape; where False it stays zero. positions: value -> axis -> the positions of
    the teacher's value that the cut model has, for settings.features. regularizer: of the parameters by name, a
    number that is added to the loss. settings.loss: of (values, teacher's values, labels or None), all by name.
    Raises: DataError without samples, UsageError for masks that fit nothing and for a loss that is no longer finite.
    """
    if len(samples) < 2 or len(held) < 1:
        raise DataError(f"fine-tuning: {len(samples)} samples and {len(held)} held out; give at least 2 and 1")
    started = time.monotonic()
    asked = settings or Settings()
    start = state.start_of(cut_model) if asked.resume_dir else {}
    key = state.key_of(cut_model, teacher, asked, samples, held, masks) if asked.resume_dir else ""
    place = state.place_of(asked, key, start)
    settings = choose(samples, cut_model, asked.device, asked, masked=bool(masks))
    device = distributed.device_of(settings.device)
    with distributed.group(device), _deterministic(device):
        run, model = _prepare(
            cut_model, teacher, samples, held, settings, device, masks, positions or {}, regularizer, place, start
        )
        stopped = train(run)
        # Where no epoch was better nothing is written: norms put in and folded again would change last bits.
        if run.best_epoch > 0 or masks:
            run.network.write_back(model)
            if model is not cut_model:
                take_out(model, cut_model)
    return History(
        run.settings,
        run.judge.name,
        run.initial.metric,
        tuple(run.epochs),
        run.best_epoch,
        run.best_verdict.metric,
        time.monotonic() - started,
        stopped,
    )


def _prepare(
    cut_model, teacher, samples, held, settings: Settings, device, masks, positions, regularizer, place, start
):
    """The run, and the model that it trains: `cut_model` itself, or a copy with BatchNorm put back."""
    assert settings.batch_size is not None
    _check_world(settings)
    torch.manual_seed(settings.seed)
    model, fixed = cut_model, fixed_batch(cut_model) is not None
    if settings.batchnorm == "on":
        model = halving(
            lambda batch: with_batchnorm(cut_model, samples, device, batch),
            settings.batch_size,
            "statistics for BatchNorm",
            fixed=fixed,
        )
    network = Network(model, freeze_norm=settings.statistics == "frozen").to(device)
    batch_size, settings = settings.batch_size, _decide(network, samples, settings, device, place)
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = halving(
        lambda batch: _task(model, teacher, samples, replace(settings, batch_size=batch), device, positions),
        batch_size,
        "fine-tuning",
        fixed=fixed,
    )
    original = Teacher(teacher, task, settings, device)
    original.remember(samples)
    plain = Teacher(teacher, with_points(task, (), {}), replace(settings, amp="off"), device)
    judged, said = plain.all_on(held), None
    if judged is None:
        raise DataError(f"fine-tuning: {', '.join(task.outputs)} have no row per sample; give --recover reconstruct")
    if settings.metric is not None:
        said = all_outputs(plain.network, held, teacher, device, batch_size)
    judge = Judge(model, task, held, judged, device, batch_size, settings.metric, said)
    module = distributed.wrap(network, device, all_used=settings.loss is None)
    if settings.compile:
        module.compile()
    tensors = _mask_tensors(network, masks or {}, device)
    return Run(
        model, network, module, original, task, settings, samples, judge, device, tensors, regularizer, place, start
    ), model


def _check_world(settings: Settings) -> None:
    size = distributed.world()[1]
    assert settings.batch_size is not None
    if settings.batch_size % size:
        raise UsageError(
            f"fine-tuning: a batch of {settings.batch_size} does not divide among {size} processes; "
            f"give a batch size that is a multiple of {size}"
        )


def _decide(network: Network, samples: Samples, settings: Settings, device, place: Path | None) -> Settings:
    """Precision and layout: those of the interrupted run, or what is fastest here."""
    saved = checkpoint.load(place) if place else None
    if saved is not None:
        return replace(settings, **saved[1]["settings"])
    feeds = tensors_of(samples.batch(_first(samples, settings)), device)
    fast = probe.fastest(network, feeds, settings, device)
    chosen = distributed.agreed({"amp": fast.amp, "channels_last": fast.channels_last}, device)
    return replace(settings, **chosen)


@torch.no_grad()
def _task(model: ir.Model, teacher: ir.Model, samples: Samples, settings: Settings, device, positions):
    """What is compared, with the spread of each value on a few samples."""
    network = Network(teacher, trainable=()).to(device).eval()
    feeds = tensors_of(samples.batch(_first(samples, settings)), device)
    points = shared_points(model, teacher, positions) if settings.features > 0 else ()
    count = settings.batch_size or 1
    cut = Network(model, trainable=()).to(device).eval()
    mine = {value.name for node in model.graph for value in node.outputs}

    def seen(names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        both = [name for name in names if name in mine]
        one, two = network(feeds, capture=both), cut(feeds, capture=both)
        return {name: one[name] for name in both if one[name].shape == two[name].shape}

    task = task_of(teacher, network(feeds), count, seen, regression=settings.regression)
    if not task.outputs and settings.loss is None:
        raise DataError(
            "fine-tuning: no output has a row per sample, and nothing that it is made of can be compared; "
            "give --recover reconstruct, or a --loss and a --metric of your own"
        )
    task = with_points(task, points, positions)
    values = task.parts(network(feeds, capture=task.captured))
    if points:
        ours = cut(feeds, capture=points)
        equal = [name for name in points if values[name].shape == ours[name].shape]  # sizes that move may differ
        task = with_points(task, equal, positions)
    return replace(task, scales=scales_of(values, task.wanted))


def _first(samples: Samples, settings: Settings) -> np.ndarray:
    """The numbers of one batch."""
    return np.resize(np.arange(len(samples)), settings.batch_size or 1)


def _mask_tensors(network: Network, masks: Mapping[str, np.ndarray], device) -> dict[str, torch.Tensor]:
    parameters = network.parameters_by_name
    for name, mask in masks.items():
        if name not in parameters or tuple(parameters[name].shape) != mask.shape:
            have = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise UsageError(f"fine-tuning: the mask of '{name}' has shape {mask.shape}, the parameter {have}")
    return {name: torch.from_numpy(np.asarray(mask, np.float32)).to(device) for name, mask in masks.items()}


class _deterministic:  # noqa: N801  a context manager, named as one reads it
    """The same numbers for the same seed: no kernels chosen by timing; torch's settings return afterwards."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        self.random = torch.get_rng_state()
        if self.cuda:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.before
        torch.set_rng_state(self.random)
