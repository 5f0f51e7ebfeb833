"""Plans replayed by `apply`, and results checked by `verify`."""

import json

import numpy as np
import onnx
import pytest
from networks import CNN, DIGITS, DIGITS_BN, filled
from onnx import numpy_helper
from onnx_text import proto

L1 = ("--method", "l1", "--no-latency")


def changed(path, out, name, change):
    """The model at `path` with initializer `name` replaced by `change(array)`, written to `out`."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name or name is None:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
            break
    onnx.save(model, out)


@pytest.mark.parametrize("level", ["none", "constants"])
def test_apply_equals_the_first_result(cli, cnn_path, tmp_path, level):
    first, second, plan = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "p.json"
    assert cli(cnn_path, first, *L1, "--recover", level, "--plan", plan).code == 0
    assert cli("apply", cnn_path, plan, second, "--no-latency").code == 0
    assert first.read_bytes() == second.read_bytes()


def test_apply_with_epochs_tunes(cli, cnn_path, tmp_path):
    plan, cut, tuned, report = (tmp_path / name for name in ("p.json", "cut.onnx", "tuned.onnx", "r.json"))
    assert cli(cnn_path, cut, *L1, "--plan", plan).code == 0
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32))
    words = ("--epochs", "1", "--no-latency", "--report", report)
    ran = cli("apply", cnn_path, plan, tuned, *words)
    assert ran.code == 2
    assert "--epochs 1 needs samples" in ran.err
    assert cli("apply", cnn_path, plan, tuned, *words, "--data", tmp_path / "x.npz").code == 0
    assert "finetune" in {step["name"] for step in json.loads(report.read_text())["steps"]}


def test_apply_cuts_another_checkpoint(cli, cnn_path, tmp_path):
    other, plan, out = tmp_path / "other.onnx", tmp_path / "p.json", tmp_path / "o.onnx"
    onnx.save(filled(CNN, seed=9), other)
    assert cli(cnn_path, tmp_path / "a.onnx", *L1, "--plan", plan).code == 0
    ran = cli("apply", other, plan, out, "--no-latency")
    assert ran.code == 0
    assert "other weights" in ran.err
    assert cli("verify", other, out, "--plan", plan).code == 0


@pytest.mark.parametrize("model", [DIGITS, DIGITS_BN], ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "words",
    [
        ("--recover", "none"),
        ("--recover", "constants"),
        ("--data", "digits", "--recover", "constants"),
        ("--data", "digits", "--recover", "finetune", "--epochs", 1),
    ],
    ids=["none", "constants", "constants-data", "finetune"],
)
def test_verify_holds_on_results_of_every_recovery(cli, tmp_path, model, words):
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    assert cli(model, out, *L1, "--plan", plan, *words).code == 0
    ran = cli("verify", model, out, "--plan", plan, "-q")
    assert (ran.code, ran.err) == (0, "")
    assert "cut = mask" in ran.out


@pytest.mark.parametrize("words", [("--recover", "none"), (), ("--data", "digits", "--recover", "constants")])
@pytest.mark.parametrize("name", ["head.bias", "head.weight", "stage1.body.0.weight"])
def test_verify_fails_on_a_tampered_result(cli, tmp_path, words, name):
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    assert cli(DIGITS, out, *L1, "--plan", plan, *words).code == 0
    names = {t.name for t in onnx.load(out).graph.initializer}
    changed(out, out, name if name in names else sorted(names)[0], lambda array: array + np.float32(0.1))
    ran = cli("verify", DIGITS, out, "--plan", plan)
    assert ran.code == 3
    assert ran.err.count("\n") == 1


def test_verify_accepts_weights_tuned_elsewhere_only_when_told(cli, tmp_path):
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    assert cli(DIGITS, out, *L1, "--plan", plan).code == 0
    changed(out, out, None, lambda array: array + np.float32(0.1))
    assert cli("verify", DIGITS, out, "--plan", plan).code == 3
    ran = cli("verify", DIGITS, out, "--plan", plan, "--any-weights")
    assert ran.code == 0
    assert "with the recovered weights" in ran.out


def verified_after_tuning(cli, folder, method, text, constants=None):
    """What `verify` says of the fine-tuned result of a model of ten inputs x, by the plan."""
    source, out, plan, data = (folder / name for name in ("in.onnx", "out.onnx", "plan.json", "x.npz"))
    onnx.save(proto(text, constants), source)
    np.savez(data, x=np.random.default_rng(0).normal(size=(80, 10)).astype(np.float32))
    tuned = ("--method", method, "--data", data, "--epochs", 1, "--lr", 0.05, "--target", "params=0.6", "--align", 1)
    ran = cli(source, out, *tuned, "--no-latency", "--plan", plan)
    assert ran.code == 0, ran.err
    ran = cli("verify", source, out, "--plan", plan)
    assert ran.code == 0, ran.err
    assert "with the recovered weights" in ran.out
    return ran.out


def test_equal_weights_that_tuning_parted_are_verified_by_the_plan(cli, tmp_path):
    text = (
        "(float[n,10] x, float[10,24] w, float[24,6] u, float[10,24] v, float[24,6] o) => (float[n,6] y) "
        "{ a = MatMul(x, w) r = Sigmoid(a) b = MatMul(r, u) c = MatMul(x, v) s = Tanh(c) "
        "d = MatMul(s, o) y = Add(b, d) }"
    )
    equal = np.random.default_rng(0).normal(size=(10, 24)).astype(np.float32)
    verified_after_tuning(cli, tmp_path, "taylor", text, {"w": equal, "v": equal})


def test_a_tuned_norm_over_a_width_that_shrank_and_a_split_are_verified_by_the_plan(cli, tmp_path):
    text = (
        "(float[n,10] x, float[10,24] w, float[24] g, float[24] c, float[24,32] u, float[16,6] v) => (float[n,6] y) "
        "{ a = MatMul(x, w) b = LayerNormalization(a, g, c) d = MatMul(b, u) "
        "e, f = Split<axis = 1, num_outputs = 2>(d) s = Sigmoid(e) p = Mul(s, f) y = MatMul(p, v) }"
    )
    said = verified_after_tuning(cli, tmp_path, "l1", text)
    assert float(said.split("largest difference ")[1].split(",")[0]) < 1e-5


def test_verify_fails_on_the_result_of_another_plan(cli, tmp_path):
    out, plan, other = tmp_path / "o.onnx", tmp_path / "p.json", tmp_path / "q.json"
    assert cli(DIGITS, out, *L1, "--target", "macs=0.5", "--plan", plan).code == 0
    assert cli(DIGITS, tmp_path / "b.onnx", *L1, "--target", "macs=0.9", "--plan", other).code == 0
    ran = cli("verify", DIGITS, out, "--plan", other, "--any-weights")
    assert ran.code == 3
    assert "where the plan leaves" in ran.err
    assert cli("verify", DIGITS, DIGITS, "--plan", plan).code == 3
