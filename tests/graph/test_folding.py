"""Numbers that are computed from sizes are folded in this process; what may be a weight, or is not known, stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_text import model

from onnxprune import graph
from onnxprune.graph import files, folding, sessions
from onnxprune.graph.simplify import PLAIN, static_sizes

VIEW = (
    "(float[{batch},4,6] x, float[6,8] w, int64[1] first, int64[1] rest, float[32,5] v) => (float[p,q] y) "
    "{{ a = MatMul(x, w) s = Shape(a) n = Gather(s, first) t = Concat<axis = 0>(n, rest) "
    "r = Reshape(a, t) y = MatMul(r, v) }}"
)


def ops(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def test_sizes_of_a_static_network_are_folded_without_onnxsim(monkeypatch):
    loaded = model(VIEW.format(batch=2), {"first": 0, "rest": -1})
    monkeypatch.setattr(files, "simplify", None)
    made = graph.normalize(loaded)
    assert ops(made) == ["MatMul", "Reshape", "MatMul"]
    assert graph.array_of(made.graph[1].inputs[1]).tolist() == [2, -1]
    x = {"x": np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)}
    before, after = (sessions.run(sessions.open_session(each), x)["y"] for each in (loaded, made))
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        VIEW.format(batch="N"),  # a size that is not known
        VIEW.format(batch=2).replace("y = MatMul(r, v)", "e = NonZero(r) c = Cast<to = 1>(e) y = MatMul(r, v)"),
        "(float[2,6] x, float[6,40] w) => (float[p,q] y) { z = Mul(w, w) y = MatMul(x, z) }",  # read twice
        "(float16[2,6] x, float16[6,40] w) => (float[p,q] y) {z = Cast<to = 1>(w) t = Cast<to = 1>(x) y = Gemm(t, z)}",
    ],
)
def test_what_is_not_known_or_would_be_stored_larger_stays(text: str):
    loaded = model(text, {"first": 0, "rest": -1})
    before = ops(loaded)
    assert not folding.fold_sizes(loaded, PLAIN, lambda: static_sizes(loaded))
    assert ops(loaded) == before


A, F = np.array([7, 2, 5, 3]), np.array([[1.5, 4.0], [9.0, 0.25]], np.float32)
CASES = {
    "Add": ([A, A[:1]], {}),
    "Sub": ([A, A], {}),
    "Mul": ([A, A], {}),
    "Div": ([A, np.array([2])], {}),
    "Equal": ([A, np.array([2])], {}),
    "Neg": ([A], {}),
    "Sqrt": ([F], {}),
    "Where": ([A > 3, A, -A], {}),
    "Shape": ([F], {"start": 1}),
    "Cast": ([F], {"to": 7}),
    "Gather": ([F, np.array([1])], {"axis": 1}),
    "Tile": ([A, np.array([2])], {}),
    "Concat": ([A, A[:1]], {"axis": 0}),
    "Unsqueeze": ([A, np.array([0])], {}),
    "Squeeze": ([F[:1], np.array([0])], {}),
    "Slice": ([A, np.array([-1]), np.array([-(2**63) + 1]), np.array([0]), np.array([-1])], {}),
    "ConstantOfShape": ([np.array([2, 3])], {"value": onnx.numpy_helper.from_array(np.array([4]))}),
    "Expand": ([F, np.array([3, 1, 2])], {}),
    "Reshape": ([F, np.array([0, -1, 1])], {}),
    "Transpose": ([F], {"perm": [1, 0]}),
    "Range": ([np.array(2), np.array(9), np.array(3)], {}),
}


@pytest.mark.parametrize("op_type", folding.FOLD)
def test_each_operator_is_folded_as_the_standard_says(op_type: str):
    arrays, attributes = CASES[op_type]
    names = [f"i{k}" for k in range(len(arrays))]
    node = onnx.helper.make_node(op_type, names, ["y"], **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    proto = onnx.helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name="y")])
    message = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", 18)])
    (wanted,) = ReferenceEvaluator(message).run(None, dict(zip(names, arrays, strict=True)))
    made = folding.FOLD[op_type](ir.from_proto(message).graph[0], arrays)
    assert made is not None
    assert made.dtype == wanted.dtype
    np.testing.assert_array_equal(made, wanted)
