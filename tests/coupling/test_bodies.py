"""Bodies of If, Loop and Scan: what couples in them, that cuts there are proven, and what has to stay."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from networks import filled

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, analyze
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
TWO_BRANCHES = f"""{HEAD}
g (float[N, 6] x, bool first) => (float[N, 3] y) <float[6, 16] w1, float[16, 3] w2, float[6, 8] u1, float[8, 3] u2>
{{
  y = If (first) <
    then_branch = one () => (float[N, 3] a) {{ h = MatMul (x, w1) r = Relu (h) a = MatMul (r, w2) }},
    else_branch = two () => (float[N, 3] b) {{ h = MatMul (x, u1) r = Sigmoid (h) b = MatMul (r, u2) }}
  >
}}
"""
ONE_WIDTH_FROM_TWO_BRANCHES = f"""{HEAD}
g (float[N, 6] x, bool first) => (float[N, 3] y) <float[6, 10] w0, float[10, 16] w1, float[16, 10] u2, float[16, 3] w2>
{{
  z = MatMul (x, w0)
  r = Relu (z)
  q = If (first) <
    then_branch = one () => (float[N, 16] a) {{ h = MatMul (r, w1) a = Relu (h) }},
    else_branch = two () => (float[N, 16] b) {{ b = Gemm <transB = 1> (r, u2) }}
  >
  y = MatMul (q, w2)
}}
"""
SCAN_RNN = f"""{HEAD}
g (float[T, 2, 5] x) => (float[2, 3] y) <float[5, 12] w, float[12, 12] r, float[12] b, float[2, 12] h0, float[12, 3] v>
{{
  last, all = Scan <num_scan_inputs = 1, body = step (float[2, 12] h, float[2, 5] xt)
    => (float[2, 12] hn, float[2, 12] ho)
  {{
    a = MatMul (xt, w)
    c = MatMul (h, r)
    d = Add (a, c)
    e = Add (d, b)
    hn = Tanh (e)
    ho = Identity (hn)
  }}> (h0, x)
  zero = Constant <value_ints = [0]> ()
  m = ReduceSum <keepdims = 0> (all, zero)
  k = Add (m, last)
  y = MatMul (k, v)
}}
"""
# As Keras writes an LSTM: the number of the step gathers its input, four gates are split off one product.
LSTM_LOOP = f"""{HEAD}
g (float[T, 2, 5] x) => (float[2, 3] y)
  <float[5, 48] w, float[12, 48] r, float[48] b, float[2, 12] h0, float[2, 12] c0, float[12, 3] v>
{{
  sizes = Shape (x)
  zero = Constant <value_int = 0> ()
  steps = Gather (sizes, zero)
  yes = Constant <value = bool {{1}}> ()
  hT, cT, all = Loop <body = step (int64 i, bool go, float[2, 12] h, float[2, 12] c)
    => (bool on, float[2, 12] hn, float[2, 12] cn, float[2, 12] ho)
  {{
    xt = Gather <axis = 0> (x, i)
    p = MatMul (xt, w)
    q = MatMul (h, r)
    s = Add (p, q)
    z = Add (s, b)
    zi, zf, zc, zo = Split <axis = -1> (z)
    gi = Sigmoid (zi)
    gf = Sigmoid (zf)
    gc = Tanh (zc)
    go2 = Sigmoid (zo)
    kept = Mul (gf, c)
    new = Mul (gi, gc)
    cn = Add (kept, new)
    ct = Tanh (cn)
    hn = Mul (go2, ct)
    ho = Identity (hn)
    on = Identity (go)
  }}> (steps, yes, h0, c0)
  y = MatMul (hT, v)
}}
"""
# A decoder: what each step makes is appended to a cache that all later steps read.
GROWING_CACHE = f"""{HEAD}
g (float[N, 6] x, int64 steps) => (float[N, 3] y) <float[6, 8] e, float[8, 8] wq, float[8, 8] wk, float[8, 3] v>
{{
  start = MatMul (x, e)
  one = Constant <value_ints = [1]> ()
  first = Unsqueeze (start, one)
  yes = Constant <value = bool {{1}}> ()
  cache, last = Loop <body = step (int64 i, bool go, float[N, S, 8] old, float[N, 8] h)
    => (bool on, float[N, S2, 8] grown, float[N, 8] hn)
  {{
    q = MatMul (h, wq)
    k = MatMul (old, wk)
    q3 = Unsqueeze (q, one)
    scores = Mul (q3, k)
    att = Softmax <axis = 1> (scores)
    mixed = Mul (att, old)
    axis = Constant <value_ints = [1]> ()
    hn = ReduceSum <keepdims = 0> (mixed, axis)
    h3 = Unsqueeze (hn, one)
    grown = Concat <axis = 1> (old, h3)
    on = Identity (go)
  }}> (steps, yes, first, start)
  y = MatMul (last, v)
}}
"""
MODELS = {
    "branches of different widths": (TWO_BRANCHES, [8, 16]),
    "one width from two branches": (ONE_WIDTH_FROM_TWO_BRANCHES, [10, 16]),
    "Scan": (SCAN_RNN, [12]),
    "Loop": (LSTM_LOOP, [12]),
    "growing cache": (GROWING_CACHE, [8]),
}


def analysed(text: str) -> Coupling:
    return analyze(graph.normalize(ir.from_proto(filled(text))))


def half_of_all(coupling: Coupling) -> dict:
    rng = np.random.default_rng(0)
    return {dim: rng.permutation(dim.size) < dim.size // 2 for dim in coupling.free}


@pytest.mark.parametrize(("text", "sizes"), MODELS.values(), ids=list(MODELS))
def test_widths_inside_bodies_are_free_and_their_cut_is_proven(text, sizes):
    coupling = analysed(text)
    assert sorted(dim.size for dim in coupling.free) == sizes
    keep = half_of_all(coupling)
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    feeds = comparison.random_feeds(coupling.model, coupling.shapes, 0)
    assert comparison.compare(cut, masked, feeds).ok
    predicted = cost.of(coupling).totals(cost.keep_sizes(keep))
    assert cost.of(analyze(graph.normalize(cut))).totals()["macs"] == predicted["macs"]
    onnx.checker.check_model(ir.to_proto(cut), full_check=True)


def outputs(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def test_a_cut_loop_equals_its_mask_over_many_steps():
    coupling = analysed(LSTM_LOOP)
    keep = half_of_all(coupling)
    x = np.random.default_rng(1).normal(size=(9, 2, 5)).astype(np.float32)
    ours, theirs = (outputs(make(Selection(coupling, keep)), x=x) for make in (surgery.cut, surgery.mask))
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("weight", ["w1", "u1"])
def test_an_error_in_either_branch_is_found_whichever_the_inputs_take(weight):
    coupling = analysed(TWO_BRANCHES)
    keep = half_of_all(coupling)
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    value = cut.graph.initializers[weight]
    graph.set_constant(value, graph.array_of(value) * 1.01)
    assert not comparison.compare(cut, masked, comparison.random_feeds(coupling.model, coupling.shapes, 0)).ok


BY_STEP = f"""{HEAD}
g (float[N, 4] x, int64 steps) => (float[N, 3] y) <float[4, 12] w, float[4, 3] v>
{{
  table = MatMul (x, w)
  yes = Constant <value = bool {{1}}> ()
  four = Constant <value_ints = [4]> ()
  flat = Constant <value_ints = [1]> ()
  last = Loop <body = step (int64 i, bool go, float[N, 4] h) => (bool on, float[N, 4] hn)
  {{
    start = Mul (i, four)
    stop = Add (start, four)
    part = Slice (table, start, stop, flat)
    hn = Add (h, part)
    on = Identity (go)
  }}> (steps, yes, x)
  y = MatMul (last, v)
}}
"""


def test_what_the_number_of_a_step_chooses_is_no_constant():
    """Where one step is seen, its number is 0; the slice of another step stands elsewhere."""
    coupling = analysed(BY_STEP)
    assert not coupling.free
    assert any("step to step" in str(dim.frozen) for dim in coupling.dims if dim.size == 12)


UNSEEN = TWO_BRANCHES.replace('"" : 17', '"" : 10')


def test_bodies_of_old_opsets_stay_and_say_why():
    coupling = analysed(UNSEEN)
    assert not coupling.free
    assert any("did not run" in str(dim.frozen) or "used inside" in str(dim.frozen) for dim in coupling.dims)


def test_weights_of_two_branches_with_one_name_are_told_apart():
    """Each branch is a scope of its own, so exporters call different weights alike."""
    model = filled(TWO_BRANCHES)
    weights = {w.name: w for w in model.graph.initializer}
    del model.graph.initializer[:]
    for attribute, names in zip(model.graph.node[0].attribute, (("w1", "w2"), ("u1", "u2")), strict=True):
        for own, name in zip(names, ("p", "q"), strict=True):
            tensor = attribute.g.initializer.add()
            tensor.CopyFrom(weights[own])
            tensor.name = name
            for node in attribute.g.node:
                node.input[:] = [name if other == own else other for other in node.input]
    given = ir.from_proto(model)
    normal = graph.normalize(given)
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    for first in (True, False):
        feeds = {"x": x, "first": np.array(first)}
        np.testing.assert_array_equal(outputs(normal, **feeds), outputs(given, **feeds))
    assert sorted(dim.size for dim in analyze(normal).free) == [8, 16]
    assert cost.stored(normal) == cost.stored(given)


def silero() -> Path | None:
    """The voice activity detector in the package silero-vad, if that is installed: two networks in one If."""
    try:
        from importlib.metadata import files

        found = [file for file in files("silero-vad") or () if file.name == "silero_vad.onnx"]
        return Path(str(found[0].locate())) if found else None
    except ModuleNotFoundError:
        return None


@pytest.mark.slow
def test_both_networks_of_silero_vad_are_pruned(cli, tmp_path):
    path = silero()
    if path is None:
        pytest.skip("the package silero-vad is not installed")
    out = tmp_path / "out.onnx"
    ran = cli(path, out, "--method", "l1", "--target", "params=0.7", "--no-latency")
    assert ran.code == 0, ran.err
    assert out.stat().st_size < 0.72 * path.stat().st_size
    session = ort.InferenceSession(str(out))
    for rate, size in ((16000, 576), (8000, 288)):
        feeds = {"input": np.zeros((1, size), np.float32), "state": np.zeros((2, 1, 128), np.float32)}
        y, state = session.run(None, {**feeds, "sr": np.array(rate)})
        assert np.asarray(y).shape == (1, 1)
        assert np.asarray(state).shape == (2, 1, 128)
