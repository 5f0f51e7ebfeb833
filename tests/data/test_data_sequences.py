"""Sequences for streaming models: the original hands its state on in calibration, each model its own in measuring."""

import json

import numpy as np
import onnx
import onnx_text
import pytest

from onnxprune import graph
from onnxprune.data import input_infos, load_samples
from onnxprune.data.samples import split
from onnxprune.data.sequences import handed_back
from onnxprune.errors import DataError
from onnxprune.graph import sessions
from onnxprune.outputs import answers
from onnxprune.outputs.describe import describe

STREAM = (
    "(float[N,6] x, float[1,N,8] xh, float[1,N,8] xc, float[12,6] k, float[1,32,12] w, float[1,32,8] r, float[8,3] v, "
    "int64[1] first, int64[2] both) => (float[N,3] y, float[1,N,8] yh, float[1,N,8] yc) "
    "{ m = Gemm<transB = 1>(x, k) a = Relu(m) t = Unsqueeze(a, first) "
    "s, yh, yc = LSTM <hidden_size: int = 8> (t, w, r, , , xh, xc) u = Squeeze(s, both) y = MatMul(u, v) }"
)
N, T = 10, 7


def proto(text=STREAM):
    return onnx_text.proto(text, {"first": [0], "both": [0, 1]})


@pytest.fixture
def stream(tmp_path):
    path = tmp_path / "stream.onnx"
    onnx.save(proto(), path)
    return path, graph.normalize(graph.load(path))


def waves(count=N):
    return np.random.default_rng(0).normal(size=(count, T, 6)).astype(np.float32)


def by_hand(path, x):
    """y (N, T, 3) and the state h (N, T, 8) before each step."""
    session = sessions.open_session(path)
    state = {name: np.zeros((1, len(x), 8), np.float32) for name in ("xh", "xc")}
    said, held = [], []
    for t in range(x.shape[1]):
        held.append(state["xh"][0])
        found = sessions.run(session, {"x": x[:, t], **state})
        said.append(found["y"])
        state = {"xh": found["yh"], "xc": found["yc"]}
    return np.stack(said, 1), np.stack(held, 1)


def loaded(model, spec):
    return load_samples(spec, input_infos(model), model=model)


def test_states_and_their_outputs_are_found(stream):
    assert handed_back(stream[1]) == {"xh": "yh", "xc": "yc"}


def test_steps_have_the_states_that_the_original_comes_to(stream):
    path, model = stream
    x = waves()
    samples = loaded(model, {"x": x})
    assert (len(samples), samples.steps) == (N * T, T)
    feeds = samples.batch(np.arange(N * T))
    np.testing.assert_array_equal(feeds["x"].reshape(N, T, 6), x)
    np.testing.assert_allclose(feeds["xh"][0].reshape(N, T, 8), by_hand(path, x)[1], atol=1e-6)
    assert np.abs(feeds["xh"][0].reshape(N, T, 8)[:, 1:]).max() > 0.1


def test_a_state_before_the_first_step_can_be_given(stream):
    start = np.random.default_rng(1).normal(size=(1, N, 8)).astype(np.float32)
    samples = loaded(stream[1], {"x": waves(), "xh": start})
    np.testing.assert_array_equal(samples.batch(np.arange(N) * T)["xh"], start)


@pytest.mark.parametrize(("shape", "steps"), [((N, T), True), ((N,), False)])
def test_labels_of_steps_and_of_whole_sequences(stream, shape, steps):
    y = np.random.default_rng(2).integers(0, 3, shape)
    samples = loaded(stream[1], ({"x": waves()}, y))
    wanted = y if steps else np.repeat(y[:, None], T, 1)
    np.testing.assert_array_equal(samples.labels, wanted.ravel())


def test_no_sequence_is_torn_when_samples_are_held_out(stream):
    tune, held = split(loaded(stream[1], {"x": waves()}), 0.3, 0)
    assert (len(tune), len(held), held.steps) == (7 * T, 3 * T, T)
    rows = {tuple(row) for part in (tune, held) for row in part.batch(np.arange(len(part)))["x"].reshape(-1, T * 6)}
    assert rows == {tuple(row) for row in waves().reshape(N, -1)}


def test_single_steps_are_taken_as_ever(stream):
    x, state = waves()[:, 0], np.zeros((1, N, 8), np.float32)
    samples = loaded(stream[1], {"x": x, "xh": state, "xc": state})
    assert (len(samples), samples.steps) == (N, 1)


def test_inputs_that_differ_in_steps_are_refused(tmp_path):
    two = STREAM.replace("float[N,6] x,", "float[N,6] x, float[N,6] x2,").replace(
        "{ m = Gemm", "{ s2 = Add(x, x2) m = Gemm"
    )
    onnx.save(proto(two.replace("(x, k)", "(s2, k)")), tmp_path / "two.onnx")
    model = graph.normalize(graph.load(tmp_path / "two.onnx"))
    with pytest.raises(DataError, match="give each as many"):
        loaded(model, {"x": waves(), "x2": waves()[:, :3]})


def test_a_model_is_measured_with_the_states_that_it_makes_itself(stream, tmp_path):
    path, model = stream
    samples = loaded(model, {"x": waves()})
    outputs = describe(model, samples)
    np.testing.assert_allclose(
        answers.answers(path, samples, outputs)["y"].reshape(N, T, 3), by_hand(path, waves())[0], atol=1e-5
    )
    other = proto()
    r = next(value for value in other.graph.initializer if value.name == "r")
    r.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(r) * np.float32(0.5), "r"))
    worse = tmp_path / "worse.onnx"
    onnx.save(other, worse)
    found = answers.answers(worse, samples, outputs)["y"].reshape(N, T, 3)
    np.testing.assert_allclose(found, by_hand(worse, waves())[0], atol=1e-5)
    handed = sessions.run(sessions.open_session(worse), samples.batch(np.arange(N * T)))["y"].reshape(N, T, 3)
    assert np.abs(found - handed)[:, 2:].max() > 1e-3  # what the original's states would have given


def test_a_streaming_model_is_pruned_on_sequences(cli, stream, tmp_path):
    np.savez(tmp_path / "waves.npz", x=waves(40))
    report = tmp_path / "r.json"
    words = ("--data", tmp_path / "waves.npz", "--method", "l1", "--target", "macs=0.9", "--recover", "reconstruct")
    ran = cli(stream[0], tmp_path / "out.onnx", *words, "--no-latency", "--report", report)
    assert ran.code == 0, ran.err
    found = json.loads(report.read_text())
    assert found["models"][1]["accuracy"]["samples"] % T == 0
    assert 0 < found["models"][1]["accuracy"]["share"] < 1


def test_the_method_that_nobody_asked_for_meets_states_whose_samples_are_on_another_axis(cli, stream, tmp_path):
    """Widths by refit compared all outputs, states (1, N, 8) among them: "accuracy needs one row per sample"."""
    np.savez(tmp_path / "x.npz", x=waves(12))
    ran = cli(stream[0], tmp_path / "o.onnx", "--data", tmp_path / "x.npz", "--target", "macs=0.8", "--no-latency",
              "--align", 1, "--epochs", 1)  # fmt: skip
    assert ran.code == 0, ran.err


def test_labels_of_every_place_reach_the_metric(cli, tmp_path):
    """Labels (N, T) were refused, as if they had to be one-hot."""
    text = "(float[N,5,6] x, float[6,12] w, float[12,4] v) => (float[N,5,4] y) "
    onnx.save(
        onnx_text.proto(text + "{ h = MatMul(x, w) a = Relu(h) z = MatMul(a, v) y = Softmax(z) }"), tmp_path / "m.onnx"
    )
    x = np.random.default_rng(0).normal(size=(60, 5, 6)).astype(np.float32)
    y = sessions.run(sessions.open_session(tmp_path / "m.onnx"), {"x": x})["y"].argmax(2)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    report = tmp_path / "r.json"
    words = ("--method", "l1", "--recover", "none", "--target", "macs=0.8", "--no-latency", "--report", report)
    ran = cli(tmp_path / "m.onnx", tmp_path / "o.onnx", "--data", tmp_path / "d.npz", *words)
    assert ran.code == 0, ran.err
    before, after = (model["accuracy"] for model in json.loads(report.read_text())["models"])
    assert (before["metric"], before["value"]) == ("top1", 1.0)
    assert 0.2 < after["value"] < 1
