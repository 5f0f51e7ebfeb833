"""What the normal form leaves as it is: declared outputs, products of three axes, numbers that share bytes."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx_text import model

from onnxprune import graph
from onnxprune.graph import sessions, simplify


def test_outputs_keep_the_symbols_that_they_are_declared_with():
    """Sizes of an output that shape inference knows were written into the interface of models that it alone sees."""
    text = "(float[N,3,5,5] x, float[4,3,2,2] w) => (float[N,4,K,L] y) { y = Conv(x, w) }"
    source = model(text)
    assert simplify.is_plain(source)
    made = graph.normalize(source)
    assert str(made.graph.outputs[0].shape) == str(source.graph.outputs[0].shape) == "[N,4,K,L]"


def test_products_of_three_axes_do_not_become_gemms_between_reshapes():
    """Every layer of a transformer got five nodes more, of which the sizes were computed in every run."""
    text = (
        "(float[n,s,8] x, float[8,16] w, float[16] b, float[2,4] t) => (float[n,s,16] y) "
        "{ c = Add(t, t) d = Size(c) e = Cast<to = 1>(d) a = MatMul(x, w) f = Add(a, b) y = Mul(f, e) }"
    )
    made = graph.normalize(model(text))
    assert [node.op_type for node in made.graph] == ["MatMul", "Add", "Mul"]
    assert [node.op_type for node in graph.finish(made).graph] == ["MatMul", "Add", "Mul"]


def test_numbers_that_share_bytes_are_run_as_they_are_stored():
    """onnxruntime was given a byte for each number of four bits where weights stay in memory: every proof failed."""
    text = (
        "(float[n,32] x, int8[32,64] w, float[2,64] s) => (float[n,64] y) "
        "{ v = DequantizeLinear<axis = 0, block_size = 16>(w, s) y = MatMul(x, v) }"
    )
    source = ir.to_proto(model(text, opset=21))
    (weights,) = (tensor for tensor in source.graph.initializer if tensor.name == "w")
    numbers = np.clip(onnx.numpy_helper.to_array(weights), -8, 7)
    weights.CopyFrom(onnx.helper.make_tensor("w", onnx.TensorProto.INT4, numbers.shape, numbers.ravel().tolist()))
    made = ir.from_proto(source)
    scales = np.repeat(graph.array_of(made.graph.initializers["s"]), 16, axis=0)
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    for lean in (False, True):
        y = sessions.run(sessions.open_session(made, lean=lean, optimize=False), {"x": x})["y"]
        np.testing.assert_allclose(y, x @ (numbers * scales), rtol=1e-4, atol=1e-4)
