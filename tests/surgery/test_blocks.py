"""Whole blocks: which are found, which cannot go and why, and that a block that went is a block that adds zero."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from networks import CNN, CONCAT, filled
from onnx_text import model

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.errors import CouplingError
from onnxprune.graph import sessions
from onnxprune.proof import comparison
from onnxprune.surgery import blocks

INVERTED = (
    "(float[n,8,6,6] x, float[16,8,1,1] e, float[16] eb, float[16,1,3,3] d, float[16] db, float[8,16,1,1] p, "
    "float[8] pb, float[5,8,1,1] h) => (float[n,5,6,6] y) { s = Relu(x) a = Conv(s, e, eb) a1 = Relu(a) "
    "b = Conv <pads: ints = [1,1,1,1], group: int = 16> (a1, d, db) b1 = Relu(b) c = Conv(b1, p, pb) "
    "[sum] t = Add(s, c) y = Conv(t, h) }"
)
ENCODER = (
    "(float[n,7,8] x, float[8] g1, float[8] h1, float[8,8] q, float[8,8] k, float[8,8] v, float[8,8] o, float[8] ob, "
    "float[8] g2, float[8] h2, float[8,20] u, float[20] ub, float[20,8] w, float[8] wb, float[8,3] f) "
    "=> (float[n,7,3] y) { l = LayerNormalization(x, g1, h1) a = MatMul(l, q) b = MatMul(l, k) c = MatMul(l, v) "
    "bt = Transpose <perm: ints = [0,2,1]> (b) s = MatMul(a, bt) p = Softmax(s) r = MatMul(p, c) m = MatMul(r, o) "
    "mb = Add(m, ob) [attention] t = Add(x, mb) l2 = LayerNormalization(t, g2, h2) i = MatMul(l2, u) ib = Add(i, ub) "
    "j = Tanh(ib) z = MatMul(j, w) zb = Add(z, wb) [mlp] e = Add(zb, t) y = MatMul(e, f) }"
)
SQUEEZED = (
    "(float[n,6,5,5] x, float[6,6,3,3] w, float[6] wb, float[2,6,1,1] d, float[6,2,1,1] u, float[4,6,1,1] h) "
    "=> (float[n,4,5,5] y) { s = Relu(x) a = Conv <pads: ints = [1,1,1,1]> (s, w, wb) m = GlobalAveragePool(a) "
    "r = Conv(m, d) r1 = Relu(r) g = Conv(r1, u) g1 = Sigmoid(g) b = Mul(a, g1) [sum] t = Add(b, s) y = Conv(t, h) }"
)
PROJECTION = (
    "(float[n,4,6,6] x, float[8,4,3,3] w, float[8,8,3,3] v, float[8,4,1,1] s) => (float[n,8,3,3] y) { r = Relu(x) "
    "a = Conv <pads: ints = [1,1,1,1], strides: ints = [2,2]> (r, w) a1 = Relu(a) "
    "b = Conv <pads: ints = [1,1,1,1]> (a1, v) c = Conv <strides: ints = [2,2]> (r, s) [sum] y = Add(b, c) }"
)
ELSEWHERE = (
    "(float[n,6] x, float[6,6] w, float[6,6] v, float[6,3] h) => (float[n,3] y, float[n,6] z) { r = Relu(x) "
    "a = MatMul(r, w) a1 = Relu(a) b = MatMul(a1, v) [sum] t = Add(r, b) z = Tanh(b) y = MatMul(t, h) }"
)
SUM_ELSEWHERE = ELSEWHERE.replace("z = Tanh(b)", "z = Tanh(t)")
INNER_ELSEWHERE = ELSEWHERE.replace("z = Tanh(b)", "z = Tanh(a1)")
# Stochastic depth, layer scale, a Transpose around a mixer: what stands between the last weights and the sum.
SCALED = (
    "(float[n,5,6] x, float[5,5] w, float[6] gamma, float[6,3] h) => (float[n,5,3] y) { r = Relu(x) "
    "a = Transpose <perm: ints = [0,2,1]> (r) b = MatMul(a, w) c = Transpose <perm: ints = [0,2,1]> (b) "
    "d = Mul(c, gamma) [sum] t = Add(r, d) y = MatMul(t, h) }"
)
# Weights stored in half precision, behind nodes that convert them: with a bias, and with one that is added.
HALVES = (
    "(float[n,6] x, float16[6,9] w, float16[9] wb, float16[9,6] v, float16[6] vb, float[6,3] h) => (float[n,3] y) "
    "{ r = Relu(x) w1 = Cast <to: int = 1> (w) wb1 = Cast <to: int = 1> (wb) a = Gemm(r, w1, wb1) a1 = Relu(a) "
    "v1 = Cast <to: int = 1> (v) b = MatMul(a1, v1) vb1 = Cast <to: int = 1> (vb) b1 = Add(b, vb1) "
    "[sum] t = Add(r, b1) y = MatMul(t, h) }"
)
BROADCAST = (
    "(float[n,5,6] x, float[6,6] w, float[6,3] h) => (float[n,5,3] y) { r = Relu(x) "
    "m = ReduceMean <keepdims: int = 1> (r, axes) a = MatMul(m, w) [sum] t = Add(r, a) y = MatMul(t, h) }"
).replace("float[6,3] h)", "float[6,3] h, int64[1] axes)")


def found(text: str, constants=None):
    coupling = analyze(model(text, constants))
    return coupling, blocks.find(coupling)


@pytest.mark.parametrize(
    ("text", "names", "silenced"),
    [
        (INVERTED, ["sum"], [{"p", "pb"}]),
        (ENCODER, ["attention", "mlp"], [{"o", "ob"}, {"w", "wb"}]),
        (SQUEEZED, ["sum"], [{"w", "wb"}]),
        (SCALED, ["sum"], [{"gamma"}]),
        (HALVES, ["sum"], [{"v", "vb"}]),
        (SUM_ELSEWHERE, ["sum"], [{"v"}]),
        (INNER_ELSEWHERE, ["sum"], [{"v"}]),
    ],
    ids=["inverted", "encoder", "squeezed", "scaled", "halves", "sum elsewhere", "inner elsewhere"],
)
def test_blocks_are_found_and_go_as_if_they_added_zero(text, names, silenced):
    coupling, all_found = found(text)
    assert [(block.name, block.reason) for block in all_found] == [(name, "") for name in names]
    assert [{place.initializer for place in block.places} for block in all_found] == silenced
    feeds = list(comparison.random_feeds(coupling.model, coupling.shapes, 0))
    whole = sessions.run(sessions.open_session(coupling.model), feeds[0])
    for gone in [all_found, *([block] for block in all_found)]:
        left = blocks.without(coupling.model, gone)
        compared = comparison.compare(left, blocks.silenced(coupling.model, gone), feeds)
        assert compared.ok, compared
        assert not {node.name for node in left.graph} & {name for block in gone for name in block.nodes}
        short = sessions.run(sessions.open_session(left), feeds[0])
        assert not np.allclose(whole["y"], short["y"])


def test_the_weights_of_a_block_leave_with_it_and_those_that_others_read_stay():
    coupling, (block,) = found(INNER_ELSEWHERE)
    left = blocks.without(coupling.model, [block])
    assert set(left.graph.initializers) == {"w", "h"}
    assert block.nodes == ("MatMul_3",)


def test_a_residual_block_of_a_small_network_is_found_and_a_dense_concat_has_none():
    cnn, concat = (analyze(graph.normalize(ir.from_proto(filled(text)))) for text in (CNN, CONCAT))
    assert [block.name for block in blocks.find(cnn)] == ["add"]
    assert blocks.find(concat) == []


@pytest.mark.parametrize(
    ("text", "constants", "reason"),
    [
        (PROJECTION, None, "neither of the two values"),
        (ELSEWHERE, None, "what it adds, 'b', is read elsewhere as well"),
        (BROADCAST, {"axes": [1]}, "other sizes"),
        (ELSEWHERE.replace("z = Tanh(b)", "z = Tanh(t)").replace("b = MatMul(a1, v)", "c = MatMul(a1, v) b = Exp(c)"),
         None, "Exp 'Exp_"),
        (ELSEWHERE.replace("z = Tanh(b)", "u = MatMul(x, v) z = Tanh(u)"), None, "'v' of MatMul"),
    ],
    ids=["projection", "read elsewhere", "broadcast", "ends in Exp", "shared weight"],
)  # fmt: skip
def test_what_cannot_go_says_why(text, constants, reason):
    _, (block,) = found(text, constants)
    assert reason in block.reason
    with pytest.raises(CouplingError, match="block 'sum' cannot go"):
        blocks.named([block], ["sum"])


def test_a_name_that_no_block_has_is_refused():
    with pytest.raises(CouplingError, match="no block 'head'"):
        blocks.named(found(ENCODER)[1], ["head"])


def test_a_constant_in_place_of_a_block_is_added_per_channel():
    coupling, (block,) = found(INVERTED)
    left = blocks.without(coupling.model, [block], {"sum": (8, 1, 1)})
    c = np.arange(8, dtype=np.float32) - 3
    blocks.set_constants(left, {"sum": c})
    feeds = next(iter(comparison.random_feeds(coupling.model, coupling.shapes, 0)))
    h = graph.array_of(coupling.model.graph.initializers["h"])[:, :, 0, 0]
    y = sessions.run(sessions.open_session(left), feeds)["y"]
    expected = np.einsum("oc,nchw->nohw", h, np.maximum(feeds["x"], 0) + c[:, None, None])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert block.axis == 1


@pytest.mark.parametrize("mistake", ["the branch stays", "another block", "half of the places"])
def test_a_block_that_was_removed_wrongly_does_not_equal_the_silenced_one(mistake):
    coupling, (first, second) = found(ENCODER)
    gone, twin = [first], [first]
    if mistake == "the branch stays":
        gone = [replace(first, branch=first.stream)]
    elif mistake == "another block":
        twin = [second]
    else:
        twin = [replace(first, places=first.places[1:])]
    feeds = list(comparison.random_feeds(coupling.model, coupling.shapes, 0))
    assert not comparison.compare(blocks.without(coupling.model, gone), blocks.silenced(coupling.model, twin), feeds).ok
