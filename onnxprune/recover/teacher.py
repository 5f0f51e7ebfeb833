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
        self.remembered: dict[str, Tensor] | None = None

    @torch.no_grad()
    def says(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that the loss compares, by name."""
        with precision(self.settings, self.device):
            values = self.network(dict(feeds), capture=self.task.captured)
        return self.task.compared(values)

    def remember(self, samples: Samples) -> None:
        """Runs all samples once, in order, where their targets do not change and fit in memory."""
        if not self.settings.augments and self.settings.loss is None:
            self.remembered = self.all_on(samples, may_hold(ANSWERS_BYTES))

    def targets(self, feeds: Mapping[str, Tensor], numbers: np.ndarray) -> dict[str, Tensor]:
        """The teacher's answers on the samples with these numbers, the inputs of which are `feeds`."""
        if self.remembered is None:
            return self.says(feeds)
        index = torch.from_numpy(numbers).to(self.device)
        return {name: rows[index] for name, rows in self.remembered.items()}

    def all_on(self, samples: Samples, limit_bytes: int | None = None) -> dict[str, Tensor] | None:
        """The teacher's answers on all samples, (N, ...) by name; None where they exceed the limit or have no rows."""
        assert self.settings.batch_size is not None
        return halving(
            lambda batch: self._all_on(samples, limit_bytes, batch),
            self.settings.batch_size,
            "running the original",
            fixed=fixed_batch(self.model) is not None,
        )

    def _all_on(self, samples: Samples, limit_bytes: int | None, batch: int) -> dict[str, Tensor] | None:
        parts: list[dict[str, Tensor]] = []
        for feeds, numbers in walk(samples, self.model, batch):
            said = self.says(tensors_of(feeds, self.device, channels_last=bool(self.settings.channels_last)))
            if any(y.ndim == 0 or len(y) != len(numbers) for y in said.values()):
                return None
            parts.append({name: y.float() for name, y in said.items()})
            size = sum(y.nbytes for y in parts[0].values()) / len(numbers) * len(samples)
            if limit_bytes is not None and size > limit_bytes:
                return None
        return {name: torch.cat([part[name] for part in parts])[: len(samples)] for name in self.task.wanted}
