"""Networks as torch modules answer as their files do."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from networks import filled
from onnx_text import model as text_model

from onnxprune import graph
from onnxprune.graph import sessions
from tools.torch_modules import Modules

RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 5] y)
    <float[6, 3, 3, 3] w1, float[6] b1, float[6, 1, 3, 3] w2, float[6, 6, 1, 1] w3, float[5, 6] w4, float[5] b4,
     float[5] scale, float[5] shift, float[5] mean, float[5] variance = {0.5, 1, 2, 1, 3},
     float low = {0.0}, float high = {6.0}>
    {
        a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1, b1)
        r = Clip(a, low, high)
        d = Conv<group = 6, pads = [1, 1, 1, 1]>(r, w2)
        p = Conv(d, w3)
        s = Add(r, p)
        m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(s)
        g = GlobalAveragePool(m)
        f = Flatten(g)
        z = Gemm<transB = 1>(f, w4, b4)
        n = BatchNormalization(z, scale, shift, mean, variance)
        y = Relu(n)
    }
"""


def test_a_residual_network_answers_as_its_file(tmp_path):
    proto = filled(RESIDUAL)
    normal = graph.normalize(ir.from_proto(proto))
    network = Modules(normal)
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    (wanted,) = sessions.run(sessions.open_session(normal), {"x": x}).values()
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), wanted, rtol=1e-4, atol=1e-5)
    arrays = network.arrays()
    for name in ("w1", "b1", "w2", "w3", "w4", "b4"):
        assert np.array_equal(arrays[name], graph.array_of(normal.graph.initializers[name]))


def test_other_steps_are_refused():
    model = graph.normalize(text_model("(float[N, 3] x) => (float[N, 3] y) {y = Erf(x)}"))
    with pytest.raises(NotImplementedError, match="Erf"):
        Modules(model)
