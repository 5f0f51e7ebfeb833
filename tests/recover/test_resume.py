"""A run that was interrupted ends as one that was not."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from recovering import Digits, random_keep

from onnxprune import graph, surgery
from onnxprune.data import Samples
from onnxprune.data.samples import Subset
from onnxprune.errors import UsageError
from onnxprune.plan.select import Selection
from onnxprune.recover import checkpoint
from onnxprune.recover.finetune import Settings, finetune

QUICK = Settings(epochs=3, batch_size=64, amp="off", channels_last=False, checkpoint_seconds=0.0)

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from recovering import digits_of, random_keep
from onnxprune import graph, surgery
from onnxprune.plan.select import Selection
from onnxprune.recover.finetune import Settings, finetune
digits = digits_of("digits.onnx")
cut = surgery.cut(Selection(digits.coupling, random_keep(digits.coupling, 0.5)))
print("started", flush=True)
finetune(cut, digits.model, digits.tune, digits.held, Settings(
    epochs=3, batch_size=64, amp="off", channels_last=False, checkpoint_seconds=0.0, batchnorm="on",
    resume_dir=sys.argv[1] or None))
graph.save(cut, sys.argv[2])
"""


def _command(folder: Path | str, out: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(here=str(Path(__file__).parent)), str(folder), str(out)]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }


def _killed_until_done(folder: Path, out: Path, seed: int, kills: int, span: float) -> int:
    """Starts the run again and again and kills it at random moments; the number of kills."""
    rng = np.random.default_rng(seed)
    for kill in range(kills):
        process = subprocess.Popen(_command(folder, out), env=_environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0.1, span)))
        if process.poll() is not None:
            return kill
        process.send_signal(signal.SIGKILL if kill % 2 else signal.SIGINT)
        process.wait()
        process.stdout.close()
        if out.exists():  # it had ended before the signal came: what it left must be whole
            graph.load(out)
            return kill
    return kills


def _same(a: Path, b: Path) -> None:
    one, two = graph.load(a), graph.load(b)
    for name, value in one.graph.initializers.items():
        assert np.array_equal(graph.array_of(value), graph.array_of(two.graph.initializers[name])), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out.onnx"
    subprocess.run(_command("", out), env=_environment(), check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_a_killed_run_ends_equal(uninterrupted: Path, tmp_path: Path, seed: int):
    out = tmp_path / "out.onnx"
    _killed_until_done(tmp_path / "state", out, seed, 2, 4.0)
    subprocess.run(_command(tmp_path / "state", out), env=_environment(), check=True, stdout=subprocess.DEVNULL)
    _same(uninterrupted, out)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 16))
def test_runs_killed_at_random_moments_end_equal(uninterrupted: Path, tmp_path: Path, seed: int):
    out = tmp_path / "out.onnx"
    _killed_until_done(tmp_path / "state", out, seed, 2, 8.0)
    subprocess.run(_command(tmp_path / "state", out), env=_environment(), check=True, stdout=subprocess.DEVNULL)
    _same(uninterrupted, out)


class StopError(Exception):
    pass


@pytest.mark.parametrize("extra", [{}, {"optimizer": "adamw"}, {"batchnorm": "on", "mixup": 0.5, "crop": 1}])
@pytest.mark.parametrize("at", [3, 17])
def test_a_run_that_failed_midway_ends_equal(folded: Digits, tmp_path: Path, monkeypatch, extra: dict, at: int):
    from onnxprune.recover import training

    torch.set_num_threads(1)
    keep, few = random_keep(folded.coupling, 0.5), folded.tune.subset(np.arange(448))
    settings = replace(QUICK, **extra)
    whole = surgery.cut(Selection(folded.coupling, keep))
    finetune(whole, folded.model, few, folded.held, settings)
    calls, step = 0, training.step_on

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls == at:
            raise StopError
        return step(*args)

    monkeypatch.setattr(training, "step_on", failing)
    settings = replace(settings, resume_dir=str(tmp_path / "state"))
    with pytest.raises(StopError):
        finetune(surgery.cut(Selection(folded.coupling, keep)), folded.model, few, folded.held, settings)
    resumed = surgery.cut(Selection(folded.coupling, keep))
    history = finetune(resumed, folded.model, few, folded.held, settings)
    assert calls == 21 + 1  # only the step that failed was done again
    assert len(history.epochs) == 3
    assert graph.digest(resumed) == graph.digest(whole)


def test_a_finished_run_is_not_run_again(folded: Digits, tmp_path: Path):
    keep, few = random_keep(folded.coupling, 0.5), folded.tune.subset(np.arange(128))
    settings = replace(QUICK, resume_dir=str(tmp_path))
    models = []
    for _ in range(2):
        cut = surgery.cut(Selection(folded.coupling, keep))
        models.append((finetune(cut, folded.model, few, folded.held, settings).epochs, graph.digest(cut)))
    assert models[0] == models[1]


def _tuned(teacher: ir.Model, cut: ir.Model, few: Samples, held: Samples, settings: Settings) -> str:
    """The digest of `cut` after fine-tuning."""
    finetune(cut, teacher, few, held, settings)
    return graph.digest(cut)


def _other_weights(model: ir.Model, seed: int = 1) -> ir.Model:
    """`model` with the signs of some weights turned."""
    rng, model = np.random.default_rng(seed), graph.copy(model)
    for value in model.graph.initializers.values():
        array = graph.array_of(value)
        if array.dtype.kind == "f" and array.ndim > 1:
            graph.set_constant(value, array * rng.choice(np.array([-1, 1], np.float32), array.shape))
    return model


@pytest.mark.parametrize("what", ["weights", "start", "samples", "labels", "settings", "plan"])
def test_the_checkpoint_of_another_run_is_not_taken_up(folded: Digits, tmp_path: Path, caplog, what: str):
    """Shapes were hashed, not the weights, the samples and the plan: another checkpoint got the first one's weights."""
    torch.set_num_threads(1)
    keep, few = random_keep(folded.coupling, 0.5), folded.tune.subset(np.arange(128))
    settings = replace(QUICK, epochs=1, resume_dir=str(tmp_path))
    cut = surgery.cut(Selection(folded.coupling, keep))
    _tuned(folded.model, cut.clone(), few, folded.held, settings)
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    teacher = folded.model
    if what == "weights":
        teacher = _other_weights(folded.model)
        cut = surgery.cut(Selection(replace(folded.coupling, model=teacher), keep))
    elif what == "start":
        cut = _other_weights(cut)
    elif what == "samples":
        few = folded.tune.subset(np.arange(1, 129))
    elif what == "labels":
        few = Subset(few, np.arange(128), np.roll(np.asarray(few.labels), 1))
    elif what == "settings":
        settings = replace(settings, seed=1)
    else:  # the same sizes at other positions
        cut = surgery.cut(Selection(folded.coupling, {dim: mask[::-1].copy() for dim, mask in keep.items()}))
    caplog.clear()
    second = _tuned(teacher, cut.clone(), few, folded.held, settings)
    assert second == _tuned(teacher, cut.clone(), few, folded.held, replace(settings, resume_dir=None))
    assert "they stay, and this run starts anew" in caplog.text
    assert all(path.read_bytes() == content for path, content in first.items())
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_taken_up_is_told_and_last_bits_of_the_start_do_not_matter(folded: Digits, tmp_path: Path, caplog):
    keep, few = random_keep(folded.coupling, 0.5), folded.tune.subset(np.arange(128))
    settings = replace(QUICK, epochs=1, resume_dir=str(tmp_path))
    cut = surgery.cut(Selection(folded.coupling, keep))
    _tuned(folded.model, cut.clone(), few, folded.held, settings)
    caplog.clear()
    moved = cut.clone()
    for value in moved.graph.initializers.values():
        array = graph.array_of(value)
        if array.dtype.kind == "f":
            graph.set_constant(value, np.nextafter(array, np.float32(9)))
    _tuned(folded.model, moved, few, folded.held, settings)
    assert "goes on after epoch 1, step 2" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_broken_checkpoint_is_one_clear_line(tmp_path: Path):
    path = tmp_path / "finetune-0-1.npz"
    checkpoint.save(path, {"a": torch.ones(2)}, {"b": 1})
    tensors, facts = checkpoint.load(path) or ({}, {})
    assert tensors["a"].tolist() == [1, 1]
    assert facts == {"b": 1}
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match="not a checkpoint"):
        checkpoint.load(path)
    assert checkpoint.load(tmp_path / "nowhere") is None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
