"""Models that draw random numbers: cut and masked model draw the same ones, so they can be compared."""

import numpy as np
import pytest
from onnx_text import model

import onnxprune
from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.outputs.describe import describe
from onnxprune.proof import comparison


def test_a_dropout_in_training_mode_drops_the_same_on_both_sides():
    text = "(float[n,4] x, float r, bool t, float[4,8] w) => (float[n,8] y) { a = Dropout(x, r, t) y = MatMul(a, w) }"
    one, two = (model(text, {"r": 0.5, "t": True}) for _ in range(2))
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, two, feeds).ok
    graph.set_constant(two.graph.initializers["w"], graph.array_of(one.graph.initializers["w"]) + np.float32(0.1))
    assert not comparison.compare(one, two, feeds).ok


BETWEEN = (
    "(float[n,4] x, float[4,8] w, float[8,6] v, float[6,3] u{more}) => (float[n,3] y) "
    "{{ a = MatMul(x, w) r = Sigmoid(a) {drawn} c = MatMul(b, v) d = Relu(c) y = MatMul(d, u) }}"
)


@pytest.mark.parametrize(
    ("more", "drawn"),
    [
        ("", "b = Bernoulli(r)"),
        (", float p, bool t", "b = Dropout(r, p, t)"),
        (", float p", "b = Dropout(r, p, xt)"),
        ("", "m = RandomUniformLike(r) l = Less(m, r) b = Cast<to = 1>(l)"),
    ],
)
def test_what_is_drawn_for_each_unit_stays_and_the_rest_is_cut(more, drawn):
    """A unit less and all others drew other numbers: such a cut differed from its mask, and nothing was written."""
    text = BETWEEN.format(more=more, drawn=drawn)
    made = model(
        text.replace("float[n,4] x,", "float[n,4] x, bool xt,") if "xt" in drawn else text, {"p": 0.4, "t": True}
    )
    result = onnxprune.prune(made, method="l1", target={"params": 0.8}, align=1, latency=False)
    assert [dim.size for dim in result.plan.dims if len(dim.keep) < dim.size] == [6]


def test_an_output_that_a_node_without_inputs_draws_is_described():
    """Noise that a model draws for its caller ended in an IndexError of every command."""
    text = "(float[n,4] x, float[4,8] w, float[8,5] v) => (float[n,5] y, float[3,4] e) "
    made = model(text + "{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) e = RandomNormal<shape = [3,4]>() }")
    assert [entry.name for entry in describe(made, None).entries] == ["y", "e"]
    result = onnxprune.prune(made, method="l1", target={"params": 0.6}, align=1, latency=False)
    assert [len(dim.keep) < dim.size for dim in result.plan.dims] == [True]
