"""Prune and quantize in one command: what is written, measured, recorded, replayed, verified and refused."""

import json
import re

import numpy as np
import onnx
import onnx_text
import pytest
from networks import CNN, CONCAT, DIGITS, MLP, filled
from onnxruntime.transformers import float16
from quantizing import FAR_OFF

from onnxprune.report import schema

COMMON = ("--method", "l1", "--target", "macs=0.5", "--recover", "reconstruct")
# onnxruntime runs Affine up to opset 10, and onnx has no way to raise it.
OLD = """<ir_version: 4, opset_import: ["" : 9]>
old (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) <float[6, 3, 3, 3] w, float[6] b, float[6, 6, 1, 1] v>
{
  [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  [relu] r = Relu (a)
  [next] c = Conv (r, v)
  [affine] y = Affine <alpha = 2.0, beta = 1.0> (c)
}
"""
# Raising it makes axes that were attributes inputs, by nodes that have no name, and writes Softmax out.
SQUEEZED = """<ir_version: 6, opset_import: ["" : 11]>
squeezed (float[N, 3, 8, 8] x) => (float[N, 6] y) <float[6, 3, 3, 3] w, float[6] b, float[6, 6, 1, 1] u, float[6, 6] v>
{
  [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  [relu] r = Relu (a)
  [mixed] m = Conv (r, u)
  [soft] q = Softmax <axis = 1> (m)
  [pool] g = GlobalAveragePool (q)
  [last] s = Squeeze <axes = [3]> (g)
  [next] t = Squeeze <axes = [2]> (s)
  [matmul] y = MatMul (t, v)
}
"""
QUIET = ("--no-latency",)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """One run with int8 on the digits: (folder, report)."""
    import onnxprune

    folder = tmp_path_factory.mktemp("int8")
    onnxprune.prune(
        DIGITS,
        folder / "out.onnx",
        method="l1",
        target={"macs": 0.5},
        data="digits",
        recover="reconstruct",
        quantize="int8",
        plan=folder / "plan.json",
        report=[folder / "report.json", folder / "report.md", folder / "report.html"],
    )
    return folder, json.loads((folder / "report.json").read_text())


def test_the_report_has_a_column_for_the_original_the_normalized_the_pruned_and_the_quantized(digits_run):
    folder, report = digits_run
    original, pruned, quantized, normalized = report["models"]
    assert [m["name"] for m in report["models"]] == ["original", "pruned", "quantized", "normalized"]
    assert normalized["accuracy"]["value"] == pytest.approx(original["accuracy"]["value"])
    assert normalized["macs"] == original["macs"]
    assert 0.8 * original["bytes"] < normalized["bytes"] < 1.2 * original["bytes"]
    assert quantized["bytes"] == (folder / "out.onnx").stat().st_size < 0.5 * pruned["bytes"] < original["bytes"]
    assert quantized["macs"] == pruned["macs"]
    assert quantized["path"] == str(folder / "out.onnx")
    assert quantized["accuracy"]["value"] > 0.97
    assert all(m["latency"] for m in report["models"])
    assert report["ratios"]["bytes"] == pytest.approx(quantized["bytes"] / original["bytes"])
    assert report["ratios"]["latency"][0]["model"] == "quantized"
    assert report["quantize"]["proof"].startswith("quantized = simulated: ")
    assert 0 < report["quantize"]["error"] < 0.1
    assert "quantized against original" in (folder / "report.md").read_text()
    assert "quantized" in (folder / "report.html").read_text()


def test_the_report_follows_its_schema(digits_run):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(digits_run[1], schema())


def test_the_file_computes_in_integers_behind_the_same_interface(digits_run):
    before, after = onnx.load(DIGITS), onnx.load(digits_run[0] / "out.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert after.metadata_props == before.metadata_props
    types = {tensor.data_type for tensor in after.graph.initializer if np.prod(tensor.dims) > 100}
    assert types == {onnx.TensorProto.INT8}


def test_onnxruntime_runs_integer_kernels_of_it(digits_run):
    from onnxprune.measure import profile

    ops = {time.op for time in profile(digits_run[0] / "out.onnx", runs=2, warmup=1, threads=1)}
    assert "QLinearConv" in ops
    assert "Conv" not in ops


def test_verify_accepts_it_and_finds_a_planted_scale(digits_run, cli, tmp_path):
    folder, _ = digits_run
    words = ("verify", DIGITS, folder / "out.onnx", "--plan", folder / "plan.json")
    ran = cli(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "quantized = simulated" in ran.out
    model = onnx.load(folder / "out.onnx")
    scale = next(t for t in model.graph.initializer if t.name.endswith("_scale") and not t.dims)
    array = onnx.numpy_helper.to_array(scale) * np.float32(1.5)
    scale.CopyFrom(onnx.numpy_helper.from_array(array, scale.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    ran = cli("verify", DIGITS, tmp_path / "wrong.onnx", "--plan", folder / "plan.json", "--any-weights")
    assert ran.code == 3
    assert "do not follow from its range" in ran.err


def test_apply_makes_the_same_file_again_and_without_samples_uses_the_recorded_ranges(digits_run, cli, tmp_path):
    folder, _ = digits_run
    out = tmp_path / "out.onnx"
    assert cli("apply", DIGITS, folder / "plan.json", out, "--data", "digits", *QUIET).code == 0
    assert out.read_bytes() == (folder / "out.onnx").read_bytes()
    ran = cli("apply", DIGITS, folder / "plan.json", out, *QUIET)
    assert ran.code == 0
    assert "ranges of values are those that the plan recorded" in ran.err
    assert cli("verify", DIGITS, out, "--plan", folder / "plan.json", "--any-weights").code == 0
    assert cli("apply", DIGITS, folder / "plan.json", out, "--quantize", "none", *QUIET).code == 0
    assert not any(t.data_type == onnx.TensorProto.INT8 for t in onnx.load(out).graph.initializer)
    ran = cli("verify", DIGITS, out, "--plan", folder / "plan.json", "--any-weights")
    assert ran.code == 3
    assert "its weights are floats, and the plan says that it was quantized as int8" in ran.err


def test_apply_writes_a_plan_by_which_another_kind_can_be_verified(digits_run, cli, tmp_path):
    folder, _ = digits_run
    out, new = tmp_path / "out.onnx", tmp_path / "new.json"
    words = (DIGITS, folder / "plan.json", out, "--quantize", "fp16", "--recover", "none", *QUIET)
    assert cli("apply", *words, "--plan", new).code == 0
    assert cli("verify", DIGITS, out, "--plan", new).code == 0
    assert cli("verify", DIGITS, out, "--plan", folder / "plan.json", "--any-weights").code == 3


def test_nothing_asked_writes_what_it_wrote_before(cli, cnn_path, tmp_path):
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    words = (cnn_path, tmp_path / "out.onnx", "--method", "l1", "--plan", plan, "--report", report, *QUIET)
    assert cli(*words).code == 0
    assert "quantize" not in json.loads(plan.read_text())
    assert [m["name"] for m in json.loads(report.read_text())["models"]] == ["original", "pruned"]


@pytest.fixture
def bad(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "all.npz", x=rng.normal(size=(40, 3, 8, 8)).astype(np.float32), y=np.arange(40) % 4)
    np.savez(tmp_path / "one.npz", x=rng.normal(size=(40, 3, 8, 8)).astype(np.float32), y=np.full(40, 2))
    onnx.save(filled(CNN), tmp_path / "cnn.onnx")
    onnx.save(filled(MLP), tmp_path / "mlp.onnx")
    onnx.save(filled(CONCAT), tmp_path / "conv.onnx")
    onnx.save(filled(OLD), tmp_path / "old.onnx")
    onnx.save(float16.convert_float_to_float16(filled(MLP)), tmp_path / "half.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("cnn.onnx --quantize int8", "calibrates on samples, and there are none"),
        ("cnn.onnx --quantize int8 --provider cuda --data all.npz", "cuda provider has no integer kernels"),
        ("old.onnx --quantize int8 --data all.npz", "needs opset 13 and the model has 9, which onnx cannot convert"),
        ("cnn.onnx --quantize int9", "unknown; choose of int8"),
        ("cnn.onnx --quantize int8:x=1 --data all.npz", "'x' is no key of int8"),
        ("cnn.onnx --quantize int8 --data all.npz --pack", "give one of them"),
        ("conv.onnx --quantize int4", "nothing of this model can be stored so: it has no MatMul or Gemm"),
        ("half.onnx --quantize fp16", "computes in half precision already (MatMul"),
        ("cnn.onnx --quantize int8:exclude=nothing* --data all.npz", "exclude=nothing* matches no node"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(cli, bad, words, told):
    first, *rest = (str(bad / word) if word.endswith((".onnx", ".npz")) else word for word in words.split())
    ran = cli(first, bad / "out.onnx", *rest, "--method", "l1", "--recover", "none", "-q", *QUIET)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert told in ran.err
    assert not (bad / "out.onnx").exists()


def test_samples_of_one_class_are_warned_of(cli, bad):
    words = (bad / "cnn.onnx", bad / "out.onnx", "--method", "l1", "--recover", "none", "--data", bad / "one.npz")
    ran = cli(*words, "--quantize", "int8", *QUIET)
    assert ran.code == 0
    assert "samples that are all of class 2" in ran.err


def test_a_missed_size_target_of_the_final_file_exits_1(cli, bad):
    words = (bad / "cnn.onnx", bad / "out.onnx", "--method", "l1", "--recover", "none", "--data", bad / "one.npz")
    ran = cli(*words, "--quantize", "int8", "--target", "macs=0.5", "--target", "size=0.05", *QUIET)
    assert ran.code == 1
    assert not (bad / "out.onnx").exists()


@pytest.mark.parametrize("text", [CNN.replace('"" : 17', '"" : 11'), SQUEEZED], ids=["cnn", "axes"])
def test_an_old_opset_is_raised_and_that_is_said(cli, bad, text):
    """PP-OCRv4's recognition: axes of seven Squeezes, all of which the proof took for those of the last."""
    onnx.save(filled(text), bad / "old.onnx")
    words = (bad / "old.onnx", bad / "out.onnx", "--method", "l1", "--recover", "none", "--data", bad / "one.npz")
    ran = cli(*words, "--quantize", "int8", "--plan", bad / "plan.json", *QUIET)
    assert ran.code == 0
    assert "opset 11 was raised to 13" in ran.err
    assert onnx.load(bad / "out.onnx").opset_import[0].version == 13
    assert cli("verify", bad / "old.onnx", bad / "out.onnx", "--plan", bad / "plan.json").code == 0


def test_a_model_that_comes_quantized_stays_so_and_is_not_quantized_again(cli, bad, digits_run):
    folder, _ = digits_run
    words = (folder / "out.onnx", bad / "out.onnx", "--method", "l1", "--data", "digits")
    ran = cli(*words, "--quantize", "dynamic", *QUIET)
    assert ran.code == 2
    assert "quantized already" in ran.err


@pytest.mark.parametrize("kind", ["dynamic", "int4", "fp16"])
@pytest.mark.parametrize("model", ["mlp.onnx", "cnn.onnx"])
def test_the_other_kinds_need_no_samples_and_verify_accepts_them(cli, bad, kind, model):
    plan = bad / "plan.json"
    words = (bad / model, bad / "out.onnx", "--method", "l1", "--quantize", kind, "--plan", plan, *QUIET)
    ran = cli(*words)
    assert ran.code == 0
    assert "quantized = simulated" in ran.out
    ran = cli("verify", bad / model, bad / "out.onnx", "--plan", plan)
    assert (ran.code, ran.err) == (0, "")
    assert cli("apply", bad / model, plan, bad / "again.onnx", *QUIET).code == 0
    assert (bad / "again.onnx").read_bytes() == (bad / "out.onnx").read_bytes()
    before, after = onnx.load(bad / model), onnx.load(bad / "out.onnx")
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


def test_weights_that_bodies_read_are_simulated_as_halves(cli, tmp_path):
    text = (
        "(float[N,8] x, float[8,12] w, float[12,12] v, float[12,3] o, int64 count, bool go) => (float[N,3] y) "
        "{ a = MatMul(x, w) h = Loop <body = b (int64 i, bool c, float[N,12] s) => (bool d, float[N,12] t) "
        "{ d = Identity(c) m = MatMul(s, v) t = Tanh(m) }> (count, go, a) y = MatMul(h, o) }"
    )
    onnx.save(onnx_text.proto(text, {"count": 3, "go": True}), tmp_path / "in.onnx")
    words = ("--recover", "none", "--target", "macs=0.7", "--align", "1", "--plan", tmp_path / "p.json", *QUIET)
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--quantize", "fp16")
    assert ran.code == 0, ran.err
    assert cli("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", tmp_path / "p.json").code == 0


def test_verify_accepts_matrices_in_integers_with_biases_that_recovery_made(cli, bad):
    rng = np.random.default_rng(0)
    np.savez(bad / "mlp.npz", x=rng.normal(size=(200, 6)).astype(np.float32))
    for kind in ("int8", "dynamic", "int4", "fp16"):
        words = (
            bad / "mlp.onnx",
            bad / "out.onnx",
            "--method",
            "l1",
            "--data",
            bad / "mlp.npz",
            "--recover",
            "reconstruct",
        )
        assert cli(*words, "--quantize", kind, "--plan", bad / "plan.json", *QUIET).code == 0
        ran = cli("verify", bad / "mlp.onnx", bad / "out.onnx", "--plan", bad / "plan.json")
        assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("kind", ["int8", "dynamic", "int4"])
def test_a_model_in_half_precision_is_quantized_behind_the_same_interface_and_verified(cli, bad, kind):
    rng = np.random.default_rng(0)
    np.savez(bad / "half.npz", x=rng.normal(size=(200, 6)).astype(np.float16))
    words = (bad / "half.onnx", bad / "out.onnx", "--method", "l1", "--data", bad / "half.npz", "--recover", "none")
    ran = cli(*words, "--quantize", kind, "--plan", bad / "plan.json", *QUIET)
    assert ran.code == 0, ran.err
    assert ("computes in half precision: what is not rounded" in ran.err) == (kind != "int4")
    before, after = onnx.load(bad / "half.onnx"), onnx.load(bad / "out.onnx")
    assert (list(after.graph.input), list(after.graph.output)) == (list(before.graph.input), list(before.graph.output))
    ran = cli("verify", bad / "half.onnx", bad / "out.onnx", "--plan", bad / "plan.json")
    assert (ran.code, ran.err) == (0, "")


def test_a_file_that_int8_ruins_is_told_of_and_refused_by_max_drop(cli, bad):
    model = filled(FAR_OFF)
    for tensor in model.graph.initializer:
        if tensor.name in ("up", "down"):
            array = np.full(8, 5000.0 if tensor.name == "up" else -5000.0, np.float32) + np.arange(8, dtype="f") / 8
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, bad / "far.onnx")
    np.savez(bad / "far.npz", x=np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32))
    words = (bad / "far.onnx", bad / "out.onnx", "--method", "l1", "--data", bad / "far.npz", "--recover", "none")
    ran = cli(*words, "--target", "macs=0.9", "--quantize", "int8:float=none", "--max-drop", 5, *QUIET)
    assert (ran.code, (bad / "out.onnx").exists()) == (1, False)
    ran = cli(*words, "--target", "params=1", "--quantize", "int8:float=none", *QUIET)
    assert ran.code == 0
    assert "int8 does not fit this model: its outputs are off by" in ran.err
    ran = cli(*words, "--target", "params=1", "--quantize", "int8", *QUIET)
    assert ran.code == 0
    assert "does not fit" not in ran.err


def test_a_size_is_met_by_both_together_and_pruning_gives_only_what_rounding_does_not(cli, tmp_path):
    report = tmp_path / "report.json"

    def run(size: float) -> dict:
        words = (DIGITS, tmp_path / "out.onnx", "--method", "l1", "--data", "digits", "--recover", "none")
        ran = cli(*words, "--quantize", "int8", "--target", f"size={size}", "--report", report, *QUIET)
        assert ran.code == 0, ran.err
        return json.loads(report.read_text())["ratios"]

    together = run(0.2)
    assert 0.15 < together["bytes"] <= 0.2
    assert together["params"] > 0.5  # in floats a fifth of the size is a fifth of the parameters
    alone = run(0.5)
    assert (alone["bytes"] <= 0.5, alone["macs"]) == (True, 1.0)


@pytest.mark.slow
def test_max_drop_is_of_the_quantized_file(cli, tmp_path):
    report = tmp_path / "report.json"
    words = (DIGITS, tmp_path / "out.onnx", "--method", "l1", "--data", "digits", "--recover", "reconstruct")
    ran = cli(*words, "--quantize", "int8", "--max-drop", 2, "--report", report, *QUIET)
    assert ran.code == 0, ran.err
    original, _, quantized, _ = json.loads(report.read_text())["models"]
    assert quantized["macs"] < original["macs"]
    lost = 100 * (original["accuracy"]["value"] - quantized["accuracy"]["value"])
    told = float(re.findall(r"lost (\S+) points of 2 allowed", ran.err)[0])
    assert 0.9 * told <= lost + 0.01 <= told + 0.01 <= 2.01  # of the points above a model that answers all alike
