"""The attack table, a part of it in every run and all of it in the slow suite; and that it would notice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "attack.py"


def attacked(*words: str) -> subprocess.CompletedProcess[str]:
    here = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    return subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True, env=here)


def test_a_part_of_the_table_stays_within_the_contract():
    done = attacked("--every", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 outside the contract" in done.stdout


@pytest.mark.slow
def test_the_whole_table_stays_within_the_contract():
    done = attacked()
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-8]) >= 300, done.stdout


@pytest.mark.parametrize(
    ("code", "err", "told"),
    [
        (2, "", "0 lines of ours on stderr, not one"),
        (2, "onnxprune: a\nonnxprune: b\n", "2 lines of ours"),
        (2, "onnxprune: a\nand more\n", "its line is not the last"),
        (2, "onnxprune: internal error: a\n", "internal error"),
        (7, "onnxprune: a\n", "exit code 7"),
        (-11, "", "exit code -11"),
        (1, "Traceback (most recent call last):\nonnxprune: a\n", "Traceback"),
    ],
)
def test_whatever_leaves_the_contract_is_noticed(monkeypatch, code, err, told):
    monkeypatch.syspath_prepend(TOOL.parent)
    import attack

    found = list(attack._judged(attack.Case("name", "words"), attack.Ran(code, "", err)))
    assert any(told in line for line in found), found
    assert not list(attack._judged(attack.Case("name", "words"), attack.Ran(2, "", "onnxprune: what, where\n")))


def test_files_that_a_failing_run_changed_are_noticed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TOOL.parent)
    import attack

    (tmp_path / "out.onnx").write_text("half")
    assert "files changed" in next(attack._files_judged(tmp_path, {}, attack.Ran(2, "", "")))
    assert "does not run" in next(attack._files_judged(tmp_path, {}, attack.Ran(0, "", "")))


def test_names_with_a_space_that_does_not_break_stay_one_word(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TOOL.parent)
    import attack

    case = attack.Case("name", "{w}/a.onnx  {o}/b\u00a0c.onnx -q")
    assert case.arguments(tmp_path, tmp_path) == [f"{tmp_path}/a.onnx", f"{tmp_path}/b\u00a0c.onnx", "-q"]


def test_results_with_weights_beside_them_are_opened_from_where_they_lie(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TOOL.parent)
    import attack
    import onnx

    path, odd = tmp_path / "m.onnx", tmp_path / "\udcff.onnx"
    onnx.save(attack.cnn(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    odd.write_bytes(attack.cnn().SerializeToString())
    assert not list(attack._model_judged(path))
    assert not list(attack._model_judged(odd))
    (tmp_path / "m.data").unlink()
    assert "does not run" in next(attack._model_judged(path))
