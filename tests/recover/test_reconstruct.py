"""Least squares of each layer on what the dense model says there."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from networks import CNN, filled
from onnx_text import model as text_model
from recovering import Digits, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.data import input_infos, load_samples
from onnxprune.errors import GraphError
from onnxprune.graph import extras, files, sessions, stored
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover import biases, constants
from onnxprune.recover.levels import fitting_samples
from onnxprune.recover.refit import layers, reconstruct
from onnxprune.recover.refit.layers import Layer, find


def test_over_half_of_the_lost_accuracy_comes_back(digits: Digits):
    keep = random_keep(digits.coupling, 0.6)
    cut = surgery.cut(Selection(digits.coupling, keep))
    constants.push(Selection(digits.coupling, keep), cut, digits.tune)
    lost = digits.accuracy(digits.model) - digits.accuracy(cut)
    assert lost > 0.2
    records = reconstruct.refit(Selection(digits.coupling, keep), cut, digits.unlabelled(digits.tune), limit=192)
    assert digits.accuracy(digits.model) - digits.accuracy(cut) < 0.25 * lost
    assert all(record.after < record.before for record in records if record.accepted and record.rows > 10)


def test_the_twin_still_holds(digits: Digits):
    keep = random_keep(digits.coupling, 0.6)
    cut = surgery.cut(Selection(digits.coupling, keep))
    reconstruct.refit(Selection(digits.coupling, keep), cut, digits.tune, limit=64)
    twin = surgery.uncut(Selection(digits.coupling, keep), cut)
    assert biases.carry(Selection(digits.coupling, keep), cut, twin) == 0
    assert comparison.compare(cut, twin, comparison.random_feeds(digits.model, digits.coupling.shapes)).ok


def test_the_same_seed_gives_the_same_model(folded: Digits):
    keep, digests = random_keep(folded.coupling, 0.6), []
    for _ in range(2):
        cut = surgery.cut(Selection(folded.coupling, keep))
        reconstruct.refit(Selection(folded.coupling, keep), cut, folded.tune, limit=48)
        digests.append(graph.digest(cut))
    assert digests[0] == digests[1]


def test_nothing_lost_changes_nothing(folded: Digits):
    cut = surgery.cut(Selection(folded.coupling, {}))
    assert reconstruct.refit(Selection(folded.coupling, {}), cut, folded.tune) == []


def test_residual_sums_make_good_what_their_shortcut_lost(folded: Digits):
    keep = random_keep(folded.coupling, 0.6)
    cut = surgery.cut(Selection(folded.coupling, keep))
    found = {item.linear.name: item for item in find(Selection(folded.coupling, keep), cut) if isinstance(item, Layer)}
    outputs = {node.name: node.outputs[0].name for node in cut.graph}
    last = found["/stage1/body/body.3/Conv"]
    assert (last.target, last.other) == (outputs["/stage1/Add"], outputs["/stem/stem.2/Relu"])
    assert found["/stage1/body/body.0/Conv"].other is None
    assert "/stem/stem.0/Conv" not in found  # reads the input, which is as it was


# Redundant units: a layer of rank 3 seen through 8 channels is whole again from any 4 of them.
LAYERS = {
    "conv": ("(float[N,3,6,6] x, float[8,3,1,1] w, float[5,8,3,3] v, float[5] c) => (float[N,5,6,6] y)"
             "{ a = Conv(x, w) y = Conv<pads = [1,1,1,1]>(a, v, c) }"),
    "grouped": ("(float[N,3,6,6] x, float[8,3,1,1] w, float[6,4,3,3] v, float[6] c) => (float[N,6,2,2] y)"
                "{ a = Conv(x, w) y = Conv<group = 2, strides = [2,2]>(a, v, c) }"),
    "transposed": ("(float[N,3,6,6] x, float[8,3,1,1] w, float[8,5,2,2] v, float[5] c) => (float[N,5,12,12] y)"
                   "{ a = Conv(x, w) y = ConvTranspose<strides = [2,2]>(a, v, c) }"),
    "one axis, dilated": ("(float[N,3,12] x, float[8,3,1] w, float[5,8,3] v, float[5] c) => (float[N,5,8] y)"
                          "{ a = Conv(x, w) y = Conv<dilations = [2]>(a, v, c) }"),
    "before a norm": (
        "(float[N,3,6,6] x, float[8,3,1,1] w, float[5,8,3,3] v, float[5] g, float[5] h, float[5] m, float[5] var)"
        " => (float[N,5,4,4] y) { a = Conv(x, w) b = Conv(a, v) y = BatchNormalization(b, g, h, m, var) }"),
    "gemm": ("(float[N,3] x, float[3,8] w, float[5,8] v, float[5] c) => (float[N,5] y)"
             "{ a = Gemm(x, w) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(a, v, c) }"),
    "matmul": ("(float[N,7,3] x, float[3,8] w, float[8,5] v, float[5] c) => (float[N,7,5] y)"
               "{ a = MatMul(x, w) m = MatMul(a, v) y = Add(m, c) }"),
    "matmul without bias": ("(float[N,3] x, float[3,8] w, float[8,5] v) => (float[N,5] y)"
                            "{ a = MatMul(x, w) y = MatMul(a, v) }"),
}  # fmt: skip


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_a_redundant_layer_is_made_whole(text: str):
    model = text_model(text)
    coupling = analyze(model)
    dim = next(d for d in coupling.free if any(m.initializer == "w" for m in coupling.members[d]))
    keep = {dim: np.arange(dim.size) < (3 if dim.size == 4 else 4)}
    shape = [size if isinstance(size, int) else 100 for size in model.graph.inputs[0].shape or ()]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cut = surgery.cut(Selection(coupling, keep))
    (record,) = reconstruct.refit(
        Selection(coupling, keep), cut, load_samples({"x": x}, input_infos(model)), ridge=1e-7
    )
    y, wanted = (sessions.run(sessions.open_session(m, threads=1), {"x": x[:20]})["y"] for m in (cut, model))
    assert record.accepted
    assert record.before > 0.05
    assert np.abs(y - wanted).max() <= 2e-3 * np.abs(wanted).max()


def test_attention_projections_are_refitted():
    text = (
        "(float[N,6,8] x, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,5] wo, float[8,8] wi)"
        " => (float[N,6,5] y) { i = MatMul(x, wi) q = MatMul(i, wq) k = MatMul(i, wk) v = MatMul(i, wv)"
        " t = Transpose<perm = [0,2,1]>(k) s = MatMul(q, t) p = Softmax<axis = -1>(s) o = MatMul(p, v)"
        " y = MatMul(o, wo) }"
    )
    model = text_model(text)
    coupling = analyze(model)
    keep = random_keep(coupling, 0.75)
    cut = surgery.cut(Selection(coupling, keep))
    found = [item.linear.stored.name for item in find(Selection(coupling, keep), cut) if isinstance(item, Layer)]
    assert found == ["wq", "wk", "wv", "wo"]
    x = np.random.default_rng(0).normal(size=(64, 6, 8)).astype(np.float32)
    records = reconstruct.refit(Selection(coupling, keep), cut, load_samples({"x": x}, input_infos(model)))
    assert any(record.accepted for record in records)


def test_a_norm_before_its_layer_follows_the_moments():
    text = (
        "(float[N,3,6,6] x, float[8,3,1,1] w, float[6,8,1,1] v, float[6] g, float[6] h, float[6] m, float[6] var,"
        " float[4,6,1,1] u) => (float[N,4,6,6] y)"
        "{ a = Conv(x, w) r = Relu(a) b = Conv(r, v) s = Relu(b) n = BatchNormalization(s, g, h, m, var)"
        "  y = Conv(n, u) }"
    )
    model = text_model(text)
    coupling = analyze(model)
    keep = random_keep(coupling, 0.5)
    cut = surgery.cut(Selection(coupling, keep))
    x = np.random.default_rng(0).normal(size=(64, 3, 6, 6)).astype(np.float32)
    mean = graph.array_of(cut.graph.initializers["m"]).copy()
    reconstruct.refit(Selection(coupling, keep), cut, load_samples({"x": x}, input_infos(model)))
    assert not np.array_equal(mean, graph.array_of(cut.graph.initializers["m"]))
    assert (graph.array_of(cut.graph.initializers["var"]) > 0).all()


@pytest.mark.parametrize(
    ("side", "macs", "count"),
    [(32, 125e6, 4096), (32, 300e6, 2000), (32, 4e9, 512), (224, 1e6, 1024), (160, 1e6, 2007)],
)
def test_more_samples_where_they_are_small_and_the_model_is_quick(side: int, macs: float, count: int):
    tune = SimpleNamespace(batch=lambda numbers: {"x": np.zeros((len(numbers), 3, side, side), np.float32)})
    given = SimpleNamespace(tune=tune, macs=int(macs))
    assert fitting_samples(given) == count  # type: ignore[arg-type]


def test_rows_that_went_are_left_out_of_what_a_mixing_layer_is_fitted_to():
    text = (
        "(float[n,6,8] x, float[8,12] w, float[6,6] t, float[6] c, float[12,4] v) => (float[n,6,4] y) "
        "{ a = MatMul(x, w) "
        "p = Transpose<perm = [0,2,1]>(a) m = MatMul(p, t) q = Add(m, c) r = Sigmoid(q) "
        "b = Transpose<perm = [0,2,1]>(r) y = MatMul(b, v) }"
    )
    dense = text_model(text)
    coupling = analyze(dense)
    (dim,) = (d for d in coupling.free if d.size == 12)
    keep = {dim: np.arange(12) % 2 == 1}
    cut = surgery.cut(Selection(coupling, keep))
    before = graph.array_of(cut.graph.initializers["t"]).copy()
    x = np.random.default_rng(0).normal(size=(200, 6, 8)).astype(np.float32)
    refit = reconstruct.refit(Selection(coupling, keep), cut, load_samples({"x": x}, input_infos(dense)))
    (mixing,) = (record for record in refit if record.node == "MatMul_2")
    assert mixing.before < 1e-9  # it still mixes the same tokens of each channel that is left
    assert np.allclose(graph.array_of(cut.graph.initializers["t"]), before, atol=1e-4)


def test_layers_that_were_not_refitted_are_told_of(folded: Digits, monkeypatch):
    keep = random_keep(folded.coupling, 0.6)
    cut, whole, calls = surgery.cut(Selection(folded.coupling, keep)), reconstruct._refit_wave, []

    def failing(*given):
        calls.append(given)
        if len(calls) > 1:
            raise GraphError("the model fails in onnxruntime")
        return whole(*given)

    monkeypatch.setattr(reconstruct, "_refit_wave", failing)
    count = len(reconstruct.refit(Selection(folded.coupling, keep), cut, folded.tune, limit=48))
    assert count
    (note,) = extras.of(cut).notes
    assert note.startswith(f"least squares refitted {count} of ")


@pytest.mark.parametrize(
    ("behind", "counts"),
    [
        ("y = Relu (s)", (0, np.inf)),
        ("y = Clip (s, low, high)", (-0.5, 6)),
        ("y = Clip (s, , high)", (-np.inf, 6)),
        ("y = HardSwish (s)", (-3, np.inf)),
        ("y = HardSigmoid <alpha = 0.5, beta = 0.25> (s)", (-0.5, 1.5)),
        ("y = Sigmoid (s)", None),
        ("r = Relu (s) y = Add (r, s)", None),  # what Relu hides is read elsewhere
        ("m = ReduceMax <keepdims = 0> (x) y = Clip (s, , m)", None),
    ],
)
def test_what_the_activation_behind_a_layer_hides_does_not_count(behind: str, counts):
    text = (
        "(float[N,5] x, float[5,6] w0, float[6,4] w1, float low, float high) => (float[N,4] y)"
        f" {{ a = MatMul(x, w0) h = Relu(a) s = MatMul(h, w1) {behind} }}"
    )
    model = text_model(text, {"low": np.float32(-0.5), "high": np.float32(6)})
    coupling = analyze(model)
    keep = {dim: np.arange(dim.size) > 1 for dim in coupling.free if dim.size == 6}
    assert keep
    selection = Selection(coupling, keep)
    (layer,) = (item for item in find(selection, surgery.cut(selection)) if isinstance(item, Layer))
    assert layer.counts == counts


def test_logits_are_nearer_where_layers_are_fitted_behind_their_activations(folded: Digits, monkeypatch):
    def error() -> float:
        cut = surgery.cut(selection)
        reconstruct.refit(selection, cut, folded.tune, limit=512)
        return folded.error(cut)

    selection = Selection(folded.coupling, random_keep(folded.coupling, 0.6))
    behind = error()
    monkeypatch.setattr(layers, "_counts", lambda _: None)
    assert behind < 0.97 * error()


def test_narrow_layers_are_fitted_to_more_positions_than_wide_ones_and_all_to_enough():
    many, wide, widest = (reconstruct.rows_for(1, features) for features in (27, 576, 4608))
    assert many == reconstruct.CHEAP_ROWS
    assert many > wide > 16 * 576
    assert widest >= 4 * 4608
    tried = [reconstruct.rows_for(1, features, tried=True) for features in (27, 576, 1152, 4608)]
    assert tried == [many, pytest.approx(wide, rel=0.03), 10_000, 4 * 4608]
    assert reconstruct.rows_for(512, 9) * 512 * 9 * 4 < 400_000_000  # bytes


def test_weights_that_stay_in_files_are_refitted_as_those_in_memory(tmp_path, monkeypatch):
    """A model beyond memory was run with all weights in each piece, and held what was refitted."""
    onnx.save(filled(CNN), tmp_path / "whole.onnx")
    onnx.save(filled(CNN), tmp_path / "beside.onnx", save_as_external_data=True, location="data", size_threshold=0)
    monkeypatch.setattr("onnxprune.graph.tensors.SMALL_WEIGHT_BYTES", 0)
    answers = []
    for name, limit in (("whole", 1 << 30), ("beside", 0)):
        monkeypatch.setattr(files, "LARGE_MODEL_BYTES", limit)
        model = graph.normalize(graph.load(tmp_path / f"{name}.onnx"))
        coupling = analyze(model)
        selection = Selection(coupling, {dim: np.arange(dim.size) % 3 > 0 for dim in coupling.free})
        cut = surgery.cut(selection)
        x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
        samples = load_samples({"x": x}, input_infos(model), seed=0)
        records = reconstruct.refit(selection, cut, samples)
        assert any(record.accepted for record in records)
        refitted = {r.node for r in records if r.accepted}
        weights = [w for node in cut.graph if node.name in refitted and (w := node.inputs[1]) is not None]
        assert all(stored.is_stored(value) is (name == "beside") for value in weights)
        answers.append([graph.array_of(value) for value in weights])
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
