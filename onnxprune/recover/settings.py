"""How a model is fine-tuned: what the user may set, and what is chosen by the model, the data, the device and time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples, fixed_batch
from onnxprune.errors import UsageError
from onnxprune.outputs.kinds import CHOSEN, Outputs
from onnxprune.recover.linear import linears
from onnxprune.system.words import counted

OPTIMIZERS = ("auto", "sgd", "adamw")
# Peak learning rates at a batch of 128.
LEARNING_RATE = {("sgd", True): 0.05, ("sgd", False): 0.01, ("adamw", True): 1e-3, ("adamw", False): 5e-4}
# Steps; a shorter run has no time to come back from high rates or from the noise of batch statistics, after least
# squares least of all.
SHORT = 1000
# Samples seen in all epochs together, and the most epochs; seconds that they may take where nobody says.
BUDGET = {"cpu": (60_000, 20), "cuda": (2_000_000, 60)}
SECONDS = 1200.0
# Coarse, so that a step's time decides alike in two runs.
LENGTHS = (1, 2, 3, 4, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 120)
SEEN_OFTEN = 60  # epochs in which few samples are seen as they are; in more they are learned by heart
LEAST_STEPS = 8  # fewer bring nothing
LEAST_BATCH = 16  # below it the rate falls no further: the average of weights takes the noise
DEEP = 6  # convolutions; shallower networks train well without BatchNorm
SMALL_IMAGE, SHIFT = 64, 8  # the largest side of a small image, and the part of it by which it is shifted
ZOOM = 0.3  # of pictures, of which boxes and maps are learned


@dataclass(frozen=True)
class Settings:
    """Settings of fine-tuning; None and 'auto' are chosen when it starts, and `History.settings` says how.

    lr: the peak. labels: weight of the cross-entropy with labels against the distillation, 0 to 1.
    features: weight of intermediate values, of which the cut model may have a part. temperature: of the softmax;
    None for what the original's answers ask for, see losses.softest.
    ema: decay of the average of weights per step. warmup: share of the steps. clip: largest gradient norm.
    amp: 'bf16', 'fp16' or 'off'. batchnorm: 'on' puts BatchNorm back behind convolutions while training.
    statistics: what BatchNorm normalizes by while training, those of each 'batch', or 'frozen' as they are.
    flip, crop, zoom, mixup: augmentation of images; crop is in pixels, zoom the logarithm of the largest factor, mixup
    the parameter of the Beta distribution. None is chosen by what `movable` says.
    versions: fixed augmented versions of each sample, which epochs show in turn; the original is asked once about each;
    0 for a new version in every epoch, and a question in every step.
    patience: epochs without improvement after which it stops, 0 for never. loss, metric: the user's own.
    regression: outputs are compared as numbers, not as classes, even where they look like those.
    seconds: that training may take, by which `epochs` are cut down; None for no more than SECONDS, and for as many
    epochs as are asked for.
    """

    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    optimizer: str = "auto"
    weight_decay: float | None = None
    device: str = "cpu"
    seed: int = 0
    labels: float = 0.5
    features: float = 0.0
    temperature: float | None = None
    ema: float | None = None
    warmup: float = 0.05
    clip: float = 1.0
    amp: str = "auto"
    channels_last: bool | None = None
    compile: bool = False
    batchnorm: str = "auto"
    statistics: str = "auto"
    flip: bool | None = None
    crop: int | None = None
    mixup: float = 0.0
    zoom: float | None = None
    versions: int | None = None
    patience: int = 0
    resume_dir: str | None = None
    checkpoint_seconds: float = 60.0
    progress: bool = False
    loss: Callable[..., Any] | None = None
    metric: Callable[..., Any] | None = None
    regression: bool = False
    seconds: float | None = None
    outputs: Outputs | None = None  # what the original's outputs are, where that is known already

    def __post_init__(self):
        _check(self)

    @property
    def augments(self) -> bool:
        """Whether images are changed at random, so that the teacher sees others in each epoch."""
        return bool(self.flip or self.crop or self.zoom or self.mixup > 0)

    @property
    def shown(self) -> float:
        """Versions of each sample that all epochs show together; infinite where each shows a new one."""
        return (self.versions or math.inf) if self.augments else 1

    def described(self) -> str:
        """One line for the terminal and the report: what was chosen."""
        shown = "batch_size optimizer lr amp channels_last batchnorm statistics ema".split()
        on = [name for name in ("flip", "crop", "zoom", "versions", "mixup", "compile") if getattr(self, name)]
        chosen = ", ".join([*(f"{name} {_text(getattr(self, name))}" for name in shown), *on])
        return f"{counted(self.epochs or 0, 'epoch')} on {self.device} (--finetune: {chosen})"

    def as_json(self) -> dict[str, Any]:
        """Everything but where it runs from and the user's functions, which go by name."""
        left_out = {"resume_dir", "progress", "checkpoint_seconds", "seconds", "outputs"}
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}


def _check(s: Settings) -> None:
    rules = (
        (s.optimizer in OPTIMIZERS, "optimizer", s.optimizer, f"one of {', '.join(OPTIMIZERS)}"),
        (s.amp in ("auto", "bf16", "fp16", "off"), "amp", s.amp, "auto, bf16, fp16 or off"),
        (s.batchnorm in ("auto", "on", "off"), "batchnorm", s.batchnorm, "auto, on or off"),
        (s.statistics in ("auto", "batch", "frozen"), "statistics", s.statistics, "auto, batch or frozen"),
        (s.epochs is None or s.epochs >= 1, "epochs", s.epochs, "1 or more"),
        (s.batch_size is None or s.batch_size >= 1, "batch_size", s.batch_size, "1 or more"),
        (s.lr is None or s.lr > 0, "lr", s.lr, "more than 0"),
        (0 <= s.labels <= 1, "labels", s.labels, "a weight from 0 to 1"),
        (
            (s.versions or 0) >= 0 and not (s.versions and s.mixup),
            "versions",
            s.versions,
            "0 or more, and 0 with mixup, where others are mixed in every epoch",
        ),
        (s.temperature is None or s.temperature > 0, "temperature", s.temperature, "more than 0"),
        (s.ema is None or 0 <= s.ema < 1, "ema", s.ema, "a decay from 0 to below 1"),
        (
            (s.crop or 0) >= 0 and (s.zoom or 0) >= 0 and s.mixup >= 0 and s.clip >= 0,
            "crop, zoom, mixup, clip",
            (s.crop, s.zoom, s.mixup, s.clip),
            "0 or more",
        ),
    )
    for fine, name, given, wanted in rules:
        if not fine:
            raise UsageError(f"fine-tuning: {name} is {given}; give {wanted}")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else value


def choose(
    samples: Samples, model: ir.Model, device: str = "cpu", settings: Settings | None = None, *, masked: bool = False
) -> Settings:
    """`settings` with everything chosen that depends on the size of the data, the kind of model and the device.

    masked: weights stay zero, so that least squares did not come before.

    What only a measurement can tell ('auto' for amp, None for channels_last, how many epochs the time is enough for,
    whether the other optimizer does better) stays open until training starts.
    """
    s = replace(settings or Settings(), device=device)
    count = len(samples)
    fixed = fixed_batch(model)
    batch = min(s.batch_size or _batch_size(count), count)
    if fixed:  # a batch is made of as many of the model's as it takes
        batch = fixed * max(1, round(batch / fixed))
    numbers = s.outputs is not None and not any(part.kind in CHOSEN for part in s.outputs.learned)
    side, zooms = movable(samples, model, s, numbers=numbers)
    epochs = s.epochs or _epochs(count, device, (LENGTHS[-1] if zooms else SEEN_OFTEN) if numbers else 0)
    if zooms and epochs <= SEEN_OFTEN:
        side, zooms = 0, False
    optimizer = _optimizer(model, numbers) if s.optimizer == "auto" else s.optimizer
    narrow = fixed is not None and fixed < LEAST_BATCH  # no statistics can be taken of so few
    wanted = wants_batchnorm(model) and not narrow and not numbers  # boxes end worse by it than they began
    batchnorm = s.batchnorm if s.batchnorm != "auto" else ("on" if wanted else "off")
    normed = batchnorm == "on" or any(_norms(model))
    decay = s.weight_decay if s.weight_decay is not None else (1e-4 if optimizer == "sgd" else 1e-2)
    steps = epochs * max(1, count // batch)
    most = LEARNING_RATE[optimizer, True] * (steps / SHORT) ** 0.5
    share = (max(batch, LEAST_BATCH) / 128) ** 0.5
    lr = min(LEARNING_RATE[optimizer, normed], most) * share
    if zooms and optimizer == "adamw":  # of pictures that are new in each epoch nothing is learned by heart
        lr = min(LEARNING_RATE[optimizer, False], most)
    ema = s.ema if s.ema is not None else max(0.0, round(1 - 20 / max(steps, 20), 4))
    statistics = "frozen" if narrow else _statistics(steps, batchnorm, masked)
    return replace(
        s,
        epochs=epochs,
        batch_size=batch,
        optimizer=optimizer,
        batchnorm=batchnorm,
        statistics=statistics if s.statistics == "auto" else s.statistics,
        lr=s.lr or lr,
        weight_decay=decay,
        ema=min(ema, 0.9995),
        flip=side > 0 if s.flip is None else s.flip,
        crop=side // SHIFT if s.crop is None else s.crop,
        zoom=ZOOM * zooms if s.zoom is None else s.zoom,
        versions=s.versions or 0,
    )


def affordable(
    settings: Settings, asked: int | None, step_seconds: float, count: int, *, timed: bool = False
) -> tuple[int, int]:
    """(epochs, samples of each) that the time is enough for, where a step takes `step_seconds` and there are `count`.

    asked: the epochs that the user asked for, which only a time that was asked for as well cuts down. timed: training
    ends by the clock, wherever in an epoch that is, so it is planned for up to twice as long as its first steps say:
    machines get busy, and idle again. No samples where there is no time for a few steps.
    """
    assert settings.epochs is not None
    assert settings.batch_size is not None
    if settings.seconds is None and asked is not None:
        return asked, count
    steps = int((SECONDS if settings.seconds is None else max(0.0, settings.seconds)) / max(step_seconds, 1e-9))
    an_epoch = max(1, count // settings.batch_size)
    if steps >= an_epoch * settings.epochs:
        return settings.epochs, count
    if timed and steps >= LEAST_STEPS:
        fit = next((n for n in LENGTHS if n * an_epoch >= 2 * steps), settings.epochs)
        return min(fit, settings.epochs), count
    if steps >= an_epoch:
        return max(n for n in LENGTHS if n <= steps // an_epoch), count
    return 1, steps * settings.batch_size if steps >= LEAST_STEPS else 0


def movable(samples: Samples, model: ir.Model, settings: Settings, *, numbers: bool) -> tuple[int, bool]:
    """(the shorter side of images that may be mirrored and shifted, 0 where none may; whether they may be zoomed too).

    Those are small images, and pictures of any size where numbers are learned: of these few samples tell much less, and
    there is much to see in each. What labels say of places would have to move with them.
    """
    if samples.labels is not None and np.ndim(samples.labels) > 1:
        return 0, False
    small = small_images(model)
    if small or not numbers or settings.loss is not None:
        return small, False
    arrays = list(samples.batch(np.arange(1)).values())
    shape = arrays[0].shape if len(arrays) == 1 and arrays[0].dtype.kind == "f" else ()
    side = min(shape[2:]) if len(shape) == 4 and shape[1] == 3 else 0
    return (side, True) if side >= SHIFT else (0, False)


def small_images(model: ir.Model) -> int:
    """The side of the small square images of three channels, (N, 3, H, H), that `model` reads; 0 where it reads none.

    That is what photographs of such size come as; half of them may be mirrored, and an eighth is cut off with no harm.
    """
    shapes = [list(value.shape) for value in model.graph.inputs if value.shape is not None and len(value.shape) == 4]
    if len(shapes) != 1 or len(model.graph.inputs) != 1:
        return 0
    channels, height, width = (size if isinstance(size, int) else 0 for size in shapes[0][1:])
    return height if channels == 3 and height == width and SHIFT <= height <= SMALL_IMAGE else 0


def _statistics(steps: int, batchnorm: str, masked: bool) -> str:
    """Norms that were put back have nothing to lose by those of the batch, and neither has what was not refitted.

    Measured in docs/results/recovery.md and cifar10.md.
    """
    return "frozen" if steps < SHORT and batchnorm == "off" and not masked else "batch"


def _batch_size(count: int) -> int:
    """64 to 128, smaller where that would leave fewer than 16 steps an epoch."""
    return next((size for size in (128, 64, 32) if count >= 16 * size), 16)


def _epochs(count: int, device: str, often: int) -> int:
    """As many as the budget of samples has; often: of boxes, maps and the like, which few samples tell much of."""
    samples, most = BUDGET["cuda" if device.startswith("cuda") else "cpu"]
    most = max(most, often)
    return max(n for n in LENGTHS if n <= max(2, min(most, round(samples / max(1, count)))))


def _optimizer(model: ir.Model, numbers: bool) -> str:
    """A first guess, see `trial`: convolutions mostly train well by plain gradients, products of matrices do not.

    Boxes and maps are refined in small steps of every weight, which is what AdamW makes.
    """
    return "sgd" if not numbers and any(node.op_type == "Conv" for node in model.graph) else "adamw"


def _norms(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if "Normalization" in node.op_type)


def wants_batchnorm(model: ir.Model) -> bool:
    """True for a deep convolutional network without any normalization: its BatchNorm was folded away."""
    convolutions = [linear for linear in linears(model).values() if linear.kind == "convolution"]
    return not any(_norms(model)) and len(convolutions) >= DEEP
