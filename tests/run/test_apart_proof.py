"""A native library that dies of a model, however late in a run, ends another process: nothing that was made is lost."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from onnxprune import graph
from onnxprune.cli import main
from onnxprune.graph import simplify
from onnxprune.measure import alignment
from onnxprune.proof import comparison
from onnxprune.quantize import proof, rounding
from onnxprune.run import measuring
from onnxprune.system import isolation

DIGITS = str(Path(__file__).parents[2] / "models" / "digits.onnx")


pytestmark = pytest.mark.apart


@pytest.fixture(params=["a copy", "a fresh process"])
def process(request, monkeypatch):
    """Where proofs run: in a copy, as in the command line; in a fresh process, as beside torch."""
    monkeypatch.setattr(isolation, "can_copy", lambda: request.param == "a copy")
    monkeypatch.setattr("onnxprune.graph.apart.can_copy", lambda: request.param == "a copy")
    return request.param


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGUSR1)


def die_of_cuts(cut, masked, batches, look_inside, file):
    """The normal form is compared with the original in the same way, but not inside."""
    return die() if look_inside else comparison.compare(cut, masked, batches, look_inside=look_inside, file=file)


def pruned(out, *more):
    return main([DIGITS, str(out), "--method", "l1", "--target", "macs=0.6", "--no-latency", *more])


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_the_first_proof(process, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "_compare_sent", die_of_cuts)
    assert pruned(tmp_path / "o.onnx") == 2
    assert "digits.onnx: onnxruntime ends with SIGUSR1" in said(capsys)
    assert not list(tmp_path.iterdir())


def test_the_proof_of_the_result(process, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "_compare_read", die)
    assert pruned(tmp_path / "o.onnx") == 2
    assert "onnxruntime ends with SIGUSR1 on the pruned model" in said(capsys)
    assert not list(tmp_path.iterdir())


def test_verify(process, tmp_path, monkeypatch, capsys):
    assert pruned(tmp_path / "o.onnx", "--recover", "none", "--plan", str(tmp_path / "p.json")) == 0
    monkeypatch.setattr(comparison, "_compare_sent", die_of_cuts)
    assert main(["verify", DIGITS, str(tmp_path / "o.onnx"), "--plan", str(tmp_path / "p.json")]) == 2
    assert "o.onnx: onnxruntime ends with SIGUSR1" in said(capsys)


@pytest.mark.parametrize(("module", "dying"), [(proof, "_simulated"), (rounding, "_squares")])
def test_quantization_leaves_the_result_in_floats_and_says_so(module, dying, tmp_path, monkeypatch, capsys):
    """The tuned weights are written: an error would have thrown away what may have taken hours."""
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setattr(module, dying, die)
    out, report = tmp_path / "o.onnx", tmp_path / "r.json"
    assert pruned(out, "--quantize", "dynamic", "--report", str(report), "--plan", str(tmp_path / "p.json")) == 0
    note = (
        "onnxruntime ends with SIGUSR1 on what --quantize dynamic makes of this model: the result is written in floats"
    )
    assert note in said(capsys)
    assert any(note in each for each in json.loads(report.read_text())["notes"])
    assert all("Integer" not in node.op_type for node in graph.load(out).graph)
    monkeypatch.undo()
    assert main(["verify", DIGITS, str(out), "--plan", str(tmp_path / "p.json")]) == 0


@pytest.fixture
def copied(monkeypatch):
    """Other processes are copies of this one, as in the command line."""
    for module in ("system.isolation", "graph.apart", "run.measuring"):
        monkeypatch.setattr(f"onnxprune.{module}.can_copy", lambda: True)


@pytest.mark.parametrize(("dying", "what"), [("measure_settled", "latency"), ("yardstick", "accuracy")])
def test_measuring(copied, dying, what, tmp_path, monkeypatch):
    """The result is written, with a note in place of the number."""
    monkeypatch.setattr(measuring, dying, die)
    out, report = tmp_path / "o.onnx", tmp_path / "r.json"
    words = [DIGITS, str(out), "--method", "l1", "--recover", "none", "--data", "digits", "--report", str(report)]
    assert main(words) == 0
    notes = json.loads(report.read_text())["notes"]
    assert f"{what} could not be measured: onnxruntime ends with SIGUSR1" in notes
    assert {path.name for path in tmp_path.iterdir()} == {"o.onnx", "r.json"}


def test_a_death_of_the_run_while_it_measures_leaves_the_proven_result(copied, tmp_path, monkeypatch, capsys):
    """Beside torch it measures in the process itself, maybe after hours of tuning."""
    out = tmp_path / "o.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure", die)
        with pytest.raises(isolation.CrashedError, match="SIGUSR1"):
            isolation.isolated(lambda: pruned(out))
    rescue = tmp_path / "o.onnx.unmeasured"
    assert {path.name for path in rescue.iterdir()} == {"o.onnx", "plan.json"}
    assert main(["verify", DIGITS, str(rescue / "o.onnx"), "--plan", str(rescue / "plan.json")]) == 0
    capsys.readouterr()
    assert pruned(out) == 0
    assert "the proven result of a run that ended while it was measured" in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]


def test_a_calibration_tells_which_models_ended_it(copied, monkeypatch, capsys):
    monkeypatch.setattr(alignment, "times", die)
    assert main(["calibrate"]) == 2
    assert "onnxruntime ends with SIGUSR1 on small models (dense 3x3)" in said(capsys)


def test_what_onnxsim_makes_is_opened_in_another_process(monkeypatch):
    monkeypatch.setattr(isolation, "can_copy", lambda: True)
    monkeypatch.setattr(simplify, "_load", die)
    source = graph.load(DIGITS)
    monkeypatch.setattr("onnxprune.graph.files.is_plain", lambda _: False)
    assert len(graph.normalize(source).graph) == len(source.graph)
