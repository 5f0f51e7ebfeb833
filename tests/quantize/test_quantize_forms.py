"""Models of other shapes than chains of convolutions: tables, optional outputs, old files, foreign operators."""

import numpy as np
import onnx
import onnx_ir as ir
import onnx_text
import pytest
from networks import MLP, filled
from onnx import helper
from onnxruntime.transformers import float16
from quantizing import feeds_for, finished, quantized, samples_for

from onnxprune import graph
from onnxprune.errors import GraphError, UsageError, VerificationError
from onnxprune.quantize import Context, as_floats, check_model, forms, parse, prepare, quantize, verify
from onnxprune.run.finish import finish

TABLE = """<ir_version: 8, opset_import: ["" : 17]>
table (int64[N, 5] x) => (float[N, 5, 4] y) <float[20, 8] e, float[8, 4] w>
{
  [lookup] a = Gather (e, x)
  [project] y = MatMul (a, w)
}
"""
CELLS = """<ir_version: 8, opset_import: ["" : 17]>
cells (float[N, 5, 3] x) => (float[4, 6] y) <float[1, 16, 3] w, float[1, 16, 4] r, float[4, 6] m>
{
  [turn] t = Transpose <perm = [1, 0, 2]> (x)
  [cells] , h = LSTM <hidden_size = 4> (t, w, r)
  [flat] f = Reshape <allowzero = 0> (h, shape)
  [last] y = MatMul (f, m)
}
"""


def ids() -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(0).integers(0, 20, size=(6, 5))}]


def test_what_is_looked_up_in_a_table_has_the_grid_of_the_table():
    model = finished(TABLE)
    ranges = {"a": (-0.1, 0.1), "y": (-3.0, 3.0)}  # of few rows: narrower than the table
    made = quantize(model, Context(parse("int8"), None, ids(), known={"ranges": ranges}))
    assert made.simulation.ok
    assert made.simulation.weights == 2
    types = {name: value.dtype for name, value in made.model.graph.initializers.items()}
    assert ir.DataType.INT8 in types.values() or ir.DataType.UINT8 in types.values()


@pytest.mark.parametrize("kind", ["dynamic", "int4"])
def test_a_node_with_an_output_that_is_left_out_is_simulated(kind):
    proto = filled(CELLS)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 4]), "shape"))
    model = finish(graph.normalize(ir.from_proto(proto)))
    made = quantize(model, Context(parse(kind), None, [{"x": feeds_for(model)[0]["x"][:4]}]))
    assert made.simulation.ok
    assert made.simulation.weights == 1


@pytest.mark.parametrize("kind", ["int8", "dynamic", "fp16"])
def test_a_file_of_a_format_in_which_initializers_are_inputs_becomes_a_newer_one(kind):
    proto = filled(MLP.replace("ir_version: 8", "ir_version: 3").replace('"" : 17', '"" : 9'))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model = finish(graph.normalize(ir.from_proto(proto)))
    made = quantize(model, Context(parse(kind), samples_for(model), feeds_for(model)))
    assert made.simulation.ok
    assert made.model.ir_version >= 4
    onnx.checker.check_model(ir.to_proto(made.model))


@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QLinearAdd"])
def test_models_that_hold_quantized_operators_are_refused(op):
    model = finished(MLP)
    model.graph.append(ir.Node("com.microsoft", op, [model.graph.inputs[0]], name="given", num_outputs=1))
    with pytest.raises(UsageError, match=f"quantized already \\({op} 'given'\\)"):
        check_model(model)


def test_an_error_of_the_quantizer_is_one_line():
    told = "does not take this model \\(first second\\); choose another kind"
    with pytest.raises(GraphError, match=told), prepare.quiet():
        raise RuntimeError("first\nsecond")


def test_a_relu_that_is_dropped_though_its_range_reaches_below_zero_is_found():
    model = finished(MLP)
    ranges = dict.fromkeys([*(v.name for n in model.graph for v in n.outputs), "x"], (-4.0, 4.0))
    with pytest.raises(VerificationError, match="differs from its simulation"):
        quantize(model, Context(parse("int8"), None, feeds_for(model), known={"ranges": ranges}))


def test_what_tensorrt_takes_is_symmetric_with_biases_in_float():
    model = finished(MLP)
    ranges = dict.fromkeys([*(v.name for n in model.graph for v in n.outputs), "x"], (-4.0, 4.0))
    made = forms.int8(prepare.prepared(model, 13)[0], parse("int8"), ranges, [], "tensorrt", False)
    types = {value.dtype for value in made.graph.initializers.values()}
    assert ir.DataType.INT8 in types
    assert not {ir.DataType.UINT8, ir.DataType.INT32} & types


def test_a_kind_that_finds_nothing_to_store_says_so():
    with pytest.raises(UsageError, match="it has no MatMul or Gemm with a constant weight"):
        quantized(
            """<ir_version: 8, opset_import: ["" : 17]>
                  plain (float[N, 3] x) => (float[N, 3] y) { [relu] y = Relu (x) }""",
            "int4",
        )


def test_an_operator_that_knows_no_halves_stays_in_float():
    """onnxruntime refused the file: ONNX defines Celu in single precision only."""
    made = quantized(
        """<ir_version: 8, opset_import: ["" : 17]>
        celu (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8, 4] v>
        { a = MatMul (x, w)  [celu] b = Celu (a)  y = MatMul (b, v) }""",
        "fp16",
    )
    assert made.simulation.ok
    (celu,) = (node for node in made.model.graph if node.op_type == "Celu")
    assert celu.inputs[0] is not None
    assert celu.inputs[0].producer().op_type == "Cast"


def test_what_was_widened_is_not_widened_again():
    """Values were called the same twice, and 'verify' refused the file beside torch, where models are sent as files."""
    half = finished(MLP)
    half = finish(graph.normalize(ir.from_proto(float16.convert_float_to_float16(ir.to_proto(half)))))
    wide, notes = prepare.prepared(half, 13)
    assert len(notes) == 1
    assert {value.dtype for value in (*wide.graph.inputs, *wide.graph.outputs)} == {ir.DataType.FLOAT16}
    again, notes = prepare.prepared(wide, 13)
    assert notes == ()
    assert [node.name for node in again.graph] == [node.name for node in wide.graph]


def test_a_shared_bias_does_not_take_the_name_of_a_value():
    """The copy of a bias b that onnxruntime calls b2 was read in the place of a value b2 (a file of basic-pitch)."""
    made = quantized(
        """<ir_version: 8, opset_import: ["" : 17]>
        shared (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8, 8] u, float[8] b, float[8, 4] v>
        { b2 = Gemm (x, w, b)  c = Gemm (b2, u, b)  b3 = Tanh (c)  y = MatMul (b3, v) }""",
        "int8",
    )
    assert made.simulation.ok
    biases = [node.inputs[2] for node in made.float_model.graph if node.op_type == "Gemm"]
    assert len(set(biases)) == len(biases) == 2


# Max and Min are among the operators that onnxruntime's converter to halves leaves in float.
TWO_READERS = """<ir_version: 8, opset_import: ["" : 17]>
    readers (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8] k, float[8, 4] v>
    { a = MatMul (x, w)  [high] b = Max (a, k)  [low] c = Min (a, k)  d = Add (b, c)  y = MatMul (d, v) }"""
IN_BODIES = (
    "(float[N,8] x, float[8,12] w, float[12,12] v, float[12] k, float[12,3] o, float zero) => (float[N,3] y) "
    "{ a = MatMul(x, w) z = ReduceSum<keepdims = 0>(x) go = Greater(z, zero) "
    "h = If <then_branch = p () => (float[N,12] t) { m = MatMul(a, v) n = Max(m, k) r = Max(m, n) t = Tanh(r) }, "
    "else_branch = q () => (float[N,12] u) { m = Add(a, k) u = Min(m, k) }> (go) y = MatMul(h, o) }"
)

ALONE = (
    "(float[N,8] x, float[8,12] w, float zero) => (float[N,12] y) "
    "{ z = ReduceSum<keepdims = 0>(x) go = Greater(z, zero) y = If <then_branch = p () => (float[N,12] t) "
    "{ t = MatMul(x, w) }, else_branch = q () => (float[N,12] u) "
    "{ m = MatMul(x, w) u = Tanh(m) }> (go) }"
)


def test_a_value_that_two_nodes_in_single_precision_read_is_converted_once():
    """The converter declares the conversion once for each of them: SerdeError, an internal error."""
    made = quantized(TWO_READERS, "fp16")
    assert made.simulation.ok
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)


def test_values_of_bodies_are_converted_inside_of_the_bodies():
    """The converter put their conversions in the outermost graph, where nothing makes what they read."""
    model = finish(graph.normalize(onnx_text.model(IN_BODIES, {"zero": 0})))
    made = quantize(model, Context(parse("fp16"), samples_for(model), feeds_for(model)))
    assert made.simulation.ok
    (branch,) = (node for node in made.model.graph if node.op_type == "If")
    for name in ("then_branch", "else_branch"):
        assert any(node.op_type == "Cast" for node in branch.attributes[name].as_graph())
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)


def test_fp16_of_which_nothing_is_left_is_refused():
    with pytest.raises(UsageError, match="--quantize fp16: nothing of this model can be stored so: it has no node"):
        quantized(MLP, "fp16:exclude=*")


@pytest.mark.parametrize("kind", ["int8", "dynamic", "int4"])
def test_bodies_stay_in_float(kind):
    """int4 stored their matrices too, which no proof looked at, and 'verify' took the file for a quantized model."""
    model = finish(graph.normalize(onnx_text.model(IN_BODIES, {"zero": 0})))
    made = quantize(model, Context(parse(kind), samples_for(model), feeds_for(model)))
    (branch,) = (node for node in made.model.graph if node.op_type == "If")
    ops = [node.op_type for node in branch.attributes["then_branch"].as_graph()]
    assert sorted(ops) == ["MatMul", "Max", "Max", "Tanh"]
    verify(made.model, as_floats(made.model, model, kind), made.record, feeds_for(model), "out.onnx")


def test_weights_in_bodies_alone_are_told_of():
    model = finish(graph.normalize(onnx_text.model(ALONE, {"zero": 0})))
    with pytest.raises(UsageError, match="outside of bodies of If, Loop and Scan"):
        quantize(model, Context(parse("int4"), samples_for(model), feeds_for(model)))
