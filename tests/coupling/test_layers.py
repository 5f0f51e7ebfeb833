"""The one view of weighted layers: what operators state of their weights, and that a new operator is one rule."""

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model as model_of
from onnx_text import proto

import onnxprune
from onnxprune import graph
from onnxprune.coupling.layers import STATED, layer_of
from onnxprune.coupling.registry import RULES
from onnxprune.graph import sessions
from onnxprune.plan import cost
from onnxprune.recover.biases import read_bias, write_bias
from onnxprune.recover.linear import linears, read_weights

NEW = ("com.microsoft", "TransposeMatMul")  # onnxruntime runs it, and the package has no rule for it
TEXT = """(float[n,8] x, float[32,8] w1, float[32] b1, float[6,32] w2) => (float[n,6] y) {
    a = com.microsoft.TransposeMatMul<transB=1>(x, w1) b = Add(a, b1) c = Relu(b)
    y = com.microsoft.TransposeMatMul<transB=1>(c, w2) }"""


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator as a user would add it: one rule, and no count of MACs, no torch function, nothing else."""
    monkeypatch.delitem(cost.MACS, NEW[1])
    form = onnxprune.Weights(outputs=0, inputs=1, x_axis=-1, y_axis=-1, bias=None)

    @onnxprune.coupling_rule(NEW[1], domain=NEW[0], weights=form)
    def transposed(n):
        """x (N, I), w (O, I) with transB -> y (N, O)."""
        x, w = n.x(0), n.x(1)
        n.unify(x[1], w[1])
        n.give([x[0], w[0]])

    yield
    del RULES[NEW], STATED[NEW]


def _run(made: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return sessions.run(sessions.open_session(ir.from_proto(made)), {"x": x})["y"]


def _error(made: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(_run(made, x) - y) / np.linalg.norm(y))


def test_a_new_operator_with_weights_is_one_rule(taught):
    """It is counted, scored by l1, cut, and refitted by least squares."""
    given = proto(TEXT)
    weights = {w.name: onnx.numpy_helper.to_array(w).copy() for w in given.graph.initializer}
    weights["w1"][:20] *= 0.05  # what l1 is to find
    for tensor in given.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    x = np.random.default_rng(1).normal(size=(256, 8)).astype(np.float32)
    y = np.maximum(x @ weights["w1"].T + weights["b1"], 0) @ weights["w2"].T
    asked = {"method": "l1", "target": {"macs": 0.5}, "align": 1, "data": x, "latency": False}
    cut = onnxprune.prune(given, **asked, recover="none")
    refitted = onnxprune.prune(given, **asked, recover="reconstruct")
    assert cut.before.macs == 32 * 8 + 32 * 6
    assert cut.after.macs == 16 * 8 + 16 * 6
    kept = set(cut.plan.dims[0].keep)
    assert kept >= set(range(20, 32))
    assert len(kept) == 16
    assert [layer.widths for layer in cut.report.layers] == [(32, 16), (6, 6)]
    assert _error(refitted.model, x, y) < 0.5 * _error(cut.model, x, y)


def test_without_its_rule_the_operator_stays_whole():
    assert layer_of(model_of(TEXT).graph.node(0)) is None
    assert not onnxprune.analyze(proto(TEXT)).free


# The same product y = W x + b, as operators store it: text, axis of outputs and of inputs.
FORMS = [
    ("(float[2,3] x, float[3,4] w, float[4] c) => (float[2,4] y) { y = Gemm(x, w, c) }", 1, 0),
    ("(float[2,3] x, float[4,3] w) => (float[2,4] y) { y = Gemm<transB=1, alpha=0.5>(x, w) }", 0, 1),
    ("(float[3,2] x, float[3,4] w) => (float[2,4] y) { y = Gemm<transA=1>(x, w) }", 1, 0),
    ("(float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }", 1, 0),
    (
        "(float[2,3] x, float[4,3] w) => (float[2,4] y) { y = com.microsoft.FusedMatMul<transB=1, alpha=2.0>(x, w) }",
        0,
        1,
    ),
    ("(float[2,3,5] x, float[4,3,1] w) => (float[2,4,5] y) { y = Conv(x, w) }", 0, 1),
    ("(float[2,3,5] x, float[3,4,1] w) => (float[2,4,5] y) { y = ConvTranspose(x, w) }", 1, 0),
]


@pytest.mark.parametrize(("text", "outputs", "inputs"), FORMS)
def test_every_form_reads_as_the_matrix_that_it_multiplies_by(text: str, outputs: int, inputs: int):
    made = model_of(text)
    (linear,) = linears(made).values()
    rank = len(graph.array_of(linear.stored).shape)
    assert (linear.outputs(rank), linear.inputs(rank), linear.width) == (outputs, inputs, 4)
    w, b = read_weights(linear), read_bias(linear)
    assert w.shape == (1, 4, 3, 1)
    assert b is not None
    x = np.random.default_rng(0).normal(size=tuple(linear.x.shape.numpy())).astype(np.float32)  # type: ignore[union-attr]
    found = _run(ir.to_proto(made), x)
    columns = np.moveaxis(x, linear.x_axis, -1)
    np.testing.assert_allclose(np.moveaxis(found, linear.y_axis, -1), columns @ w[0, :, :, 0].T + b, 1e-4)


def test_a_fused_activation_is_not_linear_in_its_weights():
    made = model_of(
        '(float[2,3] x, float[3,4] w) => (float[2,4] y) { y = com.microsoft.FusedGemm<activation="Relu">(x, w) }'
    )
    layer = layer_of(made.graph.node(0))
    assert layer is not None
    assert layer.weights.fused
    assert not linears(made)


def test_a_bias_made_where_beta_scaled_none_has_its_own_size():
    """beta was divided by, and then taken away: the bias came out too large."""
    made = model_of("(float[2,3] x, float[3,4] w) => (float[2,4] y) { y = Gemm<beta=0.5>(x, w) }")
    (linear,) = linears(made).values()
    write_bias(made, linear, np.arange(4.0))
    (again,) = linears(made).values()
    np.testing.assert_array_equal(read_bias(again), np.arange(4))  # type: ignore[arg-type]


def test_an_axis_without_elements_has_no_units():
    """torch's Informer joins sizes with a constant of none; that it has no rows was free to be cut."""
    text = """(float[2,5,4] x, float[4,6] w, float[6,3] v, int64[0] e) => (float[a,b,c] y) {
        r = ReduceMax <axes = [0, 1, 2], keepdims = 0> (x) k = Cast <to = 7> (r) z = Constant <value_ints = [0]> ()
        k1 = Unsqueeze <axes = [0]> (k) one = Mul(k1, z) s = Concat <axis = 0> (one, e)
        o = ConstantOfShape <value = float[1] {1}> (s) t = ReduceSum <keepdims = 0> (o) c = Add(x, t)
        h = MatMul(c, w) g = Relu(h) y = MatMul(g, v) }"""
    coupling = onnxprune.analyze(proto(text, {"e": np.zeros(0, np.int64)}, opset=11))
    assert [dim.size for dim in coupling.free] == [6]
