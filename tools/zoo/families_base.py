"""What a network of families.py is: how it is built, and its inputs with their symbolic axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from weights import randomize, tensors

SIZES = {"batch": 2, "time": 12, "target": 9, "samples": 400, "images": 3, "height": 64, "width": 96}
OTHER_SIZES = {"batch": 3, "time": 17, "target": 6, "samples": 640, "images": 4, "height": 96, "width": 64}


@dataclass(frozen=True)
class Input:
    """One input; names in `shape` are symbolic axes. `words`: integers below it, -1 a mask that begins with ones."""

    shape: tuple[int | str, ...]
    words: int | None = None
    ones: bool = False

    def at(self, sizes: Mapping[str, int], seed: int) -> Tensor:
        """A random tensor at these sizes."""
        generator = torch.Generator().manual_seed(seed)
        size = [sizes[n] if isinstance(n, str) else n for n in self.shape]
        if self.ones:
            return torch.ones(size)
        if self.words == -1:
            mask = torch.ones(size, dtype=torch.int64)
            mask[-1, -(size[-1] // 4) :] = 0
            return mask
        if self.words:
            return torch.randint(0, self.words, size, generator=generator)
        return torch.randn(size, generator=generator)

    @property
    def axes(self) -> dict[int, str]:
        """The symbolic axes."""
        return {k: name for k, name in enumerate(self.shape) if isinstance(name, str)}


def words(count: int) -> Input:
    """Token numbers (batch, time)."""
    return Input(("batch", "time"), words=count)


def image(pixels: int, channels: int = 3, batch: str = "batch") -> Input:
    """Images (batch, channels, pixels, pixels)."""
    return Input((batch, channels, pixels, pixels))


class Wrapped(nn.Module):
    """A network called by names whose outputs, whatever holds them, come as a tuple of different float tensors."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(**dict(zip(self.names, given, strict=True))) if self.names[0] else self.network(*given)
        found = tensors(dict(outputs) if hasattr(outputs, "keys") else outputs)
        return tuple({id(t): t for t in found}.values())


@dataclass(frozen=True)
class Family:
    """One network: `build` may take attention="eager"; inputs whose name starts with "_" are given by position."""

    name: str
    source: str
    build: Callable[..., nn.Module]
    inputs: Mapping[str, Input]

    def feeds(self, sizes: Mapping[str, int] = SIZES, seed: int = 0) -> tuple[Tensor, ...]:
        """One set of random inputs."""
        return tuple(x.at(sizes, seed + k) for k, x in enumerate(self.inputs.values()))

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs of the file."""
        return [name.removeprefix("_") for name in self.inputs]

    def random(self, attention: str = "", seed: int = 0) -> nn.Module:
        """The network with random weights (see weights.py), in evaluation mode; the same for the same seed."""
        torch.backends.mha.set_fastpath_enabled(False)
        torch.manual_seed(seed)
        network = self.build(attention=attention)
        names = [name if not name.startswith("_") else "" for name in self.inputs]
        return randomize(Wrapped(network.eval(), names), self.feeds({**SIZES, "batch": 4}), seed)
