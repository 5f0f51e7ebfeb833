"""Small float models, finished, with samples to quantize them on."""

import numpy as np
import onnx_ir as ir
from networks import CNN, filled

from onnxprune import graph
from onnxprune.data.samples import ArraySamples
from onnxprune.graph.inputs import Feeds
from onnxprune.quantize import Context, parse, quantize
from onnxprune.run.finish import finish

# A square matrix, so that an axis that is swapped changes no shape, and a value that is no weight in an Add.
SQUARE = """<ir_version: 8, opset_import: ["" : 17]>
square (float[N, 6] x) => (float[N, 8] y)
<float[6, 8] w1, float[8] b1, float[8, 8] w2, float[8, 8] w3, float[8] b3>
{
  [first] a = Gemm (x, w1, b1)
  [relu] a1 = Relu (a)
  [middle] b = MatMul (a1, w2)
  [sum] c = Add (a1, b)
  [last] y = Gemm <transB = 1> (c, w3, b3)
}
"""

# Between two layers a value is raised far from zero and brought back: no grid of 256 numbers holds what it tells.
FAR_OFF = """<ir_version: 8, opset_import: ["" : 17]>
far (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8] up, float[8] down, float[8, 4] v>
{
  [first] a = MatMul (x, w)
  [rise] b = Add (a, up)
  [relu] c = Relu (b)
  [fall] d = Add (c, down)
  [last] y = MatMul (d, v)
}
"""


def finished(text: str) -> ir.Model:
    return finish(graph.normalize(ir.from_proto(filled(text))))


def samples_for(model: ir.Model, count: int = 64, seed: int = 0, labels=None) -> ArraySamples:
    value = model.graph.inputs[0]
    assert value.shape is not None
    name, shape = value.name or "", [size if isinstance(size, int) else count for size in value.shape]
    x = np.random.default_rng(seed).normal(size=[count, *shape[1:]]).astype(np.float32)
    return ArraySamples({name: x}, {name: 0}, {name: np.dtype(np.float32)}, count, labels, None)


def feeds_for(model: ir.Model) -> list[Feeds]:
    return [samples_for(model, 8, seed=1).batch(np.arange(8))]


def quantized(text: str, asked: str):
    model, wanted = finished(text), parse(asked)
    assert wanted is not None
    return quantize(model, Context(wanted, samples_for(model), feeds_for(model)))


__all__ = ["CNN", "FAR_OFF", "SQUARE", "feeds_for", "finished", "quantized", "samples_for"]
