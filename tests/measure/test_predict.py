"""Predicted latency: measured nodes scaled by what a plan leaves of their work, and the share that it leads to."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.graph import shapes
from onnxprune.measure import profile
from onnxprune.measure.predict import node_table, share_for
from onnxprune.plan import cost
from onnxprune.report import NodeTime

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[16, 3, 3, 3] w, float[4, 16, 1, 1] v>
{ [c1] c = Conv <pads = [1, 1, 1, 1]> (x, w) [r1] r = Relu(c) [s1] s = Sigmoid(r) [c2] y = Conv(s, v) }"""


@pytest.fixture(scope="module")
def coupling():
    proto, rng = onnx.parser.parse_model(MODEL), np.random.default_rng(0)
    del proto.graph.initializer[:]
    for name, shape in (("w", (16, 3, 3, 3)), ("v", (4, 16, 1, 1))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = graph.normalize(ir.from_proto(proto))
    return analyze(model, shapes.observe(model))


def half(coupling):
    (dim,) = coupling.free
    return {dim: np.arange(dim.size) < dim.size // 2}


def table(coupling, **times):
    nodes = {node.name: node for node in coupling.model.graph}
    found = tuple(NodeTime(name, nodes[name].op_type if name in nodes else "?", time) for name, time in times.items())
    return node_table(coupling, cost.of(coupling), found)


def names(coupling):
    return [node.name for node in coupling.model.graph]


def test_nothing_removed_takes_the_time_of_the_whole(coupling):
    assert table(coupling, **dict.fromkeys(names(coupling), 5.0)).ratio({}) == 1.0


def test_work_shrinks_with_macs_and_with_outputs(coupling):
    conv, relu, _, last = names(coupling)
    for name in (conv, relu, last):
        assert table(coupling, **{name: 7.0}).ratio(half(coupling)) == pytest.approx(0.5)


def test_what_onnxruntime_adds_does_not_shrink(coupling):
    conv = names(coupling)[0]
    assert table(coupling, **{conv: 6.0, "ReorderOutput_token_3": 2.0}).ratio(half(coupling)) == pytest.approx(5 / 8)


def test_a_fused_node_is_known_by_the_value_that_it_writes(coupling):
    conv, relu, *_ = names(coupling)
    value = next(node for node in coupling.model.graph if node.name == relu).outputs[0].name
    assert dict(table(coupling, **{f"{value}_nchwc": 3.0}).microseconds) == {conv: 3.0}


def test_real_profiles_are_nearly_all_assigned(coupling):
    times = profile(coupling.model, threads=1, runs=2, warmup=1)
    found = node_table(coupling, cost.of(coupling), times)
    assert names(coupling)[0] in found.microseconds
    assert found.total == pytest.approx(sum(entry.microseconds for entry in times))


def test_the_share_for_a_time_is_found_and_what_cannot_be_made_is_passed_over(coupling):
    (dim,) = coupling.free
    measured = table(coupling, **{names(coupling)[0]: 1.0})

    def plan(share):
        return None if share < 0.2 else {dim: np.arange(dim.size) < round(share * dim.size)}

    assert share_for(measured, 0.5, plan) == pytest.approx(0.53, abs=0.01)  # 8.5 of 16 units round to 8
    assert share_for(measured, 0.1, plan) == pytest.approx(0.2, abs=0.01)
    assert share_for(measured, 1.0, plan) == pytest.approx(1.0, abs=0.01)
