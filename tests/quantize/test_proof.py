"""quantized = simulated finds what a quantizer could get wrong; what rounding costs is no fault."""

import numpy as np
import onnx_ir as ir
import pytest
from quantizing import CNN, SQUARE, feeds_for, finished, quantized, samples_for

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.quantize import Context, parse, parts, proof, quantize, rounding, verify


@pytest.fixture(scope="module")
def square():
    return quantized(SQUARE, "int8:biases=false")


def simulated(made, model: ir.Model) -> proof.Simulation:
    ranges = {name: tuple(pair) for name, pair in made.record["ranges"].items()}
    return proof.simulate(model, made.float_model, "int8", feeds_for(made.float_model), ranges)


def changed(model: ir.Model, name: str, change) -> None:
    value = model.graph.initializers[name]
    graph.set_constant(value, change(graph.array_of(value).copy()))


def reader(model: ir.Model, initializer: str) -> ir.Node:
    return next(iter(model.graph.initializers[initializer].uses())).node


def other_zero_for_the_reader(model: ir.Model) -> None:
    node = next(n for n in model.graph if n.op_type == "DequantizeLinear" and parts.rounding(n.outputs[0]))
    zero = graph.array_of(node.inputs[2])
    node.replace_input_with(2, graph.add_constant(model.graph, "other_zero", zero + np.uint8(1)))


def other_axis(model: ir.Model) -> None:
    node = reader(model, "w2_quantized")
    node.attributes["axis"] = ir.AttrInt64("axis", 1 - node.attributes.get_int("axis", 1))


def other_value(model: ir.Model) -> None:
    node = next(n for n in model.graph if n.name == "sum")
    node.replace_input_with(1, node.inputs[0])


def swap(array: np.ndarray) -> np.ndarray:
    order = np.argsort(array.reshape(-1), kind="stable")
    array.reshape(-1)[[order[0], order[-1]]] = array.reshape(-1)[[order[-1], order[0]]]
    return array


FAULTS = {
    "scale of the wrong channel": lambda m: changed(m, "w2_scale", swap),
    "scales moved by one channel": lambda m: changed(m, "w3_scale", lambda a: np.roll(a, 1)),
    "zero point of one channel off by one": lambda m: changed(
        m, "w2_zero_point", lambda a: a + np.eye(8, dtype=np.int8)[3]
    ),
    "zero points of a weight off by one": lambda m: changed(m, "w1_zero_point", lambda a: a + np.int8(1)),
    "axis swapped": other_axis,
    "zero point of a value off by one": lambda m: changed(m, "y_zero_point", lambda a: a + np.uint8(1)),
    "zero point of the input off by one": lambda m: changed(m, "x_zero_point", lambda a: a - np.uint8(1)),
    "a value read by another zero point": other_zero_for_the_reader,
    "scale of a value too large": lambda m: changed(m, "c_scale", lambda a: a * np.float32(1.01)),
    "bias of another channel": lambda m: changed(m, "b3_quantized", lambda a: np.roll(a, 1)),
    "one weight off by one": lambda m: changed(m, "w3_quantized", lambda a: a + np.eye(8, dtype=np.int8) * (a < 127)),
    "a node reads another value": other_value,
}


def test_a_quantized_model_equals_its_simulation_and_rounding_is_an_error_beside_it(square):
    found = simulated(square, square.model)
    assert found.ok
    assert found.nodes == 4 + 1  # all but the Relu, which the rounding does, and the output
    assert found.weights == 5
    assert 1e-4 < rounding.error(square.model, square.float_model, feeds_for(square.float_model)) < 0.05


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(square, name):
    model = square.model.clone()
    FAULTS[name](model)
    found = simulated(square, model)
    assert not found.ok
    with pytest.raises(VerificationError, match="is not the pruned model rounded"):
        proof.require(found)


def test_a_coarser_rounding_costs_more_and_is_no_fault(square):
    coarse = quantized(SQUARE, "int8:per_channel=false,reduce_range=true,biases=false")
    feeds = feeds_for(square.float_model)
    assert simulated(coarse, coarse.model).ok
    errors = [rounding.error(made.model, made.float_model, feeds) for made in (square, coarse)]
    assert errors[1] > errors[0]


def test_convolutions_depthwise_ones_and_sums_are_simulated():
    made = quantized(CNN, "int8")
    assert made.simulation is not None
    assert made.simulation.ok
    assert made.simulation.nodes >= 7


def test_as_floats_gives_back_the_model_with_weights_on_the_grid(square):
    floats = parts.as_floats(square.model, square.float_model, "int8")
    assert [n.op_type for n in floats.graph] == [n.op_type for n in square.float_model.graph]
    for node, before in zip(floats.graph, square.float_model.graph, strict=True):
        assert node.name == before.name
        for value, old in zip(node.inputs, before.inputs, strict=True):
            if old is not None and old.is_initializer():
                a, b = graph.array_of(value), graph.array_of(old)
                assert 0 < np.abs(a - b).max() < 0.01 * np.abs(b).max()


# What needs no samples -----------------------------------------------------------------------------------------------

KINDS = ("dynamic", "int4", "int4:symmetric=true,block=16", "fp16")


@pytest.fixture(scope="module", params=KINDS)
def stored(request):
    return request.param.partition(":")[0], quantized(SQUARE, request.param)


def test_every_kind_equals_its_simulation(stored):
    kind, made = stored
    feeds = feeds_for(made.float_model)
    assert made.simulation.ok
    assert made.simulation.weights >= 3
    assert 1e-5 < rounding.error(made.model, made.float_model, feeds) < 0.2
    assert proof.simulate(made.model, made.float_model, kind, feeds).ok


def test_every_kind_gives_back_floats_with_the_nodes_of_the_float_model(stored):
    kind, made = stored
    before = finished(SQUARE)
    floats = parts.as_floats(made.model, before, kind)
    assert [(n.op_type, n.name) for n in floats.graph] == [(n.op_type, n.name) for n in before.graph]


def rolled(model: ir.Model, ending: str, change=lambda a: np.roll(a, 1)) -> None:
    changed(model, next(name for name in model.graph.initializers if name.endswith(ending)), change)


STORED_FAULTS = {
    "scales of other columns": ("dynamic", lambda m: rolled(m, "_scale")),
    "an integer off by one": (
        "dynamic",
        lambda m: rolled(m, "_quantized", lambda a: a - (np.arange(a.size) == 5).reshape(a.shape).astype(a.dtype)),
    ),
    "a zero point off by one": ("dynamic", lambda m: rolled(m, "_zero_point", lambda a: a + a.dtype.type(1))),
    "a bias of another channel": ("dynamic", lambda m: rolled(m, "b1")),
    "scales of other blocks": (
        "int4",
        lambda m: rolled(m, "_scales", lambda a: a.reshape(-1)[::-1].reshape(a.shape).copy()),
    ),
    "halves of bytes swapped": ("int4", lambda m: rolled(m, "_Q4", lambda a: (a >> 4) | (a << 4))),
    "zero points of other blocks": ("int4", lambda m: rolled(m, "_zero_points", lambda a: a ^ np.uint8(3))),
    "a half of another place": ("fp16", lambda m: rolled(m, "w2")),
}


@pytest.mark.parametrize("name", STORED_FAULTS)
def test_a_fault_planted_in_what_is_stored_is_found(name):
    kind, plant = STORED_FAULTS[name]
    made = quantized(SQUARE, kind)
    plant(made.model)
    found = proof.simulate(made.model, made.float_model, kind, feeds_for(made.float_model))
    assert not found.ok


# Two matrices with nothing between them, as a matrix of low rank is written.
LOW_RANK = """<ir_version: 8, opset_import: ["" : 17]>
low_rank (float[N, 6] x) => (float[N, 4] y) <float[6, 8] u, float[8, 8] v, float[8, 4] w>
{ a = MatMul (x, u)  b = MatMul (a, v)  y = MatMul (b, w) }
"""


@pytest.mark.parametrize("kind", ["int8", "dynamic", "int4", "fp16"])
def test_matrices_one_behind_the_other_are_read_back_as_floats(kind):
    """The second read what the first had made before it was put back in floats: an internal error of 'verify'."""
    made = quantized(LOW_RANK, kind)
    floats = parts.as_floats(made.model, made.float_model, kind)
    assert [node.op_type for node in floats.graph] == ["MatMul"] * 3
    assert verify(made.model, floats, made.record, feeds_for(floats), "out.onnx")


def test_a_matrix_that_two_gemms_share_is_transposed_once():
    shared = SQUARE.replace(
        "[last] y = Gemm <transB = 1> (c, w3, b3)",
        "[last] d = Gemm <transB = 1> (c, w3, b3) [again] y = Gemm <transB = 1> (d, w3, b3)",
    )
    for kind in ("dynamic", "int4"):
        assert quantized(shared, kind).simulation.ok


# In the simulation onnxruntime gives MoE's output the memory of its input.
EXPERTS = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
experts (float[N, 32] x) => (float[N, 4] y)
<float[32, 4] r, float[4, 64, 32] f1, float[4, 64] b1, float[4, 32, 64] f2, float[4, 32] b2, float[32, 4] h,
 int64[2] rs = {-1, 4}, int64[2] xs = {-1, 32}>
{
  l = MatMul (x, r)
  ls = Reshape (l, rs)
  a = Reshape (x, xs)
  m = com.microsoft.MoE <activation_type = "relu", k = 2> (a, ls, f1, b1, f2, b2)
  y = MatMul (m, h)
}
"""


def test_experts_that_onnxruntime_writes_over_their_input_are_compared_with_what_they_read():
    model = finished(EXPERTS)
    made = quantize(model, Context(parse("int8:biases=false"), samples_for(model), feeds_for(model)))
    assert made.simulation.ok
    assert made.simulation.nodes >= 4
