"""Sequences that something else reads stay whole, with a reason; those that are only passed on go through a run."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_text import proto, prove, random_keep

import onnxprune
from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.graph import bodies

HEAD = "(float[2,6,6] x, float[6,16] w, float[16,5] v) => (float[p,q,r] y) "
PASSED_ON = HEAD + (
    "{ a = MatMul(x, w) r = Relu(a) s = SequenceConstruct(a, r) i = Constant<value = int64 {1}>() "
    "b = SequenceAt(s, i) y = MatMul(b, v) }"
)


def element(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, shape)


def test_a_sequence_that_the_model_gives_stays_whole():
    made = proto(PASSED_ON)
    made.graph.output.append(element("s", 2, 6, 16))
    coupling = analyze(graph.normalize(ir.from_proto(made)))
    assert not coupling.free
    assert any("graph output 's'" in str(dim.frozen) for dim in coupling.dims)


def test_a_sequence_that_a_branch_reads_is_coupled_there():
    made = proto(PASSED_ON)
    branches = [
        helper.make_graph([helper.make_node("SequenceAt", ["s", "i"], [f"{name}_y"])], name, [], [bare(f"{name}_y")])
        for name in ("then", "else")
    ]
    chosen = helper.make_node("If", ["c"], ["b2"], name="If_0", then_branch=branches[0], else_branch=branches[1])
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    made.graph.node.insert(len(made.graph.node) - 1, chosen)
    made.graph.node[-1].input[0] = "b2"
    coupling = analyze(graph.normalize(ir.from_proto(made)))
    assert [dim.size for dim in coupling.free] == [16]
    assert prove(coupling, random_keep(coupling, 0)).ok


def in_a_loop(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """a = x w, then a Loop that inserts 'c', which `nodes` of its body make, into a sequence; joined, then y = b v."""
    made = proto(HEAD + "{ a = MatMul(x, w) s = SequenceEmpty() y = MatMul(a, v) }")
    made.graph.input.append(helper.make_tensor_value_info("times", TensorProto.INT64, []))
    body = helper.make_graph(
        [*nodes, helper.make_node("SequenceInsert", ["t", "c"], ["u"]), helper.make_node("Identity", ["k"], ["l"])],
        "body",
        [
            helper.make_tensor_value_info("j", TensorProto.INT64, []),
            helper.make_tensor_value_info("k", TensorProto.BOOL, []),
            element("t", 2, 6, 16),
        ],
        [helper.make_tensor_value_info("l", TensorProto.BOOL, []), element("u", 2, 6, 16)],
    )
    loop = helper.make_node("Loop", ["times", "", "s"], ["z"], name="Loop_0", body=body)
    joined = helper.make_node("ConcatFromSequence", ["z"], ["b"], name="joined", axis=1)
    last = made.graph.node.pop()
    last.input[0] = "b"
    made.graph.node.extend([loop, joined, last])
    return made


def test_a_sequence_that_a_loop_carries_stays_whole():
    """How long it is depends on how often the body runs."""
    coupling = analyze(graph.normalize(ir.from_proto(in_a_loop(helper.make_node("Identity", ["a"], ["c"])))))
    assert not coupling.free
    assert any("SequenceInsert" in str(dim.frozen) for dim in coupling.dims)


def test_weights_of_a_loop_that_carries_a_sequence_are_cut():
    made = in_a_loop(
        helper.make_node("MatMul", ["a", "p"], ["d"], name="up"),
        helper.make_node("Relu", ["d"], ["e"], name="bent"),
        helper.make_node("MatMul", ["e", "q"], ["c"], name="down"),
    )
    rng = np.random.default_rng(0)
    for name, shape in (("p", (16, 24)), ("q", (24, 16))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    coupling = analyze(graph.normalize(ir.from_proto(made)))
    assert [dim.size for dim in coupling.free] == [16, 24]
    assert all(map(coupling.sees, bodies.all_bodies(coupling.model.graph)))
    assert prove(coupling, random_keep(coupling, 0)).ok


def test_a_sequence_that_an_if_gives_stays_whole():
    made = proto(PASSED_ON)
    branches = []
    for name, values in (("then", ["a", "r"]), ("else", ["r", "a"])):
        node = helper.make_node("SequenceConstruct", values, [f"{name}_s"])
        branches.append(helper.make_graph([node], name, [], [element(f"{name}_s", 2, 6, 16)]))
    chosen = helper.make_node("If", ["c"], ["s2"], name="If_0", then_branch=branches[0], else_branch=branches[1])
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    at = next(node for node in made.graph.node if node.op_type == "SequenceAt")
    at.input[0] = "s2"
    made.graph.node.insert(list(made.graph.node).index(at), chosen)
    coupling = analyze(graph.normalize(ir.from_proto(made)))
    assert not coupling.free
    assert any("depends on the branch" in str(dim.frozen) for dim in coupling.dims)


def bare(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 6, 16])


@pytest.mark.parametrize("described", [False, True])
def test_a_model_with_a_sequence_is_pruned_and_proven(tmp_path, described):
    """What a file says of the shapes in a sequence must not stand in the pruned one."""
    made = proto(PASSED_ON)
    if described:
        made.graph.value_info.append(element("s", 2, 6, 16))
    onnx.save(made, tmp_path / "in.onnx")
    result = onnxprune.prune(
        tmp_path / "in.onnx", tmp_path / "out.onnx", method="l1", target={"params": 0.6}, align=1, latency=False
    )
    assert result.report.verify.ok
    shapes = {tuple(tensor.dims) for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert not {(6, 16), (16, 5)} & shapes
