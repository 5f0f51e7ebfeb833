"""States in the interface: found, cut inside, handed back over several steps."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnx_text
import pytest

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.graph import extras, sessions, states
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.surgery import narrow

# Name -> (model, sizes of the free Dims, (state, the output that is handed back as it)). Inputs begin with x.
MODELS = {
    "LSTM": (
        "(float[1,1,6] x, float[1,1,8] xh, float[1,1,8] xc, float[1,32,6] w, float[1,32,8] r, float[1,64] b, "
        "float[8,3] v) => (float[1,1,1,3] y, float[1,1,8] yh, float[1,1,8] yc) "
        "{ s, yh, yc = LSTM <hidden_size: int = 8> (x, w, r, b, , xh, xc) y = MatMul(s, v) }",
        [8],
        {"xh": "yh", "xc": "yc"},
    ),
    "two LSTMs with one state": (
        "(float[1,1,6] x, float[2,1,8] xh, float[2,1,8] xc, float[1,32,6] w, float[1,32,8] r, float[1,32,8] w2, "
        "float[1,32,8] r2, float[8,3] v, int64[1] ax) => (float[1,1,3] y, float[2,1,8] yh, float[2,1,8] yc) "
        "{ h1, h2 = Split <axis: int = 0, num_outputs: int = 2> (xh) "
        "c1, c2 = Split <axis: int = 0, num_outputs: int = 2> (xc) "
        "s, g1, d1 = LSTM <hidden_size: int = 8> (x, w, r, , , h1, c1) q = Squeeze(s, ax) "
        "t, g2, d2 = LSTM <hidden_size: int = 8> (q, w2, r2, , , h2, c2) u = Squeeze(t, ax) "
        "yh = Concat <axis: int = 0> (g1, g2) yc = Concat <axis: int = 0> (d1, d2) y = MatMul(u, v) }",
        [8],
        {"xh": "yh", "xc": "yc"},
    ),
    "GRU": (
        "(float[1,1,6] x, float[1,1,8] xh, float[1,24,6] w, float[1,24,8] r, float[1,48] b, float[8,3] v) "
        "=> (float[1,1,1,3] y, float[1,1,8] yh) "
        "{ s, yh = GRU <hidden_size: int = 8, linear_before_reset: int = 1> (x, w, r, b, , xh) y = MatMul(s, v) }",
        [8],
        {"xh": "yh"},
    ),
    "RNN": (
        "(float[1,1,6] x, float[1,1,8] xh, float[1,8,6] w, float[1,8,8] r, float[8,3] v) "
        "=> (float[1,1,1,3] y, float[1,1,8] yh) "
        "{ s, yh = RNN <hidden_size: int = 8> (x, w, r, , , xh) y = MatMul(s, v) }",
        [8],
        {"xh": "yh"},
    ),
    "cache of a convolution": (
        "(float[1,4,5] x, float[1,8,2] xc, float[8,4,1] w, float[8] b, float[3,8,3] v, int64[1] start, int64[1] stop, "
        "int64[1] ax) => (float[1,3,5] y, float[1,8,2] yc) "
        "{ a = Conv(x, w, b) s = Sigmoid(a) j = Concat <axis: int = 2> (xc, s) y = Conv(j, v) "
        "yc = Slice(j, start, stop, ax) }",
        [8],
        {"xc": "yc"},
    ),
    "GRU written out, by its names": (
        "(float[1,6] x, float[1,8] xr1i, float[14,8] w, float[14,8] u, float[8,3] v, float one) "
        "=> (float[1,3] y, float[1,8] xr1o) "
        "{ j = Concat <axis: int = 1> (x, xr1i) a = MatMul(j, w) z = Sigmoid(a) b = MatMul(j, u) c = Tanh(b) "
        "k = Sub(one, z) l = Mul(k, c) m = Mul(z, xr1i) xr1o = Add(l, m) y = MatMul(xr1o, v) }",
        [8],
        {"xr1i": "xr1o"},
    ),
    "GRU written out, by its gates": (
        "(float[1,6] x, float[1,8] x0, float[14,16] w, float[6,8] u, float[8,8] t, float[8,3] v) "
        "=> (float[1,3] y, float[1,8] after) "
        "{ j = Concat <axis: int = 1> (x, x0) a = MatMul(j, w) s = Sigmoid(a) "
        "z, r = Split <axis: int = 1, num_outputs: int = 2> (s) b = MatMul(x, u) c = Mul(r, x0) d = MatMul(c, t) "
        "e = Add(b, d) n = Tanh(e) k = Sub(x0, n) l = Mul(z, k) after = Add(n, l) y = MatMul(after, v) }",
        [8],
        {"x0": "after"},
    ),
    "LSTM written out, by its gates": (
        "(float[1,6] x, float[1,8] x0, float[1,8] x1, float[14,32] w, float[8,3] v) "
        "=> (float[1,3] y, float[1,8] short, float[1,8] long) "
        "{ j = Concat <axis: int = 1> (x, x0) a = MatMul(j, w) "
        "i, f, o, g = Split <axis: int = 1, num_outputs: int = 4> (a) si = Sigmoid(i) sf = Sigmoid(f) so = Sigmoid(o) "
        "tg = Tanh(g) k = Mul(sf, x1) l = Mul(si, tg) long = Add(k, l) t = Tanh(long) short = Mul(so, t) "
        "y = MatMul(short, v) }",
        [8],
        {"x0": "short", "x1": "long"},
    ),
    "attention with a past": (
        "(float[1,1,6] x, float[1,2,P,4] xk, float[1,2,P,4] xv, float[6,8] q, float[6,8] k, float[6,8] v, "
        "float[8,3] o) => (float[1,1,3] y, float[1,2,Q,4] yk, float[1,2,Q,4] yv) "
        "{ a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) "
        "d, yk, yv = com.microsoft.MultiHeadAttention <num_heads: int = 2> (a, b, c, , , , xk, xv) y = MatMul(d, o) }",
        [2, 4],  # onnxruntime takes cached values of the width of the keys alone
        {"xk": "yk", "xv": "yv"},
    ),
    "grouped attention with a past": (
        "(float[1,1,6] x, float[1,2,P,8] xk, float[1,2,P,8] xv, int32[1] xlast, int32 xtotal, float[6,32] q, "
        "float[6,16] k, float[6,16] v, float[32,3] o) => (float[1,1,3] y, float[1,2,Q,8] yk, float[1,2,Q,8] yv) "
        "{ a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v) d, yk, yv = com.microsoft.GroupQueryAttention "
        "<num_heads: int = 4, kv_num_heads: int = 2> (a, b, c, xk, xv, xlast, xtotal) y = MatMul(d, o) }",
        [2, 2],
        {"xk": "yk", "xv": "yv"},
    ),
    "attention with a past, written out": (
        "(float[1,1,6] x, float[1,2,P,4] xk, float[1,2,P,4] xv, float[6,8] q, float[6,8] k, float[6,8] v, "
        "float[8,3] o, int64[4] heads, int64[3] flat) => (float[1,1,3] y, float[1,2,Q,4] yk, float[1,2,Q,4] yv) "
        "{ a = MatMul(x, q) a1 = Reshape(a, heads) a2 = Transpose <perm: ints = [0,2,1,3]> (a1) "
        "b = MatMul(x, k) b1 = Reshape(b, heads) b2 = Transpose <perm: ints = [0,2,1,3]> (b1) "
        "c = MatMul(x, v) c1 = Reshape(c, heads) c2 = Transpose <perm: ints = [0,2,1,3]> (c1) "
        "yk = Concat <axis: int = 2> (xk, b2) yv = Concat <axis: int = 2> (xv, c2) "
        "t = Transpose <perm: ints = [0,1,3,2]> (yk) s = MatMul(a2, t) p = Softmax <axis: int = -1> (s) "
        "u = MatMul(p, yv) u1 = Transpose <perm: ints = [0,2,1,3]> (u) u2 = Reshape(u1, flat) y = MatMul(u2, o) }",
        [2, 4, 4],
        {"xk": "yk", "xv": "yv"},
    ),
}
NUMBERS = {"ax": [0], "start": [-2], "stop": [9**9], "one": 1.0, "heads": [0, 0, 2, 4], "flat": [0, 0, 8]}


def normal(name: str) -> ir.Model:
    numbers = NUMBERS | ({"ax": [2]} if "convolution" in name else {"ax": [1]})
    return graph.normalize(onnx_text.model(MODELS[name][0], numbers))


def stream(
    model: ir.Model, handed: dict[str, str], steps: int = 4, *, zeros: bool = False
) -> list[dict[str, np.ndarray]]:
    """What `model` says step by step, of states that begin with random numbers and are handed back."""
    rng = np.random.default_rng(7)
    session = sessions.open_session(model)
    said: list[dict[str, np.ndarray]] = []
    first = {
        value.name: [size if isinstance(size, int) else 3 for size in value.shape or ()]
        for value in model.graph.inputs
        if value.name in handed
    }
    fed = {name: np.zeros(shape, np.float32) for name, shape in first.items()}
    if not zeros:
        fed = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in fed.items()}
    for step in range(steps):
        for value in model.graph.inputs:
            shape = [size if isinstance(size, int) else 3 for size in value.shape or ()]
            if value.name in ("xlast", "xtotal"):
                fed[value.name] = np.full(shape, 3 + step + (value.name == "xtotal"), np.int32)
            elif value.name not in handed:
                fed[value.name or ""] = rng.normal(size=shape).astype(np.float32)
        said.append(sessions.run(session, fed))
        fed = {name: said[-1][output] for name, output in handed.items()}
    return said


@pytest.mark.parametrize("name", MODELS)
def test_states_are_cut_inside_and_stream_as_the_masked_model_does(name):
    _, free, handed = MODELS[name]
    model = normal(name)
    assert {(given, output) for given, output, _ in extras.of(model).states} == set(handed.items())
    coupling = analyze(model)
    assert sorted(dim.size for dim in coupling.free) == free
    for seed in range(3):
        keep = onnx_text.random_keep(coupling, seed)
        cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
        comparison.require(comparison.compare(cut, masked, comparison.random_feeds(model, coupling.shapes, seed)))
        for one, two in zip(stream(cut, handed), stream(masked, handed), strict=True):
            for output, array in two.items():
                assert one[output].shape == array.shape
                np.testing.assert_allclose(one[output], array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_gates_change_nothing_and_are_in_no_finished_file(name):
    given = onnx_text.model(MODELS[name][0], NUMBERS | ({"ax": [2]} if "convolution" in name else {"ax": [1]}))
    model = graph.normalize(given)
    assert any(states.side(node) for node in model.graph)
    assert graph.digest(graph.normalize(graph.copy(model))) == graph.digest(model)
    finished = graph.finish(model)
    assert not any(states.side(node) for node in finished.graph)
    assert [v.name for v in finished.graph.outputs] == [v.name for v in given.graph.outputs]
    for one, two in zip(stream(finished, MODELS[name][2], 2), stream(given, MODELS[name][2], 2), strict=True):
        for output, array in two.items():
            np.testing.assert_allclose(one[output], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        # What is filtered has a name and a shape that go on, and so has a residual stream.
        "(float[1,8] xaudio_in, float[8,8] w, float[8,8] v) => (float[1,8] xaudio_out) "
        "{ a = MatMul(xaudio_in, w) xaudio_out = MatMul(a, v) }",
        # The last state of a recurrent layer that begins with zeros is an answer.
        "(float[3,1,6] x, float[1,32,6] w, float[1,32,8] r) => (float[1,1,8] y) "
        "{ s, y = LSTM <hidden_size: int = 8> (x, w, r) }",
        # Two sources alike: which of them is meant is not known.
        "(float[1,8,4] x, float[1,8,4] xq, float[8,8,1] w) => (float[1,8,4] z, float[1,8,8] y) "
        "{ a = Conv(x, w) j = Concat <axis: int = 2> (x, xq) y = Conv(j, w) z = Add(a, xq) }",
        # A mask lets a part of a second input through, or something is added to it, and nothing is forgotten.
        "(float[1,8] x, float[1,8] xskip, float[8,8] w, float[8,3] v) => (float[1,3] y, float[1,8] z) "
        "{ a = MatMul(x, w) s = Sigmoid(a) z = Mul(s, xskip) y = MatMul(z, v) }",
        "(float[1,8] x, float[1,8] xskip, float[8,8] w, float[8,3] v) => (float[1,3] y, float[1,8] z) "
        "{ a = MatMul(x, w) s = Sigmoid(a) z = Add(s, xskip) y = MatMul(z, v) }",
    ],
)
def test_what_is_no_state_stays_whole(text):
    model = graph.normalize(onnx_text.model(text))
    assert extras.of(model).states == ()
    assert not any(states.side(node) for node in model.graph)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("h", "hn"),
        ("r1i", "r1o"),
        ("state", "stateN"),
        ("past_key_values.0.key", "present.0.key"),
        ("past_0", "present_0"),
        ("cache_in_3", "cache_out_3"),
        ("in_cache0", "out_cache0"),
        ("hidden", "hidden_out"),
        ("input_states", "output_states"),
    ],
)
def test_names_of_states_go_together(one, two):
    assert states.stem(one) == states.stem(two) != ""


def test_a_plan_of_a_state_is_enough_to_mask_the_normalized_model(tmp_path, cli):
    """Zeroing what the plan does not keep, flags of gates included, makes the twin: nothing else is needed."""

    onnx.save(onnx_text.proto(MODELS["LSTM"][0]), tmp_path / "in.onnx")
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", tmp_path / "plan.json", "--no-latency", "-q",
              "--recover", "none")  # fmt: skip
    assert ran.code == 0, ran.err
    assert cli("normalize", tmp_path / "in.onnx", tmp_path / "normal.onnx").code == 0
    proto = onnx.load(tmp_path / "normal.onnx")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}
    for entry in json.loads((tmp_path / "plan.json").read_text())["slices"]:
        array = np.moveaxis(arrays[entry["initializer"]], entry["axis"], 0)
        array[np.setdiff1d(np.arange(len(array)), entry["keep"])] = 0
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    handed = MODELS["LSTM"][2]
    pruned = graph.load(tmp_path / "out.onnx")
    for one, two in zip(stream(pruned, handed), stream(ir.from_proto(proto), handed), strict=True):
        for output, array in two.items():
            np.testing.assert_allclose(one[output], array, rtol=1e-4, atol=1e-6)
    assert cli("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", tmp_path / "plan.json").code == 0


@pytest.mark.parametrize("name", ["LSTM", "cache of a convolution", "grouped attention with a past"])
def test_narrow_states_stream_what_the_whole_interface_does(name, tmp_path, cli):
    """The narrowed file, its states handed back, says what the one with the whole interface says from zeros on."""
    _, _, handed = MODELS[name]
    numbers = NUMBERS | ({"ax": [2]} if "convolution" in name else {"ax": [1]})
    onnx.save(onnx_text.proto(MODELS[name][0], numbers), tmp_path / "in.onnx")
    words = ("--recover", "none", "--no-latency", "-q", "--align", "1", "--target", "params=0.6")
    assert cli(tmp_path / "in.onnx", tmp_path / "wide.onnx", *words).code == 0
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--states", "narrow", "--plan", tmp_path / "p.json",
              "--report", tmp_path / "r.md")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "narrowed state" in (tmp_path / "r.md").read_text()
    small, wide = graph.load(tmp_path / "out.onnx"), graph.load(tmp_path / "wide.onnx")
    shapes = {value.name: list(value.shape or ()) for value in (*small.graph.inputs, *small.graph.outputs)}
    full = {value.name: list(value.shape or ()) for value in (*wide.graph.inputs, *wide.graph.outputs)}
    for given, output in handed.items():
        assert shapes[given] != full[given]
        assert [s for s in shapes[given] if isinstance(s, int)] == [s for s in shapes[output] if isinstance(s, int)]
    for one, two in zip(stream(small, handed, zeros=True), stream(wide, handed, zeros=True), strict=True):
        np.testing.assert_allclose(one["y"], two["y"], rtol=1e-4, atol=1e-6)
    assert cli("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", tmp_path / "p.json").code == 0
    again = cli("apply", tmp_path / "in.onnx", tmp_path / "p.json", tmp_path / "again.onnx", "--no-latency")
    assert again.code == 0, again.err
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    # The whole interface is not what the plan says.
    assert cli("verify", tmp_path / "in.onnx", tmp_path / "wide.onnx", "--plan", tmp_path / "p.json").code == 3


def test_the_narrow_file_is_timed_with_states_of_its_own_shape(tmp_path, cli):
    onnx.save(onnx_text.proto(MODELS["LSTM"][0], NUMBERS | {"ax": [1]}), tmp_path / "in.onnx")
    words = ("--recover", "none", "-q", "--align", "1", "--target", "params=0.6", "--states", "narrow")
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--report", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    original, pruned = json.loads((tmp_path / "r.json").read_text())["models"]
    assert pruned["latency"][0]["median_ms"] > 0
    assert original["latency"][0]["median_ms"] > 0
    assert "latency could not be measured" not in ran.err


@pytest.mark.parametrize("seed", [0, 1])
def test_narrow_states_in_half_precision_are_compared_without_its_rounding(seed, tmp_path, cli):
    onnx.save(onnx_text.proto(MODELS["LSTM"][0], NUMBERS), tmp_path / "in.onnx")
    words = ("--recover", "none", "--no-latency", "-q", "--align", "1", "--target", "params=0.6", "--seed", str(seed))
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--states", "narrow", "--quantize", "fp16",
              "--plan", tmp_path / "p.json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert cli("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", tmp_path / "p.json").code == 0


def test_a_wrong_position_of_a_narrow_state_in_half_precision_is_found(tmp_path, cli, monkeypatch):
    onnx.save(onnx_text.proto(MODELS["LSTM"][0], NUMBERS), tmp_path / "in.onnx")
    fed = narrow.fed

    def turned(feeds, found, side="input"):
        return {name: a[..., ::-1].copy() if name == "xh" else a for name, a in fed(feeds, found, side).items()}

    monkeypatch.setattr(narrow, "fed", turned)
    words = ("--recover", "none", "--no-latency", "-q", "--align", "1", "--target", "params=0.6")
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--states", "narrow", "--quantize", "fp16")
    assert (ran.code, "narrowed states change the output" in ran.err) == (3, True), ran.err


@pytest.mark.parametrize("name", ["LSTM", "cache of a convolution", "GRU written out, by its names"])
def test_a_result_that_hands_its_states_on_can_be_given_again(name, tmp_path, cli):
    """What the first cut left beside the states has names of its own; then more is pruned, or a reason is told."""
    numbers = NUMBERS | ({"ax": [2]} if "convolution" in name else {"ax": [1]})
    onnx.save(onnx_text.proto(MODELS[name][0], numbers), tmp_path / "in.onnx")
    words = ("--recover", "none", "--no-latency", "-q", "--align", "1", "--plan", tmp_path / "p.json")
    assert cli(tmp_path / "in.onnx", tmp_path / "one.onnx", *words, "--target", "params=0.8").code == 0
    ran = cli("inspect", tmp_path / "one.onnx")
    assert ran.code == 0, ran.err
    ran = cli(tmp_path / "one.onnx", tmp_path / "two.onnx", *words, "--target", "params=0.9")
    if ran.code:
        assert (ran.code, "nothing can be pruned" in ran.err) == (2, True), ran.err
        return
    assert cli("verify", tmp_path / "one.onnx", tmp_path / "two.onnx", "--plan", tmp_path / "p.json").code == 0
