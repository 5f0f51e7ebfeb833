"""What inspect counts is what the file holds, wherever weights stand; the tool that sweeps files sees a difference."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import MLP, filled
from onnx import TensorProto, helper, numpy_helper

from onnxprune.plan import cost


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    import counted

    yield counted
    sys.modules.pop("counted", None)


def everywhere() -> onnx.ModelProto:
    """Weights in a body, in a function, in four bits, sparse, tied, and as constants of several kinds."""
    tensor, of = helper.make_tensor, TensorProto
    inside = helper.make_graph(
        [helper.make_node("MatMul", ["x", "in_body"], ["t"])],
        "body",
        [],
        [helper.make_tensor_value_info("t", of.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), "in_body")],
    )
    values = numpy_helper.from_array(np.ones(2, np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 5]), "places"), [4, 4])
    nodes = [
        helper.make_node("If", ["flag"], ["a"], then_branch=inside, else_branch=inside),
        helper.make_node("DequantizeLinear", ["packed", "scale"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "sparse"], ["d"]),
        helper.make_node("scaled", ["d"], ["e"], domain="own"),
        helper.make_node("Constant", [], ["f"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("Add", ["e", "f"], ["g"]),
        helper.make_node("Add", ["g", "tied"], ["h"]),
        helper.make_node("Mul", ["h", "tied"], ["y"]),
    ]
    weights = [
        tensor("packed", of.INT4, [4, 4], [1] * 16),
        tensor("scale", of.FLOAT, [], [0.5]),
        tensor("tied", of.FLOAT, [4], [1, 2, 3, 4]),
    ]
    constant = helper.make_node("Constant", [], ["k"], value=tensor("", of.FLOAT, [4], [1, 2, 3, 4]))
    body = [constant, helper.make_node("Mul", ["v", "k"], ["w"])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    scaled = helper.make_function("own", "scaled", ["v"], ["w"], body, opsets[:1])
    ends = [helper.make_tensor_value_info(name, of.FLOAT, [4, 4]) for name in "xy"]
    flag = helper.make_tensor_value_info("flag", of.BOOL, [])
    whole = helper.make_graph(nodes, "g", [ends[0], flag], [ends[1]], weights, sparse_initializer=[sparse])
    return helper.make_model(whole, opset_imports=opsets, functions=[scaled], ir_version=10)


EVERYWHERE = {"bodies": 2 * 64, "packed": 8, "scale": 4, "tied": 16, "sparse": 64, "floats": 16, "function": 16}


def test_every_place_of_weights_is_counted_once(counting, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(everywhere(), path)
    assert counting.bytes_in(path) == sum(EVERYWHERE.values())
    assert counting.counted(path, inspect=False) == sum(EVERYWHERE.values())


def test_weights_beside_the_file_are_counted_and_so_by_inspect(counting, tmp_path):
    path = tmp_path / "model.onnx"
    message = filled(MLP)
    size = sum(numpy_helper.to_array(w).nbytes for w in message.graph.initializer)
    onnx.save(message, path, save_as_external_data=True, location="data", size_threshold=0)
    assert counting.bytes_in(path) == counting.counted(path, inspect=True) == size


def test_the_tool_fails_where_a_count_is_wrong(counting, tmp_path, monkeypatch, capsys):
    onnx.save(filled(MLP), tmp_path / "model.onnx")
    assert counting.main([str(tmp_path)]) == 0
    stored = cost.stored
    monkeypatch.setattr(cost, "stored", lambda model: {**stored(model), "bytes": 7})
    assert counting.main([str(tmp_path)]) == 1
    assert "7 bytes are reported" in capsys.readouterr().out
