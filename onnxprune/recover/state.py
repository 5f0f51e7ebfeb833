"""The state of a fine-tuning run, put on disk and taken up again.

A checkpoint is known by its contents: its name holds the hash of the original, of the samples and of what was asked
for, and inside it stand some numbers of the weights that the run started from. So one folder can hold the checkpoints
of several runs, and a run takes up none but its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from onnxprune import graph
from onnxprune.data import Samples
from onnxprune.recover import checkpoint, distributed
from onnxprune.recover.judging import Epoch, Verdict
from onnxprune.recover.settings import Settings

if TYPE_CHECKING:
    from onnxprune.recover.training import Run

LOG = logging.getLogger("onnxprune")
LOOKED_AT = 256  # samples, evenly spaced, whose numbers are hashed; of labels all are
NUMBERS = 64  # of each tensor, evenly spaced, by which the start is known
ALIKE = 1e-2  # of the largest of these: steps before this one may repeat with other last bits
# What a measurement decided when the run began, which an interrupted one takes up as it was.
DECIDED = ("amp", "channels_last", "epochs", "optimizer", "lr")
Start = Mapping[str, np.ndarray]


def key_of(cut_model: ir.Model, teacher: ir.Model, settings: Settings, samples: Samples, held: Samples, masks) -> str:
    """The key of a run: equal for runs that differ at most in the weights that they start from, see `start_of`."""
    shapes = [(name, *map(str, value.shape or ())) for name, value in sorted(cut_model.graph.initializers.items())]
    kept = {name: hashlib.sha256(np.packbits(mask).tobytes()).hexdigest() for name, mask in (masks or {}).items()}
    data = [_digest(part) for part in (samples, held)]
    facts = [settings.as_json(), shapes, graph.digest(teacher), data, kept]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _digest(samples: Samples) -> str:
    """SHA-256 of the number of samples, of all labels, and of the numbers of some samples."""
    hasher = hashlib.sha256(f"{len(samples)}".encode())
    hasher.update(b"none" if samples.labels is None else np.ascontiguousarray(samples.labels).tobytes())
    for index in np.unique(np.linspace(0, len(samples) - 1, LOOKED_AT).astype(int)):
        for name, array in sorted(samples.batch([index]).items()):
            hasher.update(f"{name} {array.dtype} {array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def start_of(model: ir.Model) -> dict[str, np.ndarray]:
    """A few numbers of each float weight that the run starts from."""
    found = {}
    for name, value in model.graph.initializers.items():
        if value.dtype is not None and value.dtype.is_floating_point():
            numbers = graph.array_of(value).ravel()
            places = np.linspace(0, numbers.size - 1, min(NUMBERS, numbers.size)).astype(int)
            found[name] = numbers[places].astype(np.float32)
    return found


def place_of(settings: Settings, key: str, start: Start) -> Path | None:
    """The file of the checkpoint of this run, there or not; None where none is asked for. What was found is told."""
    if settings.resume_dir is None:
        return None
    folder = Path(settings.resume_dir)
    others = sorted(folder.glob("finetune-*.npz"))
    mine = [path for path in others if path.stem.split("-")[1] == key[:16]]
    for path in mine:
        saved = checkpoint.load(path)
        if saved is not None and _alike(start, saved[0]):
            done, step = len(saved[1]["epochs"]), saved[1]["step"]
            say(f"--resume {folder}: goes on after epoch {done}, step {step}, of an earlier run")
            return path
    if others:
        why = "started from other weights" if mine else "are of another model, plan, other samples or other settings"
        say(f"--resume {folder}: its {len(others)} checkpoints {why}; they stay, and this run starts anew")
    else:
        say(f"--resume {folder}: holds no checkpoint yet; this run begins at the beginning and saves its own there")
    content = b"".join(name.encode() + array.tobytes() for name, array in sorted(start.items()))
    return folder / f"finetune-{key[:16]}-{hashlib.sha256(content).hexdigest()[:8]}.npz"


def _alike(start: Start, saved: Mapping) -> bool:
    """Whether the numbers at the start are those that were saved, but for last bits."""
    for name, ours in start.items():
        theirs = saved.get(f"start/{name}")
        if theirs is None or theirs.shape != ours.shape:
            return False
        if ours.size and np.abs(theirs.numpy() - ours).max() > ALIKE * max(np.abs(ours).max(), 1e-12):
            return False
    return True


def say(text: str) -> None:
    """Told by one of several processes."""
    if distributed.world()[0] == 0:
        LOG.warning(text)


def keep(run: Run) -> None:
    """Saves the state; one process does it for all."""
    if distributed.world()[0] != 0 or run.place is None:
        return
    parts = {"now": run.tensors(), "average": run.average.tensors, "best": run.best}
    tensors = {f"{part}/{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
    tensors |= checkpoint.optimizer_tensors(run.optimizer)
    tensors |= {f"start/{name}": torch.from_numpy(numbers) for name, numbers in run.start.items()}
    facts = {
        "decided": {name: getattr(run.settings, name) for name in DECIDED},
        "samples": len(run.samples),
        "step": run.step,
        "lost": run.lost,
        "spent": run.spent,
        "epochs": [asdict(epoch) for epoch in run.epochs],
        "best_epoch": run.best_epoch,
        "best_verdict": asdict(run.best_verdict),
        "initial": asdict(run.initial),
        "last": asdict(run.last),
        "scaler": run.scaler.state_dict(),
    }
    checkpoint.save(run.place, tensors, facts)


def resume(run: Run) -> bool:
    """Takes up the state that was saved at the run's place; False where there is none."""
    saved = checkpoint.load(run.place) if run.place else None
    if saved is None:
        return False
    tensors, facts = saved
    for part, target in (("now", run.tensors()), ("average", run.average.tensors), ("best", run.best)):
        for name, tensor in target.items():
            tensor.data.copy_(tensors[f"{part}/{name}"])
    checkpoint.restore_optimizer(run.optimizer, tensors)
    run.scaler.load_state_dict(facts["scaler"])
    run.step, run.lost, run.spent = facts["step"], facts["lost"], facts["spent"]
    run.epochs = [Epoch(**epoch) for epoch in facts["epochs"]]
    run.best_epoch, run.best_verdict = facts["best_epoch"], _verdict(facts["best_verdict"])
    run.initial, run.last = _verdict(facts["initial"]), _verdict(facts["last"])
    return True


def _verdict(saved: Mapping[str, Any]) -> Verdict:
    return Verdict(saved["metric"], tuple(saved["losses"]))
