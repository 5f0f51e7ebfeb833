"""What users are told: steps on stderr, JSON on stdout, the verdict, and the simplest command."""

import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest
from networks import DIGITS

from onnxprune.cli.patience import Patient
from onnxprune.system.clock import TOLD

L1 = ("--method", "l1", "--no-latency")


def test_the_simplest_command_works_and_says_what_samples_would_bring(cli, cnn_path, tmp_path):
    ran = cli(cnn_path, tmp_path / "o.onnx")
    assert ran.code == 0, ran.err
    assert "note: no samples were given, so fpgm chose by the weights alone" in ran.err
    assert ran.out.splitlines()[-1].endswith("accuracy not measured: no samples")


def test_a_method_that_was_asked_for_is_not_replaced(cli, cnn_path, tmp_path):
    ran = cli(cnn_path, tmp_path / "o.onnx", "--method", "snacs")
    assert ran.code == 2
    assert "--method snacs needs samples" in ran.err
    assert "no samples were given" not in cli(cnn_path, tmp_path / "o.onnx", *L1).err


def test_steps_are_told_off_a_terminal_and_not_with_quiet(cli, cnn_path, tmp_path):
    ran = cli(cnn_path, tmp_path / "o.onnx", *L1)
    steps = [line.removesuffix(" ...") for line in ran.err.splitlines() if line.endswith(" ...")]
    assert steps[:3] == [TOLD[step] for step in ("load", "normalize", "data")]
    assert {TOLD[step] for step in ("score", "cut", "verify", "finish")} <= set(steps)
    assert cli(cnn_path, tmp_path / "o.onnx", *L1, "-q").err == ""


def said(handler, *steps):
    for step in steps:
        record = logging.LogRecord("onnxprune", logging.INFO, "", 0, f"{step} ...", (), None)
        record.step = step
        handler.handle(record)
    return handler.stream.getvalue().splitlines()


@pytest.fixture
def patient():
    from io import StringIO

    handler = Patient(StringIO())
    yield handler
    handler.close()


def test_steps_wait_until_the_input_was_accepted(patient):
    assert said(patient, "load", "analyze", "score", "select") == []
    assert said(patient, "cut", "verify")[-2:] == ["cut ...", "verify ..."]


def test_what_takes_long_is_told_before_it_ends(patient, monkeypatch):
    monkeypatch.setattr("onnxprune.cli.patience.SCORING_SECONDS", 0.05)
    said(patient, "load", "score")
    deadline = time.monotonic() + 10
    while not patient.stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said(patient) == ["load ...", "score ..."]


def test_a_slow_load_is_told(patient):
    patient.began -= 100
    assert said(patient, "load") == ["load ..."]


def test_warnings_do_not_wait(patient):
    patient.handle(logging.LogRecord("onnxprune", logging.WARNING, "", 0, "careful", (), None))
    assert patient.stream.getvalue() == "careful\n"


# JSON ---------------------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_on_stdout(cli, cnn_path, tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text(
        "import numpy as np\nprint('imported')\ndef make():\n    print('made')\n"
        "    return np.random.rand(20, 3, 8, 8).astype(np.float32)\n"
    )
    monkeypatch.chdir(tmp_path)
    data = ("--data", "chatty:make", "--recover", "constants")
    ran = cli(cnn_path, "o.onnx", *L1, *data, "--json", "--plan", "p.json")
    assert json.loads(ran.out)["format"] == "onnxprune-report/1"
    assert "imported" in ran.err
    assert json.loads(cli("apply", cnn_path, "p.json", "a.onnx", "--no-latency", "--json").out)["verify"]["ok"]
    found = json.loads(cli("verify", cnn_path, "o.onnx", "--plan", "p.json", "--json").out)
    assert found["format"] == "onnxprune-verify/1"
    assert found["ok"] is True
    assert found["samples"] > 0


def test_json_of_bench(cli, cnn_path, short_bench):
    ran = cli("bench", cnn_path, "--threads", 1, "--json")
    assert json.loads(ran.out)["models"][0]["latency"][0]["median_ms"] > 0


def test_json_of_compare(cli, cnn_path, tmp_path):
    samples = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=samples)
    words = ("--data", tmp_path / "x.npz", "--methods", "l1", "--recover", "none", "--json")
    assert len(json.loads(cli("compare", cnn_path, "--out", tmp_path / "c", *words).out)["rows"]) == 1


# Help and usage -----------------------------------------------------------------------------------------------------


def test_help_is_a_command_and_so_is_prune(cli, cnn_path, tmp_path):
    assert cli("help").out == cli("-h").out == cli("prune").out
    assert cli("help", "inspect").out == cli("inspect", "-h").out
    assert cli("prune", cnn_path, tmp_path / "o.onnx", *L1).code == 0
    assert (tmp_path / "o.onnx").is_file()


def test_no_arguments_are_one_line(cli):
    ran = cli()
    assert ran.code == 2
    assert ran.err.count("\n") == 1


def test_a_full_disk_behind_stdout_does_not_undo_what_was_written(tmp_path):
    words = [sys.executable, "-m", "onnxprune", str(DIGITS), str(tmp_path / "o.onnx"), *L1]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
        asked = subprocess.run([*words[:3], "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "o.onnx was written, but the results could not be printed (No space left on device)" in done.stderr
    assert (tmp_path / "o.onnx").is_file()
    assert asked.returncode == 2
    assert asked.stderr.startswith("onnxprune: the results could not be printed (No space left on device)")


def test_a_full_disk_behind_stderr_loses_nothing(tmp_path):
    words = [sys.executable, "-m", "onnxprune", str(DIGITS), str(tmp_path / "o.onnx"), *L1]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stderr=full, stdout=subprocess.PIPE, text=True)
        wrong = subprocess.run([*words[:3], "inspect", "none.onnx"], stderr=full)
    assert (done.returncode, wrong.returncode) == (0, 2)
    assert "pruned" in done.stdout
    assert (tmp_path / "o.onnx").is_file()


def test_an_interruption_inside_an_import_is_one(cli, cnn_path, tmp_path, monkeypatch):
    from onnxprune.run import pipeline

    def fail(*_):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(pipeline, "prune", fail)
    ran = cli(cnn_path, tmp_path / "o.onnx", *L1)
    assert (ran.code, ran.err) == (130, "onnxprune: interrupted; nothing was written\n")


def test_times_are_exported_as_hyperfine_has_them(cli, cnn_path, tmp_path, short_bench):
    path = tmp_path / "times.json"
    assert cli("bench", cnn_path, cnn_path, "--threads", 1, "--export-json", path, "-q").code == 0
    first, second = json.loads(path.read_text())["results"]
    assert first["command"] == "cnn (CPU, batch 1, 1 thread)"
    assert second["parameters"] == {"model": "cnn#2", "batch": "1", "threads": "1"}
    for found in (first, second):
        assert 0 < found["min"] <= found["median"] <= found["max"] < 1  # seconds
        assert found["mean"] == pytest.approx(np.mean(found["times"]))
        assert found["stddev"] == pytest.approx(np.std(found["times"], ddof=1))


def test_an_export_does_not_replace_a_model(cli, cnn_path):
    ran = cli("bench", cnn_path, "--export-json", cnn_path)
    assert ran.code == 2
    assert "this run has read that file already" in ran.err
