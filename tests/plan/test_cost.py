"""The cost polynomials against the model that is really cut."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model, proto, random_keep
from records import RECORDS

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.plan import cost
from onnxprune.plan.select import Selection

CHAIN = (
    "(float[n,3,6,6] x, float[8,3,3,3] w, float[8] c, float[8,1,3,3] k, float[5,8,1,1] v) => (float[n,5,2,2] y) "
    "{ a = Conv(x, w, c) d = Conv<group = 8>(a, k) y = Conv(d, v) }"
)


def test_macs_parameters_and_bytes_of_a_chain():
    """Conv 8 x 3 x 9 x 16, depthwise 8 x 9 x 4, pointwise 5 x 8 x 4, for a batch of one."""
    costs = cost.of(analyze(model(CHAIN)))
    params = 8 * 3 * 9 + 8 + 8 * 9 + 5 * 8
    assert costs.totals() == {"macs": 8 * 27 * 16 + 8 * 9 * 4 + 5 * 8 * 4, "params": params, "bytes": 4 * params}


def test_a_marginal_is_a_difference_of_totals():
    coupling = analyze(model(CHAIN))
    costs, dim = cost.of(coupling), coupling.dim("w")
    for kind in cost.KINDS:
        assert costs.marginal(kind, dim) == pytest.approx(costs.total(kind) - costs.total(kind, {dim: dim.size - 1}))
    assert sum(costs.by_node().values()) == costs.totals()["macs"]


@pytest.mark.parametrize("record", [r for r in RECORDS if r.free][::7], ids=lambda record: record.name)
def test_what_is_multiplied_out_once_is_the_sum_of_the_terms(record):
    coupling = analyze(model(record.text, dict(record.constants), record.opset))
    costs = cost.of(coupling)
    for seed in range(3):
        sizes = cost.keep_sizes(random_keep(coupling, seed))
        for kind in cost.KINDS:
            whole = sum(term.value({**costs.reference, **sizes}) for term in costs.terms[kind])
            assert costs.total(kind, sizes) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("record", [r for r in RECORDS if r.free], ids=lambda record: record.name)
def test_the_polynomial_agrees_with_the_cut_model(record):
    """Cut for real, analysed again: parameters and MACs are what the polynomial said."""
    coupling = analyze(model(record.text, dict(record.constants), record.opset))
    keep = random_keep(coupling, 0)
    predicted = cost.of(coupling).totals(cost.keep_sizes(keep))
    cut = surgery.cut(Selection(coupling, keep))
    if any(".lift" in (node.name or "") for node in cut.graph):
        pytest.skip("the cut model sees one axis at full size")
    real = cost.of(analyze(cut)).totals()
    assert predicted["params"] == real["params"]
    assert predicted["macs"] == pytest.approx(real["macs"], rel=1e-9)


# What the file holds ------------------------------------------------------------------------------------------------

LSTM = (
    "(float[t,1,64] x, int8[1,64,512] w, int8[1,128,512] r, float[1,1024] b, float[1] ws, int8[1] wz, float[1] rs, "
    "int8[1] rz) => (float[t,1,1,128] y) { y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 128>"
    '(x, w, r, b, "", "", "", "", ws, wz, rs, rz) }'
)
# Name -> (text, opset, parameters, MACs for a batch of one).
HOLDERS = {
    "DynamicQuantizeLSTM": (LSTM, 17, 4 * 128 * (64 + 128) + 1024, 4 * 128 * (64 + 128)),
    "DynamicQuantizeMatMul": (
        "(float[n,64] x, int8[64,128] a, float s, int8 z) => (float[n,128] y) "
        "{ y = com.microsoft.DynamicQuantizeMatMul(x, a, s, z) }",
        17,
        64 * 128,
        64 * 128,
    ),
    "MatMulIntegerToFloat": (
        "(uint8[n,64] x, int8[64,10] a, float s, float t, uint8 p, int8 z) => (float[n,10] y) "
        "{ y = com.microsoft.MatMulIntegerToFloat(x, a, s, t, p, z) }",
        17,
        640,
        640,
    ),
    "QAttention": (
        "(uint8[n,4,8] x, int8[8,24] w, float[24] b, float s, float[24] t, uint8 p, int8[24] z) => (float[n,4,8] y) "
        "{ y = com.microsoft.QAttention<num_heads = 2>(x, w, b, s, t, , p, z) }",
        17,
        8 * 24 + 24,
        4 * 8 * 24,
    ),
    "a gathered table of integers": (
        "(int64[n,t] x, int8[1000,32] e, float s, int8 z, float[32,8] w) => (float[n,t,8] y) "
        "{ g = Gather(e, x) d = DequantizeLinear(g, s, z) y = MatMul(d, w) }",
        17,
        32000 + 256,
        None,
    ),
    "MatMulNBits": (
        "(float[n,64] x, uint8[128,2,16] b, float[128,2] s) => (float[n,128] y) "
        "{ y = com.microsoft.MatMulNBits<K = 64, N = 128, bits = 4, block_size = 32>(x, b, s) }",
        21,
        64 * 128,
        None,
    ),
    "MoE": (
        "(float[t,32] x, float[t,4] xr, float[4,64,32] f, float[4,64] b, float[4,32,64] g, float[4,32] c) "
        '=> (float[t,32] y) { y = com.microsoft.MoE<k = 2, activation_type = "relu">(x, xr, f, b, g, c) }',
        17,
        4 * (2 * 64 * 32 + 64 + 32),
        2 * 2 * 64 * 32,
    ),
    "integers that are cast": (
        "(float[n,64] x, int8[64,10] a, float s) => (float[n,10] y) "
        "{ f = Cast<to = 1>(a) g = Mul(f, s) y = MatMul(x, g) }",
        17,
        641,
        640,
    ),
    "settings are none": (
        "(float[n,8] x, float[8,6] w, int64[3] sizes) => (float[n,2,3] y) { a = MatMul(x, w) y = Reshape(a, sizes) }",
        17,
        48,
        48,
    ),
}


def bytes_of(proto_: onnx.ModelProto) -> int:
    """Bytes of all tensors that a message stores, bodies included, counted without our own code."""

    def inside(graph_: onnx.GraphProto):
        yield from (len(ir.from_proto(tensor).tobytes()) for tensor in graph_.initializer)
        for node in graph_.node:
            for attribute in node.attribute:
                if node.op_type == "Constant":
                    yield 4 * len(attribute.floats) + 8 * len(attribute.ints)
                    yield {"value_float": 4, "value_int": 8}.get(attribute.name, 0)
                    yield len(ir.from_proto(attribute.t).tobytes()) if attribute.name == "value" else 0
                for body in (attribute.g, *attribute.graphs):
                    yield from inside(body)

    return sum(inside(proto_.graph))


@pytest.mark.parametrize("name", HOLDERS)
def test_weights_are_counted_however_they_are_stored(name):
    """Integers of several operators used to count as nothing, and scales as parameters."""
    text, opset, params, macs = HOLDERS[name]
    message = proto(text, {"sizes": [0, 2, 3]}, opset)
    loaded = ir.from_proto(message)
    costs = cost.of(analyze(graph.normalize(loaded)), loaded)
    assert costs.totals()["params"] == params
    assert costs.totals()["bytes"] == bytes_of(message)
    assert costs.totals({})["params"] == params  # the polynomial agrees with the file
    if macs is not None:
        assert costs.totals()["macs"] == macs


def test_a_weight_that_was_told_apart_counts_once():
    """Two convolutions share a bias in the file; the normal form has one for each."""
    text = (
        "(float[1,3,4,4] x, float[8,3,1,1] w, float[8] c, float[8,3,1,1] v) => (float[1,8,4,4] y) "
        "{ a = Conv(x, w, c) b = Conv(x, v, c) y = Add(a, b) }"
    )
    loaded = model(text)
    costs = cost.of(analyze(graph.normalize(loaded)), loaded)
    assert costs.totals()["params"] == 24 + 24 + 8
    assert costs.totals({})["params"] == 24 + 24 + 8 + 8


BODY = """
(float[n,4] x, bool xc) => (float[n,6] y) {
  y = If (xc) <then_branch = one () => (float[n,6] t) <float[4,6] w = {WEIGHTS}> { t = MatMul(x, w) },
               else_branch = two () => (float[n,6] e) <float[6] v = {0, 1, 2, 3, 4, 5}> {
                 s = Shape(x) z = Constant<value = float[4,6] {WEIGHTS}>() k = MatMul(x, z) e = Add(k, v) }>
}"""


def test_what_lies_in_bodies_is_counted():
    message = proto(BODY.replace("{WEIGHTS}", "{" + ", ".join(str(k) for k in range(24)) + "}"))
    loaded = ir.from_proto(message)
    costs = cost.of(analyze(graph.normalize(loaded)), loaded)
    assert costs.totals()["params"] == 24 + 24 + 6
    assert costs.totals()["bytes"] == bytes_of(message) == 4 * 54
    assert costs.totals()["macs"] == 24  # of one branch, for a batch of one


@pytest.mark.slow
def test_bytes_are_those_of_the_file_for_every_operator_of_the_standard():
    """All node cases of the onnx package, with all inputs but the first stored in the file."""
    from onnx.backend.test.loader import load_model_tests

    seen = set()
    for case in load_model_tests(kind="node"):
        message = onnx.ModelProto()
        message.CopyFrom(case.model)
        inputs = [value for value in message.graph.input if value.type.HasField("tensor_type")]
        arrays = dict(zip((v.name for v in message.graph.input), case.data_sets[0][0], strict=False))
        for value in inputs[1:]:
            array = arrays[value.name]
            if isinstance(array, np.ndarray) and array.dtype.kind != "O":
                message.graph.initializer.append(ir.to_proto(ir.tensor(array, name=value.name)))
                message.graph.input.remove(value)
        loaded = ir.from_proto(message)
        assert cost.stored(loaded)["bytes"] == bytes_of(message), case.name
        seen.add(message.graph.node[-1].op_type)
    assert len(seen) > 150
