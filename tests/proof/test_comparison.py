"""The comparison itself: what counts as equal, what does not, and what is excused."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import Constants, model, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.errors import VerificationError
from onnxprune.graph import extras, half, sessions, simplify
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, decisions, differences, noise
from onnxprune.proof.evidence import Evidence
from onnxprune.run import replay

TEXT = "(float[n,4] x, float[4,8] w, float[8,5] v) => (float[n,5] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"


def changed(text: str, name: str, by: float, **rest):
    source, other = model(text, **rest), model(text, **rest)
    value = other.graph.initializers[name]
    graph.set_constant(value, graph.array_of(value) + np.float32(by))
    return source, other, comparison.random_feeds(source, analyze(source).shapes)


def test_equal_models_are_equal():
    one, two, feeds = changed(TEXT, "w", 0.0)
    found = comparison.compare(one, two, feeds)
    assert found.ok
    assert found.max_abs == 0
    assert found.samples == sum(len(batch["x"]) for batch in feeds)
    assert comparison.require(found) is found


def test_a_difference_above_the_tolerance_fails_and_is_named():
    found = comparison.compare(*changed(TEXT, "w", 0.01))
    assert not found.ok
    with pytest.raises(VerificationError, match=r"at 'y' .* by .* nothing was written"):
        comparison.require(found)


def test_feeds_are_of_both_sizes_and_repeatable():
    source = model(TEXT)
    observed = analyze(source).shapes
    one, two = comparison.random_feeds(source, observed, 3), comparison.random_feeds(source, observed, 3)
    assert len({batch["x"].shape for batch in one}) == 2
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, two, strict=True))


def test_another_shape_is_a_difference():
    source = model(TEXT)
    wider = model(TEXT.replace("[8,5]", "[8,6]").replace("[n,5]", "[n,6]"))
    assert comparison.compare(source, wider, comparison.random_feeds(source, analyze(source).shapes)).max_abs == float(
        "inf"
    )


def test_not_a_number_equals_itself_only():
    text = "(float[n,4] x, float[1] c) => (float[n,4] y) { n = Neg(x) a = Abs(x) m = Neg(a) y = Sqrt(m) z = Add(n, c) }"
    source = model(text)
    feeds = comparison.random_feeds(source, analyze(source).shapes)
    assert comparison.compare(source, model(text), feeds).ok
    finite = model(text.replace("y = Sqrt(m)", "y = Sqrt(a)"))
    assert not comparison.compare(source, finite, feeds).ok


def largest_of(last: float):
    """The place of the largest of five ones and `last`, for every sample alike."""
    text = (
        "(float[n,6] x, float[6] c, float[6] d, int64[1] k) => (int64[n,1] y) { s = Mul(x, d) a = "
        "Add(s, c) t, y = TopK(a, k) }"
    )
    return model(text, {"c": [1, 1, 1, 1, 1, last], "d": [0, 0, 0, 0, 0, 0], "k": [1]})


def test_a_decision_between_equals_is_excused():
    """Both twins choose among ties of rounding size: the values in front are the same within the tolerance."""
    one = largest_of(1)
    two = largest_of(1.000001)
    found = comparison.compare(one, two, comparison.random_feeds(one, analyze(one).shapes))
    assert found.ok
    assert "decisions" in found.note


def test_a_decision_between_different_values_is_not():
    one = largest_of(1)
    two = largest_of(1.1)
    assert not comparison.compare(one, two, comparison.random_feeds(one, analyze(one).shapes)).ok


def test_a_tiny_result_of_a_sigmoid_is_judged_by_its_noise():
    """exp(-14) has no four digits left in float32: rounding errors of what it reads move it by more."""
    text = "(float[n,4] x, float[4] c) => (float[n,4] y) { s = Tanh(x) a = Sub(s, c) y = Sigmoid(a) }"
    one = model(text, {"c": [15, 15, 15, 15]})
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, model(text, {"c": [15.00001, 15, 15, 15]}), feeds).ok
    found = comparison.compare(one, model(text, {"c": [15.01, 15, 15, 15]}), feeds)
    assert not found.ok


def test_values_inside_are_compared_at_the_kept_positions():
    text = (
        "(float[n,4] x, float[4,8] w, float[8,5] v) => (float[n,5] y) { a = MatMul(x, w) r = "
        "Round(a) y = MatMul(r, v) }"
    )
    coupling = analyze(model(text))
    keep = random_keep(coupling, 0)
    masked = surgery.mask(Selection(coupling, keep))
    kept = extras.of(masked).kept["a"]
    assert list(kept) == [1]
    assert np.array_equal(kept[1](8), np.flatnonzero(next(iter(keep.values()))))


def test_large_weights_stay_alive_with_their_session(monkeypatch):
    """onnxruntime reads them where they are; arrays that were freed too early once ended the process."""
    monkeypatch.setattr(sessions, "LARGE_MODEL_BYTES", 0)
    monkeypatch.setattr(sessions, "SMALL_WEIGHT_BYTES", 0)
    coupling = analyze(model(TEXT))
    keep = random_keep(coupling, 0)
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    feeds = comparison.random_feeds(coupling.model, coupling.shapes)
    session = sessions.open_session(cut)
    assert len(sessions._ORIGINS[session].weights) == 2
    assert comparison.compare(cut, masked, feeds).ok
    cut.graph.register_initializer(ir.Value(name="unused", const_value=ir.tensor(np.ones(9, np.float32))))
    session = sessions.open_session(cut)
    assert len(sessions._ORIGINS[session].weights) == 2  # onnxruntime drops what nothing reads, and must not miss it


def test_random_numbers_are_the_same_on_both_sides():
    text = "(float[n,4] x, float[4,8] w) => (float[n,8] y) { a = MatMul(x, w) r = RandomNormalLike(a) y = Add(a, r) }"
    one, two = model(text), model(text)
    node = next(iter(two.graph))
    node.name = "another place"
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, two, feeds).ok
    assert all("seed" not in node.attributes for node in one.graph)
    graph.set_constant(two.graph.initializers["w"], graph.array_of(one.graph.initializers["w"]) + np.float32(0.1))
    assert not comparison.compare(one, two, feeds).ok


def test_a_saturating_result_may_move_as_far_as_its_input():
    """Logits of 400 that agree to 2e-6 of their size are the same; their softmax then differs by up to 1e-3."""
    text = "(float[n,4] x, float[4] c, float[4] d) => (float[n,4] y) { z = Mul(x, d) a = Add(z, c) y = Softmax(a) }"
    zero = {"d": [0, 0, 0, 0]}
    one = model(text, {"c": [400, 400, 0, 0], **zero})
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, model(text, {"c": [400.001, 400, 0, 0], **zero}), feeds).ok
    assert not comparison.compare(one, model(text, {"c": [401, 400, 0, 0], **zero}), feeds).ok


@pytest.mark.parametrize("masking", [-1e4, -1e9, np.finfo(np.float32).min])
def test_numbers_that_mask_others_do_not_excuse_these(masking):
    """Beside -1e9 logits that differ by one were equal within the tolerance, and with them all that follows."""
    text = "(float[n,4] x, float[4] c, float[4] m) => (float[n,4] y) { z = Mul(x, c) a = Add(z, m) y = Softmax(a) }"
    mask = {"m": [0, 0, 0, masking]}
    one = model(text, {"c": [1, 1, 1, 1], **mask})
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, model(text, {"c": [1.0000001, 1, 1, 1], **mask}), feeds).ok
    assert not comparison.compare(one, model(text, {"c": [1.5, 1, 1, 1], **mask}), feeds).ok


def test_a_decision_on_what_the_other_model_lacks_is_not_excused():
    text = "(float[n,4] x, float[4] c) => (float[n,4] y) {{ {name} = Add(x, c) b = Round({name}) y = Mul(b, c) }}"
    one, two = model(text.format(name="a"), {"c": [0.1] * 4}), model(text.format(name="z"), {"c": [0.9] * 4})
    assert not comparison.compare(one, two, comparison.random_feeds(one, analyze(one).shapes)).ok


@pytest.mark.parametrize("moved", ["masked", "cut"])
def test_only_the_masked_model_may_be_moved_by_optimizations(monkeypatch, moved):
    """What the cut model computes as it will run has to be right; its twin is never run by anyone else."""
    source = model("(float[n,4] x, float[4,5] w) => (float[n,5] y) { y = MatMul(x, w) }")
    cut, masked = source.clone(), source.clone()
    run = comparison._outputs

    def outputs(model, batches, optimize=True, tried=()):
        found = run(model, batches, optimize, tried)
        off = 0.5 * (optimize and model is (masked if moved == "masked" else cut))
        return [{"y": y["y"] + np.float32(off)} for y in found]

    monkeypatch.setattr(comparison, "_outputs", outputs)
    found = comparison.compare(cut, masked, comparison.random_feeds(source, analyze(source).shapes))
    assert found.ok == (moved == "masked")
    if found.ok:
        assert found.max_abs == 0
        assert found.note.startswith("onnxruntime's optimizations move 'y' of the masked model by 0.5")


HIDING = {
    "saturated": "s = Sub(a, c) y = Sigmoid(s)",
    "dead": "s = Sub(a, c) y = Relu(s)",
    "a class": "y = ArgMax<axis = 1, keepdims = 0>(a)",
    "nothing": "s = Greater(a, c) t = NonZero(s) y = Transpose(t)",
}


@pytest.mark.parametrize("end", HIDING.values(), ids=HIDING)
def test_where_outputs_show_little_what_stands_in_front_is_compared(end):
    """Both models answer the same here, one of them by luck."""
    kind = "int64[n,2]" if "NonZero" in end else "int64[n]" if "ArgMax" in end else "float[n,3]"
    text = f"(float[n,4] x, float[4,8] w, float[8,3] v, float[1] c) => ({kind} y) {{ b = MatMul(x, w) r = Relu(b) a = "
    text += f"MatMul(r, v) {end} }}"
    one, two, feeds = changed(text, "w", 0.01, constants={"c": [100]})
    found = comparison.compare(one, two, feeds)
    assert not found.ok
    assert found.worst == "b"
    assert comparison.compare(one, one.clone(), feeds).note.startswith("'y' varies too little")


def test_when_nothing_shows_anything_it_is_said():
    text = "(float[n,4] x, float[4] z) => (float[n,4] y) { y = Mul(x, z) }"
    one = model(text, {"z": [0, 0, 0, 0]})
    found = comparison.compare(one, one.clone(), comparison.random_feeds(one, analyze(one).shapes))
    assert found.ok
    assert "real samples may show more" in found.note


def test_a_twin_that_computes_over_kept_positions_is_compared_inside():
    text = "(float[n,4] x, float[4,8] w, float[8] g, float[8] c, float[8,3] v) => (float[n,3] y) { a = MatMul(x, w) "
    text += "b = LayerNormalization(a, g, c) y = MatMul(b, v) }"
    coupling = analyze(model(text, {"v": np.zeros((8, 3))}))
    keep = random_keep(coupling, 0)
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    found = comparison.compare(cut, masked, comparison.random_feeds(coupling.model, coupling.shapes))
    assert found.ok
    assert "b" in [item.where for item in found.evidence if item.kind == "inside"]


HALF = (  # onnxruntime's CPU rounds where Reshape reads, not between what it computes in single precision anyway
    "(float[n,64] x, float16[64] w) => (float[n,64] y) "
    "{ h = Cast<to = 10>(x) a = Mul(h, w) s = Shape(a) b = Reshape(a, s) y = Cast<to = 1>(b) }"
)


def test_roundings_of_half_precision_are_no_difference():
    one = model("(float[n,64] x, float16[64] w) => (float[n,64] y) { v = Cast<to = 1>(w) y = Mul(x, v) }")
    found = comparison.compare(one, model(HALF), comparison.random_feeds(one, analyze(one).shapes))
    assert found.ok
    assert found.max_abs > 1e-4 * found.scale


def test_a_weight_that_a_fusion_rounds_to_half_precision_is_no_difference():
    source, other = model(HALF), model(HALF)
    value = other.graph.initializers["w"]
    graph.set_constant(value, np.nextafter(graph.array_of(value), np.float16(9)))
    found = comparison.compare(source, other, comparison.random_feeds(source, analyze(source).shapes))
    assert found.ok
    assert 0 < found.max_abs <= found.allowed


def test_comparing_in_single_precision_leaves_the_models_as_they_are():
    one, two = model(HALF), model(HALF)
    half.single(one)
    assert comparison.compare(one, two, comparison.random_feeds(two, analyze(two).shapes)).max_abs == 0


def test_a_wrong_number_in_half_precision_is_a_difference():
    source, other = model(HALF), model(HALF)
    value = other.graph.initializers["w"]
    array = graph.array_of(value).copy()
    array[0] += 1
    graph.set_constant(value, array)
    found = comparison.compare(source, other, comparison.random_feeds(source, analyze(source).shapes))
    assert not found.ok
    assert found.note.startswith("compared in single precision")


WIDE = (
    "(float[n,10] x, float[10,8] w, float[8,6] v) => (float[n,6] y) <int64[1] one = {1}> "
    "{ a = MatMul(x, w) u = Unsqueeze(a, one) s = Squeeze(u, one) r = Relu(s) y = MatMul(r, v) }"
)
IDLE = "u = Unsqueeze(a, one) s = Squeeze(u, one) r = Relu(s)"


@pytest.mark.parametrize(
    ("gone", "instead", "found"), [(IDLE, "r = Relu(a)", True), ("y = MatMul(r, v)", "y = Gemm(r, v)", False)]
)
def test_only_nodes_with_weights_must_be_there_to_put_them_back(gone, instead, found):
    coupling = analyze(model(WIDE))
    result = model(WIDE.replace(gone, instead))
    for m in (coupling.model, result):
        for node in m.graph:
            node.name = f"{node.op_type} {node.outputs[0].name}"
    tuned = np.full((8, 6), 3, np.float32)
    graph.set_constant(result.graph.initializers["v"], tuned)
    if found:
        put = replay._put_back(Selection(coupling, {}), result, Path("out.onnx"))
        np.testing.assert_array_equal(graph.array_of(put.graph.initializers["v"]), tuned)
    else:
        with pytest.raises(VerificationError, match="has no MatMul 'MatMul y'"):
            replay._put_back(Selection(coupling, {}), result, Path("out.onnx"))


def test_noise_of_one_batch_is_not_forgotten_by_a_batch_without():
    x = np.array([[1.0, 2.0]], np.float32)
    tally = differences.Tally()
    tally.add(x, x, [x + np.float32(0.5)])
    tally.add(x, x)
    assert tally.of_whole().noise == 0.5


def test_positions_that_only_the_cut_model_has_do_not_count():
    kept = {"h": {1: lambda size: np.arange(0, size, 2)}}
    own = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(decisions.at_counted(own, "h", kept, (2, 4)), own[:, ::2])
    np.testing.assert_array_equal(decisions.at_counted(own[:, ::2], "h", kept, (2, 4)), own[:, ::2])
    np.testing.assert_array_equal(decisions.at_counted(own, "g", kept, (2, 4)), own)


DECIDES_IN_A_BODY = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x, bool b) => (float[N,4] y) {
        y = If <then_branch = t () => (float[N,4] p) { p = Round (x) },
                else_branch = e () => (float[N,4] q) { q = Neg (x) }> (b)
    }
"""


def test_decisions_in_bodies_are_replayed_and_excuse_nothing():
    one, two = (
        ir.from_proto(onnx.parser.parse_model(DECIDES_IN_A_BODY)),
        ir.from_proto(onnx.parser.parse_model(DECIDES_IN_A_BODY.replace("Round (x)", "Ceil (x)"))),
    )
    for node in (*one.graph.all_nodes(), *two.graph.all_nodes()):
        node.name = node.outputs[0].name
    feeds = [{"x": np.array([[0.2, 1.4, 2.2, 3.1]], np.float32), "b": np.array(True)}]
    same, other = comparison.compare(one, one, feeds), comparison.compare(one, two, feeds)
    assert same.ok
    assert not other.ok
    assert not other.replayed
    assert not any("replayed" in e.untested for e in same.evidence)


SATURATED = "(float[4,3] x, float[3,2] w, float[2] c) => (float[4,2] y) { a = Gemm(x, w, c) y = Sigmoid(a) }"


def saturated(bias: float) -> ir.Model:
    return model(SATURATED, {"w": [[0.1, 0.2], [0.3, -0.1], [0.2, 0.1]], "c": [bias, bias]})


def test_steps_of_a_sigmoid_near_zero_are_no_difference():
    """A text detector that answers 'no' everywhere: its normal form was said to compute other numbers."""
    one, two = saturated(-16.4), saturated(-16.4 - 2e-5)
    feeds = [{"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}]
    assert comparison.compare(one, two, feeds, look_inside=False).ok
    assert not comparison.compare(one, saturated(-12.0), feeds, look_inside=False).ok
    assert not comparison.compare(one, saturated(-16.5), feeds).ok  # seen in front of it


JOINED = (
    "(float[4,3] x, float[3,2] w, float[2] c) => (float[4,5] y) "
    "{ a = Gemm(x, w, c) s = Sigmoid(a) y = Concat<axis = 1>(x, s) }"
)


def test_steps_of_a_sigmoid_in_a_joined_output_are_no_difference():
    """YOLO: boxes and scores near zero in one output; honest cuts were refused."""

    def detector(bias: float) -> ir.Model:
        made = model(JOINED, {"w": [[0.1, 0.2], [0.3, -0.1], [0.2, 0.1]], "c": [bias, bias]})
        simplify.infer_shapes(made)
        return made

    def part(bias: float) -> tuple[Evidence, bool]:
        found = comparison.compare(detector(-12), detector(bias), feeds)
        return next(e for e in found.evidence if e.where == "y: s"), found.ok

    feeds = [{"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}]
    near, ok = part(-12.02)
    assert 0 < near.difference < near.allowed
    assert not ok  # it is seen in front of the Sigmoid
    far, _ = part(-9)
    assert far.difference > far.allowed


def test_only_a_sigmoid_in_front_of_an_output_makes_steps():
    def grain(text: str) -> float:
        return noise.grain_of(model(text).graph.outputs[0])

    assert grain("(float[4,3] x) => (float[12] y) { a = Sigmoid(x) y = Flatten<axis = 0>(a) }") == noise.SIGMOID_GRAIN
    assert grain("(float[4,3] x) => (float[4,3] y) { a = Sigmoid(x) y = Mul(a, x) }") == 0
    assert grain("(float[4,3] x) => (float[4,6] y) { a = Sigmoid(x) y = Concat<axis=1>(x, a) }") == noise.SIGMOID_GRAIN
    assert grain("(float[4,3] x) => (float[4,3] y) { y = Softmax(x) }") == 0
    assert grain("(float[4,3] x) => (float[4,3] y) { y = Identity(x) }") == 0


def test_a_comparison_apart_is_isolated_and_says_what_the_comparison_says(monkeypatch):
    one = ir.from_proto(onnx.parser.parse_model(DECIDES_IN_A_BODY))
    feeds = [{"x": np.array([[0.2, 1.4, 2.2, 3.1]], np.float32), "b": np.array(False)}]
    calls = []
    monkeypatch.setattr(comparison, "apart", lambda f, models, *given: calls.append(f) or f(*models, *given))
    assert comparison.compare_apart(one, one, iter(feeds)) == comparison.compare(one, one, feeds)
    assert len(calls) == 1


def test_noise_is_looked_for_where_outputs_are_apart():
    """What is zero in the batches that noise is seen on is a small difference of two large numbers in the last."""
    text = "(float[n,2] x, float[2,2] w) => (float[n,2] y) { y = MatMul(x, w) }"
    masked, near, far = (model(text, {"w": [[1e3, 1], [-1e3 * by, 1]]}) for by in (1, 1 + 1e-7, 1.001))
    batches = [{"x": np.zeros((4, 2), np.float32)}] * 8 + [{"x": np.array([[0.5, 0.499]] * 4, np.float32)}]
    assert comparison.compare(near, masked, batches, look_inside=False).ok
    assert not comparison.compare(far, masked, batches, look_inside=False).ok


def test_values_that_a_rewriting_merges_are_fed_in_neither_model():
    """Of three Reshapes of x, each in front of a Gemm, one was left: its reader alone was given random numbers."""
    layers = "a = Reshape(x, s) b = Gemm(a, w) c = Reshape(x, t) d = Gemm(c, v) e = Add(b, d) y = Relu(e)"
    text = "(float[n,2,4] x, int64[2] s, int64[2] t, float[4,8] w, float[4,8] v) => (float[m,8] y) { LAYERS }"
    shape: Constants = {"s": [-1, 4], "t": [-1, 4]}
    apart = model(text.replace("LAYERS", layers), shape)
    merged = model(text.replace("LAYERS", layers.replace("c = Reshape(x, t) ", "").replace("(c", "(a")), shape)
    feeds = comparison.random_feeds(apart, analyze(apart).shapes)
    assert comparison.compare(merged, apart, feeds).ok
    graph.set_constant(merged.graph.initializers["v"], graph.array_of(apart.graph.initializers["w"]))
    assert not comparison.compare(merged, apart, feeds).ok
