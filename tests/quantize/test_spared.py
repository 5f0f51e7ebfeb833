"""Nodes that stay in float by rule: masks, infinities, and weights that integer kernels take in one way only."""

import numpy as np
import onnx_ir as ir
import onnx_text
import pytest
from quantizing import feeds_for, finished, samples_for

from onnxprune import graph
from onnxprune.quantize import Context, parse, quantize, rounding, spared
from onnxprune.run.finish import finish

HEAD = "(float[N,4,8] x, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,5] wo, "
SCORES = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t) "
REST = "p = Softmax<axis = -1>(m) a = MatMul(p, v) y = MatMul(a, wo) }"
CAUSAL = np.triu(np.ones((4, 4)), 1)


def model_of(signature: str, body: str, constants: dict) -> ir.Model:
    text = f"{HEAD}{signature}) => (float[N,4,5] y) {{ {SCORES}{body} {REST}"
    return finish(graph.normalize(onnx_text.model(text, constants)))


@pytest.mark.parametrize(
    ("signature", "body", "constants"),
    [
        ("float[4,4] far", "m = Add(s, far)", {"far": np.where(CAUSAL, -np.inf, 0)}),
        ("float[4,4] far", "m = Add(s, far)", {"far": CAUSAL * np.finfo(np.float32).min}),
        ("float[4,4] far", "h = Unsqueeze(far, zero) m = Add(s, h)", {"far": CAUSAL * -1e9}),
        ("float[4,4] off, float far", "g = Mul(off, far) m = Add(s, g)", {"off": CAUSAL, "far": -1e4}),
        ("bool[4,4] on, float far", "m = Where(on, s, far)", {"on": CAUSAL == 0, "far": -np.inf}),
    ],
)
def test_scores_that_are_masked_stay_in_float_up_to_softmax(signature, body, constants):
    """A grid that reaches down to -1e9 tells no two scores apart."""
    more = ", int64[1] zero" if "zero" in body else ""
    model = model_of(signature + more, body, {**constants, "zero": [0]})
    made = quantize(model, Context(parse("int8"), samples_for(model), feeds_for(model)))
    left = {node.op_type for node in made.float_model.graph if node.name in made.record["float"]}
    assert left <= {"Add", "Mul", "Where", "Softmax", "Unsqueeze"}
    assert "Softmax" in left
    assert rounding.error(made.model, made.pruned, feeds_for(model)) < 0.1
    assert any("in float: masks go through" in note for note in made.notes)


def test_large_bounds_and_weights_mask_nothing():
    model = finished(
        """<ir_version: 8, opset_import: ["" : 17]>
        bounds (float[N, 6] x) => (float[N, 4] y)
        <float[6, 8] w, float low = {0.0}, float high = {3.4e38}, float[8, 4] v>
        { a = MatMul (x, w)  b = Clip (a, low, high)  y = MatMul (b, v) }"""
    )
    assert spared.masking(model) == []
    graph.set_constant(model.graph.initializers["v"], np.full((8, 4), 2e4, np.float32))
    assert spared.masking(model) == []


ENDLESS = """<ir_version: 8, opset_import: ["" : 17]>
endless (float[N, 6] x) => (float[N, 4] y, float[N, 8] z) <float[6, 8] w, float[8, 8] u, float[8, 4] v>
{
  [first] a = MatMul (x, w)
  [relu] b = Relu (a)
  [log] c = Log (b)
  [sum] z = Add (c, b)
  [middle] d = MatMul (b, u)
  [last] y = MatMul (d, v)
}
"""


@pytest.mark.parametrize("calibrate", ["minmax", "percentile", "entropy"])
def test_infinite_values_and_outputs_stay_in_float_and_the_rest_is_quantized_and_proven(calibrate):
    model = finished(ENDLESS)
    made = quantize(model, Context(parse(f"int8:calibrate={calibrate}"), samples_for(model), feeds_for(model)))
    assert set(made.record["float"]) == {"log", "sum"}
    assert made.simulation.ok
    assert made.simulation.weights == 3
    assert all(np.isfinite(pair).all() for pair in made.record["ranges"].values())
    assert any("in float: on some sample what they read or make is infinite" in note for note in made.notes)


def test_an_infinity_that_is_a_number_in_the_other_model_is_far_off():
    model = finished(ENDLESS)
    other = graph.copy(model)
    node = next(node for node in other.graph if node.name == "log")
    node.op_type = "Exp"
    assert rounding.error(other, model, feeds_for(model)) == np.inf
    assert rounding.error(model, model, feeds_for(model)) == 0


def test_one_ruined_output_shows_beside_one_of_large_numbers():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    two (float[N, 6] x) => (float[N, 8] y, float[N, 8] z) <float[6, 8] w, float[6, 8] v>
    { y = MatMul (x, w)  z = MatMul (x, v) }"""
    model = finished(text)
    graph.set_constant(model.graph.initializers["w"], np.full((6, 8), 1e3, np.float32))
    other = graph.copy(model)
    graph.set_constant(other.graph.initializers["v"], np.zeros((6, 8), np.float32))
    assert rounding.error(other, model, feeds_for(model)) < 0.01
    assert rounding.worst_error(other, model, feeds_for(model)) == 1


STACK = (
    "(float[N,6] x, float[6,8] w, int64[1] zero, float[3,8,8] experts, float[8,4] v) => (float[3,N,4] y) "
    "{ a = MatMul(x, w) b = Relu(a) c = Unsqueeze(b, zero) d = MatMul(c, experts) y = MatMul(d, v) }"
)


@pytest.mark.parametrize("kind", ["int8", "dynamic"])
def test_stacks_of_matrices_have_one_scale_for_which_kernels_are_made(kind):
    """onnxruntime takes a scale per column of a matrix alone: with a stack of them the file did not run."""
    model = finish(graph.normalize(onnx_text.model(STACK, {"zero": [0]})))
    made = quantize(model, Context(parse(kind), samples_for(model), feeds_for(model)))
    assert made.simulation.weights == 3
    assert rounding.error(made.model, made.pruned, feeds_for(model)) < 0.1


def test_a_part_of_what_softmax_makes_has_the_grid_of_the_whole():
    """The grid was taken for a wrong one: it follows from no range of the part."""
    text = (
        "(float[N,6] x, float[6,8] w, float[8,8] r, int64[1] zero, int64[1] four, int64[1] last, float[4,3] v) => "
        "(float[N,3] y) { a = MatMul(x, w) b = MatMul(a, r) p = Softmax<axis = -1>(b) "
        "c = Slice(p, zero, four, last) y = MatMul(c, v) }"
    )
    model = finish(graph.normalize(onnx_text.model(text, {"zero": [0], "four": [4], "last": [-1]})))
    made = quantize(model, Context(parse("int8"), samples_for(model), feeds_for(model)))
    assert made.simulation.ok
