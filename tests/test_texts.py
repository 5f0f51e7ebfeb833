"""Models that take texts: pruned, proven, measured and timed as all others."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_text import proto


@pytest.fixture
def path(tmp_path):
    """Texts that are looked up in a table of embeddings, then two dense layers."""
    model = proto(
        "(int64[n,4] x, float[4,16] e, float[16,24] w, float[24,3] v, int64[1] axis) => (float[n,3] y) "
        "{ g = Gather(e, x) p = ReduceMean<keepdims = 0>(g, axis) h = MatMul(p, w) r = Relu(h) y = MatMul(r, v) }",
        {"axis": [1]},
    )
    words = {"keys_strings": ["a", "b", "c"], "values_int64s": [1, 2, 3], "default_int64": 0}
    model.graph.node.insert(0, helper.make_node("LabelEncoder", ["text"], ["x"], domain="ai.onnx.ml", **words))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("text", TensorProto.STRING, ["n", 4]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    onnx.save(model, tmp_path / "texts.onnx")
    return tmp_path / "texts.onnx"


def test_a_model_of_texts_is_pruned_measured_and_timed(cli, path, tmp_path):
    out, plan, report, samples = (tmp_path / name for name in ("out.onnx", "plan.json", "report.json", "x.npz"))
    np.savez(samples, text=np.random.default_rng(0).choice(["a", "b", "zz"], size=(20, 4)))
    words = ("--method", "l1", "--target", "params=0.6", "--recover", "reconstruct", "--data", samples)
    ran = cli(path, out, *words, "--plan", plan, "--report", report)
    assert ran.code == 0, ran.err
    found = json.loads(report.read_text())
    assert found["verify"]["ok"]
    assert found["models"][1]["accuracy"]["samples"] == 4
    assert cli("verify", path, out, "--plan", plan).code == 0
    assert cli("bench", path, out).code == 0
