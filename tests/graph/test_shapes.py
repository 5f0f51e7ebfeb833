"""Shapes are observed at two sizes: what stays, what changes, and which sizes are tried."""

import numpy as np
import onnx_ir as ir
import pytest
from networks import filled
from onnx_text import model

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.errors import GraphError
from onnxprune.graph import probes, shapes
from onnxprune.graph.inputs import axis_of


def test_static_shapes_are_inferred_without_a_run(monkeypatch):
    monkeypatch.setattr(shapes, "_run", lambda *_: pytest.fail("the model was run"))
    observed = shapes.observe(model("(float[2,3] x, float[3,4] w) => (float[2,4] y) { a = MatMul(x, w) y = Relu(a) }"))
    assert observed.sizes["a"] == (2, 4)
    assert not observed.dynamic


def test_symbolic_sizes_are_told_from_fixed_ones():
    observed = shapes.observe(model("(float[n,3] x, float[3,4] w) => (float[n,4] y) { a = MatMul(x, w) y = Relu(a) }"))
    assert observed.dynamic["a"] == (True, False)
    assert observed.probe["x"][0] != observed.second["x"][0]


def test_contents_of_computed_shapes_are_recorded():
    text = (
        "(float[n,8] x, int64[1] s) => (float[p,q,r] y) "
        "{ a = Shape<start = 0, end = 1>(x) b = Concat<axis = 0>(a, s) y = Reshape(x, b) }"
    )
    with pytest.raises(GraphError):
        shapes.observe(model(text, {"s": [7]}))
    text = text.replace("int64[1] s", "int64[2] s")
    observed = shapes.observe(model(text, {"s": [2, 4]}))
    assert observed.contents["b"].tolist()[1:] == [2, 4]
    assert "b" in observed.again


def test_a_size_that_the_model_mentions_is_tried():
    text = "(float[n,t] x, float[20,5] w, int64[2] s) => (float[p,q] y) { a = Reshape(x, s) y = MatMul(a, w) }"
    observed = shapes.observe(model(text, {"s": [-1, 20]}))
    assert observed.probe["x"][0] * observed.probe["x"][1] % 20 == 0


def test_a_model_that_runs_at_no_size_is_refused(monkeypatch):
    monkeypatch.setattr(probes, "MAX_TRIES", 6)
    text = "(float[n,8] x, float[977,20] w, int64[2] s) => (float[p,q] y) { a = Reshape(x, s) y = MatMul(a, w) }"
    with pytest.raises(GraphError, match="none of the sizes"):
        shapes.observe(model(text, {"s": [5, 977]}))


def test_of_a_model_that_runs_at_no_size_what_is_missing_is_told_before_sizes_that_do_not_fit():
    fails = "[ONNXRuntimeError] : {}".format
    said, session = iter(["2 : INVALID_ARGUMENT : a", "9 : NOT_IMPLEMENTED : b", "2 : INVALID_ARGUMENT : c"]), object()
    failure = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes.sessions, "run", lambda *_: (_ for _ in ()).throw(GraphError(fails(next(said)))))
        told = [failure := shapes._attempt(session, [], {}, failure)[1] for _ in range(3)]
    assert [text[-1] for text in told] == ["a", "b", "b"]


def test_samples_come_first():
    text = "(float[n,t] x, float[1] c) => (float[n,t] y) { y = Add(x, c) }"
    observed = shapes.observe(model(text), {"x": (5, 9)})
    assert observed.probe["x"] == (5, 9)
    assert observed.second["x"] == (2, 8)


def test_a_length_of_all_samples_that_the_model_insists_on_is_kept():
    text = "(float[n,t] x, float[9,4] w) => (float[n,4] y) { y = MatMul(x, w) }"
    observed = shapes.observe(model(text), {"x": (5, 9)})
    assert (observed.probe["x"], observed.second["x"]) == ((5, 9), (2, 9))


def test_names_that_several_inputs_share_and_sums_of_them_change_together():
    text = "(float[n,t] x, float[n,t] x2, float[n,q] x3) => (float[n,q] y) { a = Add(x, x2) b = Concat<axis = 1>(a, x) "
    text += "y = Add(b, x3) }"
    made = model(text)
    made.graph.inputs[2].shape = ir.Shape(["n", "t + t"])
    observed = shapes.observe(made, {"x": (5, 9), "x2": (5, 9), "x3": (5, 18)})
    assert observed.second == {"x": (2, 8), "x2": (2, 8), "x3": (2, 16)}


def test_samples_of_one_length_do_not_make_the_rest_of_a_table_removable():
    """Positions behind the length of the samples were cut: the result ran at no other length."""
    text = (
        "(int64[n,t] x, int64[1] zero, int64[1] one, float[30,12] words, float[40,12] places, float[12,8] w, "
        "float[8,3] v) => (float[n,t,3] y) { s = Shape(x) l = Gather(s, one) p = Slice(places, zero, l, zero) "
        "e = Gather(words, x) h = Add(e, p) a = MatMul(h, w) r = Relu(a) y = MatMul(r, v) }"
    )
    coupling = analyze(
        model(text, {"zero": 0, "one": 1}), shapes.observe(model(text, {"zero": 0, "one": 1}), {"x": (8, 12)})
    )
    assert sorted(dim.size for dim in coupling.free) == [8, 12]


def test_a_large_model_is_observed_without_its_weights(monkeypatch):
    text = "(float[n,3] x, float[3,400] w, float[400,4] v) => (float[n,4] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    small = shapes.observe(model(text))
    monkeypatch.setattr(shapes, "LARGE_MODEL_BYTES", 100)
    large = shapes.observe(model(text))
    assert large.dynamic == small.dynamic
    assert {name: large.sizes[name] for name in ("a", "y", "w")} == {
        name: small.sizes[name] for name in ("a", "y", "w")
    }


def test_expressions_of_symbols_are_computed():
    source = model("(float[n,past] x, float[n,more] x2) => (float[n,q] y) { y = Concat<axis = 1>(x, x2) }")
    source.graph.inputs[1].shape = type(source.graph.inputs[1].shape)(["n", "past + 1"])
    first, seconds = next(iter(probes.pairs(source)))
    assert first["x2"][1] == first["x"][1] + 1
    assert all(probe["x2"][1] == probe["x"][1] + 1 for probe in seconds)


@pytest.mark.parametrize(("step", "now"), [("s", 13), ("1", 1)])
def test_a_mask_covers_the_past_and_what_comes_now_whatever_their_lengths_are_called(step, now):
    text = (
        f"(float[b,{step},8] x, float[b,2,p,16] xk, float[b,2,p,16] xv, int64[b,all] xmask, float[8,96] w, "
        "int64[1] ax, int64 one, int64 first) => (float[b,c,32] y, float[b,2,all,16] yk, float[b,2,all,16] yv) "
        "{ a = MatMul(x, w) n = ReduceSum<keepdims = 0>(xmask, ax) m = Sub(n, one) k = Cast<to = 6>(m) "
        "d = Shape(xmask) e = Gather(d, first) t = Cast<to = 6>(e) y, yk, yv = com.microsoft.GroupQueryAttention"
        '<num_heads = 2, kv_num_heads = 2>(a, "", "", xk, xv, k, t) }'
    )
    source = graph.normalize(model(text, {"ax": [1], "one": 1, "first": 1}))
    assert probes.caches(source) == {"all": "p"}
    probe, others = next(iter(probes.pairs(source)))
    for each in (probe, *others):
        assert each["xmask"][1] == each["xk"][2] + each["x"][1]
    assert probe["x"][1] == now
    assert shapes.observe(source).probe["xk"][2] > 1


def test_no_probe_is_too_large():
    source = model("(float[n,c,t,h,w] x) => (float[n,c,t,h,w] y) { y = Relu(x) }")
    for first, seconds in probes.pairs(source):
        assert all(np.prod(probe["x"], dtype=float) <= probes.MAX_ELEMENTS for probe in (first, *seconds))


def test_unknown_sizes_may_be_written_as_minus_one():
    source = model("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }")
    source.graph.inputs[0].shape = type(source.graph.inputs[0].shape)([-1, 3])
    assert probes.symbolic_shape(source.graph.inputs[0]) == [None, 3]


def test_a_model_without_weights_is_refused_as_such(monkeypatch):
    monkeypatch.setattr(probes, "MAX_TRIES", 6)
    text = "(float[n,8] x, int64[2] s) => (float[p,q] y) { y = Reshape(x, s) }"
    with pytest.raises(GraphError, match="holds no weights"):
        shapes.observe(model(text, {"s": [5, 977]}))


@pytest.mark.parametrize("size", [-1, 0, "?", "-1", "", None])
def test_sizes_that_only_mean_any_are_unknown(size):
    assert axis_of(size) is None


@pytest.mark.parametrize("size", [1, 640, "N", "_", "2 * width"])
def test_sizes_and_names_stay(size):
    assert axis_of(size) == size


def test_unnamed_axes_of_one_mark_are_not_one_size():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, H, W] x) => (float[N, 4, H, W] y)
    <float[4, 3, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"""
    proto = filled(text)
    for value in (*proto.graph.input, *proto.graph.output):
        for k in (0, 2, 3):
            value.type.tensor_type.shape.dim[k].dim_param = "?"
    probe = shapes.observe(graph.normalize(ir.from_proto(proto))).probe["x"]
    assert probe[0] != probe[2]
