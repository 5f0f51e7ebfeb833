"""Mixtures of experts that are written out as plain nodes: the width of each expert couples, is cut and proven."""

import pytest
from onnx_text import model, prove, random_keep

from onnxprune import graph
from onnxprune.coupling import analyze

FRAME = (
    "(float[6,4] x, float[4,8] w, {more}, int64[1] first, int64[1] mid, int64[1] last, float[8,5] v) => (float[p,q] y) "
    "{{ a = MatMul(x, w) s = MatMul(a, g) {body} b = Add(a, z) y = MatMul(b, v) }}"
)
BATCHED = FRAME.format(  # all experts on all tokens, weights (E, in, out)
    more="float[8,3] g, float[3,8,10] up, float[3,1,10] bias, float[3,10,8] down",
    body="gate = Softmax(s) t = Transpose<perm = [1, 0]>(gate) u = Unsqueeze(t, last) l = Unsqueeze(a, first) "
    "h = MatMul(l, up) hb = Add(h, bias) r = Relu(hb) e = MatMul(r, down) m = Mul(e, u) "
    "z = ReduceSum<keepdims = 0>(m, first)",
)
GATHERED = FRAME.format(  # each token gathers the weights of its expert
    more="float[8,3] g, float[3,8,10] up, float[3,10,8] down",
    body="i = ArgMax<axis = 1, keepdims = 0>(s) wu = Gather(up, i) wd = Gather(down, i) l = Unsqueeze(a, mid) "
    "h = MatMul(l, wu) r = Relu(h) e = MatMul(r, wd) z = Squeeze(e, mid)",
)
STACKED = FRAME.format(  # experts of different widths, the answer of one gathered
    more="float[8,2] g, float[8,9] u1, float[9,8] d1, float[8,7] u2, float[7,8] d2, int64[3] wide",
    body="i = ArgMax<axis = 1, keepdims = 1>(s) h1 = MatMul(a, u1) r1 = Relu(h1) e1 = MatMul(r1, d1) "
    "h2 = MatMul(a, u2) r2 = Relu(h2) e2 = MatMul(r2, d2) q1 = Unsqueeze(e1, mid) q2 = Unsqueeze(e2, mid) "
    "k = Concat<axis = 1>(q1, q2) j = Unsqueeze(i, last) j2 = Expand(j, wide) c = GatherElements<axis = 1>(k, j2) "
    "z = Squeeze(c, mid)",
)
SWITCHED = FRAME.format(  # one of two, picked by a comparison
    more="float[8,2] g, float[8,9] u1, float[9,8] d1, float[8,7] u2, float[7,8] d2, int64[1] one",
    body="i = ArgMax<axis = 1, keepdims = 1>(s) h1 = MatMul(a, u1) r1 = Relu(h1) e1 = MatMul(r1, d1) "
    "h2 = MatMul(a, u2) r2 = Relu(h2) e2 = MatMul(r2, d2) k = Equal(i, one) z = Where(k, e1, e2)",
)
SPARSE = FRAME.format(  # the tokens of an expert are found, gathered, and their answers scattered back
    more="float[8,2] g, float[8,9] u1, float[9,8] d1, int64[1] one, float[6,8] none",
    body="i = ArgMax<axis = 1, keepdims = 0>(s) k = Equal(i, one) f = NonZero(k) n = Transpose<perm = [1, 0]>(f) "
    "c = GatherND(a, n) h = MatMul(c, u1) r = Relu(h) e = MatMul(r, d1) z = ScatterND(none, n, e)",
)
CASES = {
    "batched": (BATCHED, {8, 10}),
    "gathered": (GATHERED, {8, 10}),
    "stacked": (STACKED, {8, 9, 7}),
    "switched": (SWITCHED, {8, 9, 7}),
    "sparse": (SPARSE, {8, 9}),
}
CONSTANTS = {"first": [0], "mid": [1], "last": [2], "wide": [6, 1, 8], "one": [1]}


@pytest.mark.parametrize("name", CASES)
def test_the_width_of_experts_is_free_cut_and_proven(name: str):
    text, widths = CASES[name]
    coupling = analyze(graph.normalize(model(text, CONSTANTS)))
    assert {dim.size for dim in coupling.free} == widths
    for seed in range(3):
        assert prove(coupling, random_keep(coupling, seed)).ok


@pytest.mark.parametrize("name", ["batched", "gathered", "stacked"])
def test_experts_of_plain_nodes_stay_and_the_reason_names_the_router(name: str):
    coupling = analyze(graph.normalize(model(CASES[name][0], CONSTANTS)))
    reasons = {str(dim.frozen).partition(":")[0] for dim in coupling.dims if dim.frozen and dim.name.startswith("g")}
    assert reasons == {"Softmax" if name == "batched" else "ArgMax"}
