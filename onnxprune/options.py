"""What a run is asked for: one frozen record, checked when it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxprune.errors import UsageError

Level = Literal["none", "constants", "reconstruct", "finetune"]
LEVELS: tuple[Level, ...] = ("none", "constants", "reconstruct", "finetune")
TARGETS = {"macs": "macs", "params": "params", "size": "bytes", "latency": "latency"}


@dataclass(frozen=True)
class Options:
    """Options of the prune command; the names and defaults are those of the command line."""

    method: str = "snacs"
    data: Any = None
    val: Any = None
    target: Mapping[str, float] = field(default_factory=dict)
    max_drop: float | None = None
    min_speedup: float | None = None
    recover: Level | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    align: int | Literal["auto"] = "auto"
    floor: float = 0.05
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exact_only: bool = False
    device: str = "auto"
    provider: str = "auto"
    threads: int | None = None
    plan: Path | None = None
    report: tuple[Path, ...] = ()
    resume: Path | None = None
    seed: int = 0
    progress: bool = False
    latency: bool = True  # measure it
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # size, mean, std, scale, layout
    method_options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        for key, fraction in self.target.items():
            if key not in TARGETS:
                raise UsageError(f"--target {key}: unknown; choose of {', '.join(TARGETS)}")
            if not 0 < fraction <= 1:
                raise UsageError(f"--target {key}={fraction:g}: give the fraction that may remain, above 0 and up to 1")
        if self.recover is not None and self.recover not in LEVELS:
            raise UsageError(f"--recover {self.recover}: unknown; choose of {', '.join(LEVELS)}")
        if self.recover in ("reconstruct", "finetune") and self.data is None:
            raise UsageError(f"--recover {self.recover} needs samples; give --data, or --recover constants")
        if self.max_drop is not None and self.data is None and self.val is None:
            raise UsageError("--max-drop needs samples to measure on; give --data or --val")
        if self.max_drop is not None and self.max_drop < 0:
            raise UsageError(f"--max-drop {self.max_drop:g}: give points that may be lost, 0 or more")
        for name in ("epochs", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if self.lr is not None and self.lr <= 0:
            raise UsageError(f"--lr {self.lr:g}: give a number above 0")
        if self.align != "auto" and self.align < 1:
            raise UsageError(f"--align {self.align}: give 1 or more, or auto")

    @property
    def level(self) -> Level:
        """The recovery asked for, else the best that the data allows."""
        return self.recover or ("finetune" if self.data is not None else "constants")


def alignment_for(align: int | Literal["auto"], provider: str) -> int:
    """The multiple that kept sizes are held to on `provider`.

    auto: what 'onnxprune calibrate' measured on this machine; where it did not, 8 on CUDA (tensor cores), the float
    width of the vector unit on CPUs, as onnxruntime blocks channels.
    """
    if align != "auto":
        return int(align)
    from onnxprune.bench.cache import cached_multiple

    measured = cached_multiple(provider)
    if measured is not None:
        return measured
    if provider != "cpu":
        return 8
    features: Mapping[str, bool] = getattr(np._core._multiarray_umath, "__cpu_features__", {})
    return 16 if features.get("AVX512F") else 8 if features.get("AVX2") else 4
