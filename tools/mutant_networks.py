"""The networks of mutants.py: small ones of every kind, written here or in the tests, quantized, halved, or exported.

Letters: N batch, T tokens, C channels, F hidden, H heads, D head size. A name that starts with x is an input, all
others are weights; integers are given, floats are random and never constant.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools" / "zoo")]

from networks import NETWORKS, filled  # noqa: E402
from task_networks import TASKS  # noqa: E402

Constants = Mapping[str, object]
HEAD = '<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]> g '


@dataclass(frozen=True)
class Net:
    """One network; `below`: what the integers of an input are smaller than, 2 where nothing is said."""

    name: str
    kind: str
    build: Callable[[], onnx.ModelProto]
    below: Mapping[str, int] = field(default_factory=dict)


def written(text: str, constants: Constants | None = None, opset: int = 18, seed: int = 0) -> onnx.ModelProto:
    """The model of `(float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }`."""
    model = onnx.parser.parse_model(HEAD.format(opset=opset) + text)
    rng, inputs = np.random.default_rng(seed), list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        if value.name.startswith("x"):
            model.graph.input.append(value)
            continue
        kind = value.type.tensor_type
        dtype, shape = helper.tensor_dtype_to_np_dtype(kind.elem_type), [d.dim_value for d in kind.shape.dim]
        given = (constants or {}).get(value.name)
        array = _weight(value.name, shape, rng) if given is None else np.asarray(given, dtype).reshape(shape)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), value.name))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def _weight(name: str, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """Random numbers that keep the size of what they are multiplied with."""
    array = rng.normal(size=shape)
    if name.startswith("var"):
        return np.abs(array) + 0.5
    if name.startswith("gamma"):
        return 1 + 0.3 * array
    if len(shape) < 2:
        return 0.4 * array
    return array * 1.5 / np.sqrt(np.prod(shape) / max(shape[0], shape[-1]))


# Classifiers ------------------------------------------------------------------------------------------------------


def norm(x: str, y: str, k: int) -> str:
    """BatchNormalization number k."""
    return f"{y} = BatchNormalization({x}, gamma{k}, beta{k}, mean{k}, var{k}) "


def norms(*sizes: int) -> str:
    """The weights of BatchNormalization 0, 1, ... of these sizes."""
    return ", ".join(f"float[{c}] {part}{k}" for k, c in enumerate(sizes) for part in ("gamma", "beta", "mean", "var"))


RESNET = (
    "(float[N,3,8,8] x, float[10,3,3,3] w0, float[12,10,3,3] w1, float[10,12,3,3] w2, float[16,10,3,3] w3, "
    f"float[16,10,1,1] w4, float[5,16] wh, float[5] bh, {norms(10, 12, 10, 16, 16)}) => (float[N,5] y) {{ "
    f"a0 = Conv<pads = [1, 1, 1, 1]>(x, w0) {norm('a0', 'a1', 0)} a = Relu(a1) "
    f"b0 = Conv<pads = [1, 1, 1, 1]>(a, w1) {norm('b0', 'b1', 1)} b2 = Relu(b1) "
    f"b3 = Conv<pads = [1, 1, 1, 1]>(b2, w2) {norm('b3', 'b4', 2)} b5 = Add(b4, a) b = Relu(b5) "
    f"c0 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w3) {norm('c0', 'c1', 3)} "
    f"d0 = Conv<strides = [2, 2]>(b, w4) {norm('d0', 'd1', 4)} e = Add(c1, d1) f = Relu(e) p = GlobalAveragePool(f) "
    "q = Flatten(p) y = Gemm<transB = 1>(q, wh, bh) }"
)
MOBILE = (
    "(float[N,3,8,8] x, float[8,3,3,3] w0, float[20,8,1,1] w1, float[20] b1, float[20,1,3,3] w2, float[20] b2, "
    "float[6,20,1,1] w3, float[6] b3, float[20,6,1,1] w4, float[20] b4, float[8,20,1,1] w5, float[8] b5, "
    "float[6,8] wh) => (float[N,6] y) { a0 = Conv<pads = [1, 1, 1, 1]>(x, w0) a = HardSwish(a0) "
    "b0 = Conv(a, w1, b1) b1_ = HardSwish(b0) b2_ = Conv<group = 20, pads = [1, 1, 1, 1]>(b1_, w2, b2) "
    "b3_ = HardSwish(b2_) s0 = GlobalAveragePool(b3_) s1 = Conv(s0, w3, b3) s2 = Relu(s1) s3 = Conv(s2, w4, b4) "
    "s4 = HardSigmoid(s3) c = Mul(b3_, s4) d = Conv(c, w5, b5) e = Add(a, d) p = GlobalAveragePool(e) "
    "q = Flatten(p) z = Gemm<transB = 1>(q, wh) y = Softmax<axis = -1>(z) }"
)
SHUFFLE = (
    "(float[2,3,6,6] x, float[12,3,3,3] w0, float[12,4,1,1] w1, float[12,1,3,3] w2, float[12,4,1,1] w3, "
    "float[5,12] wh, int64[5] s, int64[4] t) => (float[2,5] y) { a0 = Conv<pads = [1, 1, 1, 1]>(x, w0) "
    "a = Relu(a0) b = Conv<group = 3>(a, w1) c = Reshape(b, s) d = Transpose<perm = [0, 2, 1, 3, 4]>(c) "
    "e = Reshape(d, t) f = Conv<group = 12, pads = [1, 1, 1, 1]>(e, w2) g = Conv<group = 3>(f, w3) h = Add(g, a) "
    "i = Relu(h) p = GlobalAveragePool(i) q = Flatten(p) y = Gemm<transB = 1>(q, wh) }"
)
DENSE = (
    "(float[N,3,6,6] x, float[8,3,3,3] w0, float[6,8,3,3] w1, float[7,14,3,3] w2, float[5,21,3,3] w3, "
    "float[9,26,1,1] w4, float[4,9] wh, float[4] bh) => (float[N,4] y) { a = Conv<pads = [1, 1, 1, 1]>(x, w0) "
    "a1 = Relu(a) b = Conv<pads = [1, 1, 1, 1]>(a1, w1) b1 = Relu(b) c0 = Concat<axis = 1>(a1, b1) "
    "c = Conv<pads = [1, 1, 1, 1]>(c0, w2) c1 = Relu(c) d0 = Concat<axis = 1>(c0, c1) "
    "d = Conv<pads = [1, 1, 1, 1]>(d0, w3) d1 = Relu(d) e0 = Concat<axis = 1>(d0, d1) e = Conv(e0, w4) "
    "e1 = Relu(e) p = GlobalMaxPool(e1) q = Flatten(p) y = Gemm<transB = 1>(q, wh, bh) }"
)
VGG = (
    "(float[N,3,8,8] x, float[9,3,3,3] w0, float[9] b0, float[11,9,3,3] w1, float[11] b1, float[176,20] w2, "
    "float[20] b2, float[20,7] w3, float[7] b3) => (float[N,7] y) { a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) "
    "a1 = Relu(a) b = Conv<pads = [1, 1, 1, 1]>(a1, w1, b1) b1_ = Relu(b) "
    "m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b1_) f = Flatten(m) g = Gemm(f, w2, b2) g1 = Relu(g) "
    "y = Gemm(g1, w3, b3) }"
)
CONVNEXT = (
    "(float[N,3,8,8] x, float[10,3,2,2] w0, float[10] b0, float[10,1,3,3] w1, float[10] b1, float[10] gamma, "
    "float[10] beta, float[10,24] w2, float[24] b2, float[24,10] w3, float[10] b3, float[10] gamma1, "
    "float[10,6] wh) => (float[N,6] y) { a = Conv<strides = [2, 2]>(x, w0, b0) "
    "b = Conv<group = 10, pads = [1, 1, 1, 1]>(a, w1, b1) c = Transpose<perm = [0, 2, 3, 1]>(b) "
    "d = LayerNormalization<axis = -1>(c, gamma, beta) e = MatMul(d, w2) e1 = Add(e, b2) e2 = Gelu(e1) "
    "f = MatMul(e2, w3) f1 = Add(f, b3) f2 = Mul(f1, gamma1) g = Transpose<perm = [0, 3, 1, 2]>(f2) h = Add(a, g) "
    "p = GlobalAveragePool(h) q = Flatten(p) y = MatMul(q, wh) }"
)
GROUPNORM = (
    "(float[2,3,6,6] x, float[12,3,3,3] w0, float[12] gamma, float[12] beta, float[3] ones, float[3] zeros, "
    "float[8,12,3,3] w1, float[8] b1, float[4,8] wh, int64[3] s, int64[4] t, int64[2] k1) => (float[2,4] y) { "
    "a = Conv<pads = [1, 1, 1, 1]>(x, w0) b = Reshape(a, s) c = InstanceNormalization(b, ones, zeros) "
    "d = Reshape(c, t) g1 = Unsqueeze(gamma, k1) g2 = Unsqueeze(beta, k1) e = Mul(d, g1) f = Add(e, g2) "
    "h = Relu(f) i = Conv<pads = [1, 1, 1, 1]>(h, w1, b1) j = Relu(i) p = GlobalAveragePool(j) q = Flatten(p) "
    "y = Gemm<transB = 1>(q, wh) }"
)
INCEPTION = (
    "(float[N,3,6,6] x, float[8,3,1,1] w0, float[5,8,1,1] w1, float[6,8,3,3] w2, float[4,8,1,1] w3, "
    "float[7,4,3,3] w4, float[18,6] wh, int64[2] axes) => (float[N,6] y) { a0 = Conv(x, w0) a = LeakyRelu(a0) "
    "b = Conv(a, w1) c = Conv<pads = [1, 1, 1, 1]>(a, w2) d0 = Conv(a, w3) d1 = Relu(d0) "
    "d = Conv<pads = [1, 1, 1, 1]>(d1, w4) e = Concat<axis = 1>(b, c, d) f = Relu(e) "
    "p = ReduceMean<keepdims = 0>(f, axes) y = MatMul(p, wh) }"
)
SPLIT = (
    "(float[N,3,6,6] x, float[16,3,3,3] w0, float[8,4,3,3] w1, float[4,4,3,3] w2, float[5,12] wh, "
    "int64[3] parts) => (float[N,5] y) { a0 = Conv<pads = [1, 1, 1, 1]>(x, w0) a = Relu(a0) b, c, "
    "d = Split<axis = 1>(a, parts) e = Conv<pads = [1, 1, 1, 1]>(b, w1) f = Conv<pads = [1, 1, 1, 1]>(c, w2) "
    "g = Add(e, d) h = Concat<axis = 1>(g, f) i = Relu(h) p = GlobalAveragePool(i) q = Flatten(p) "
    "y = Gemm<transB = 1>(q, wh) }"
)
DECIDES = VGG.replace("(float[N,7] y)", "(int64[N] y)").replace(
    "y = Gemm(g1, w3, b3)", "z = Gemm(g1, w3, b3) y = ArgMax<axis = 1, keepdims = 0>(z)"
)

# Detectors --------------------------------------------------------------------------------------------------------

JOINED = (
    "(float[N,3,16,16] x, float[12,3,3,3] w0, float[12] b0, float[16,12,3,3] w1, float[16] b1, "
    "float[16,16,3,3] w2, float[16] b2, float[4,16,1,1] wb, float[4] bb, float[6,16,1,1] ws, float[6] bs, "
    "int64[3] s4, int64[3] s6, float[1,4,16] grid, float size) => (float[N,10,16] y) { "
    "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0, b0) a1 = Relu(a) "
    "b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a1, w1, b1) b1_ = Relu(b) "
    "c = Conv<pads = [1, 1, 1, 1]>(b1_, w2, b2) c1 = Relu(c) d = Conv(c1, wb, bb) e = Conv(c1, ws, bs) "
    "d1 = Reshape(d, s4) d2 = Sigmoid(d1) d3 = Mul(d2, size) boxes = Add(d3, grid) e1 = Reshape(e, s6) "
    "scores = Sigmoid(e1) y = Concat<axis = 1>(boxes, scores) }"
)
YOLO = (
    "(float[N,3,16,16] x, float[10,3,3,3] w0, float[10] b0, float[14,10,3,3] w1, float[14] b1, "
    "float[16,14,1,1] w2, float[16] b2, int64[5] s, int64[3] parts, float[1,2,2,4,4] grid, float size, "
    "int64[3] t) => (float[N,p,8] y) { a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0, b0) a0 = Sigmoid(a) "
    "a1 = Mul(a, a0) b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a1, w1, b1) b0_ = Sigmoid(b) "
    "b1_ = Mul(b, b0_) c = Conv(b1_, w2, b2) d = Reshape(c, s) xy, wh, rest = Split<axis = 2>(d, parts) "
    "xy1 = Sigmoid(xy) xy2 = Add(xy1, grid) xy3 = Mul(xy2, size) wh1 = Exp(wh) wh2 = Mul(wh1, size) "
    "r = Sigmoid(rest) j = Concat<axis = 2>(xy3, wh2, r) k = Transpose<perm = [0, 1, 3, 4, 2]>(j) "
    "y = Reshape(k, t) }"
)
TOPK = (
    "(float[2,3,16,16] x, float[12,3,3,3] w0, float[12] b0, float[16,12,3,3] w1, float[16] b1, float[4,16,1,1] wb, "
    "float[4] bb, float[3,16,1,1] ws, float[3] bs, int64[3] s4, int64[2] s3, int64[1] most, int64[1] sixteen, "
    "int64[1] last, int64[3] four) => (float[2,5,4] boxes, float[2,5] scores, int64[2,5] classes) { "
    "a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0, b0) a1 = Relu(a) "
    "b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a1, w1, b1) b1_ = Relu(b) d = Conv(b1_, wb, bb) "
    "e = Conv(b1_, ws, bs) d1 = Reshape(d, s4) d2 = Transpose<perm = [0, 2, 1]>(d1) e1 = Reshape(e, s3) "
    "e2 = Sigmoid(e1) scores, places = TopK<axis = 1>(e2, most) classes = Div(places, sixteen) "
    "cell = Mod(places, sixteen) c1 = Unsqueeze(cell, last) c2 = Expand(c1, four) "
    "boxes = GatherElements<axis = 1>(d2, c2) }"
)
TWO_STAGE = (
    "(float[2,3,16,16] x, float[6,4] xrois, float[12,3,3,3] w0, float[12] b0, float[14,12,3,3] w1, float[14] b1, "
    "float[126,18] w2, float[18] b2, float[18,4] w3, float[18,12] w4, int64[6] index) => (float[6,4] y, "
    "float[6,12] z) { a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) a1 = Relu(a) "
    "b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a1, w1, b1) b1_ = Relu(b) u = Abs(xrois) "
    "r = RoiAlign<output_height = 3, output_width = 3, spatial_scale = 0.5>(b1_, u, index) f = Flatten(r) "
    "g = Gemm(f, w2, b2) g1 = Relu(g) c = MatMul(g1, w3) y = Softmax<axis = -1>(c) z = MatMul(g1, w4) }"
)

# Segmentation and images ------------------------------------------------------------------------------------------

TRANSPOSED = (
    "(float[N,3,8,8] x, float[10,3,3,3] w0, float[10] b0, float[14,10,3,3] w1, float[14] b1, float[14,9,2,2] w2, "
    "float[9] b2, float[11,19,3,3] w3, float[11] b3, float[4,11,1,1] w4) => (float[N,4,8,8] y) { "
    "a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) a1 = Relu(a) "
    "b = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a1, w1, b1) b1_ = Relu(b) "
    "c = ConvTranspose<strides = [2, 2]>(b1_, w2, b2) d = Concat<axis = 1>(c, a1) "
    "e = Conv<pads = [1, 1, 1, 1]>(d, w3, b3) f = Relu(e) y = Conv(f, w4) }"
)
ASPP = (
    "(float[N,3,10,10] x, float[8,3,3,3] w0, float[6,8,1,1] w1, float[6,8,3,3] w2, float[6,8,3,3] w3, "
    "float[6,8,1,1] w4, float[10,24,1,1] w5, float[10] gamma, float[10] beta, float[10] mean, float[10] var, "
    "float[3,10,1,1] w6, int64[4] s) => (float[N,3,10,10] y, int64[N,10,10] labels) { "
    "a0 = Conv<pads = [1, 1, 1, 1]>(x, w0) a = Relu(a0) b = Conv(a, w1) "
    "c = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(a, w2) "
    "d = Conv<pads = [3, 3, 3, 3], dilations = [3, 3]>(a, w3) p = GlobalAveragePool(a) q = Conv(p, w4) "
    "r = Expand(q, s) e = Concat<axis = 1>(b, c, d, r) f = Conv(e, w5) "
    "g = BatchNormalization(f, gamma, beta, mean, var) h = Relu(g) y = Conv(h, w6) "
    "labels = ArgMax<axis = 1, keepdims = 0>(y) }"
)
FPN = (
    "(float[N,3,16,16] x, float[8,3,3,3] w0, float[12,8,3,3] w1, float[16,12,3,3] w2, float[10,12,1,1] w3, "
    "float[10,16,1,1] w4, float[3,10,3,3] w5, float[4] twice) => (float[N,3,p,q] y, float[N,3,r,s] z) { "
    "a0 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0) a = Relu(a0) "
    "b0 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(a, w1) b = Relu(b0) "
    "c0 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w2) c = Relu(c0) l = Conv(b, w3) t = Conv(c, w4) "
    'u = Resize<mode = "nearest">(t, , twice) m = Add(l, u) y = Conv<pads = [1, 1, 1, 1]>(m, w5) '
    "z = Conv<pads = [1, 1, 1, 1]>(t, w5) }"
)
SUPER = (
    "(float[N,3,6,6] x, float[9,3,3,3] w0, float[9] b0, float[24,9,3,3] w1, float[24] b1, float[6,1,1] slope1, "
    "float[3,6,3,3] w2) => (float[N,3,12,12] y) { a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) a1 = Tanh(a) "
    'b = Conv<pads = [1, 1, 1, 1]>(a1, w1, b1) c = DepthToSpace<blocksize = 2, mode = "CRD">(b) '
    "d = PRelu(c, slope1) y = Conv<pads = [1, 1, 1, 1]>(d, w2) }"
)
AUTOENCODER = (
    "(float[N,3,8,8] x, float[8,3,3,3] w0, float[8] b0, float[128,12] w1, float[12] b1, float[12,192] w2, "
    "float[192] b2, float[12,7,2,2] w3, float[7] b3, float[7,3,3,3] w4, int64[4] s) => (float[N,3,8,8] y, "
    "float[N,12] code) { a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w0, b0) a1 = Relu(a) f = Flatten(a1) "
    "code = Gemm(f, w1, b1) t = Tanh(code) g = Gemm(t, w2, b2) h = Reshape(g, s) i = Relu(h) "
    "j = ConvTranspose<strides = [2, 2]>(i, w3, b3) k = Relu(j) y = ConvTranspose<pads = [1, 1, 1, 1]>(k, w4) }"
)

# Encoders ---------------------------------------------------------------------------------------------------------

FUSED_QKV = (
    "(float[N,7,16] x, float[16] gamma, float[16] beta, float[16,36] wq, float[36] bq, float[12,16] wo, "
    "float[16] bo, int64[5] s, int64[3] t, int64[1] ax, float root, float[16,20] wf, float[20] bf, "
    "float[20,16] wg, float[16,5] wh, int64 zero, int64 one, int64 two, float[16] gamma1, "
    "float[16] beta1) => (float[N,5] y) { n = LayerNormalization<axis = -1>(x, gamma, beta) a = MatMul(n, wq) "
    "b = Add(a, bq) c = Reshape(b, s) d = Transpose<perm = [2, 0, 3, 1, 4]>(c) q = Gather<axis = 0>(d, zero) "
    "k = Gather<axis = 0>(d, one) v = Gather<axis = 0>(d, two) k1 = Transpose<perm = [0, 1, 3, 2]>(k) "
    "e = MatMul(q, k1) f = Mul(e, root) g = Softmax<axis = -1>(f) h = MatMul(g, v) "
    "i = Transpose<perm = [0, 2, 1, 3]>(h) j = Reshape(i, t) l = MatMul(j, wo) m = Add(l, bo) o = Add(x, m) "
    "n1 = LayerNormalization<axis = -1>(o, gamma1, beta1) p = MatMul(n1, wf) p1 = Add(p, bf) p2 = Gelu(p1) "
    "r = MatMul(p2, wg) u = Add(o, r) w = ReduceMean<keepdims = 0>(u, ax) y = MatMul(w, wh) }"
)
DECOMPOSED = (
    "(float[N,6,12] x, float[12,18] w0, float[18] b0, float[18,12] w1, float[12] gamma, float[12] beta, float two, "
    "float eps, float[12,14] w2, float[14,4] w3, float half, float one, float root, "
    "int64[1] last) => (float[N,6,4] y) { a = MatMul(x, w0) b = Add(a, b0) c0 = Div(b, root) c1 = Erf(c0) "
    "c2 = Add(c1, one) c3 = Mul(b, c2) c = Mul(c3, half) d = MatMul(c, w1) e = Add(x, d) m = ReduceMean(e, last) "
    "f = Sub(e, m) g = Pow(f, two) h = ReduceMean(g, last) i = Add(h, eps) j = Sqrt(i) k = Div(f, j) "
    "l = Mul(k, gamma) n = Add(l, beta) o = MatMul(n, w2) p = Tanh(o) y = MatMul(p, w3) }"
)
VIT = (
    "(float[2,3,8,8] x, float[12,3,4,4] w0, float[12] b0, float[2,1,12] cls, float[1,5,12] pos, float[12,12] wq, "
    "float[12,12] wk, float[12,12] wv, float[12,12] wo, float[12] gamma, float[12] beta, float[12,6] wh, "
    "float[6] bh, int64[3] s, int64[4] heads, int64[3] whole, float root, int64 zero) => (float[2,6] y) { "
    "a = Conv<strides = [4, 4]>(x, w0, b0) b = Reshape(a, s) c = Transpose<perm = [0, 2, 1]>(b) "
    "d = Concat<axis = 1>(cls, c) e = Add(d, pos) n = LayerNormalization<axis = -1>(e, gamma, beta) "
    "q = MatMul(n, wq) q1 = Reshape(q, heads) q2 = Transpose<perm = [0, 2, 1, 3]>(q1) k = MatMul(n, wk) "
    "k1 = Reshape(k, heads) k2 = Transpose<perm = [0, 2, 3, 1]>(k1) v = MatMul(n, wv) v1 = Reshape(v, heads) "
    "v2 = Transpose<perm = [0, 2, 1, 3]>(v1) g = MatMul(q2, k2) h = Mul(g, root) i = Softmax<axis = -1>(h) "
    "j = MatMul(i, v2) l = Transpose<perm = [0, 2, 1, 3]>(j) m = Reshape(l, whole) o = MatMul(m, wo) p = Add(e, o) "
    "r = Gather<axis = 1>(p, zero) y = Gemm(r, wh, bh) }"
)
CONTRIB = (
    "(int32[N,6] x, float[40,16] table, float[1,6,16] pos, float[16,48] wq, float[48] bq, float[16,16] wo, "
    "float[16] bo, float[16] gamma, float[16] beta, float[16,24] w1, float[24] b1, float[24,16] w2, float[16] b2, "
    "float[16] gamma1, float[16] beta1, float[16,3] wh) => (float[N,6,3] y) { e0 = Gather(table, x) "
    "e = Add(e0, pos) a = com.microsoft.Attention<num_heads = 4>(e, wq, bq) b = MatMul(a, wo) "
    "c = com.microsoft.SkipLayerNormalization(b, e, gamma, beta, bo) d = MatMul(c, w1) "
    "f = com.microsoft.BiasGelu(d, b1) g = MatMul(f, w2) "
    "h = com.microsoft.SkipLayerNormalization(g, c, gamma1, beta1, b2) y = MatMul(h, wh) }"
)
MHA = (
    "(float[N,5,12] x, float[12,12] wq, float[12,12] wk, float[12,12] wv, float[36] b, float[12,12] wo, "
    "float[12,4] wh) => (float[N,5,4] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
    "a = com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v, b) o = MatMul(a, wo) r = Add(o, x) "
    "y = MatMul(r, wh) }"
)
CROSS = (
    "(float[N,5,12] x, float[N,8,10] xm, float[12,16] wq, float[10,16] wk, float[10,16] wv, float[16,12] wo, "
    "float[12,4] wh, int64[4] h5, int64[4] h8, int64[3] whole, float root) => (float[N,5,4] y) { q = MatMul(x, wq) "
    "k = MatMul(xm, wk) v = MatMul(xm, wv) q1 = Reshape(q, h5) k1 = Reshape(k, h8) v1 = Reshape(v, h8) "
    "q2 = Transpose<perm = [0, 2, 1, 3]>(q1) k2 = Transpose<perm = [0, 2, 3, 1]>(k1) "
    "v2 = Transpose<perm = [0, 2, 1, 3]>(v1) s = MatMul(q2, k2) s1 = Mul(s, root) p = Softmax<axis = -1>(s1) "
    "a = MatMul(p, v2) a1 = Transpose<perm = [0, 2, 1, 3]>(a) a2 = Reshape(a1, whole) o = MatMul(a2, wo) "
    "r = Add(x, o) y = MatMul(r, wh) }"
)

# Decoders ---------------------------------------------------------------------------------------------------------
# C 16, four heads of 4 for queries, two for keys and values.

GQA_BODY = (
    "n0 = Mul(e, e) n1 = ReduceMean(n0, last) n2 = Add(n1, eps) n3 = Sqrt(n2) n4 = Div(e, n3) n = Mul(n4, gamma) "
    "q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv) q1 = Reshape(q, hq) k1 = Reshape(k, hk) "
    "v1 = Reshape(v, hk) q2 = Transpose<perm = [0, 2, 1, 3]>(q1) k2 = Transpose<perm = [0, 2, 1, 3]>(k1) "
    "v2 = Transpose<perm = [0, 2, 1, 3]>(v1) qa, qb = Split<axis = -1, num_outputs = 2>(q2) qn = Neg(qb) "
    "qr = Concat<axis = -1>(qn, qa) qc = Mul(q2, cos) qs = Mul(qr, sin) q3 = Add(qc, qs) ka, "
    "kb = Split<axis = -1, num_outputs = 2>(k2) kn = Neg(kb) kr = Concat<axis = -1>(kn, ka) kc = Mul(k2, cos) "
    "ks = Mul(kr, sin) k3 = Add(kc, ks) "
)
GQA_REST = (
    "k5 = Unsqueeze(k4, two) k6 = Expand(k5, ek) k7 = Reshape(k6, rk) v5 = Unsqueeze(v4, two) v6 = Expand(v5, ek) "
    "v7 = Reshape(v6, rk) k8 = Transpose<perm = [0, 1, 3, 2]>(k7) s = MatMul(q3, k8) s1 = Mul(s, root) "
    "s2 = Add(s1, causal) p = Softmax<axis = -1>(s2) a = MatMul(p, v7) a1 = Transpose<perm = [0, 2, 1, 3]>(a) "
    "a2 = Reshape(a1, whole) o = MatMul(a2, wo) r = Add(e, o) g = MatMul(r, wg) gs = Sigmoid(g) gg = Mul(g, gs) "
    "u = MatMul(r, wu) gu = Mul(gg, u) d = MatMul(gu, wd) f = Add(r, d) y = MatMul(f, wh) }"
)
GQA_WEIGHTS = (
    "float[16] gamma, float eps, float[16,16] wq, float[16,8] wk, float[16,8] wv, float[16,16] wo, "
    "float[16,20] wg, float[16,20] wu, float[20,16] wd, float[16,30] wh, int64[4] hq, int64[4] hk, "
    "float[1,1,5,4] cos, float[1,1,5,4] sin, int64[1] two, int64[5] ek, int64[4] rk, float root, int64[3] whole, "
    "int64[1] last"
)
GQA = (
    f"(int64[2,5] x, float[30,16] table, float[5,5] causal, {GQA_WEIGHTS}) => (float[2,5,30] y) {{ "
    f"e = Gather(table, x) "
    + GQA_BODY + "k4 = Identity(k3) v4 = Identity(v2) " + GQA_REST
)  # fmt: skip
KV_CACHE = (
    f"(int64[2,5] x, float[2,2,3,4] xk, float[2,2,3,4] xv, float[30,16] table, float[5,8] causal, {GQA_WEIGHTS}) => "
    "(float[2,5,30] y, float[2,2,8,4] k4, float[2,2,8,4] v4) { e = Gather(table, x) " + GQA_BODY
    + "k4 = Concat<axis = 2>(xk, k3) v4 = Concat<axis = 2>(xv, v2) " + GQA_REST
)  # fmt: skip
GPT = (
    "(int64[N,6] x, float[40,16] table, float[1,6,16] pos, float[16] gamma, float[16] beta, float[16,48] wq, "
    "float[48] bq, int64[4] heads, int64[3] whole, float root, float[6,6] causal, float[16,16] wo, float[16] bo, "
    "float[16,24] wf, float[24] bf, float[24,16] wg) => (float[N,6,40] y) { e0 = Gather(table, x) e = Add(e0, pos) "
    "n = LayerNormalization<axis = -1>(e, gamma, beta) a = MatMul(n, wq) b = Add(a, bq) q, k, "
    "v = Split<axis = -1, num_outputs = 3>(b) q1 = Reshape(q, heads) k1 = Reshape(k, heads) v1 = Reshape(v, heads) "
    "q2 = Transpose<perm = [0, 2, 1, 3]>(q1) k2 = Transpose<perm = [0, 2, 3, 1]>(k1) "
    "v2 = Transpose<perm = [0, 2, 1, 3]>(v1) s = MatMul(q2, k2) s1 = Mul(s, root) s2 = Add(s1, causal) "
    "p = Softmax<axis = -1>(s2) c = MatMul(p, v2) c1 = Transpose<perm = [0, 2, 1, 3]>(c) c2 = Reshape(c1, whole) "
    "o = MatMul(c2, wo) o1 = Add(o, bo) r = Add(e, o1) f = MatMul(r, wf) f1 = Add(f, bf) f2 = Gelu(f1) "
    "g = MatMul(f2, wg) t = Add(r, g) tt = Transpose<perm = [1, 0]>(table) y = MatMul(t, tt) }"
)

# Mixtures of experts ----------------------------------------------------------------------------------------------

MOE_TOPK = (
    "(float[3,10] x, float[10,12] w0, float[12,4] wr, float[4,12,14] we, float[4,1,14] be, float[4,14,12] wd, "
    "int64[1] k, float[3,4] none, int64[1] two, int64[1] zero, float[12,5] wh) => (float[3,5] y) { "
    "a0 = MatMul(x, w0) a = Relu(a0) r = MatMul(a, wr) top, places = TopK<axis = -1>(r, k) "
    "g = Softmax<axis = -1>(top) m = ScatterElements<axis = 1>(none, places, g) b = Unsqueeze(a, zero) "
    "c = MatMul(b, we) c1 = Add(c, be) d = Relu(c1) e = MatMul(d, wd) t = Transpose<perm = [1, 0]>(m) "
    "t1 = Unsqueeze(t, two) f = Mul(e, t1) h = ReduceSum<keepdims = 0>(f, zero) i = Add(a, h) y = MatMul(i, wh) }"
)
MOE_SWITCH = (
    "(float[4,10] x, float[10,12] w0, float[12,3] wr, float[3,12,9] we, float[3,9,12] wd, float[12,5] wh, "
    "int64[1] one) => (float[4,5] y) { a0 = MatMul(x, w0) a = Tanh(a0) r = MatMul(a, wr) p = Softmax<axis = -1>(r) "
    "best = ArgMax<axis = -1, keepdims = 0>(p) w1 = Gather<axis = 0>(we, best) w2 = Gather<axis = 0>(wd, best) "
    "b = Unsqueeze(a, one) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w2) f = Squeeze(e, one) "
    "m = ReduceMax(p, one) g = Mul(f, m) h = Add(a, g) y = MatMul(h, wh) }"
)
MOE_SOFT = (
    "(float[N,4,10] x, float[10,12] w0, float[12,3] wr, float[12,9] u0, float[9,12] d0, float[12,9] u1, "
    "float[9,12] d1, float[12,9] u2, float[9,12] d2, float[12,5] wh, int64[1] a0, int64[1] a1, int64[1] a2, "
    "int64[1] a3, int64[1] last) => (float[N,4,5] y) { a_ = MatMul(x, w0) a = Relu(a_) r = MatMul(a, wr) "
    "p = Softmax<axis = -1>(r) "
    + "".join(
        f"c{k} = MatMul(a, u{k}) e{k} = Relu(c{k}) f{k} = MatMul(e{k}, d{k}) "
        f"p{k} = Slice(p, a{k}, a{k + 1}, last) g{k} = Mul(f{k}, p{k}) "
        for k in range(3)
    )
    + "s = Sum(a, g0, g1, g2) y = MatMul(s, wh) }"
)

# Recurrent --------------------------------------------------------------------------------------------------------


def recurrent(op: str, gates: int, ways: int, more: str = "") -> str:
    """Embedding, one recurrent layer of 9 units in `ways` directions, a tag per token: x (5, N)."""
    width, attributes = 9 * ways, 'direction = "bidirectional", ' if ways == 2 else ""
    return (
        f"(int64[5,N] x, float[30,8] table, float[{ways},{gates * 9},8] w, float[{ways},{gates * 9},9] r, "
        f"float[{ways},{2 * gates * 9}] b, int64[3] s, float[{width},11] w1, float[11] b1, "
        f"float[11,4] wh) => (float[5,N,4] y) {{ "
        f"e = Gather(table, x) a = {op}<{attributes}hidden_size = 9{more}>(e, w, r, b) "
        "c = Transpose<perm = [0, 2, 1, 3]>(a) d = Reshape(c, s) f = MatMul(d, w1) g = Add(f, b1) h = Relu(g) "
        "y = MatMul(h, wh) }"
    )


STACKED = (
    "(float[6,N,7] x, float[1,24,7] w, float[1,24,8] r, float[1,48] b, float[1,40,8] w2, float[1,40,10] r2, "
    "float[1,80] b2, int64[1] one, int64[1] zero, float[10,6] w3, float[6,4] wh) => (float[N,4] y) { "
    "a = GRU<hidden_size = 8, linear_before_reset = 1>(x, w, r, b) c = Squeeze(a, one) d, l, "
    "m = LSTM<hidden_size = 10>(c, w2, r2, b2) f = Squeeze(l, zero) g = MatMul(f, w3) h = Tanh(g) "
    "y = MatMul(h, wh) }"
)
UNROLLED = (
    "(float[N,9] x, float[N,6] xh, float[N,6] xc, float[15,24] w, float[24] b, float[6,8] w1, "
    "float[8,4] wh) => (float[N,4] y) { j = Concat<axis = 1>(x, xh) a = MatMul(j, w) a1 = Add(a, b) i, f, g, "
    "o = Split<axis = 1, num_outputs = 4>(a1) i1 = Sigmoid(i) f1 = Sigmoid(f) g1 = Tanh(g) o1 = Sigmoid(o) "
    "c0 = Mul(f1, xc) c1 = Mul(i1, g1) c = Add(c0, c1) t = Tanh(c) h = Mul(o1, t) k = MatMul(h, w1) l = Relu(k) "
    "y = MatMul(l, wh) }"
)
CONV1D = (
    "(float[N,4,20] x, float[10,4,5] w0, float[10] b0, float[12,10,3] w1, float[12] b1, float[12,10,1] w2, "
    "float[6,12,1] wh, int64[1] s, int64[1] e, int64[1] a, int64[1] st) => (float[N,6,p] y) { a0 = Conv(x, w0, b0) "
    "a1 = Relu(a0) b0_ = Conv(a1, w1, b1) c0 = Conv(a1, w2) c1 = Slice(c0, s, e, a, st) d = Add(b0_, c1) "
    "f = Relu(d) y = Conv(f, wh) }"
)

# Bodies of control flow, and what inputs seldom reach ---------------------------------------------------------------

LOOP = (
    "(float[N,8] x, float[8,10] w0, int64 steps, bool on, float[10,14] w1, float[14] b1, float[14,10] w2, "
    "float[10,4] wh) => (float[N,4] y) { a = MatMul(x, w0) b = Loop(steps, on, a) <body = step (int64 i, bool c, "
    "float[N,10] h) => (bool c1, float[N,10] h1) { c1 = Identity(c) d = MatMul(h, w1) e = Add(d, b1) f = Relu(e) "
    "g = MatMul(f, w2) h1 = Tanh(g) }> y = MatMul(b, wh) }"
)
LOOP_DECIDES = (
    "(float[N,8] x, float[8,10] w0, int64 steps, bool on, float[10,14] w1, float[14,10] w2, float eighth, "
    "float[10,4] wh) => (float[N,4] y) { a = MatMul(x, w0) b = Loop(steps, on, a) <body = step (int64 i, bool c, "
    "float[N,10] h) => (bool c1, float[N,10] h1) { c1 = Identity(c) d = MatMul(h, w1) e = Div(d, eighth) "
    "f = Round(e) g = Relu(f) k = MatMul(g, w2) h1 = Tanh(k) }> y = MatMul(b, wh) }"
)
SCAN = (
    "(float[6,N,5] x, float[N,9] xh, float[5,12] w1, float[9,12] w2, float[12] b, float[12,9] w3, float[9,7] w4, "
    "float[7,4] wh) => (float[6,N,4] y) { last, all = Scan(xh, x) <num_scan_inputs = 1, body = step (float[N,9] h, "
    "float[N,5] e) => (float[N,9] h1, float[N,9] o) { a = MatMul(e, w1) c = MatMul(h, w2) d = Add(a, c) "
    "f = Add(d, b) g = Relu(f) k = MatMul(g, w3) h1 = Tanh(k) o = Identity(h1) }> m = MatMul(all, w4) n = Relu(m) "
    "y = MatMul(n, wh) }"
)
BRANCHES = (
    "(float[N,8] x, float zero, float[8,10] w0, float[10,12] w1, float[12,10] w2, float[10,14] w3, float[14,10] w4, "
    "float[10,4] wh) => (float[N,4] y) { s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) a = MatMul(x, w0) "
    "b = If(c) <then_branch = one () => (float[N,10] o) { d = MatMul(a, w1) e = Relu(d) o = MatMul(e, w2) }, "
    "else_branch = two () => (float[N,10] p) { f = MatMul(a, w3) g = Tanh(f) p = MatMul(g, w4) }> y = MatMul(b, wh) }"
)
POSITIONS = (
    "(float[N,T,12] x, float[1,64,12] table, int64[1] zero, int64[1] one, float[12,20] w1, float[20] b1, "
    "float[20,12] w2, float[12,4] wh) => (float[N,T,4] y) { s = Shape<start = 1, end = 2>(x) "
    "p = Slice(table, zero, s, one) a = Add(x, p) b = MatMul(a, w1) c = Add(b, b1) d = Gelu(c) e = MatMul(d, w2) "
    "f = Add(a, e) y = MatMul(f, wh) }"
)
RELU6 = (
    "(float[N,3,9,9] x, float[12,3,3,3] w0, float[12] b0, float zero, float six, float[14,12,3,3] w1, "
    "float[5,14] wh) => (float[N,5] y) { a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) b = Clip(a, zero, six) "
    "c = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1, pads = [1, 1, 1, 1]>(b) "
    "d = Conv<pads = [1, 1, 1, 1]>(c, w1) e = LeakyRelu<alpha = 0.1>(d) p = GlobalAveragePool(e) q = Flatten(p) "
    "y = Gemm<transB = 1>(q, wh) }"
)
BYTES = (
    "(uint8[N,3,8,8] x, float scale, float shift, float zero, float high, float[10,3,3,3] w0, float[10] b0, "
    "float[12,10,3,3] w1, float[5,12] wh) => (float[N,5] y) { a = Cast<to = 1>(x) b = Clip(a, zero, high) "
    "c = Mul(b, scale) d = Sub(c, shift) e = Conv<pads = [1, 1, 1, 1]>(d, w0, b0) f = Relu(e) "
    "g = Conv<pads = [1, 1, 1, 1]>(f, w1) h = HardSigmoid<alpha = 0.2>(g) p = GlobalAveragePool(h) q = Flatten(p) "
    "y = Gemm<transB = 1>(q, wh) }"
)

# What the probes of mutants reach and the inputs of the proof may not: positions, hashes, bounds, leaves.
ROTARY = (
    "(float[N,T,16] x, int64[N,T] xp, float[64,2] cosines, float[64,2] sines, float[16,16] q, float[16,24] w, "
    "float[24] b, float[24,5] wh) => (float[N,T,5] y) { a = MatMul(x, q) r = com.microsoft.RotaryEmbedding"
    "<num_heads = 4>(a, xp, cosines, sines) h = MatMul(r, w) h1 = Add(h, b) c = Relu(h1) y = MatMul(c, wh) }"
)
HASHED = (
    "(int64[N,4] x, int64 m, float[40,8] table, float[32,16] w, float[16] b, float[16,4] wh) => (float[N,4] y) { "
    "k = Mod(x, m) e = Gather(table, k) f = Flatten(e) h = MatMul(f, w) h1 = Add(h, b) c = Relu(h1) y = MatMul(c, wh) }"
)
SELDOM = (
    "(float[N,8] x, float[8,16] w, float[16] b, float low, float other, float[16,4] wh) => (float[N,4] y) { "
    "a = MatMul(x, w) a1 = Add(a, b) g = Greater(a1, low) c = Where(g, a1, other) y = MatMul(c, wh) }"
)
COUNTED = (
    "(float[N,8] x, int64 xc, int64 most, bool on, int64 last, float[8,16] w, float[16,8] v, float[8,6] w1, "
    "float[6,4] wh) => (float[N,4] y) { count = Min(xc, most) h0 = Loop(count, on, x) <body = step (int64 i, bool c, "
    "float[N,8] h) => (bool c2, float[N,8] h2) { c2 = Less(i, last) a = MatMul(h, w) r = Tanh(a) h2 = MatMul(r, v) }> "
    "k = MatMul(h0, w1) l = Relu(k) y = MatMul(l, wh) }"
)
OLD_SOFTMAX = (
    "(float[N,5,8] x, float[8,12] w, float[12] b, float[12,4] wh) => (float[N,5,4] y) { a = MatMul(x, w) "
    "a1 = Add(a, b) c = Relu(a1) d = MatMul(c, wh) y = Softmax(d) }"
)
TREE = {
    "n_targets": 1, "nodes_treeids": [0] * 5, "nodes_nodeids": [0, 1, 2, 3, 4], "nodes_featureids": [0, 1, 0, 0, 0],
    "nodes_values": [-3.0, 2.5, 0.0, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 3, 0, 0, 0], "nodes_falsenodeids": [2, 4, 0, 0, 0], "target_treeids": [0, 0, 0],
    "target_nodeids": [2, 3, 4], "target_ids": [0, 0, 0], "target_weights": [3.0, 5.0, -1.0],
}  # fmt: skip


def tree() -> onnx.ModelProto:
    """A tree beside a network, of which most inputs reach one leaf."""
    model = written(SELDOM, {"low": -4, "other": 1})
    model.graph.node.append(
        helper.make_node("TreeEnsembleRegressor", ["x"], ["z"], "tree", domain="ai.onnx.ml", **TREE)
    )
    model.graph.output.append(helper.make_tensor_value_info("z", 1, ["N", 1]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


GQA_CONSTANTS = {
    "eps": 1e-5, "hq": [2, 5, 4, 4], "hk": [2, 5, 2, 4], "two": [2], "ek": [2, 2, 2, 5, 4], "rk": [2, 4, 5, 4],
    "root": 0.5, "whole": [2, 5, 16], "last": [-1], "causal": np.triu(np.full((5, 5), -1e9), 1),
}  # fmt: skip
CACHE_CONSTANTS = {
    **GQA_CONSTANTS, "ek": [2, 2, 2, 8, 4], "rk": [2, 4, 8, 4], "causal": np.triu(np.full((5, 8), -1e9), 4)
}  # fmt: skip
# name -> (kind, text, constants, opset, what integers are below)
TEXTS: Mapping[str, tuple[str, str, Constants, int, Mapping[str, int]]] = {
    "resnet": ("classifier", RESNET, {}, 18, {}),
    "mobile": ("classifier", MOBILE, {}, 18, {}),
    "shuffle": ("classifier", SHUFFLE, {"s": [2, 3, 4, 6, 6], "t": [2, 12, 6, 6]}, 18, {}),
    "dense": ("classifier", DENSE, {}, 18, {}),
    "vgg": ("classifier", VGG, {}, 18, {}),
    "convnext": ("classifier", CONVNEXT, {}, 20, {}),
    "groupnorm": (
        "classifier", GROUPNORM,
        {"s": [2, 3, -1], "t": [2, 12, 6, 6], "k1": [1, 2], "ones": [1, 1, 1], "zeros": [0, 0, 0]}, 18, {},
    ),
    "inception": ("classifier", INCEPTION, {"axes": [2, 3]}, 18, {}),
    "split": ("classifier", SPLIT, {"parts": [4, 4, 8]}, 18, {}),
    "ends_in_argmax": ("classifier", DECIDES, {}, 18, {}),
    "joined": ("detector", JOINED, {"s4": [0, 4, 16], "s6": [0, 6, 16], "size": 640}, 18, {}),
    "yolo": ("detector", YOLO, {"s": [0, 2, 8, 4, 4], "parts": [2, 2, 4], "size": 16, "t": [0, -1, 8]}, 18, {}),
    "topk_boxes": (
        "detector", TOPK,
        {"s4": [2, 4, 16], "s3": [2, 48], "most": [5], "sixteen": [16], "last": [2], "four": [1, 1, 4]}, 18, {},
    ),
    "two_stage": ("detector", TWO_STAGE, {"index": [0, 1, 0, 1, 0, 1]}, 18, {}),
    "transposed": ("segmentation", TRANSPOSED, {}, 18, {}),
    "aspp": ("segmentation", ASPP, {"s": [1, 6, 10, 10]}, 18, {}),
    "fpn": ("segmentation", FPN, {"twice": [1, 1, 2, 2]}, 18, {}),
    "super_resolution_text": ("image", SUPER, {}, 18, {}),
    "autoencoder": ("image", AUTOENCODER, {"s": [0, 12, 4, 4]}, 18, {}),
    "fused_qkv": (
        "encoder", FUSED_QKV,
        {"s": [0, 7, 3, 3, 4], "t": [0, 7, 12], "ax": [1], "root": 0.5, "zero": 0, "one": 1, "two": 2}, 20, {},
    ),
    "decomposed": (
        "encoder", DECOMPOSED, {"two": 2, "eps": 1e-5, "half": 0.5, "one": 1, "root": 1.41421356, "last": [-1]}, 18, {}
    ),
    "vit": (
        "encoder", VIT, {"s": [2, 12, 4], "heads": [2, 5, 3, 4], "whole": [2, 5, 12], "root": 0.5, "zero": 0}, 18, {}
    ),
    "contrib": ("encoder", CONTRIB, {}, 18, {"x": 40}),
    "multi_head": ("encoder", MHA, {}, 18, {}),
    "cross": (
        "encoder", CROSS, {"h5": [0, 5, 4, 4], "h8": [0, 8, 4, 4], "whole": [0, 5, 16], "root": 0.5}, 18, {}
    ),
    "gqa": ("decoder", GQA, GQA_CONSTANTS, 18, {"x": 30}),
    "kv_cache": ("decoder", KV_CACHE, CACHE_CONSTANTS, 18, {"x": 30}),
    "gpt": (
        "decoder", GPT,
        {"heads": [0, 6, 4, 4], "whole": [0, 6, 16], "root": 0.5, "causal": np.triu(np.full((6, 6), -1e9), 1)}, 20,
        {"x": 40},
    ),
    "moe_topk": ("mixture", MOE_TOPK, {"k": [2], "none": np.zeros((3, 4)), "two": [2], "zero": [0]}, 18, {}),
    "moe_switch": ("mixture", MOE_SWITCH, {"one": [1]}, 18, {}),
    "moe_soft": ("mixture", MOE_SOFT, {"a0": [0], "a1": [1], "a2": [2], "a3": [3], "last": [2]}, 18, {}),
    "lstm": ("recurrent", recurrent("LSTM", 4, 1), {"s": [5, -1, 9]}, 18, {"x": 30}),
    "bilstm": ("recurrent", recurrent("LSTM", 4, 2), {"s": [5, -1, 18]}, 18, {"x": 30}),
    "gru": ("recurrent", recurrent("GRU", 3, 1), {"s": [5, -1, 9]}, 18, {"x": 30}),
    "bigru": ("recurrent", recurrent("GRU", 3, 2, ", linear_before_reset = 1"), {"s": [5, -1, 18]}, 18, {"x": 30}),
    "rnn": ("recurrent", recurrent("RNN", 1, 1), {"s": [5, -1, 9]}, 18, {"x": 30}),
    "stacked": ("recurrent", STACKED, {"one": [1], "zero": [0]}, 18, {}),
    "unrolled": ("recurrent", UNROLLED, {}, 18, {}),
    "loop": ("body", LOOP, {"steps": 3, "on": True}, 18, {}),
    "loop_decides": ("body", LOOP_DECIDES, {"steps": 2, "on": True, "eighth": 0.125}, 18, {}),
    "scan": ("body", SCAN, {}, 18, {}),
    "branches": ("body", BRANCHES, {"zero": 0}, 18, {}),
    "positions": ("encoder", POSITIONS, {"zero": [0], "one": [1]}, 20, {}),
    "relu6": ("classifier", RELU6, {"zero": 0, "six": 1.5}, 19, {}),
    "bytes": ("classifier", BYTES, {"scale": 1 / 64, "shift": 2, "zero": 0, "high": 200}, 18, {"x": 256}),
    "rotary": (
        "encoder", ROTARY,
        {"cosines": np.cos(np.outer(np.arange(64), (1, 0.1))), "sines": np.sin(np.outer(np.arange(64), (1, 0.1)))}, 18,
        {"xp": 64},
    ),
    "hashed": ("encoder", HASHED, {"m": 40}, 18, {"x": 1000}),
    "seldom": ("classifier", SELDOM, {"low": -4, "other": 1}, 18, {}),
    "counted": ("body", COUNTED, {"most": 40, "on": True, "last": 30}, 18, {"xc": 60}),
    "old_softmax": ("classifier", OLD_SOFTMAX, {}, 13, {}),
    "conv1d": ("signal", CONV1D, {"s": [1], "e": [-1], "a": [2], "st": [1]}, 18, {}),
}  # fmt: skip
TESTED = {"cnn": "classifier", "mlp": "classifier", "concat": "image"}
TASK_KINDS = {"detector": "detector", "segmentation": "segmentation", "audio": "recurrent", "text": "encoder"}
QUANTIZED = ("resnet", "mobile", "dense", "vgg", "inception", "joined", "transposed", "convnext", "split")
DYNAMIC = ("vgg", "gpt", "fused_qkv", "cross", "lstm", "bilstm", "moe_soft", "decomposed")
HALVES = ("resnet", "mobile", "fused_qkv", "gpt", "unet", "joined", "shuffle")


def _written() -> dict[str, Net]:
    found = {
        name: Net(name, kind, partial(written, text, constants, opset), below)
        for name, (kind, text, constants, opset, below) in TEXTS.items()
    }
    found |= {name: Net(name, kind, partial(filled, NETWORKS[name])) for name, kind in TESTED.items()}
    found["tree"] = Net("tree", "classifier", tree)
    names = {"detector": "nms", "segmentation": "unet"}
    return found | {
        names.get(task, task): Net(names.get(task, task), kind, partial(filled, TASKS[task].text), {"ids": 50})
        for task, kind in TASK_KINDS.items()
    }


# Quantized and in half precision ------------------------------------------------------------------------------------


class Calibration:
    """A few sets of inputs, as onnxruntime's calibration reads them."""

    def __init__(self, model: onnx.ModelProto, below: Mapping[str, int]) -> None:
        self.left = [inputs(model, below, np.random.default_rng(seed)) for seed in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def inputs(model: onnx.ModelProto, below: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random inputs of the sizes that are written, 2 where these are open."""
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or 2 for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        drawn = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, below.get(value.name, 2), shape)
        feeds[value.name] = np.asarray(drawn).astype(dtype)
    return feeds


def quantized(net: Net, form: str) -> onnx.ModelProto:
    """`net` as onnxruntime's quantizer makes it: qdq, qoperator or dynamic."""
    import logging

    from onnxruntime import quantization as q

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        source, path, model = Path(folder, "in.onnx"), Path(folder, "out.onnx"), net.build()
        onnx.save(model, source)
        if form == "dynamic":
            q.quantize_dynamic(source, path, weight_type=q.QuantType.QInt8)
        else:
            kind = q.QuantFormat.QDQ if form == "qdq" else q.QuantFormat.QOperator
            reader = Calibration(model, net.below)
            q.quantize_static(source, path, reader, quant_format=kind, per_channel=form == "qdq")  # type: ignore[arg-type]
        return onnx.load(path)


def halved(net: Net) -> onnx.ModelProto:
    """`net` with half precision inside."""
    from onnxruntime.transformers import float16

    return float16.convert_float_to_float16(net.build(), keep_io_types=True)


def _derived(plain: Mapping[str, Net]) -> dict[str, Net]:
    found = []
    for name in QUANTIZED:
        found += [
            replace(plain[name], name=f"{name}.{form}", kind=form, build=partial(quantized, plain[name], form))
            for form in ("qdq", "qoperator")
        ]
    found += [
        replace(
            plain[name], name=f"{name}.dynamic", kind="dynamic int8", build=partial(quantized, plain[name], "dynamic")
        )
        for name in DYNAMIC
    ]
    found += [
        replace(plain[name], name=f"{name}.fp16", kind="fp16", build=partial(halved, plain[name])) for name in HALVES
    ]
    return {net.name: net for net in found}


# Exported -----------------------------------------------------------------------------------------------------------


def exported(name: str) -> onnx.ModelProto:
    """A network of tools/zoo/families_handmade.py as torch's TorchScript-based exporter writes it."""
    import io
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    family = _families()[name]
    buffer, feeds = io.BytesIO(), family.feeds()
    network = family.random()
    with torch.no_grad():
        names = [f"out{k}" for k in range(len(network(*feeds)))]
        torch.onnx.export(
            network, feeds, buffer, input_names=family.input_names, output_names=names, opset_version=17, dynamo=False,
            dynamic_axes={n: x.axes for n, x in zip(family.input_names, family.inputs.values(), strict=True)},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


@cache
def _families() -> dict:
    from families_handmade import families

    return {family.name: family for family in families()}


FAMILY_KINDS = {
    "classifier": "tabular siamese crnn actor_critic pointnet nerf kan mixer two_tower recommender",
    "graph": "graph_conv graph_attention",
    "segmentation": "attention_unet unet3d",
    "encoder": "tab_transformer ft_transformer conformer informer",
    "mixture": "experts",
    "recurrent": "crf_tagger seq2seq conv_lstm tacotron lstm_cells",
    "image": "super_resolution vae style_transfer",
    "signal": "tcn wavenet conv_tasnet text_cnn nbeats",
}  # fmt: skip
FAMILY_WORDS = {"kinds": 11, "tokens": 97, "targets": 97}


def _exports() -> dict[str, Net]:
    return {
        f"torch.{name}": Net(f"torch.{name}", kind, partial(exported, name), FAMILY_WORDS)
        for kind, names in FAMILY_KINDS.items()
        for name in names.split()
    }


def networks(torch: bool = True) -> dict[str, Net]:
    """All networks by name; without `torch` those alone that need no exporter."""
    plain = _written()
    return {**plain, **_derived(plain), **(_exports() if torch else {})}


def main(folder: str, *names: str) -> int:
    """Writes networks into a folder, all of them where no name is given."""
    found = networks()
    for name in names or found:
        onnx.save(found[name].build(), Path(folder, f"{name}.onnx"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
