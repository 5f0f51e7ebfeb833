"""What reports say of layers, and of models in which nothing is free."""

import onnx_ir as ir
import pytest
from networks import filled
from onnx_text import model

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.graph import shapes
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.report import build

GEMM = """<ir_version: 8, opset_import: ["" : 17]>
gemm (float[N, 6] x) => (float[N, 3] y) <float[6, 16] w1, float[16] b1, float[3, 16] w2, float[3] b2>
{
  [first] a = Gemm (x, w1, b1)
  [relu] b = Relu (a)
  [second] y = Gemm <transB = 1> (b, w2, b2)
}
"""


def test_widths_of_gemm_follow_its_transposition():
    coupling = analyze(graph.normalize(ir.from_proto(filled(GEMM))))
    rows = {row.node: row for row in build.layers(Selection(coupling, {}), cost.of(coupling))}
    assert {name: (row.axis, row.widths) for name, row in rows.items()} == {
        "first": (1, (16, 16)),
        "second": (0, (3, 3)),
    }


# What bodies compute is observed from opset 11 on.
IN_A_BODY = """<ir_version: 8, opset_import: ["" : 10]>
branches (float[N, 6] x, bool first) => (float[N, 3] y) <float[6, 3] w1, float[6, 3] w2>
{
  y = If (first) <
    then_branch = one () => (float[N, 3] a) { a = MatMul (x, w1) },
    else_branch = two () => (float[N, 3] b) { b = MatMul (x, w2) }
  >
}
"""
NO_WEIGHTS = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) {y = Relu (x)}'
ONE_LAYER = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> {[only] y = MatMul (x, w)}"""


@pytest.mark.parametrize(
    ("text", "told"),
    [(IN_A_BODY, "2 nodes in bodies of control flow (such as If"), (ONE_LAYER, "graph output 'y'")],
    ids=["control flow", "interface"],
)
def test_nothing_to_prune_has_a_reason(text, told):
    coupling = analyze(graph.normalize(ir.from_proto(filled(text))))
    assert not coupling.free
    assert any(told in reason for reason in build.why_nothing(coupling)), build.why_nothing(coupling)


ERASED = """(float[2,8] x, int64 xs, float[8,6] w, float[8,6] v) => (float[2,6] y) {
    a = MatMul(x, w) b = MatMul(x, v) s = SequenceConstruct(a, b) t = SequenceErase(s, xs)
    y = ConcatFromSequence <axis = 1> (t) }"""


def test_what_a_rule_knows_to_keep_is_no_failure_of_it():
    """hf_fastspeech2: how many elements its sequence has is known only when it runs."""
    source = model(ERASED)
    coupling = analyze(source, shapes.observe(source))
    reasons = {str(dim.frozen) for dim in coupling.dims}
    assert any("SequenceErase: which element it is depends on the input" in reason for reason in reasons)
    assert build.fallbacks(coupling) == []
