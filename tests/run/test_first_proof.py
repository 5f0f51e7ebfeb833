"""The first proof of a run: where a native library ends in it, the run says so and writes nothing."""

from pathlib import Path

from onnxprune.cli import main
from onnxprune.proof import comparison
from onnxprune.system.isolation import CrashedError

DIGITS = Path(__file__).parents[2] / "models" / "digits.onnx"


def test_a_crash_in_the_first_proof_is_told_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    def crashed(*args, **kwargs):
        raise CrashedError("SIGSEGV")

    monkeypatch.setattr(comparison, "compare_apart", crashed)
    out = tmp_path / "small.onnx"
    assert main([str(DIGITS), str(out), "--method", "l1", "--no-latency"]) != 0
    assert "ends with SIGSEGV on the cut or on the masked model" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
