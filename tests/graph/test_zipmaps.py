"""Outputs that are maps: models with a ZipMap are pruned, proven, measured and written with their interface."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import proto

from onnxprune import graph
from onnxprune.errors import GraphError

LABELS = {"strings": ["a", "b", "c"], "int64s": [0, 1, 2]}


def classifier(kind: str, *, tensor_too: bool = False) -> onnx.ModelProto:
    """A dense network whose outputs are the class, and a map from class to probability."""
    model = proto(
        "(float[n,4] x, float[4,24] w, float[24,3] v, int64[1] shape) => (float[n,3] probs) "
        "{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) probs = Softmax(c) k = ArgMax<axis = 1>(probs) }",
        {"shape": -1},
    )
    strings = kind == "strings"
    classes = (
        helper.make_tensor("classes", TensorProto.STRING, [3], LABELS[kind])
        if strings
        else numpy_helper.from_array(np.arange(3), "classes")
    )
    key = TensorProto.STRING if strings else TensorProto.INT64
    entry = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    graph_ = model.graph
    graph_.initializer.append(classes)
    graph_.node.append(helper.make_node("ArrayFeatureExtractor", ["classes", "k"], ["l"], domain="ai.onnx.ml"))
    graph_.node.append(helper.make_node("Reshape", ["l", "shape"], ["label"]))
    zipped = {f"classlabels_{kind}": LABELS[kind]}
    graph_.node.append(helper.make_node("ZipMap", ["probs"], ["map"], domain="ai.onnx.ml", **zipped))
    tensor = graph_.output.pop()
    graph_.output.append(helper.make_tensor_value_info("label", key, ["n"]))
    graph_.output.append(helper.make_value_info("map", helper.make_sequence_type_proto(entry)))
    graph_.output.extend([tensor] if tensor_too else [])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.checker.check_model(model)
    return model


@pytest.fixture(params=[("strings", False), ("int64s", False), ("int64s", True)], ids=str)
def path(request, tmp_path):
    file = tmp_path / "map.onnx"
    onnx.save(classifier(request.param[0], tensor_too=request.param[1]), file)
    return file


def outputs(path):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    return [(v.name, v.type, v.shape) for v in session.get_outputs()], session.run(None, {"x": x})


def test_maps_are_set_aside_and_put_back(path, tmp_path):
    out = tmp_path / "again.onnx"
    loaded = graph.load(path)
    assert all(node.op_type != "ZipMap" for node in loaded.graph)
    graph.save(graph.normalize(loaded), out)
    onnx.checker.check_model(onnx.load(out))
    before, after = outputs(path), outputs(out)
    assert after[0] == before[0]
    for a, b in zip(after[1], before[1], strict=True):
        assert np.array_equal(a, b)


def test_a_model_with_maps_is_pruned_and_verified(cli, path, tmp_path):
    out, plan, report = (tmp_path / name for name in ("out.onnx", "plan.json", "report.json"))
    words = ("--method", "l1", "--no-latency", "--target", "params=0.5")
    ran = cli(path, out, *words, "--plan", plan, "--report", report)
    assert ran.code == 0, ran.err
    assert json.loads(report.read_text())["ratios"]["params"] <= 0.5
    assert outputs(out)[0] == outputs(path)[0]
    ran = cli("verify", path, out, "--plan", plan)
    assert ran.code == 0, ran.err


def test_a_model_with_maps_is_measured_on_samples(cli, path, tmp_path):
    samples, report = tmp_path / "x.npy", tmp_path / "report.json"
    np.save(samples, np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32))
    words = ("--method", "l1", "--no-latency", "--target", "params=0.5", "--recover", "reconstruct")
    ran = cli(path, tmp_path / "out.onnx", *words, "--data", samples, "--report", report)
    assert ran.code == 0, ran.err
    assert json.loads(report.read_text())["models"][1]["accuracy"]["metric"] in ("agreement", "share_kept")


def test_a_map_in_the_middle_is_refused(tmp_path):
    model = classifier("int64s")
    model.graph.output.append(helper.make_tensor_value_info("one", TensorProto.INT64, []))
    model.graph.node.append(helper.make_node("SequenceLength", ["map"], ["one"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(GraphError, match="'map' is a map"):
        graph.load(tmp_path / "m.onnx")
