"""What a run is asked for: one frozen record, checked when it is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxprune.errors import UsageError

Level = Literal["none", "constants", "reconstruct", "finetune"]
LEVELS: tuple[Level, ...] = ("none", "constants", "reconstruct", "finetune")
DEVICES = ("auto", "cpu", "cuda")
PREPROCESS = ("size", "mean", "std", "scale", "layout")
TARGETS = {"macs": "macs", "params": "params", "size": "bytes", "latency": "latency"}

RELATIVE_ERROR = "relative_error"  # the metric that --metric knows by name: outputs are numbers, not classes
# KEY of --finetune KEY=VALUE -> the type of its value.
TUNING: Mapping[str, type] = {
    "optimizer": str,
    "weight_decay": float,
    "warmup": float,
    "clip": float,
    "ema": float,
    "labels": float,
    "features": float,
    "temperature": float,
    "flip": bool,
    "crop": int,
    "mixup": float,
    "batchnorm": str,
    "statistics": str,
    "amp": str,
    "channels_last": bool,
    "compile": bool,
    "patience": int,
    "checkpoint_seconds": float,
}

TINY = 1e-12
# Option, type, smallest and largest value, what to give instead.
RANGES: tuple[tuple[str, type, float, float, str], ...] = (
    ("max_drop", float, 0, 1e9, "points that may be lost, 0 or more"),
    ("min_speedup", float, TINY, 1e9, "a number above 0"),
    ("epochs", int, 1, 1e9, "1 or more"),
    ("batch_size", int, 1, 1e9, "1 or more"),
    ("threads", int, 1, 1e6, "1 or more"),
    ("steps", int, 1, 1000, "1 or more"),
    ("lr", float, TINY, 1e9, "a number above 0"),
    ("align", int, 1, 1e9, "1 or more, or auto"),
    ("floor", float, 0, 1, "a share from 0 to 1"),
    ("seed", int, 0, 2**32 - 1, "a whole number from 0 to 4294967295"),
)


@dataclass(frozen=True)
class Options:
    """Options of the prune command; the names and defaults are those of the command line."""

    method: str = "snacs"
    data: Any = None
    val: Any = None
    target: Mapping[str, float] = field(default_factory=dict)
    max_drop: float | None = None
    steps: int = 1
    min_speedup: float | None = None
    recover: Level | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    finetune: Mapping[str, Any] = field(default_factory=dict)  # see recover/asked.py
    loss: str | Callable[..., Any] | None = None
    metric: str | Callable[..., Any] | None = None
    align: int | Literal["auto"] = "auto"
    floor: float = 0.05
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exact_only: bool = False
    inner_only: bool = False
    device: str = "auto"
    provider: str = "auto"
    threads: int | None = None
    plan: Path | None = None
    report: tuple[Path, ...] = ()
    resume: Path | None = None
    seed: int = 0
    progress: bool = False
    latency: bool = True  # measure it
    pack: bool = False  # store zeros small
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # size, mean, std, scale, layout
    method_options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        self._check_numbers()
        for key, fraction in self.target.items():
            if key not in TARGETS:
                raise UsageError(f"--target {key}: unknown; choose of {', '.join(TARGETS)}")
            if not _is_number(fraction) or not 0 < fraction <= 1:
                raise UsageError(f"--target {key}={fraction}: give the fraction that may remain, above 0 and up to 1")
        for name, known in (("recover", LEVELS), ("device", DEVICES)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(f"--{name} {value}: unknown; choose of {', '.join(known)}")
        if self.recover in ("reconstruct", "finetune") and self.data is None:
            raise UsageError(f"--recover {self.recover} needs samples; give --data, or --recover constants")
        if self.max_drop is not None and self.data is None and self.val is None:
            raise UsageError("--max-drop needs samples to measure on; give --data or --val")
        if not self.latency and (self.min_speedup is not None or "latency" in self.target):
            raise UsageError("--no-latency: a speed was asked for, which has to be measured; leave --no-latency out")
        if self.steps > 1 and not set(self.target) - {"latency"}:
            raise UsageError(f"--steps {self.steps} needs a --target of macs, params or size to approach; give one")

    def _check_numbers(self) -> None:
        for name, kind, low, high, wanted in RANGES:
            value = getattr(self, name)
            if value is None or (name == "align" and value == "auto"):
                continue
            # Not-a-number is in no range.
            if not (_is_number(value) and low <= value <= high and (kind is float or int(value) == value)):
                raise UsageError(f"--{name.replace('_', '-')} {value}: give {wanted}")

    @property
    def level(self) -> Level:
        """The recovery asked for, else the best that the data allows."""
        return self.recover or ("finetune" if self.data is not None else "constants")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def provider_for(options: Options) -> str:
    """cpu or another provider, for measuring: what trains on CUDA is measured there too."""
    if options.provider != "auto":
        return options.provider
    return "cuda" if options.device == "cuda" else "cpu"


def alignment_for(align: int | Literal["auto"], provider: str) -> int:
    """The multiple that kept sizes are held to on `provider`.

    auto: what 'onnxprune calibrate' measured on this machine; where it did not, 8 on CUDA (tensor cores), the float
    width of the vector unit on CPUs, as onnxruntime blocks channels.
    """
    if align != "auto":
        return int(align)
    from onnxprune.measure.calibrations import cached_multiple

    measured = cached_multiple(provider)
    if measured is not None:
        return measured
    if provider != "cpu":
        return 8
    features = _cpu_features()
    return 16 if features.get("AVX512F") else 8 if features.get("AVX2") else 4


def _cpu_features() -> Mapping[str, bool]:
    """What numpy found the CPU to have; nothing where this numpy keeps it elsewhere."""
    try:
        return import_module("numpy._core._multiarray_umath").__cpu_features__
    except (ImportError, AttributeError):
        return {}
