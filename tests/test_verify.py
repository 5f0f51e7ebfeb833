"""The comparison itself: what counts as equal, what does not, and what is excused."""

import numpy as np
import pytest
from onnx_text import model, random_keep

from onnxprune import graph, runtime, surgery, verify
from onnxprune.coupling import analyze
from onnxprune.errors import VerificationError

TEXT = "(float[n,4] x, float[4,8] w, float[8,5] v) => (float[n,5] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"


def changed(text: str, name: str, by: float, **rest):
    source, other = model(text, **rest), model(text, **rest)
    value = other.graph.initializers[name]
    graph.set_constant(value, graph.array_of(value) + np.float32(by))
    return source, other, verify.random_feeds(source, analyze(source).shapes)


def test_equal_models_are_equal():
    one, two, feeds = changed(TEXT, "w", 0.0)
    found = verify.compare(one, two, feeds)
    assert found.ok
    assert found.max_abs == 0
    assert found.samples == sum(len(batch["x"]) for batch in feeds)
    assert verify.require(found) is found


def test_a_difference_above_the_tolerance_fails_and_is_named():
    found = verify.compare(*changed(TEXT, "w", 0.01))
    assert not found.ok
    with pytest.raises(VerificationError, match=r"output 'y' by .* nothing was written"):
        verify.require(found)


def test_feeds_are_of_both_sizes_and_repeatable():
    source = model(TEXT)
    observed = analyze(source).shapes
    one, two = verify.random_feeds(source, observed, 3), verify.random_feeds(source, observed, 3)
    assert len({batch["x"].shape for batch in one}) == 2
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(one, two, strict=True))


def test_another_shape_is_a_difference():
    source = model(TEXT)
    wider = model(TEXT.replace("[8,5]", "[8,6]").replace("[n,5]", "[n,6]"))
    assert verify.compare(source, wider, verify.random_feeds(source, analyze(source).shapes)).max_abs == float("inf")


def test_not_a_number_equals_itself_only():
    text = "(float[n,4] x, float[1] c) => (float[n,4] y) { n = Neg(x) a = Abs(x) m = Neg(a) y = Sqrt(m) z = Add(n, c) }"
    source = model(text)
    feeds = verify.random_feeds(source, analyze(source).shapes)
    assert verify.compare(source, model(text), feeds).ok
    finite = model(text.replace("y = Sqrt(m)", "y = Sqrt(a)"))
    assert not verify.compare(source, finite, feeds).ok


def test_a_decision_between_equals_is_excused():
    """Both twins choose among ties of rounding size: the values in front are the same within the tolerance."""
    text = (
        "(float[n,6] x, float[6] c, float[6] d, int64[1] k) => (int64[n,1] y) { s = Mul(x, d) a = "
        "Add(s, c) t, y = TopK(a, k) }"
    )
    one = model(text, {"c": [1, 1, 1, 1, 1, 1], "d": [0, 0, 0, 0, 0, 0], "k": [1]})
    two = model(text, {"c": [1, 1, 1, 1, 1, 1.000001], "d": [0, 0, 0, 0, 0, 0], "k": [1]})
    found = verify.compare(one, two, verify.random_feeds(one, analyze(one).shapes))
    assert found.ok
    assert "decisions" in found.note


def test_a_decision_between_different_values_is_not():
    text = (
        "(float[n,6] x, float[6] c, float[6] d, int64[1] k) => (int64[n,1] y) { s = Mul(x, d) a = "
        "Add(s, c) t, y = TopK(a, k) }"
    )
    one = model(text, {"c": [1, 1, 1, 1, 1, 1], "d": [0, 0, 0, 0, 0, 0], "k": [1]})
    two = model(text, {"c": [1, 1, 1, 1, 1, 1.1], "d": [0, 0, 0, 0, 0, 0], "k": [1]})
    assert not verify.compare(one, two, verify.random_feeds(one, analyze(one).shapes)).ok


def test_a_tiny_result_of_a_sigmoid_is_judged_by_its_input():
    """exp(-14) has no four digits left in float32; its logarithm has."""
    text = "(float[n,4] x, float[4] c) => (float[n,4] y) { s = Tanh(x) a = Sub(s, c) y = Sigmoid(a) }"
    one = model(text, {"c": [15, 15, 15, 15]})
    two = model(text, {"c": [15.0008, 15, 15, 15]})
    found = verify.compare(one, two, verify.random_feeds(one, analyze(one).shapes))
    assert found.max_abs > 1e-4 * found.scale
    assert found.ok


def test_values_inside_are_compared_at_the_kept_positions():
    text = (
        "(float[n,4] x, float[4,8] w, float[8,5] v) => (float[n,5] y) { a = MatMul(x, w) r = "
        "Round(a) y = MatMul(r, v) }"
    )
    coupling = analyze(model(text))
    keep = random_keep(coupling, 0)
    masked = surgery.mask(coupling, keep)
    kept = masked.meta[surgery.KEPT]["a"]
    assert list(kept) == [1]
    assert np.array_equal(kept[1], np.flatnonzero(next(iter(keep.values()))))


def test_large_weights_stay_alive_with_their_session(monkeypatch):
    """onnxruntime reads them where they are; arrays that were freed too early once ended the process."""
    monkeypatch.setattr(runtime, "LEAN_BYTES", 0)
    monkeypatch.setattr(runtime, "HIDDEN_BYTES", 0)
    coupling = analyze(model(TEXT))
    keep = random_keep(coupling, 0)
    cut, masked = surgery.cut(coupling, keep), surgery.mask(coupling, keep)
    feeds = verify.random_feeds(coupling.model, coupling.shapes)
    assert len(runtime.open_session(cut).weights) == 2
    assert verify.compare(cut, masked, feeds).ok
