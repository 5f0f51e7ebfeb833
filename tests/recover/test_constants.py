"""What removed units emitted goes into the biases of their consumers."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import model as text_model
from recovering import Digits, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze, dims
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover import biases, constants
from onnxprune.recover.linear import linears

# The middle layer's dropped units are dead: what they emit depends on no input.
CASES = {
    "conv with bias": (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[5,8,3,3] v, float[5] c) => (float[N,5,2,2] y)"
        "{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, c) }"
    ),
    "conv without bias": (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[5,8,3,3] v) => (float[N,5,2,2] y)"
        "{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }"
    ),
    "conv before a norm": (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[5,8,3,3] v, float[5] g, float[5] h, float[5] m,"
        " float[5] var) => (float[N,5,2,2] y)"
        "{ a = Conv(x, w, b) r = Relu(a) c = Conv(r, v) y = BatchNormalization(c, g, h, m, var) }"
    ),
    "grouped conv": (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[6,4,3,3] v, float[6] c) => (float[N,6,2,2] y)"
        "{ a = Conv(x, w, b) r = Relu(a) y = Conv<group = 2>(r, v, c) }"
    ),
    "strided, dilated conv": (
        "(float[N,3,11] x, float[8,3,3] w, float[8] b, float[5,8,3] v, float[5] c) => (float[N,5,3] y)"
        "{ a = Conv(x, w, b) r = Relu(a) y = Conv<strides = [2], dilations = [2]>(r, v, c) }"
    ),
    "transposed conv": (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[8,5,2,2] v, float[5] c) => (float[N,5,8,8] y)"
        "{ a = Conv(x, w, b) r = Relu(a) y = ConvTranspose<strides = [2, 2]>(r, v, c) }"
    ),
    "gemm": (
        "(float[N,6] x, float[6,8] w, float[8] b, float[8,5] v, float[5] c) => (float[N,5] y)"
        "{ a = Gemm(x, w, b) r = Relu(a) y = Gemm<alpha = 0.5, beta = 2.0>(r, v, c) }"
    ),
    "gemm, transposed, without bias": (
        "(float[N,6] x, float[6,8] w, float[8] b, float[5,8] v) => (float[N,5] y)"
        "{ a = Gemm(x, w, b) r = Relu(a) y = Gemm<transB = 1>(r, v) }"
    ),
    "matmul with an Add": (
        "(float[N,4,6] x, float[6,8] w, float[8] b, float[8,5] v, float[5] c) => (float[N,4,5] y)"
        "{ a = MatMul(x, w) s = Add(a, b) r = Relu(s) m = MatMul(r, v) y = Add(c, m) }"
    ),
    "matmul without bias": (
        "(float[N,4,6] x, float[6,8] w, float[8] b, float[8,5] v) => (float[N,4,5] y)"
        "{ a = MatMul(x, w) s = Add(a, b) r = Relu(s) y = MatMul(r, v) }"
    ),
    "flattened": (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[128,5] v, float[5] c) => (float[N,5] y)"
        "{ a = Conv(x, w, b) r = Relu(a) f = Flatten(r) y = Gemm(f, v, c) }"
    ),
}


def _dead(model: ir.Model) -> tuple:
    """(coupling, keep): every other unit of the hidden Dim is dropped, and its kernel made zero."""
    coupling = analyze(model)
    first = next(iter(linears(model).values()))
    axis = 1 if first.node.op_type in ("Gemm", "MatMul") else 0
    dim = next(d for d in coupling.free if any(m.initializer == "w" and m.axis == axis for m in coupling.members[d]))
    mask = np.arange(dim.size) % 2 == 0
    if dim.size == 4:  # the inner factor of a grouped channel axis stands for two units each
        mask = np.array([True, False, True, True])
    array = graph.array_of(model.graph.initializers["w"]).copy()
    units = np.moveaxis(array, axis, 0)
    kept = dims.keep_mask(coupling.axes["w"][axis], {dim: mask})
    units[~kept] = 0
    graph.set_constant(model.graph.initializers["w"], array)
    bias = model.graph.initializers["b"]
    graph.set_constant(bias, np.abs(graph.array_of(bias)))  # behind Relu a negative one would emit nothing
    return coupling, {dim: mask}


def _run(model: ir.Model, feeds) -> np.ndarray:
    return sessions.run(sessions.open_session(model, threads=1), feeds)["y"]


@pytest.mark.parametrize("with_samples", [False, True])
@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_the_constant_of_dead_units_is_kept_exactly(text: str, with_samples: bool):
    model = text_model(text)
    coupling, keep = _dead(model)
    feeds = comparison.random_feeds(model, coupling.shapes)[0]
    samples = load_samples(feeds, input_infos(model)) if with_samples else None
    cut = surgery.cut(Selection(coupling, keep))
    plain = _run(cut, feeds)
    assert constants.push(Selection(coupling, keep), cut, samples) == 1
    wanted, scale = _run(model, feeds), np.abs(_run(model, feeds)).max()
    if "ConvTranspose" not in text:  # each of its phases sees other taps, and a bias knows none of them
        assert np.abs(_run(cut, feeds) - wanted).max() <= 1e-5 * scale
    assert np.square(_run(cut, feeds) - wanted).mean() < np.square(plain - wanted).mean()


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_the_twin_carries_biases_that_were_made(text: str):
    model = text_model(text)
    coupling, keep = _dead(model)
    cut = surgery.cut(Selection(coupling, keep))
    constants.push(Selection(coupling, keep), cut)
    twin = surgery.uncut(Selection(coupling, keep), cut)
    made = biases.carry(Selection(coupling, keep), cut, twin)
    assert made == ("without bias" in next(name for name, case in CASES.items() if case == text))
    assert comparison.compare(cut, twin, comparison.random_feeds(model, coupling.shapes)).ok


def test_half_precision_weights_stay_half_precision():
    text = CASES["conv with bias"].replace("float[8,3", "float16[8,3").replace("float[8]", "float16[8]")
    text = text.replace("float[5", "float16[5").replace("float[N,3", "float16[N,3").replace("float[N,5", "float16[N,5")
    model = text_model(text.replace("float1616", "float16"))
    coupling, keep = _dead(model)
    cut = surgery.cut(Selection(coupling, keep))
    assert constants.push(Selection(coupling, keep), cut) == 1
    assert all(v.const_value.dtype == ir.DataType.FLOAT16 for v in cut.graph.initializers.values())


def test_quantized_weights_are_left_alone():
    text = (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, int8[5,8,3,3] q, float s, int8 z) => (float[N,5,2,2] y)"
        "{ a = Conv(x, w, b) r = Relu(a) v = DequantizeLinear(q, s, z) y = Conv(r, v) }"
    )
    model = text_model(text, {"s": 0.1, "z": 0})
    coupling, keep = _dead(model)
    cut = surgery.cut(Selection(coupling, keep))
    before = {name: graph.array_of(v).tobytes() for name, v in cut.graph.initializers.items()}
    assert constants.push(Selection(coupling, keep), cut) == 0
    assert before == {name: graph.array_of(v).tobytes() for name, v in cut.graph.initializers.items()}


def test_a_depthwise_consumer_gets_nothing():
    text = (
        "(float[N,3,6,6] x, float[8,3,3,3] w, float[8] b, float[8,1,3,3] v, float[8] c, float[2,8,1,1] u)"
        " => (float[N,2,2,2] y)"
        "{ a = Conv(x, w, b) r = Relu(a) d = Conv<group = 8>(r, v, c) y = Conv(d, u) }"
    )
    model = text_model(text)
    coupling, keep = _dead(model)
    cut = surgery.cut(Selection(coupling, keep))
    depthwise = graph.array_of(cut.graph.initializers["c"]).copy()
    assert constants.push(Selection(coupling, keep), cut) == 1
    assert np.array_equal(depthwise, graph.array_of(cut.graph.initializers["c"]))


def test_live_units_without_a_norm_count_as_silent_when_there_are_no_samples(folded: Digits):
    keep = random_keep(folded.coupling, 0.8)
    cut = surgery.cut(Selection(folded.coupling, keep))
    constants.push(Selection(folded.coupling, keep), cut)
    assert folded.error(cut) == pytest.approx(folded.error(surgery.cut(Selection(folded.coupling, keep))))


@pytest.mark.parametrize(("share", "left"), [(0.9, 0.6), (0.75, 0.85)])
def test_norms_say_what_units_emit_without_samples(normed: Digits, share: float, left: float):
    keep = random_keep(normed.coupling, share)
    cut = surgery.cut(Selection(normed.coupling, keep))
    plain = normed.error(cut)
    assert constants.push(Selection(normed.coupling, keep), cut) > 0
    assert normed.error(cut) < left * plain


@pytest.mark.parametrize(("share", "left"), [(0.9, 0.6), (0.75, 0.85)])
def test_samples_say_what_units_emit(digits: Digits, share: float, left: float):
    keep = random_keep(digits.coupling, share)
    cut = surgery.cut(Selection(digits.coupling, keep))
    plain = digits.error(cut)
    constants.push(Selection(digits.coupling, keep), cut, digits.tune, limit=64)
    assert digits.error(cut) < left * plain


def test_a_plan_that_keeps_everything_changes_nothing(folded: Digits):
    cut = surgery.cut(Selection(folded.coupling, {}))
    assert constants.push(Selection(folded.coupling, {}), cut, folded.tune) == 0
    assert graph.digest(cut) == graph.digest(surgery.cut(Selection(folded.coupling, {})))
