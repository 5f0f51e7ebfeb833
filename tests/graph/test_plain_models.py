"""Models of which nothing is to be folded do without onnxsim, and their sizes are inferred once."""

import onnx_ir as ir
import pytest
from onnx_text import model

from onnxprune import graph
from onnxprune.graph import extras, files, shapes
from onnxprune.graph.simplify import simplify

PLAIN = (
    "(float[1,3,6,6] x, float[8,3,3,3] w, float[5,8] v) => (float[1,5] y) "
    "{ a = Conv(x, w) b = Relu(a) i = Identity(b) p = GlobalAveragePool(i) s = Constant<value = int64[2] {1, -1}>() "
    "f = Reshape(p, s) t = Identity(v) y = Gemm<transB = 1>(f, t) }"
)
COMPUTED = (
    "(float[1,3,6,6] x, float[8,3,3,3] w, float[5,8] v) => (float[1,5] y) "
    "{ a = Conv(x, w) p = GlobalAveragePool(a) n = Shape(a) i = Constant<value = int64[1] {0}>() b = Gather(n, i) "
    "k = Constant<value = int64[1] {-1}>() s = Concat<axis = 0>(b, k) f = Reshape(p, s) y = Gemm<transB = 1>(f, v) }"
)


@pytest.mark.parametrize(("text", "calls"), [(PLAIN, 0), (COMPUTED, 0), (COMPUTED.replace("1,3,6,6", "N,3,6,6"), 1)])
def test_onnxsim_is_asked_only_where_something_is_to_be_folded(monkeypatch, text, calls):
    """Its copy of the process, and its own work, took half of the time of small networks."""
    asked = []
    monkeypatch.setattr(files, "simplify", lambda *given, **how: asked.append(given) or simplify(*given, **how))
    normal = graph.normalize(model(text))
    assert len(asked) == calls
    folded = {"Identity"} if calls else {"Identity", "Shape", "Gather"}
    assert not folded & {node.op_type for node in normal.graph}


@pytest.mark.parametrize("text", [PLAIN, COMPUTED])
def test_sizes_inferred_for_the_normal_form_are_those_that_observation_finds(text):
    normal = graph.normalize(model(text))
    found, again = shapes.observe(normal), shapes.observe(graph.copy(normal))
    assert found.sizes == again.sizes
    assert found.sizes["f"] == (1, 8)
    assert extras.of(normal).inferred


def test_a_shape_that_a_file_claims_wrongly_is_not_believed():
    given = model(PLAIN)
    claimed = next(value for node in given.graph for value in node.outputs if value.name == "b")
    claimed.shape, claimed.type = ir.Shape([1, 8, 99, 99]), ir.TensorType(ir.DataType.FLOAT)
    assert shapes.observe(graph.normalize(given)).sizes["b"] == (1, 8, 4, 4)


def test_a_model_that_hands_on_what_it_is_given_has_known_sizes():
    """Nothing in it computes, so that no size was ever inferred."""
    given = model("(float[2,4] x) => (float[2,4] y) { y = Identity(x) }")
    given.graph.remove(next(iter(given.graph)), safe=False)
    given.graph.outputs[0] = given.graph.inputs[0]
    assert shapes.observe(given).sizes == {"x": (2, 4)}
