"""What mutants.py found to get past the proof, a test each; the honest cut is accepted in every one of them."""

import numpy as np
import pytest
from onnx_text import model as written
from onnx_text import random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison

# Every unit behind the bias is silent on any input of moderate size.
SILENT = (
    "(float[2,4] x, float[4,6] w, float[6] b, float[6,5] v, float[5,3] u) => (float[2,3] y) "
    "{ a = MatMul(x, w) c = Add(a, b) d = Relu(c) e = MatMul(d, v) f = Tanh(e) y = MatMul(f, u) }"
)
# The second expert has a silent unit of a number that is alive in the first.
EXPERTS = (
    "(float[2,3,4] x, float[4,6] w, float[2,6,5] v, float[2,1,5] b, float[2,5,3] u) => (float[2,3,3] y) "
    "{ a = MatMul(x, w) c = Relu(a) d = MatMul(c, v) e = Add(d, b) f = Relu(e) y = MatMul(f, u) }"
)


def judged(text: str, constants: dict, damage) -> tuple[bool, bool]:
    """Whether the honest cut is accepted, and what `damage` makes of it."""
    model = graph.normalize(written(text, constants))
    coupling = analyze(model)
    selection = Selection(coupling, random_keep(coupling, 3, 0.8))
    masked, honest, mutant = surgery.mask(selection), surgery.cut(selection), surgery.cut(selection)
    damage(mutant)
    feeds = comparison.random_feeds(coupling.model, coupling.shapes)
    return comparison.compare(honest, masked, feeds).ok, comparison.compare(mutant, masked, feeds).ok


def _without_tanh(model) -> None:
    node = next(node for node in model.graph if node.op_type == "Tanh")
    for use in list(node.outputs[0].uses()):
        use.node.replace_input_with(use.idx, node.inputs[0])


def test_an_activation_left_out_behind_silent_units_is_found():
    """Weights behind zeros were tried on random numbers, what stands between two of them was not."""
    assert judged(SILENT, {"b": np.full(6, -1e3)}, _without_tanh) == (True, False)


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_a_wrong_weight_of_one_expert_is_found_where_its_unit_is_silent(unit):
    """A unit counted as alive where it was so in any of the experts."""
    bias = np.full((2, 1, 5), 9, np.float32)
    bias[1] = -1e3

    def damage(model) -> None:
        value = model.graph.initializers["u"]
        array = graph.array_of(value).copy()
        array[1, min(unit, array.shape[1] - 1)] *= -1
        graph.set_constant(value, array)

    assert judged(EXPERTS, {"b": bias}, damage) == (True, False)


def test_an_honest_cut_that_convolves_along_an_axis_that_shrank_is_accepted():
    """The cut model spreads kept positions over the whole axis, convolves, and gathers them again (lambda networks)."""
    text = (
        "(float[2,4] x, float[4,16] w, int64[3] s, float[5,1,3] k, float[80,3] v, int64[2] t) => (float[2,3] y) "
        "{ a = MatMul(x, w) b = Relu(a) r = Reshape(b, s) c = Conv<pads = [1,1]>(r, k) d = Relu(c) "
        "f = Reshape(d, t) y = MatMul(f, v) }"
    )

    def turned(model) -> None:
        kernel = next(node for node in model.graph if node.op_type == "Conv").inputs[1]
        graph.set_constant(kernel, graph.array_of(kernel)[:, :, ::-1].copy())

    assert judged(text, {"s": [2, 1, 16], "t": [2, 80]}, turned) == (True, False)


# Of 40 positions one is nearly always positive, and with it the largest.
LARGEST = (
    "(float[3,6,40] x, float[8,6,3] w, float[8] b, float[8,4] v, int64[1] t) => (float[3,4] y) "
    "{ a = Conv(x, w, b) c = Relu(a) d = ReduceMax<keepdims = 0>(c, t) y = MatMul(d, v) }"
)


def _without_relu(model) -> None:
    node = next(node for node in model.graph if node.op_type == "Relu")
    for use in list(node.outputs[0].uses()):
        use.node.replace_input_with(use.idx, node.inputs[0])


def test_an_activation_left_out_in_front_of_a_maximum_is_found():
    """The maximum was positive on all inputs that were tried."""
    assert judged(LARGEST, {"b": np.full(8, 2), "t": np.array([2])}, _without_relu) == (True, False)


# The state of the loop loses positions as the rest does; one unit of its body is silent on any input of moderate size.
LOOP = (
    "(float[2,4] x, float[4,6] w, int64 steps, bool on, float[6,8] v, float[8] b, float[8,6] t, float[6,3] u) "
    "=> (float[2,3] y) { a = MatMul(x, w) l = Loop(steps, on, a) <body = step (int64 i, bool c, float[2,6] h) => "
    "(bool c1, float[2,6] h1) { c1 = Identity(c) d = MatMul(h, v) e = Add(d, b) f = Relu(e) g = MatMul(f, t) "
    "h1 = Tanh(g) }> y = MatMul(l, u) }"
)


def test_a_wrong_weight_in_a_body_is_found_where_its_state_lost_positions():
    """The step that stands in for a body lost the results that were cut, and with them what made them."""

    def damage(model) -> None:
        value = model.graph.initializers["t"]
        graph.set_constant(value, graph.array_of(value) * np.float32(-1))

    assert judged(LOOP, {"steps": 3, "on": True, "b": np.full(8, -1e3)}, damage) == (True, False)
