"""The options of `onnxprune.prune` as keywords, for editors and type checkers; written by tools/keywords.py.

What a keyword means and which values there are is said in options.py, of which this is made.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from onnxprune.options import Align, Level


class Keywords(TypedDict, total=False):
    """Every option of the command line by its name in Python; those that are left out are chosen."""

    method: str
    target: Mapping[str, float]
    max_drop: float | None
    min_speedup: float | None
    steps: int
    align: Align
    floor: float
    include: str | tuple[str, ...] | list[str]
    exclude: str | tuple[str, ...] | list[str]
    states: str
    keep_tokens: str | Path | None
    exact_only: bool
    inner_only: bool
    allocate: str | None
    blocks: str | tuple[str, ...] | list[str]
    method_options: Mapping[str, Any]
    data: Any
    val: Any
    size: Any
    mean: Any
    std: Any
    scale: float | None
    layout: str | None
    labels: str | Path | None
    kinds: Mapping[str, str]
    recover: Level | None
    epochs: int | None
    lr: float | None
    batch_size: int | None
    device: str
    finetune: Mapping[str, Any]
    loss: str | Callable[..., Any] | None
    metric: str | Callable[..., Any] | None
    time: str | float | None
    resume: str | Path | None
    provider: str
    threads: int | None
    latency: bool
    front: bool
    pack: bool
    quantize: str | None
    plan: str | Path | None
    report: str | Path | tuple[str | Path, ...] | list[str | Path]
    seed: int
    command: str
    progress: bool
