"""Ifs with a constant condition: the branch that is taken stands in their place."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.graph import branches, sessions, simplify

BODY = (
    "<then_branch = t () => (float[2,8] o) {{ s = Relu({x}) o = Neg(s) }}, "
    "else_branch = e () => (float[2,8] o) {{ o = Tanh({x}) }}>"
)
TWO = (
    "(float[2,4] x, float[4,8] w, bool c, bool d) => (float[2,8] y) { a = MatMul(x, w) b = If (c) "
    f"{BODY.format(x='a')} y = If (d) {BODY.format(x='b')} }}"
)


def run(source: ir.Model) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    return sessions.run(sessions.open_session(source, threads=1), {"x": x})["y"]


@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize("d", [True, False])
def test_the_branch_that_is_taken_stands_in_the_place(c, d):
    source = model(TWO, {"c": c, "d": d})
    inlined = source.clone()
    assert branches.inline_decided(inlined)
    assert not branches.inline_decided(inlined)
    onnx.checker.check_model(ir.to_proto(inlined), full_check=True)
    assert [value.name for value in inlined.graph.outputs] == ["y"]
    assert [node.op_type for node in inlined.graph if node.op_type in ("Tanh", "Relu")] == [
        "Relu" if taken else "Tanh" for taken in (c, d)
    ]
    assert np.array_equal(run(inlined), run(source))


def test_weights_of_a_branch_come_along():
    text = TWO.replace("o = Tanh(b)", "k = Constant<value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}>() o = Mul(b, k)")
    source = model(text, {"c": True, "d": False})
    normal = graph.normalize(source)
    assert all(node.op_type != "If" for node in normal.graph)
    assert np.allclose(run(normal), run(source), atol=1e-6)


def test_an_if_that_the_data_decide_stays():
    text = TWO.replace(", bool c, bool d)", ", int64[1] axes, float z)").replace(
        "a = MatMul(x, w)", "a = MatMul(x, w) r = ReduceSum<keepdims = 0>(x) c = Greater(r, z) d = Less(r, z)"
    )
    source = model(text.replace(", int64[1] axes", ""), {"z": 0.5})
    assert not branches.inline_decided(source)
    assert sum(node.op_type == "If" for node in graph.normalize(source).graph) == 2


def test_what_stands_behind_a_decided_if_can_be_pruned():
    text = TWO.replace("float[2,8] y)", "float[2,5] y)").replace("bool d)", "float[8,5] v)")
    source = model(text.split(" y = If")[0] + " y = MatMul(b, v) }", {"c": True})
    assert not analyze(source).free
    assert [dim.size for dim in analyze(graph.normalize(source)).free] == [8]


def test_onnxsim_leaves_ifs_to_us():
    """Where it decided them, it left nodes of silero-vad in front of those that they read, and failed."""
    text = TWO.replace("float[2,8] y)", "float[2,5] y)").replace("bool d)", "float[8,5] v)")
    source = model(text.split(" y = If")[0] + " y = MatMul(b, v) }", {"c": True})
    given = ir.to_proto(source).SerializeToString()
    made = onnx.ModelProto.FromString(simplify._rewritten(given, [], [(True, True)], ()))
    assert any(node.op_type == "If" for node in made.graph.node)
    assert not any(node.op_type == "If" for node in graph.normalize(source).graph)
