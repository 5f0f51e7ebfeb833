"""The command line through `main`: commands, exit codes, what goes where, and files that appear or stay."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from networks import CNN, DIGITS, DIGITS_BN, filled
from onnx import numpy_helper

from onnxprune import cli as command_line
from onnxprune.cli.commands import COMMANDS

L1 = ("--method", "l1", "--no-latency")


def outputs(path, feeds=None):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if feeds is None:
        feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    return session.run(None, feeds)[0]


# Pruning ------------------------------------------------------------------------------------------------------------


def test_prune_writes_model_plan_and_reports(cli, cnn_path, tmp_path):
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    reports = [tmp_path / f"r{suffix}" for suffix in (".json", ".md", ".html")]
    words = [word for path in reports for word in ("--report", path)]
    before = cnn_path.read_bytes()
    ran = cli(cnn_path, out, *L1, "--target", "macs=0.5", "--align", 1, "--plan", plan, *words)
    assert ran.code == 0
    assert "MACs" in ran.out
    assert "proof: the result differs from its full-size twin" in ran.out
    assert cnn_path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "plan.json", "r.html", "r.json", "r.md"]
    onnx.checker.check_model(onnx.load(out))
    report = json.loads(reports[0].read_text())
    assert report["format"] == "onnxprune-report/1"
    assert report["ratios"]["macs"] <= 0.5
    assert report["verify"]["ok"] is True
    assert report["command"].startswith("onnxprune ")
    saved = json.loads(plan.read_text())
    assert {"format", "tool", "method", "seed", "model", "dims", "slices", "cost"} <= set(saved)
    assert saved["cost"]["after"]["macs"] <= 0.5 * saved["cost"]["before"]["macs"]


def test_plan_file_is_enough_to_rebuild_the_masked_model(cli, cnn_path, tmp_path):
    out, plan, normal = tmp_path / "out.onnx", tmp_path / "plan.json", tmp_path / "normal.onnx"
    assert cli(cnn_path, out, *L1, "--recover", "none", "--target", "macs=0.6", "--plan", plan).code == 0
    assert cli("normalize", cnn_path, normal).code == 0
    model = onnx.load(normal)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
    for entry in json.loads(plan.read_text())["slices"]:
        array = arrays[entry["initializer"]]
        lost = np.setdiff1d(np.arange(array.shape[entry["axis"]]), entry["keep"])
        array[(slice(None),) * entry["axis"] + (lost,)] = 0
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    masked = tmp_path / "masked.onnx"
    onnx.save(model, masked)
    np.testing.assert_allclose(outputs(out), outputs(masked), atol=1e-5)


def test_default_target_is_half_of_the_macs_for_methods_without_a_decision(cli, cnn_path, tmp_path):
    ran = cli(cnn_path, tmp_path / "o.onnx", *L1, "--report", tmp_path / "r.json")
    assert ran.code == 0
    assert 0.3 < json.loads((tmp_path / "r.json").read_text())["ratios"]["macs"] <= 0.5


@pytest.mark.parametrize("key", ["macs", "params", "size"])
def test_promise_holds_in_the_written_file(cli, cnn_path, tmp_path, key):
    out = tmp_path / "o.onnx"
    ran = cli(cnn_path, out, *L1, "--align", 1, "--target", f"{key}=0.7", "--report", tmp_path / "r.json")
    assert ran.code == 0
    ratios = json.loads((tmp_path / "r.json").read_text())["ratios"]
    assert ratios["bytes" if key == "size" else key] <= 0.7
    if key == "size":
        assert out.stat().st_size <= 0.7 * cnn_path.stat().st_size


def test_explicit_alignment_holds_in_every_dimension(cli, cnn_path, tmp_path):
    plan = tmp_path / "p.json"
    ran = cli(cnn_path, tmp_path / "o.onnx", *L1, "--align", 4, "--target", "macs=0.6", "--plan", plan)
    assert ran.code == 0
    assert all(len(dim["keep"]) % 4 == 0 for dim in json.loads(plan.read_text())["dims"])


def test_inner_only_leaves_residual_streams_whole(cli, tmp_path):
    plan = tmp_path / "p.json"
    words = ("--method", "l1", "--no-latency", "--target", "macs=0.6", "--inner-only", "--plan", plan)
    assert cli(DIGITS, tmp_path / "o.onnx", *words).code == 0
    kept = {dim["name"]: (len(dim["keep"]), dim["size"]) for dim in json.loads(plan.read_text())["dims"]}
    assert all(count == size for name, (count, size) in kept.items() if name.startswith(("stem", "down/down.3")))
    assert any(count < size for count, size in kept.values())


def test_include_and_exclude_choose_dimensions(cli, cnn_path, tmp_path):
    plan = tmp_path / "p.json"
    words = (cnn_path, tmp_path / "o.onnx", *L1, "--target", "macs=0.95", "--plan", plan)
    assert cli(*words, "--include", "wide").code == 0
    assert {s["initializer"] for s in json.loads(plan.read_text())["slices"]} == {"w4", "w5"}
    assert cli(*words, "--exclude", "wide").code == 0
    assert "w5" not in {s["initializer"] for s in json.loads(plan.read_text())["slices"]}


def test_same_seed_same_bytes(cli, cnn_path, tmp_path):
    words = ("--method", "random", "--no-latency", "--seed")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert cli(cnn_path, tmp_path / name, *words, seed).code == 0
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != third


def test_steps_reach_the_same_target(cli, tmp_path):
    words = (DIGITS, tmp_path / "o.onnx", *L1, "--target", "macs=0.4", "--align", 1, "--steps")
    plan = tmp_path / "p.json"
    assert cli(*words, 3, "--plan", plan, "--report", tmp_path / "r.json").code == 0
    ratios = json.loads((tmp_path / "r.json").read_text())["ratios"]
    assert 0.35 < ratios["macs"] <= 0.4
    names = [step["name"] for step in json.loads((tmp_path / "r.json").read_text())["steps"]]
    assert names.count("score") == 3
    assert cli("verify", DIGITS, tmp_path / "o.onnx", "--plan", plan).code == 0


def test_file_wins_over_a_command_of_the_same_name(cli, tmp_path, monkeypatch):
    onnx.save(filled(CNN), tmp_path / "inspect")
    monkeypatch.chdir(tmp_path)
    ran = cli("inspect", "out.onnx", *L1)
    assert ran.code == 0
    assert (tmp_path / "out.onnx").is_file()


def test_older_result_stays_when_a_gate_is_missed(cli, cnn_path, tmp_path):
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    out.write_text("old")
    plan.write_text("old plan")
    ran = cli(cnn_path, out, *L1, "--target", "macs=0.001", "--plan", plan)
    assert ran.code == 1
    assert "the nearest is macs=" in ran.err
    assert ran.err.count("\n") == 1
    assert (out.read_text(), plan.read_text()) == ("old", "old plan")
    assert len(list(tmp_path.iterdir())) == 2


def test_nearest_target_can_be_met(cli, cnn_path, tmp_path):
    words = (cnn_path, tmp_path / "o.onnx", *L1, "--target")
    missed = cli(*words, "params=0.001")
    nearest = missed.err.split("the nearest is ")[1].split(";")[0]
    assert nearest.startswith("params=0.")
    assert cli(*words, nearest).code == 0


def test_verification_failure_is_exit_3_and_writes_nothing(cli, cnn_path, tmp_path, monkeypatch):
    from onnxprune import graph, surgery

    good = surgery.cut

    def wrong(selection):
        model = good(selection)
        value = model.graph.initializers["w5"]
        graph.set_constant(value, 2 * graph.array_of(value))
        return model

    monkeypatch.setattr(surgery, "cut", wrong)
    ran = cli(cnn_path, tmp_path / "o.onnx", *L1)
    assert ran.code == 3
    assert "the cut model differs from the masked model at 'y'" in ran.err
    assert list(tmp_path.iterdir()) == []


# Output streams -----------------------------------------------------------------------------------------------------


def test_quiet_prints_the_result_only(cli, tmp_path):
    words = (DIGITS, tmp_path / "o.onnx", *L1, "--target", "macs=0.03")
    loud, quiet = cli(*words), cli(*words, "-q")
    assert "note: " in loud.err
    assert quiet.err == ""
    assert quiet.out == loud.out


def test_verbose_says_every_step_on_stderr(cli, cnn_path, tmp_path):
    ran = cli(cnn_path, tmp_path / "o.onnx", *L1, "-v")
    assert [line for line in ran.err.splitlines() if line.endswith(" ...")][:3] == [
        "reading the model ...",
        "simplifying the model ...",
        "reading samples ...",
    ]
    assert "reading" not in ran.out


def test_verbose_error_has_its_trace(cli, tmp_path):
    ran = cli(tmp_path / "none.onnx", tmp_path / "o.onnx", "-v")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("onnxprune: ")


def test_reader_that_leaves_is_no_error():
    script = f"{sys.executable} -m onnxprune ops | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, text=True)
    assert done.stdout.startswith("operator")
    assert done.stderr == ""


# Configuration ------------------------------------------------------------------------------------------------------


def test_config_gives_options_and_the_command_line_wins(cli, cnn_path, tmp_path):
    config, report = tmp_path / "c.toml", tmp_path / "r.json"
    config.write_text(
        f'method = "random"\nseed = 5\nno-latency = true\nexact_only = true\n'
        f'target = {{macs = 0.9}}\nreport = "{report}"\n'
    )
    assert cli(cnn_path, tmp_path / "o.onnx", "--config", config).code == 0
    first = json.loads(report.read_text())
    assert (first["method"], first["seed"]) == ("random", 5)
    assert 0.6 < first["ratios"]["macs"] <= 0.9
    words = ("--config", config, "--method", "l1", "--target", "macs=0.5", "--seed", 0)
    assert cli(cnn_path, tmp_path / "o.onnx", *words).code == 0
    second = json.loads(report.read_text())
    assert (second["method"], second["seed"]) == ("l1", 0)
    assert second["ratios"]["macs"] <= 0.5


# Help ---------------------------------------------------------------------------------------------------------------


def test_help_fits_and_shows_defaults_and_examples(cli):
    ran = cli("-h")
    assert ran.code == 0
    assert ran.err == ""
    assert ran.out.count("\n  onnxprune model.onnx small.onnx") == 2
    groups = ran.out.split("\n\n")
    assert all(len(group.splitlines()) <= 35 for group in groups)
    assert ran.out.count("(default") >= 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    ran = cli(command, "-h")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: onnxprune {command}")


def test_version(cli):
    ran = cli("--version")
    assert ran.code == 0
    assert ran.out[0].isdigit()


def test_abbreviated_options_are_refused(cli, cnn_path, tmp_path):
    assert cli(cnn_path, tmp_path / "o.onnx", "--meth", "l1").code == 2


# Other commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [DIGITS, DIGITS_BN], ids=lambda path: path.stem)
def test_normalize_is_idempotent_to_the_byte(cli, tmp_path, model):
    once, twice = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert cli("normalize", model, once) == (0, "", "")
    assert cli("normalize", once, twice).code == 0
    assert once.read_bytes() == twice.read_bytes()
    feeds = {"image": np.random.default_rng(0).random((3, 1, 8, 8), np.float32)}
    np.testing.assert_allclose(outputs(once, feeds), outputs(model, feeds), atol=1e-5)


def test_plan_refers_to_the_hash_of_the_normalized_file(cli, tmp_path):
    import hashlib

    normal, plan = tmp_path / "n.onnx", tmp_path / "p.json"
    assert cli("normalize", DIGITS, normal).code == 0
    assert cli(DIGITS, tmp_path / "o.onnx", *L1, "--plan", plan).code == 0
    digest = hashlib.sha256(normal.read_bytes()).hexdigest()
    assert json.loads(plan.read_text())["model"]["sha256"] == digest


def test_inspect_as_json(cli, cnn_path):
    ran = cli("inspect", cnn_path, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["format"] == "onnxprune-inspect/1"
    assert {"model", "shrinkable", "dims", "frozen", "layers"} <= set(found)
    assert {d["size"] for d in found["dims"]} == {8, 12}
    assert {"name", "size", "exact", "macs_per_unit", "params_per_unit", "members"} <= set(found["dims"][0])
    assert {"initializer", "node", "input", "axis", "role"} <= set(found["dims"][0]["members"][0])
    assert [layer["node"] for layer in found["layers"]] == ["stem", "inner", "deep", "wide", "head"]
    assert any("output" in entry["reason"] for entry in found["frozen"])


def test_inspect_as_a_table(cli, cnn_path):
    ran = cli("inspect", cnn_path)
    assert (ran.code, ran.err) == (0, "")
    assert "free dimension" in ran.out
    assert "frozen because" in ran.out


def test_methods_and_ops_list_what_there_is(cli):
    methods = cli("methods")
    assert methods.code == 0
    lines = {line.split()[0]: line for line in methods.out.splitlines()}
    assert {"l1", "l2", "random", "taylor", "bn", "fpgm", "hessian"} <= set(lines)
    assert "gradients" in lines["taylor"]
    ops = cli("ops")
    assert ops.code == 0
    assert any(line.split() == ["Conv", "yes", "yes", "yes"] for line in ops.out.splitlines())


def test_bench_compares_two_files(cli, cnn_path, tmp_path, short_bench):
    small = tmp_path / "small.onnx"
    assert cli(cnn_path, small, *L1).code == 0
    ran = cli("bench", cnn_path, small, "--threads", 1, "--report", tmp_path / "b.json")
    assert ran.code == 0
    assert "small" in ran.out
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["models"][0]["latency"][0]["median_ms"] > 0


def test_neither_import_nor_inspect_load_torch(cnn_path):
    script = (
        "import sys, onnxprune\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
        "from onnxprune.cli import main\n"
        f"code = main(['inspect', {str(cnn_path)!r}])\n"
        "assert code == 0 and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_module_runs_as_a_program(cnn_path, tmp_path):
    words = [sys.executable, "-m", "onnxprune", str(cnn_path), str(tmp_path / "o.onnx"), "--target", "macs=2"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("onnxprune: --target macs=2")


def test_main_is_public():
    assert command_line.main(["--version"]) == 0
    assert Path(command_line.__file__).name == "__init__.py"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_ends_as_an_interruption_does(tmp_path):
    words = ("--method", "l1", "--data", "digits", "--epochs", "500", "--no-latency", "-v")
    command = [sys.executable, "-m", "onnxprune", str(DIGITS), str(tmp_path / "o.onnx"), *words]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("fine-tuning ..."):
            break
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert told.endswith("onnxprune: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_sigterm_keeps_its_meaning_after_a_run(cli, cnn_path):
    before = signal.getsignal(signal.SIGTERM)
    assert cli("ops").code == 0
    assert signal.getsignal(signal.SIGTERM) is before
