"""How a model is fine-tuned: what the user may set, and what is chosen by the model, the data and the device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import onnx_ir as ir

from onnxprune.data import Samples, fixed_batch
from onnxprune.errors import UsageError
from onnxprune.recover.linear import linears

OPTIMIZERS = ("auto", "sgd", "adamw")
ATTENTION = frozenset({"Softmax", "Attention", "MultiHeadAttention"})
# Peak learning rates at a batch of 128.
LEARNING_RATE = {("sgd", True): 0.05, ("sgd", False): 0.01, ("adamw", True): 1e-3, ("adamw", False): 5e-4}
# Steps; a shorter run has no time to come back from high rates or from the noise of batch statistics, after least
# squares least of all.
SHORT = 1000
# Samples seen in all epochs together, and the bounds of the number of epochs.
BUDGET = {"cpu": (60_000, 2, 20), "cuda": (2_000_000, 5, 60)}
DEEP = 6  # convolutions; shallower networks train well without BatchNorm


@dataclass(frozen=True)
class Settings:
    """What fine-tuning does; None and 'auto' are chosen when it starts, and `History.settings` says how.

    lr: the peak. labels: weight of the cross-entropy with labels against the distillation, 0 to 1.
    features: weight of intermediate values, of which the cut model may have a part. temperature: of the softmax.
    ema: decay of the average of weights per step. warmup: share of the steps. clip: largest gradient norm.
    amp: 'bf16', 'fp16' or 'off'. batchnorm: 'on' puts BatchNorm back behind convolutions while training.
    statistics: what BatchNorm normalizes by while training, those of each 'batch', or 'frozen' as they are.
    flip, crop, mixup: augmentation of images; crop is in pixels, mixup the parameter of the Beta distribution.
    patience: epochs without improvement after which it stops, 0 for never. loss, metric: the user's own.
    regression: outputs are compared as numbers, not as classes, even where they look like those.
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
    temperature: float = 4.0
    ema: float | None = None
    warmup: float = 0.05
    clip: float = 1.0
    amp: str = "auto"
    channels_last: bool | None = None
    compile: bool = False
    batchnorm: str = "auto"
    statistics: str = "auto"
    flip: bool = False
    crop: int = 0
    mixup: float = 0.0
    patience: int = 0
    resume_dir: str | None = None
    checkpoint_seconds: float = 60.0
    progress: bool = False
    loss: Callable[..., Any] | None = None
    metric: Callable[..., Any] | None = None
    regression: bool = False

    def __post_init__(self):
        _check(self)

    @property
    def augments(self) -> bool:
        return self.flip or self.crop > 0 or self.mixup > 0

    def described(self) -> str:
        """One line for the terminal and the report: what was chosen."""
        shown = "epochs batch_size optimizer lr amp channels_last batchnorm statistics ema device".split()
        on = [name for name in ("flip", "crop", "mixup", "compile") if getattr(self, name)]
        return ", ".join([*(f"{name} {_text(getattr(self, name))}" for name in shown), *on])

    def as_json(self) -> dict[str, Any]:
        """Everything but where it runs from and the user's functions, which go by name."""
        left_out = {"resume_dir", "progress", "checkpoint_seconds"}
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
        (s.temperature > 0, "temperature", s.temperature, "more than 0"),
        (s.ema is None or 0 <= s.ema < 1, "ema", s.ema, "a decay from 0 to below 1"),
        (s.crop >= 0 and s.mixup >= 0 and s.clip >= 0, "crop, mixup, clip", (s.crop, s.mixup, s.clip), "0 or more"),
    )
    for fine, name, given, wanted in rules:
        if not fine:
            raise UsageError(f"fine-tuning: {name} is {given}; give {wanted}")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else value


def choose(
    samples: Samples, model: ir.Model, device: str = "cpu", settings: Settings | None = None, *, masked: bool = False
) -> Settings:
    """`settings` with everything chosen that depends on the size of the data, the kind of model and the device.

    masked: weights stay zero, so that least squares did not come before.

    What only a measurement can tell ('auto' for amp, None for channels_last) stays open until training starts.
    """
    s = replace(settings or Settings(), device=device)
    count = len(samples)
    batch = fixed_batch(model) or min(s.batch_size or _batch_size(count), count)
    epochs = s.epochs or _epochs(count, device)
    optimizer = _optimizer(model) if s.optimizer == "auto" else s.optimizer
    batchnorm = s.batchnorm if s.batchnorm != "auto" else ("on" if wants_batchnorm(model) else "off")
    normed = batchnorm == "on" or any(_norms(model))
    decay = s.weight_decay if s.weight_decay is not None else (1e-4 if optimizer == "sgd" else 1e-2)
    steps = epochs * max(1, count // batch)
    most = LEARNING_RATE[optimizer, True] * (steps / SHORT) ** 0.5
    lr = s.lr or min(LEARNING_RATE[optimizer, normed], most) * (batch / 128) ** 0.5
    ema = s.ema if s.ema is not None else max(0.0, round(1 - 20 / max(steps, 20), 4))
    return replace(
        s,
        epochs=epochs,
        batch_size=batch,
        optimizer=optimizer,
        batchnorm=batchnorm,
        statistics=_statistics(steps, batchnorm, masked) if s.statistics == "auto" else s.statistics,
        lr=lr,
        weight_decay=decay,
        ema=min(ema, 0.9995),
    )


def _statistics(steps: int, batchnorm: str, masked: bool) -> str:
    """Norms that were put back have nothing to lose by those of the batch, and neither has what was not refitted.

    Measured in docs/results/recovery.md and cifar10.md.
    """
    return "frozen" if steps < SHORT and batchnorm == "off" and not masked else "batch"


def _batch_size(count: int) -> int:
    """64 to 128, smaller where that would leave fewer than 16 steps an epoch."""
    return next((size for size in (128, 64, 32) if count >= 16 * size), 16)


def _epochs(count: int, device: str) -> int:
    budget, least, most = BUDGET["cuda" if device.startswith("cuda") else "cpu"]
    return max(least, min(most, round(budget / max(1, count))))


def _optimizer(model: ir.Model) -> str:
    ops = {node.op_type for node in model.graph}
    convolutional = "Conv" in ops
    # A classifier's last Softmax is no attention: attention multiplies what it gives.
    attends = any(node.op_type in ATTENTION and not _ends(node) for node in model.graph)
    return "sgd" if convolutional and not attends and "LayerNormalization" not in ops else "adamw"


def _ends(node: ir.Node) -> bool:
    return all(value.is_graph_output() or not value.uses() for value in node.outputs)


def _norms(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if "Normalization" in node.op_type)


def wants_batchnorm(model: ir.Model) -> bool:
    """True for a deep convolutional network without any normalization: its BatchNorm was folded away."""
    convolutions = [linear for linear in linears(model).values() if linear.node.op_type == "Conv"]
    return not any(_norms(model)) and len(convolutions) >= DEEP
