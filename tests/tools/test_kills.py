"""Twenty kills at random times leave nothing; and the tool would notice what is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "kills.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process numbers as in /proc")


@pytest.mark.slow
def test_twenty_kills_leave_nothing():
    here = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    done = subprocess.run([sys.executable, str(TOOL), "--count", "20"], capture_output=True, text=True, env=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("20 kills within ")
    assert done.stdout.endswith(" 0 left something\n")


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.syspath_prepend(TOOL.parent)
    import kills

    monkeypatch.setattr(kills, "GRACE_SECONDS", 0.2)
    return kills


def found(kills, monkeypatch, tmp_path, script, before=()):
    """What the tool says of a program that runs `script` in place of ours."""
    folder, temporary = tmp_path / "results", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    for name in before:
        (folder / name).write_text("{}")
    monkeypatch.setattr(kills, "words_of", lambda where, *_: ["bash", "-c", script.format(where=where)])
    return list(kills.faults(folder, temporary, [], 0.3, "test"))


def test_a_process_that_lives_on_is_noticed(kills, monkeypatch, tmp_path):
    told = found(kills, monkeypatch, tmp_path, "setsid sleep 5 & wait", kills.NAMES)
    assert any(line.startswith("processes [") for line in told), told


def test_files_that_stay_are_noticed(kills, monkeypatch, tmp_path):
    told = found(kills, monkeypatch, tmp_path, "touch {where}/.leftover $TMPDIR/left", kills.NAMES)
    assert [line.split(" ")[0] for line in told] == ["results", "temporary"]


def test_a_run_that_fails_after_a_kill_is_noticed(kills, monkeypatch, tmp_path):
    assert "the next run failed" in found(kills, monkeypatch, tmp_path, "exit 3", kills.NAMES)
