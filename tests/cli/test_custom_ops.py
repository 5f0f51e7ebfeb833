"""--custom-ops: a library of operators for every session of every command."""

import onnx
import onnxruntime as ort
import pytest
from onnx_text import proto

from onnxprune.graph import custom_ops

CONV = (
    "(float[n,3,8,8] x, float[16,3,1,1] w, float[4,16,1,1] v) => (float[n,4,8,8] y) "
    "{ a = Conv(x, w) b = Relu(a) y = Conv(b, v) }"
)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(custom_ops, "_LIBRARIES", [])
    onnx.save(proto(CONV), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("command", ["prune", "inspect", "bench"])
def test_a_library_that_is_missing_is_named(cli, path, tmp_path, command):
    words = [path, tmp_path / "out.onnx"] if command == "prune" else [command, path]
    ran = cli(*words, "--custom-ops", tmp_path / "none.so")
    assert ran.code == 2
    assert "none.so: no such file" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_a_file_that_is_no_library_is_refused(cli, path, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    ran = cli("inspect", path, "--custom-ops", tmp_path / "text.so")
    assert ran.code == 2
    assert "onnxruntime cannot load it" in ran.err


def test_an_option_without_a_library_is_refused(cli, path):
    assert "--custom-ops: give the library" in cli("inspect", path, "--custom-ops").err


def test_every_session_knows_the_library(cli, path, tmp_path, monkeypatch):
    library, known = tmp_path / "ops.so", []
    library.write_text("loaded by a stand-in")

    class Settings(ort.SessionOptions):
        def register_custom_ops_library(self, name):
            known.append(name)

    monkeypatch.setattr(custom_ops.ort, "SessionOptions", Settings)
    assert cli(path, tmp_path / "out.onnx", "--method", "l1", "--no-latency", "--custom-ops", library).code == 0
    assert set(known) == {str(library)}
    assert len(known) > 3  # once to try it, then for each session
