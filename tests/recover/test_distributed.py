"""Two processes under torchrun give the model that one gives with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import DIGITS

from onnxprune import graph
from onnxprune.recover import distributed

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SCRIPT = """
import os, sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from recovering import digits_of, random_keep
from onnxprune import graph, surgery
from onnxprune.plan.select import Selection
from onnxprune.system import processes
from onnxprune.recover.finetune import Settings, finetune
digits = digits_of("digits.onnx")
cut = surgery.cut(Selection(digits.coupling, random_keep(digits.coupling, 0.6)))
history = finetune(cut, digits.model, digits.tune, digits.held, Settings(
    epochs=2, batch_size=64, amp="off", channels_last=False, batchnorm="off", lr=0.02))
rank = os.environ.get("RANK", "0")
graph.save(cut, sys.argv[1] + rank + ".onnx")
print(history.best)
processes.leave(0)
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
    _run(tmp_path / "two", TORCHRUN)
    one, first, second = (_arrays(tmp_path / f"{name}.onnx") for name in ("one0", "two0", "two1"))
    for name, array in one.items():
        assert np.array_equal(first[name], second[name])
        assert np.abs(first[name] - array).max() <= 1e-3 * max(np.abs(array).max(), 1e-3), name


COMMAND = (
    "--method l1 --target macs=0.5 --data digits --recover finetune --epochs 2 --batch-size 64 --lr 0.02 --no-latency "
    "--finetune amp=off --finetune channels_last=false --finetune batchnorm=off"
)


def _command(launcher: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = [sys.executable, *launcher, "-m", "onnxprune", *words]
    return subprocess.run(given, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "--steps 2", "--max-drop 3"])
def test_the_command_prunes_once_and_trains_in_all_processes(tmp_path: Path, more: str):
    words = [*COMMAND.split(), *more.split()]
    alone = _command([], str(DIGITS), str(tmp_path / "one.onnx"), *words)
    shared = _command(TORCHRUN, str(DIGITS), str(tmp_path / "two.onnx"), *words)
    assert alone.returncode == shared.returncode == 0, shared.stderr
    assert shared.stdout.count("top1") == alone.stdout.count("top1") == 1
    one, two = _arrays(tmp_path / "one.onnx"), _arrays(tmp_path / "two.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx"]
    for name, array in one.items():
        assert array.shape == two[name].shape
        assert np.abs(two[name] - array).max() <= 1e-2 * max(np.abs(array).max(), 1e-3), name


@pytest.mark.slow
def test_the_command_fails_once(tmp_path: Path):
    words = COMMAND.replace("macs=0.5", "macs=0.001").split()
    ran = _command(TORCHRUN, str(DIGITS), str(tmp_path / "o.onnx"), *words)
    assert ran.returncode == 1
    assert ran.stderr.count("onnxprune: ") == 1
    assert not (tmp_path / "o.onnx").exists()


def test_other_commands_are_refused_under_torchrun(cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = cli("inspect", DIGITS)
    assert ran.code == 2
    assert "start it without torchrun" in ran.err


def test_processes_share_what_one_would_visit(monkeypatch: pytest.MonkeyPatch):
    alone = distributed.order(101, 3, 7)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: (rank, 2))
        parts.append(distributed.order(101, 3, 7))
    together = np.stack(parts, axis=1)
    for step in range(6):  # batches of 16
        assert set(together[8 * step : 8 * step + 8].ravel()) == set(alone[16 * step : 16 * step + 16])
    assert not np.array_equal(alone, distributed.order(101, 4, 7)[: len(alone)])
