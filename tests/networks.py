"""Small models as ONNX text, and the embedded ones."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

MODELS = Path(__file__).parents[1] / "models"
DIGITS, DIGITS_BN = MODELS / "digits.onnx", MODELS / "digits-bn.onnx"

# A residual block, a depthwise convolution, and a head: 12 x 8 x 8 inputs would be slower and show no more.
CNN = """<ir_version: 8, opset_import: ["" : 17]>
cnn (float[N, 3, 8, 8] x) => (float[N, 4] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 8, 3, 3] w2, float[8] b2, float[8, 1, 3, 3] w3, float[12, 8, 1, 1] w4,
 float[4, 12] w5, float[4] b5>
{
  [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  [stem_relu] a1 = Relu (a)
  [inner] b = Conv <pads = [1, 1, 1, 1]> (a1, w2, b2)
  [add] c = Add (a1, b)
  [deep] d = Conv <pads = [1, 1, 1, 1], group = 8> (c, w3)
  [wide] e = Conv (d, w4)
  [wide_relu] e1 = Relu (e)
  [pool] f = GlobalAveragePool (e1)
  [flat] g = Flatten (f)
  [head] y = Gemm <transB = 1> (g, w5, b5)
}
"""
MLP = """<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 6] x) => (float[N, 3] y) <float[6, 16] w1, float[16] b1, float[16, 10] w2, float[10, 3] w3>
{
  [first] a = MatMul (x, w1)
  [bias] a1 = Add (a, b1)
  [relu] a2 = Relu (a1)
  [second] b = MatMul (a2, w2)
  [tanh] b1_ = Tanh (b)
  [third] y = MatMul (b1_, w3)
}
"""
CONCAT = """<ir_version: 8, opset_import: ["" : 17]>
concat (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y)
<float[6, 3, 1, 1] w1, float[10, 3, 1, 1] w2, float[9, 16, 1, 1] w3, float[5, 9, 1, 1] w4>
{
  [left] a = Conv (x, w1)
  [right] b = Conv (x, w2)
  [join] c = Concat <axis = 1> (a, b)
  [joined] d = Relu (c)
  [mix] e = Conv (d, w3)
  [mixed] f = Sigmoid (e)
  [out] y = Conv (f, w4)
}
"""
NETWORKS = {"cnn": CNN, "mlp": MLP, "concat": CONCAT}


def filled(text: str, seed: int = 0) -> onnx.ModelProto:
    """The model of `text`; what it declares in <...> without a value becomes a random initializer."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.normal(size=shape, scale=1 / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    return model
