"""Two processes under torchrun give the model that one gives with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune import graph
from onnxprune.recover import distributed

SCRIPT = """
import os, sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from recovering import digits_of, random_keep
from onnxprune import graph, surgery
from onnxprune.recover.finetune import Settings, finetune
digits = digits_of("digits.onnx")
cut = surgery.cut(digits.coupling, random_keep(digits.coupling, 0.6))
history = finetune(cut, digits.model, digits.tune, digits.held, Settings(
    epochs=2, batch_size=64, amp="off", channels_last=False, batchnorm="off", lr=0.02))
rank = os.environ.get("RANK", "0")
graph.save(cut, sys.argv[1] + rank + ".onnx")
print(history.best, flush=True)
"""


def _run(out: Path, launcher: list[str]) -> None:
    script = out.parent / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, *launcher, str(script), str(out)], env=environment, check=True, timeout=300)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: graph.array_of(value) for name, value in graph.load(path).graph.initializers.items()}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path):
    _run(tmp_path / "one", [])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _run(tmp_path / "two", torchrun)
    one, first, second = (_arrays(tmp_path / f"{name}.onnx") for name in ("one0", "two0", "two1"))
    for name, array in one.items():
        assert np.array_equal(first[name], second[name])
        assert np.abs(first[name] - array).max() <= 1e-3 * max(np.abs(array).max(), 1e-3), name


def test_processes_share_what_one_would_visit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = distributed.order(101, 3, 7)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        parts.append(distributed.order(101, 3, 7))
    together = np.stack(parts, axis=1)
    for step in range(6):  # batches of 16
        assert set(together[8 * step : 8 * step + 8].ravel()) == set(alone[16 * step : 16 * step + 16])
    assert not np.array_equal(alone, distributed.order(101, 4, 7)[: len(alone)])
