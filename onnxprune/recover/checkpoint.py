"""The state of a fine-tuning run on disk: one file, whole or absent, read without executing anything.

The file is a numpy archive of arrays, with everything else as JSON text in one of them. What is random is a function
of the seed and the step, so the step is all the state that randomness has.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.system.atomic_files import scratch

TEXT = "json"


def save(path: Path, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Writes the state beside its place and renames it; what was there before stays until then.

    Raises: UsageError when the folder cannot be written.
    """
    folder = path.parent
    content = {f"tensor/{name}": t.detach().cpu().contiguous().numpy() for name, t in arrays.items()}
    content[TEXT] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **content)  # type: ignore[arg-type]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch(folder) as place:
            part = Path(place) / path.name
            with part.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        raise UsageError(f"--resume {folder}: cannot be written ({error.strerror or error})") from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the facts that were saved last, None where nothing was.

    Raises: UsageError for a file that is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            facts = json.loads(bytes(content[TEXT]))
            names = [name for name in content.files if name.startswith("tensor/")]
            return {name.removeprefix("tensor/"): torch.from_numpy(content[name]) for name in names}, facts
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not a checkpoint ({error}); delete it to start anew") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer/{index}/{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Sets the state of an optimizer to what a checkpoint holds of it."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
