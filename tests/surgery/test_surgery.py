"""Cut, mask and uncut: what is removed, what is repaired, and what must not be asked for."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model, proto, prove, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.errors import CouplingError
from onnxprune.graph import sessions, simplify
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.surgery import repair

CHAIN = (
    "(float[n,3,6,6] x, float[8,3,1,1] w, float[8] c, float[6,8,1,1] u, float[5,6,1,1] v) => (float[n,5,6,6] y) "
    "{ a = Conv(x, w, c) b = Relu(a) d = Conv(b, u) y = Conv(d, v) }"
)


def halves(coupling):
    return {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}


def test_cut_removes_and_mask_silences_the_same_positions():
    coupling = analyze(model(CHAIN))
    keep = halves(coupling)
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    w, c = (coupling.model.graph.initializers[name].const_value.numpy() for name in "wc")
    assert np.array_equal(graph.array_of(cut.graph.initializers["w"]), w[::2])
    silenced = graph.array_of(masked.graph.initializers["w"])
    assert np.array_equal(silenced[::2], w[::2])
    assert not silenced[1::2].any()
    assert np.array_equal(graph.array_of(cut.graph.initializers["c"]), c[::2])


def test_a_symbolic_size_that_counts_what_was_removed_is_forgotten():
    """As 2*n for n x heads: onnxruntime lays values with sizes of one name into the same memory, and then fails."""
    source = model(
        "(float[n,6,3] x, float[3,8] w, float[8,5] v, int64[4] s, int64[3] f, int64[4] b, int64[3] e) "
        "=> (float[n,6,5] y) { q = MatMul(x, w) h = Reshape(q, s) t = Transpose<perm = [0, 2, 1, 3]>(h) "
        "m = Reshape(t, f) r = Relu(m) u = Reshape(r, b) d = Transpose<perm = [0, 2, 1, 3]>(u) g = Reshape(d, e) "
        "y = MatMul(g, v) }",
        {"s": [0, 6, 2, 4], "f": [-1, 6, 4], "b": [-1, 2, 6, 4], "e": [0, 6, 8]},
    )
    merged = next(node for node in source.graph if node.outputs[0].name == "m").outputs[0]
    merged.shape = ir.Shape(["2*n", 6, 4])
    coupling = analyze(source)
    heads = next(dim for dim in coupling.free if dim.size == 2)
    cut = surgery.cut(Selection(coupling, {heads: np.array([True, False])}))
    found = next(node for node in cut.graph if node.outputs[0].name == "m").outputs[0]
    assert found.shape is not None
    assert [str(size) for size in found.shape] == ["None", "6", "4"]


def test_initializers_that_lose_nothing_are_shared_not_copied():
    coupling = analyze(model(CHAIN))
    dim = coupling.dim("w")
    cut = surgery.cut(Selection(coupling, {dim: np.arange(8) < 4}))
    assert cut.graph.initializers["v"].const_value is coupling.model.graph.initializers["v"].const_value


def test_the_analysed_model_is_never_changed():
    source = model(CHAIN)
    before = graph.digest(source)
    coupling = analyze(source)
    surgery.cut(Selection(coupling, halves(coupling)))
    surgery.mask(Selection(coupling, halves(coupling)))
    assert graph.digest(source) == before


@pytest.mark.parametrize("mask", [np.zeros(8, bool), None])
def test_a_dim_cannot_lose_everything_or_be_frozen(mask):
    coupling = analyze(model(CHAIN))
    if mask is not None:
        with pytest.raises(CouplingError, match="'w' cannot lose 8 of 8"):
            surgery.cut(Selection(coupling, {coupling.dim("w"): mask}))
    else:
        frozen = next(dim for dim in coupling.dims if dim.frozen)
        with pytest.raises(CouplingError, match="graph"):
            surgery.cut(Selection(coupling, {frozen: np.arange(frozen.size) < 1}))


def test_known_shapes_of_values_follow_the_cut():
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto(CHAIN)))
    coupling = analyze(inferred)
    cut = surgery.cut(Selection(coupling, halves(coupling)))
    shapes = {v.name: list(v.shape or ()) for node in cut.graph for v in node.outputs}
    assert shapes["a"][1] == 4
    assert shapes["d"][1] == 3
    assert not isinstance(shapes["a"][0], int)


def test_uncut_puts_tuned_weights_back_among_the_silent_ones():
    coupling = analyze(model(CHAIN))
    keep = halves(coupling)
    cut = surgery.cut(Selection(coupling, keep))
    for value in cut.graph.initializers.values():
        graph.set_constant(value, graph.array_of(value) * np.float32(1.5) + np.float32(0.25))
    twin = surgery.uncut(Selection(coupling, keep), cut)
    assert comparison.compare(cut, twin, comparison.random_feeds(coupling.model, coupling.shapes)).ok


def test_uncut_puts_tuned_norms_back_that_are_computed_over_kept_positions():
    """The twin held the original's norm over a width that shrank: it differed from every fine-tuned model."""
    coupling = analyze(
        model(
            "(float[n,4] x, float[4,8] w, float[8] g, float[8] c, float[8,3] v) => (float[n,3] y) "
            "{ a = MatMul(x, w) b = LayerNormalization(a, g, c) y = MatMul(b, v) }"
        )
    )
    keep = halves(coupling)
    cut = surgery.cut(Selection(coupling, keep))
    assert cut.graph.initializers["g"].const_value.shape[0] == 4
    for value in cut.graph.initializers.values():
        graph.set_constant(value, graph.array_of(value) * np.float32(1.5) + np.float32(0.25))
    twin = surgery.uncut(Selection(coupling, keep), cut)
    assert comparison.compare(cut, twin, comparison.random_feeds(coupling.model, coupling.shapes)).ok


def test_a_computed_shape_is_scaled_where_it_is_a_multiple_of_the_batch():
    """torch's MultiheadAttention reshapes to (time, batch x heads, width): the entry is a product of both."""
    text = (
        "(float[4,n,6] x, float[6,8] w, int64[1] i, int64[1] h, int64[1] t, int64[1] d, "
        "float[4,5] v) => (float[p,q,r] y) "
        "{ a = MatMul(x, w) s = Shape(x) b = Gather(s, i) k = Mul(b, h) z = Concat<axis = 0>(t, k, d) "
        "r = Reshape(a, z) y = MatMul(r, v) }"
    )
    coupling = analyze(model(text, {"i": [1], "h": [2], "t": [4], "d": [4]}))
    assert {dim.size for dim in coupling.free} == {2, 4} or {dim.size for dim in coupling.free} == {4}
    for seed in range(3):
        assert prove(coupling, random_keep(coupling, seed), seed).ok


def test_a_shape_that_two_nodes_share_is_repaired_for_each():
    text = (
        "(float[2,6,4] x, float[4,8] w, float[4,8] u, int64[4] s, float[4,5] v) => (float[p,q,r,t] y) "
        "{ a = MatMul(x, w) b = MatMul(x, u) k = Reshape(a, s) l = Reshape(b, s) m = Transpose<perm = [0, 1, 3, 2]>(l) "
        "o = MatMul(k, m) e = Exp(o) n = ReduceSum(e) j = Mul(k, n) y = MatMul(j, v) }"
    )
    coupling = analyze(model(text, {"s": [2, 6, 2, 4]}))
    assert prove(coupling, random_keep(coupling, 1), 1).ok


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_quantized_weights_are_silenced_with_their_zero_points(kind, per_channel):
    n = "[8]" if per_channel else ""
    text = (
        f"(float[2,3,6,6] x, {kind}[8,3,3,3] w, float{n} var, {kind}{n} z, {kind}[5,8,1,1] u, float var2, {kind} z2) "
        "=> (float[p,q,r,s] y) { d = DequantizeLinear<axis = 0>(w, var, z) a = Conv(x, d) b = Relu(a) "
        "e = DequantizeLinear(u, var2, z2) y = Conv(b, e) }"
    )
    coupling = analyze(model(text, {"z": np.arange(8) + 3 if per_channel else 3, "z2": 5}))
    assert {dim.size for dim in coupling.free} == {8}
    for seed in range(3):
        assert prove(coupling, random_keep(coupling, seed), seed).max_abs == 0


def test_a_quantized_table_is_silenced_behind_its_gather():
    """The zero point stands behind the Gather that reads the table."""
    text = (
        "(int64[2,6] x, uint8[20,8] w, float var, uint8 z, float[8,5] v) => (float[p,q,r] y) "
        "{ g = Gather(w, x) d = DequantizeLinear(g, var, z) y = MatMul(d, v) }"
    )
    coupling = analyze(model(text, {"z": 77}))
    masked = surgery.mask(Selection(coupling, halves(coupling)))
    assert (graph.array_of(masked.graph.initializers["w"])[:, 1::2] == 77).all()


def test_weights_on_disk_are_cut_as_they_are_read(tmp_path, monkeypatch):
    onnx.save(proto(CHAIN), tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    monkeypatch.setattr("onnxprune.graph.files.LARGE_MODEL_BYTES", 0)
    monkeypatch.setattr("onnxprune.graph.tensors.SMALL_WEIGHT_BYTES", 0)
    monkeypatch.setattr(simplify, "LARGE_MODEL_BYTES", 0)
    coupling = analyze(graph.normalize(graph.load(tmp_path / "e.onnx")))
    keep = halves(coupling)
    cut = surgery.cut(Selection(coupling, keep))
    assert any(isinstance(value.const_value, ir.LazyTensor) for value in cut.graph.initializers.values())
    graph.save(cut, tmp_path / "out.onnx")
    x = {"x": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    written = sessions.run(sessions.open_session(str(tmp_path / "out.onnx"), threads=1), x)["y"]
    masked = sessions.run(sessions.open_session(surgery.mask(Selection(coupling, keep)), threads=1), x)["y"]
    assert np.abs(written - masked).max() <= 1e-5 * np.abs(masked).max()


def test_names_that_surgery_adds_are_new():
    text = (
        "(float[n,8] x, float[8,8] w, int64[1] k, float[5] v) => (float[p] y) { a = MatMul(x, w) s = Shape(a) "
        "q = Gather(s, k) b = Reshape(a, s) c = Reshape(b, s) d = Relu(c) y = ReduceSum<keepdims = 0>(d) }"
    )
    coupling = analyze(model(text, {"k": [0]}))
    cut = surgery.cut(Selection(coupling, halves(coupling)))
    names = [value.name for node in cut.graph for value in node.outputs]
    assert len(names) == len(set(names))
    assert repair.Surgeon(Selection(coupling, {})).keep == {}


@pytest.mark.parametrize(("low", "exact"), [(-1.0, True), (0.5, True)])
def test_bounds_of_clip_may_hold_one_number_in_a_list(low, exact):
    """onnxruntime takes bounds of shape [1]; reading them as scalars was an internal error."""
    coupling = analyze(
        model(
            "(float[1,3,4,4] x, float[8,3,1,1] w, float[1] low, float[1] high, float[4,8,1,1] v) => (float[1,4,4,4] y) "
            "{ a = Conv(x, w) b = Clip(a, low, high) y = Conv(b, v) }",
            {"low": [low], "high": [1.0]},
            opset=11,
        )
    )
    (dim,) = coupling.free
    assert (dim.reduced is None) == exact
    assert prove(coupling, random_keep(coupling, 0)).ok
