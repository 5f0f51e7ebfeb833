"""Fine-tuning of a cut model with the original as its teacher, on samples with or without labels."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.bridge import Network
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples, batch_axes, fixed_batch, input_infos
from onnxprune.errors import DataError, UsageError
from onnxprune.outputs.losses import scaled, shared_points, task_of, with_points
from onnxprune.outputs.metrics import AGREEMENT, SHARE_KEPT
from onnxprune.recover import checkpoint, distributed, fair, probe, state, trial
from onnxprune.recover.augment import known_in_a_mirror
from onnxprune.recover.batchnorm import take_out, with_batchnorm
from onnxprune.recover.judging import CLEAR, Epoch, Judge, all_outputs, distances_of, reference_of
from onnxprune.recover.settings import SEEN_OFTEN, Settings, affordable, choose
from onnxprune.recover.teacher import Teacher
from onnxprune.recover.training import Run, train
from onnxprune.system.memory import halving
from onnxprune.system.words import counted

SCALED_ON = 32  # samples on which the spread of what is compared is seen
OTHER = {"sgd": "adamw", "adamw": "sgd"}
NO_TIME = "fine-tuning: left out, for no time is left for it; give more with --time"

__all__ = ["Epoch", "History", "Settings", "choose", "finetune"]


@dataclass(frozen=True)
class History:
    """How a run went: the settings as they were chosen, each epoch, and which one was kept (0: the start).

    metric: agreement, share_kept, relative_error or the user's; initial: before the first step; told: what was kept,
    and why.
    """

    settings: Settings
    metric: str
    initial: float
    epochs: tuple[Epoch, ...]
    best_epoch: int
    best: float
    seconds: float
    stopped: str
    told: str = ""


def finetune(
    cut_model: ir.Model,
    teacher: ir.Model,
    samples: Samples,
    held: Samples,
    settings: Settings | None = None,
    *,
    masks: Mapping[str, np.ndarray] | None = None,
    positions: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> History:
    """Trains `cut_model`, in place, to answer as `teacher` does.

    The averaged weights of the end are kept, unless on `held` they are clearly worse than those of the start or of
    another epoch, see `judging`.

    masks: initializer -> booleans of its shape; where False it stays zero. positions: value -> axis -> the positions of
    the teacher's value that the cut model has, for settings.features.
    settings.loss: of (values, teacher's values, labels or None), all by name.
    Raises: DataError without samples, UsageError for masks that fit nothing and for a loss that is no longer finite.
    """
    if len(samples) < 2 or len(held) < 1:
        raise DataError(
            f"fine-tuning: {counted(len(samples), 'sample')} and {len(held)} held out; give at least 2 and 1"
        )
    started = time.monotonic()
    asked = settings or Settings()
    start = state.start_of(cut_model) if asked.resume_dir else {}
    key = state.key_of(cut_model, teacher, asked, samples, held, masks) if asked.resume_dir else ""
    place = state.place_of(asked, key, start)
    device = distributed.device_of(asked.device)
    with distributed.group(device), _deterministic(device):
        run, model = _prepare(cut_model, teacher, samples, held, asked, device, masks, positions or {}, place, start)
        if run is None:
            chosen = choose(samples, cut_model, asked.device, asked, masked=bool(masks))
            return History(chosen, AGREEMENT, 0.0, (), 0, 0.0, time.monotonic() - started, NO_TIME, NO_TIME)
        stopped = train(run)
        # Where the start is kept nothing is written: norms put in and folded again would change last bits.
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
        _told(run),
    )


def _told(run: Run) -> str:
    """Which epoch was kept, and why, in one line."""
    done, start, end, best = len(run.epochs), run.initial, run.last, run.best_verdict
    found = f"{run.judge.name.replace('_', ' ')} with the original on {run.judge.told}"
    if run.judge.name == SHARE_KEPT:
        found = f"share kept between a model that answers all alike and the original on {run.judge.told}"
    if run.settings.metric is not None:
        found = f"{run.judge.name} on {run.judge.told}"
    passed = sum(epoch.share for epoch in run.epochs)
    after = f"after {counted(passed, 'epoch')}"
    shown = [verdict.metric for verdict in (start, end, best)]
    if run.judge.distances is not None and run.settings.metric is None:
        found = f"distance of boxes and what stands beside them from the original's on {run.judge.told}"
        shown = [verdict.loss for verdict in (start, end, best)]
    numbers = f"{found}: {shown[0]:.4f} before, {shown[1]:.4f} {after}"
    if run.best_epoch == done:
        how = "better" if end.excess_over(start) < -CLEAR else "as good, within the noise"
        return f"fine-tuning was kept: the model after it is {how} ({numbers})"
    if run.best_epoch:
        return f"fine-tuning was kept up to epoch {run.best_epoch}, with {shown[2]:.4f}: later it got worse ({numbers})"
    return f"fine-tuning was dropped: the model after it is worse ({numbers})"


def _prepare(cut_model, teacher, samples, held, asked: Settings, device, masks, positions, place, start):
    """The run, and the model that it trains: `cut_model` itself, or a copy with BatchNorm put back.

    None where no time is left for one.
    """
    settings = choose(samples, cut_model, asked.device, asked, masked=bool(masks))
    assert settings.batch_size is not None
    _check_world(settings, cut_model)
    torch.manual_seed(settings.seed)
    model, fixed = cut_model, fixed_batch(cut_model)
    batch_size = fixed or settings.batch_size  # at once
    if settings.batchnorm == "on":
        model = halving(
            lambda batch: with_batchnorm(cut_model, samples, device, batch),
            batch_size,
            "statistics for BatchNorm",
            fixed=fixed is not None,
        )
    network = Network(model, freeze_norm=settings.statistics == "frozen").to(device)
    saved = checkpoint.load(place) if place else None
    if saved is not None:
        decided, count = saved[1]["decided"], saved[1]["samples"]
    else:
        decided, count = _decide(network, teacher, samples, settings, asked, device, batch_size)
    if not count:
        return None, model
    samples = samples if count == len(samples) else samples.subset(_some(len(samples), count, asked.seed))
    settings = choose(samples, cut_model, asked.device, replace(asked, **decided), masked=bool(masks))
    network.freeze_norm = settings.statistics == "frozen"
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    task = halving(
        lambda batch: _task(model, teacher, samples, replace(settings, batch_size=batch), device, positions),
        batch_size,
        "fine-tuning",
        fixed=fixed is not None,
    )
    asked = replace(asked, temperature=asked.temperature or task.temperature)
    settings = replace(settings, temperature=asked.temperature)
    original = Teacher(teacher, task, settings, device)
    if settings.shown < math.inf:
        original.remember(len(samples), int(settings.shown))
    judge = _judge(model, teacher, task, held, settings, device, len(samples))
    module = distributed.wrap(network, device, all_used=settings.loss is None)
    if settings.compile:
        module.compile()
    tensors = _mask_tensors(network, masks or {}, device)
    run = Run(model, network, module, original, task, settings, samples, judge, device, tensors, place, start)
    if saved is None and asked.optimizer == "auto" and asked.lr is None:
        other = replace(asked, **{**decided, "optimizer": OTHER[settings.optimizer]})
        other = choose(samples, cut_model, asked.device, other, masked=bool(masks))
        run = replace(run, settings=trial.settled(run, other))
    return run, model


def _some(count: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` of `count` numbers, in order."""
    return np.sort(np.random.RandomState(seed).permutation(count)[:wanted])


def _judge(model, teacher, task, held: Samples, settings: Settings, device, trained: int) -> Judge:
    """A judge on mixtures of `held`; on them as they are where the user's own metric judges, or mixtures are senseless.

    trained: the samples of an epoch; judging is to cost a small part of what training does.
    """
    batch_size = fixed_batch(model) or settings.batch_size or 1
    plain = Teacher(teacher, with_points(task, (), {}), replace(settings, amp="off"), device)
    by_kind = None if settings.metric is not None or settings.regression else settings.outputs
    if settings.metric is None:
        samples = fair.mixed(held, batch_axes(input_infos(teacher)), trained // 4, settings.seed)
        said = plain.all_on(samples)
        if said is not None and all(bool(y.isfinite().all()) for y in said.values()):
            reference = reference_of(samples, by_kind, said)
            return Judge(
                model, task, samples, said, device, batch_size, reference=reference, distances=distances_of(reference)
            )
    said, everything = plain.all_on(held), None
    if said is None:
        raise DataError(f"fine-tuning: {', '.join(task.outputs)} have no row per sample; give --recover reconstruct")
    if settings.metric is not None:
        everything = all_outputs(plain.network, held, teacher, device, batch_size)
    reference = reference_of(held, by_kind, said)
    distances = distances_of(reference)
    return Judge(model, task, held, said, device, batch_size, settings.metric, everything, reference, distances)


def _check_world(settings: Settings, model: ir.Model) -> None:
    size = distributed.world()[1]
    least = size * (fixed_batch(model) or 1)
    assert settings.batch_size is not None
    if size > 1 and settings.batch_size % least:
        raise UsageError(
            f"fine-tuning: a batch of {settings.batch_size} does not divide among {size} processes; "
            f"give a batch size that is a multiple of {least}"
        )


def _decide(
    network: Network, teacher: ir.Model, samples: Samples, settings: Settings, asked: Settings, device, at_once: int
) -> tuple[dict[str, Any], int]:
    """(precision, layout and epochs, samples of an epoch): what is fastest here, and what the time is enough for."""
    feeds = tensors_of(samples.batch(_first(samples, at_once)), device)
    fast = probe.fastest(network, feeds, settings, device)
    if asked.amp != "auto" and (times := probe.slowdown(network, feeds, fast, device)) > 1:
        state.say(
            f"fine-tuning: a step in {asked.amp} takes {times:.1f} times as long as in float32 on this machine; "
            "leave amp to be measured, or give --finetune amp=off"
        )
    epochs, count = asked.epochs or settings.epochs, len(samples)
    if asked.seconds is not None or asked.epochs is None:
        seconds = probe.step_seconds(network, feeds, fast, device)
        answers = probe.forward_seconds(Network(teacher, trainable=()).to(device).eval(), feeds, device)
        seconds += answers * min(1.0, settings.shown / (epochs or 1))
        pieces = (settings.batch_size or 1) / at_once
        world = distributed.world()[1]
        timed = asked.seconds is not None and world == 1
        epochs, count = affordable(settings, asked.epochs, seconds * pieces / world, count, timed=timed)
    found = {"amp": fast.amp, "channels_last": fast.channels_last, "epochs": epochs}
    if asked.flip is None and settings.zoom and (epochs or 0) > SEEN_OFTEN:  # pictures of whatever the model is for
        found["flip"] = known_in_a_mirror(teacher, samples, settings, device, at_once)
    found, count = distributed.agreed([found, count], device)
    return found, count


@torch.no_grad()
def _task(model: ir.Model, teacher: ir.Model, samples: Samples, settings: Settings, device, positions):
    """The values that are compared, with the spread of each on a few samples."""
    network = Network(teacher, trainable=()).to(device).eval()
    feeds = tensors_of(samples.batch(_first(samples, settings.batch_size or 1)), device)
    points = shared_points(model, teacher, positions) if settings.features > 0 else ()
    count = settings.batch_size or 1
    cut = Network(model, trainable=()).to(device).eval()
    mine = {value.name for node in model.graph for value in node.outputs}

    def seen(names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        both = [name for name in names if name in mine]
        one, two = network(feeds, capture=both), cut(feeds, capture=both)
        return {name: one[name] for name in both if one[name].shape == two[name].shape}

    task = task_of(teacher, network(feeds), count, seen, regression=settings.regression, described=settings.outputs)
    if not task.outputs and settings.loss is None:
        raise DataError(
            "fine-tuning: no output has a row per sample, and nothing that it is made of can be compared; "
            "give --recover reconstruct, or a --loss and a --metric of your own"
        )
    task = with_points(task, points, positions)
    values = task.compared(network(feeds, capture=task.captured))
    if points:
        ours = cut(feeds, capture=points)
        equal = [name for name in points if values[name].shape == ours[name].shape]  # sizes that move may differ
        task = with_points(task, equal, positions)
    values = _several(lambda few: task.compared(network(few, capture=task.captured)), samples, count, device)
    return scaled(task, values)


def _several(
    said: Callable[..., Mapping[str, torch.Tensor]], samples: Samples, batch: int, device
) -> dict[str, torch.Tensor]:
    """The answers on some samples, a batch at a time; values without a row per sample are those of the first."""
    spread = np.linspace(0, len(samples) - 1, max(batch, min(SCALED_ON, len(samples)) // batch * batch)).astype(int)
    runs = [said(tensors_of(samples.batch(spread[k : k + batch]), device)) for k in range(0, len(spread), batch)]
    whole = [name for name, y in runs[0].items() if y.ndim and all(len(run[name]) == batch for run in runs)]
    return {**runs[0], **{name: torch.cat([run[name] for run in runs]) for name in whole}}


def _first(samples: Samples, count: int) -> np.ndarray:
    """The numbers of one batch."""
    return np.resize(np.arange(len(samples)), count)


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
