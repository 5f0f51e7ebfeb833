"""The state of a fine-tuning run, put on disk and taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from onnxprune.errors import UsageError
from onnxprune.recover import checkpoint, distributed
from onnxprune.recover.judging import Epoch, Verdict
from onnxprune.recover.settings import Settings

if TYPE_CHECKING:
    from onnxprune.recover.training import Run


def keep(run: Run, fingerprint: str) -> None:
    """Saves the state; one process does it for all."""
    if distributed.world()[0] != 0 or run.settings.resume_dir is None:
        return
    parts = {"now": run.tensors(), "average": run.average.tensors, "best": run.best}
    tensors = {f"{part}/{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
    tensors |= checkpoint.optimizer_tensors(run.optimizer)
    facts = {
        "fingerprint": fingerprint,
        "settings": {"amp": run.settings.amp, "channels_last": run.settings.channels_last},
        "step": run.step,
        "lost": run.lost,
        "spent": run.spent,
        "epochs": [asdict(epoch) for epoch in run.epochs],
        "best_epoch": run.best_epoch,
        "best_verdict": asdict(run.best_verdict),
        "initial": asdict(run.initial),
        "scaler": run.scaler.state_dict(),
    }
    checkpoint.save(run.settings.resume_dir, tensors, facts)


def resume(run: Run, fingerprint: str) -> bool:
    """Takes up the state that was saved in the resume folder; False where there is none."""
    saved = checkpoint.load(run.settings.resume_dir) if run.settings.resume_dir else None
    if saved is None:
        return False
    tensors, facts = saved
    check_same(facts, fingerprint, run.settings)
    for part, target in (("now", run.tensors()), ("average", run.average.tensors), ("best", run.best)):
        for name, tensor in target.items():
            tensor.data.copy_(tensors[f"{part}/{name}"])
    checkpoint.restore_optimizer(run.optimizer, tensors)
    run.scaler.load_state_dict(facts["scaler"])
    run.step, run.lost, run.spent = facts["step"], facts["lost"], facts["spent"]
    run.epochs = [Epoch(**epoch) for epoch in facts["epochs"]]
    run.best_epoch, run.best_verdict = facts["best_epoch"], Verdict(**facts["best_verdict"])
    run.initial = Verdict(**facts["initial"])
    return True


def check_same(facts: Mapping[str, Any], fingerprint: str, settings: Settings) -> None:
    """Raises: UsageError when the saved run is another one."""
    if facts.get("fingerprint") != fingerprint:
        raise UsageError(
            f"--resume {settings.resume_dir}: holds another run (of another model, other samples or other settings); "
            "give the same options as before, or another folder"
        )
