"""The commands of docs/tasks.md on files that others made, where these are at hand; and that what they name exists.

ONNXPRUNE_WILD is the folder that tools/zoo/wild.py filled, ONNXPRUNE_DATA that of photographs, see tools/cifar.py.
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("ONNXPRUNE_WILD", "wild")).absolute()
COMMANDS = re.findall(r"^    onnxprune (wild/.+)$", (ROOT / "docs" / "tasks.md").read_text(), re.M)
PHOTOGRAPHS = {"faces", "bodies", "pages", "crops"}


def named(command: str) -> tuple[str, str]:
    """(file, function of tools.task_samples) of a command."""
    words = shlex.split(command)
    module, _, function = words[words.index("--data") + 1].partition(":")
    assert module == "tools.task_samples"
    return words[0].removeprefix("wild/"), function


@pytest.fixture
def samples(monkeypatch):
    """The module that the commands take their samples from."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("ONNXPRUNE_WILD", str(FOLDER))
    monkeypatch.setenv("ONNXPRUNE_SAMPLES", "32")  # that the commands work, not how well: tools/task_results.py
    for name in [name for name in sys.modules if name == "tools" or name.startswith("tools.")]:
        monkeypatch.delitem(sys.modules, name)
    from tools import task_samples

    monkeypatch.setattr(task_samples.detectors, "SEEN", 300)
    return task_samples


def test_every_command_names_a_file_of_the_study_and_samples_that_are_there(samples):
    from tools.metric_study import TASKS

    assert len(COMMANDS) >= 9
    files = {task.file for task in TASKS.values()}
    for file, function in map(named, COMMANDS):
        assert file in files
        assert callable(getattr(samples, function)), function


@pytest.mark.zoo
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: named(command)[1])
def test_a_command_prunes_its_file(cli, samples, tmp_path, monkeypatch, command):
    file, function = named(command)
    if not (FOLDER / file).exists():
        pytest.skip(f"{FOLDER / file} is not there: fetch it with tools/zoo/wild.py, and set ONNXPRUNE_WILD")
    if function in PHOTOGRAPHS and not Path(samples.tasks.cifar.DATA, "imagenet").exists():
        pytest.skip("no photographs: set ONNXPRUNE_DATA")
    if function == "sentences" and not (FOLDER / "vocab.txt").exists():
        pytest.skip(f"{FOLDER / 'vocab.txt'}, the words of BERT, is not there")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wild").symlink_to(FOLDER)
    ran = cli(*shlex.split(command), "--no-latency", "--epochs", 1, "--report", "r.json")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["verify"]["ok"]
    assert found["ratios"]["macs"] <= float(command.rpartition("macs=")[2]) + 1e-6
    assert found["models"][1]["accuracy"]["value"] is not None
    onnx.checker.check_model(str(tmp_path / "small.onnx"))
