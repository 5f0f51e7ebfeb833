"""Which precision and memory layout train fastest here: measured, a few steps each.

On the CPU ways are compared by the CPU time that they take: on a busy machine the clock on the wall tells more of the
neighbors than of the way.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from onnxprune.errors import BridgeError
from onnxprune.recover.settings import Settings
from onnxprune.recover.teacher import precision

Clock = Callable[[], float]
STEPS = 3
GAIN = 1.3  # a less plain way must be that much faster, or timing noise would choose
SHORT_SECONDS = {"cpu": 0.05, "cuda": 0.005}  # steps shorter than this are not worth the choice, and too noisy for it


def fastest(network: nn.Module, feeds: dict[str, Tensor], settings: Settings, device: torch.device) -> Settings:
    """`settings` with amp and channels_last decided; `network` is left as it was."""
    options = _options(settings, device)
    if len(options) == 1:
        return options[0]
    clock = _clock(device)
    plain = _seconds(network, feeds, options[0], device, clock)
    if plain < SHORT_SECONDS[device.type]:
        return options[0]
    times = [plain, *(_seconds(network, feeds, option, device, clock) for option in options[1:])]
    best = 0
    for k in range(1, len(options)):
        if times[k] * GAIN < times[best]:
            best = k
    return options[best]


def slowdown(network: nn.Module, feeds: dict[str, Tensor], settings: Settings, device: torch.device) -> float:
    """How many times as long as in float32 a step takes in the precision of `settings`; 1 where that is no longer."""
    if settings.amp == "off":
        return 1.0
    as_asked, plain = (
        _seconds(network, feeds, s, device, _clock(device)) for s in (settings, replace(settings, amp="off"))
    )
    noise = max(plain, SHORT_SECONDS[device.type]) * GAIN
    return as_asked / plain if noise < as_asked < float("inf") else 1.0


def step_seconds(network: nn.Module, feeds: dict[str, Tensor], settings: Settings, device: torch.device) -> float:
    """How long a training step on `feeds` takes as `settings` say; `network` is left as it was."""
    seconds = _seconds(network, feeds, settings, device, time.perf_counter)
    return seconds if seconds < float("inf") else 0.0  # where it does not even work training will say why


@torch.no_grad()
def forward_seconds(network: nn.Module, feeds: dict[str, Tensor], device: torch.device) -> float:
    """The faster of two runs of `network` without gradients."""
    return min(_timed(lambda: network(feeds), device, time.perf_counter) for _ in range(2))


def _clock(device: torch.device) -> Clock:
    return time.process_time if device.type == "cpu" else time.perf_counter


def _options(settings: Settings, device: torch.device) -> list[Settings]:
    """The settings of precision and layout that may be chosen, the plainest first."""
    layouts = [False, True] if settings.channels_last is None else [settings.channels_last]
    if settings.amp != "auto":
        amps = [settings.amp]
    elif device.type == "cuda":
        amps = ["bf16" if torch.cuda.is_bf16_supported() else "fp16"]
    else:
        amps = ["off", "bf16"]
    return [replace(settings, amp=amp, channels_last=layout) for amp in amps for layout in layouts]


def _seconds(
    network: nn.Module, feeds: dict[str, Tensor], settings: Settings, device: torch.device, clock: Clock
) -> float:
    """The fastest of a few training steps by `clock`, infinite where this way does not work."""
    twin = copy.deepcopy(network).train()
    if settings.channels_last:
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        feeds = {n: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for n, x in feeds.items()}
    try:
        return min(_timed(lambda: _step(twin, feeds, settings, device), device, clock) for _ in range(STEPS))
    except (BridgeError, RuntimeError, MemoryError):  # no kernel for this type or layout, or no memory
        return float("inf")


def _step(network: nn.Module, feeds: dict[str, Tensor], settings: Settings, device: torch.device) -> None:
    with precision(settings, device):
        outputs = network(feeds)
    loss = torch.stack([y.float().square().mean() for y in _tensors(outputs.values()) if y.is_floating_point()]).sum()
    if not torch.isfinite(loss):
        raise RuntimeError(f"not finite in {settings.amp}")
    loss.backward()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among values, of which some are sequences of tensors."""
    for y in values:
        yield from y if isinstance(y, list) else [y]


def _timed(action: Callable[[], None], device: torch.device, clock: Clock) -> float:
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start
