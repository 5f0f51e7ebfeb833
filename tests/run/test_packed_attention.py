"""Attention of com.microsoft with its projection inside: with cached keys and values, and of integers."""

import onnx
import pytest
from onnx import TensorProto
from onnx_text import proto
from onnxruntime.quantization import QuantType, quantize_dynamic

STEP = (
    "(float[n,t,16] x, float[2,n,4,p,4] x_past, float[16,48] w, float[48] c, float[16,16] o, float[16,24] u, "
    "float[24] d, float[24,16] v) => (float[n,t,16] y, float[2,n,4,m,4] present) "
    "{ b, present = com.microsoft.Attention<num_heads = 4, unidirectional = 1>(x, w, c, , x_past) a = MatMul(b, o) "
    "s = Add(a, x) h = MatMul(s, u) i = Add(h, d) r = Relu(i) y = MatMul(r, v) }"
)


FLOATS = {"DefaultTensorType": TensorProto.FLOAT}
REST = ("--allocate", "uniform", "--no-latency", "--plan")


@pytest.fixture
def step(tmp_path):
    """A step of a decoder with weights that are stored."""
    path = tmp_path / "step.onnx"
    onnx.save(proto(STEP), path)
    return path


def heads(path):
    """How many heads the attention of the model has."""
    node = next(node for node in onnx.load(path).graph.node if node.op_type in ("Attention", "QAttention"))
    return next(attribute.i for attribute in node.attribute if attribute.name == "num_heads")


def test_attention_with_a_cache_loses_heads_inside(step, cli, tmp_path):
    out, plan = tmp_path / "out.onnx", tmp_path / "plan.json"
    ran = cli(step, out, "--method", "l1", "--target", "params=0.6", *REST, plan)
    assert ran.code == 0, ran.err
    assert heads(out) < 4
    assert [d.dim_value for d in onnx.load(out).graph.input[1].type.tensor_type.shape.dim][2:5:2] == [4, 4]
    assert cli("verify", step, out, "--plan", plan).code == 0


@pytest.mark.parametrize("columns", [False, True])
def test_attention_that_onnxruntime_quantized_is_pruned(step, cli, tmp_path, columns):
    quantized, out, plan = (tmp_path / name for name in ("q.onnx", "out.onnx", "plan.json"))
    quantize_dynamic(step, quantized, per_channel=columns, weight_type=QuantType.QInt8, extra_options=FLOATS)
    assert any(node.op_type == "QAttention" for node in onnx.load(quantized).graph.node)
    ran = cli(quantized, out, "--method", "l1", "--target", "params=0.6", *REST, plan)
    assert ran.code == 0, ran.err
    assert heads(out) < 4
    assert cli("verify", quantized, out, "--plan", plan).code == 0
