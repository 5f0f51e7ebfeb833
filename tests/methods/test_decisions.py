"""Every method on models that end in a decision: scored, trained and measured on the values behind it."""

import json

import numpy as np
import onnx
import pytest
from onnx_text import proto

BODY = """
  a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1, b1) r = Relu (a)
  b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, w2, b2)
  n = BatchNormalization (b, gain, shift, mean, variance) f = Relu (n)"""
WEIGHTS = "float[16, 3, 3, 3] w1, float[16] b1, float[16, 16, 3, 3] w2, float[16] b2, float[16] gain, "
WEIGHTS += "float[16] shift, float[16] mean, float[16] variance"
CHOICE = " g = GlobalAveragePool (f) v = Flatten (g) l = Gemm (v, w, c) "
MODELS = {
    "argmax": (f"(float[N, 3, 8, 8] x, {WEIGHTS}, float[16, 5] w, float[5] c) => (int64[N] y) {{{BODY}{CHOICE}"
               " y = ArgMax <axis = 1, keepdims = 0> (l) }", {}),
    "topk": (f"(float[N, 3, 8, 8] x, {WEIGHTS}, float[16, 5] w, float[5] c, int64[1] k) => (int64[N, 2] y) {{{BODY}"
             f"{CHOICE} p, y = TopK (l, k) }}", {"k": [2]}),
    "nms": (f"(float[N, 3, 8, 8] x, {WEIGHTS}, float[4, 16, 1, 1] wb, float[2, 16, 1, 1] ws, int64[3] s4, int64[3] s2,"
            f" int64[1] most, float[1] iou) => (int64[M, 3] y) {{{BODY} bb = Conv (f, wb) b4 = Reshape (bb, s4)"
            " boxes = Transpose <perm = [0, 2, 1]> (b4) ss = Conv (f, ws) s3 = Reshape (ss, s2) scores = Sigmoid (s3)"
            " y = NonMaxSuppression (boxes, scores, most, iou) }",
            {"s4": [0, 4, 4], "s2": [0, 2, 4], "most": [3], "iou": [0.5]}),
}  # fmt: skip
METHODS = ("snacs", "paam", "gss", "aswl", "cci", "l1", "l2", "fpgm", "bn", "taylor", "hessian", "random")
SHORT = {"paam": ("epochs=1",), "gss": ("epochs=1",), "aswl": ("epochs=1",), "cci": ("epochs=1",)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decisions")
    for name, (text, constants) in MODELS.items():
        onnx.save(proto(text, constants), folder / f"{name}.onnx")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32))
    return folder


# What argmax and topk decide on is the same to a method: one that looks at samples and one that trains try both.
PAIRS = [(model, method) for model in MODELS for method in METHODS if model != "topk" or method in ("snacs", "paam")]


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_every_method_runs_on_a_model_that_ends_in_a_decision(cli, files, tmp_path, model, method):
    more = [word for option in SHORT.get(method, ()) for word in ("--option", option)]
    out, report = tmp_path / "o.onnx", tmp_path / "r.json"
    ran = cli(
        files / f"{model}.onnx", out, "--method", method, "--data", files / "x.npz", "--recover", "reconstruct",
        "--no-latency", "--report", report, *more,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(report.read_text())
    assert found["outputs"][0]["kind"] == "decision"
    assert found["outputs"][0]["decides_on"]
    assert found["models"][1]["accuracy"]["metric"] == ("detections_ap" if model == "nms" else "agreement")
    # The values behind are looked at by the tool only; they are no outputs of what is written.
    assert [value.name for value in onnx.load(out).graph.output] == ["y"]


@pytest.mark.parametrize("model", MODELS)
def test_what_decisions_are_made_of_is_fine_tuned(cli, files, tmp_path, model):
    words = (files / f"{model}.onnx", tmp_path / "o.onnx", "--data", files / "x.npz", "--method", "l1")
    ran = cli(*words, "--epochs", 1, "--no-latency", "--report", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    assert "fine-tuning was left out" not in ran.err
    assert json.loads((tmp_path / "r.json").read_text())["finetune"]
