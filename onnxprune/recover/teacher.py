"""The original model as the teacher: what it says on a batch, remembered where that is possible."""

import contextlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge import Network
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples, fixed_batch
from onnxprune.data.samples import walk
from onnxprune.outputs.losses import Task
from onnxprune.recover.settings import Settings
from onnxprune.system.memory import ANSWERS_BYTES, halving, may_hold


def precision(settings: Settings, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast as the settings say."""
    if settings.amp in ("off", "auto"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if settings.amp == "bf16" else torch.float16)


class Teacher:
    """The dense model on one device."""

    def __init__(self, model: ir.Model, task: Task, settings: Settings, device: torch.device) -> None:
        self.model, self.task, self.settings, self.device = model, task, settings, device
        self.network = Network(model, trainable=()).to(device).eval()
        if settings.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.seen: dict[str, Tensor] | None = None  # (versions, N, ...) by name, where `known` (versions, N) is True
        self.known: Tensor | None = None

    @torch.no_grad()
    def says(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that the loss compares, by name."""
        with precision(self.settings, self.device):
            values = self.network(dict(feeds), capture=self.task.captured)
        return self.task.compared(values)

    def remember(self, count: int, versions: int) -> None:
        """Keeps what is said from now on of `count` samples in so many versions, where memory does for all of it."""
        if self.settings.loss is None:
            self.known = torch.zeros(versions, count, dtype=torch.bool, device=self.device)

    def targets(self, feeds: Mapping[str, Tensor], numbers: np.ndarray, version: int | None) -> dict[str, Tensor]:
        """The answers on the samples with these numbers, of which `feeds` is that version; None: one of its own."""
        if self.known is None or version is None:
            return self.says(feeds)
        index = torch.from_numpy(numbers).to(self.device)
        if self.seen is not None and bool(self.known[version, index].all()):
            return {name: rows[version, index] for name, rows in self.seen.items()}
        said = self.says(feeds)
        self._keep(said, version, index)
        return said

    def _keep(self, said: Mapping[str, Tensor], version: int, index: Tensor) -> None:
        """Remembers rows; no longer any, where answers have no row for each sample or are too many."""
        assert self.known is not None
        rows = all(y.ndim > 0 and len(y) == len(index) for y in said.values())
        if rows and self.seen is None:
            size = sum(y[0].numel() for y in said.values()) * torch.float32.itemsize * self.known.numel()
            if size <= may_hold(ANSWERS_BYTES):
                self.seen = {
                    name: torch.zeros(*self.known.shape, *y.shape[1:], device=self.device) for name, y in said.items()
                }
        if self.seen is None or not rows or any(self.seen[name].shape[2:] != y.shape[1:] for name, y in said.items()):
            self.known = self.seen = None
            return
        for name, y in said.items():
            self.seen[name][version, index] = y.float()
        self.known[version, index] = True

    def all_on(self, samples: Samples) -> dict[str, Tensor] | None:
        """The teacher's answers on all samples, (N, ...) by name; None where they have no rows."""
        assert self.settings.batch_size is not None
        return halving(
            lambda batch: self._all_on(samples, batch),
            self.settings.batch_size,
            "running the original",
            fixed=fixed_batch(self.model) is not None,
        )

    def _all_on(self, samples: Samples, batch: int) -> dict[str, Tensor] | None:
        parts: list[dict[str, Tensor]] = []
        for feeds, numbers in walk(samples, self.model, batch):
            said = self.says(tensors_of(feeds, self.device, channels_last=bool(self.settings.channels_last)))
            if any(y.ndim == 0 or len(y) != len(numbers) for y in said.values()):
                return None
            parts.append({name: y.float() for name, y in said.items()})
        return {name: torch.cat([part[name] for part in parts])[: len(samples)] for name in self.task.wanted}
