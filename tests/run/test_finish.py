"""The form in which results are written."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import CNN, filled
from onnx import numpy_helper

from onnxprune import graph
from onnxprune.run.finish import finish

# A filter that weight decay has let die, and a number that keeps a logarithm from zero, which is no weight.
DYING = """<ir_version: 8, opset_import: ["" : 17]>
dying (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8] b, float least = {1e-44}, float[8, 4] v>
{
  [first] a = Gemm (x, w, b)
  [relu] r = Relu (a)
  [held] m = Max (r, least)
  [last] y = MatMul (m, v)
}
"""


def subnormal(array: np.ndarray) -> np.ndarray:
    return (np.abs(array) < np.finfo(array.dtype).tiny) & (array != 0)


def arrays_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_weights_below_the_smallest_normal_number_are_written_as_zeros_and_nothing_else_is():
    model = graph.normalize(ir.from_proto(filled(DYING)))
    w, b = (graph.array_of(model.graph.initializers[name]).copy() for name in "wb")
    w[:, 2], b[2] = 1e-40, -1e-42
    for name, array in (("w", w), ("b", b)):
        graph.set_constant(model.graph.initializers[name], array)
    made = finish(model)
    found = {name: graph.array_of(value) for name, value in made.graph.initializers.items()}
    assert not subnormal(found["w"]).any()
    assert not subnormal(found["b"]).any()
    assert np.array_equal(found["w"], np.where(subnormal(w), 0, w))
    assert any(np.any(subnormal(array)) for array in found.values() if array.size == 1)  # 'least' is no weight
    assert subnormal(graph.array_of(model.graph.initializers["w"])).sum() == 6  # the given model stays as it was


@pytest.mark.parametrize("recover", ["none", "constants"])
def test_a_result_without_subnormals_is_proven_verified_and_told(cli, tmp_path, recover):
    given = filled(CNN)
    tensor = next(tensor for tensor in given.graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] > 1)
    array = numpy_helper.to_array(tensor).copy()
    array[:, :] *= np.float32(1e-40) / np.abs(array).max()
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(given, tmp_path / "in.onnx")
    plan, report = tmp_path / "plan.json", tmp_path / "r.json"
    words = ("--method", "random", "--target", "macs=0.6", "--recover", recover, "--no-latency")
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--plan", plan, "--report", report)
    assert ran.code == 0, ran.err
    assert not any(subnormal(a).any() for a in arrays_of(onnx.load(tmp_path / "out.onnx")).values() if a.dtype == "f4")
    assert any("weights too small for fast arithmetic" in note for note in json.loads(report.read_text())["notes"])
    assert cli("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", plan).code == 0
    again = cli("apply", tmp_path / "in.onnx", plan, tmp_path / "again.onnx", "--recover", recover, "--no-latency")
    assert again.code == 0, again.err
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
