"""Small networks of four tasks as ONNX text, with unlabelled samples for each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from networks import filled

DETECTOR = """<ir_version: 8, opset_import: ["" : 17]>
detector (float[N, 3, 32, 32] image) => (float[K, 4] boxes, int64[K, 3] selected)
<float[16, 3, 3, 3] w1, float[16] b1, float[24, 16, 3, 3] w2, float[24] b2, float[24, 24, 3, 3] w3, float[24] b3,
 float[4, 24, 1, 1] wb, float[4] bb, float[2, 24, 1, 1] ws, float[2] bs,
 float[1, 64, 4] grid = {GRID}, int64[3] box_shape = {0, 4, 64}, int64[3] score_shape = {0, 2, 64},
 int64[1] most = {8}, float[1] iou = {0.5}, float[1] least = {0.5}, float half = {8.0}, int64[2] columns = {0, 2}>
{
  [stem] a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w1, b1)
  [stem_relu] a1 = Relu (a)
  [down] b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (a1, w2, b2)
  [down_relu] b1_ = Relu (b)
  [neck] c = Conv <pads = [1, 1, 1, 1]> (b1_, w3, b3)
  [neck_relu] c1 = Relu (c)
  [box_head] d = Conv (c1, wb, bb)
  [score_head] e = Conv (c1, ws, bs)
  d1 = Reshape (d, box_shape)
  d2 = Transpose <perm = [0, 2, 1]> (d1)
  d3 = Tanh (d2)
  d4 = Mul (d3, half)
  all_boxes = Add (d4, grid)
  e1 = Reshape (e, score_shape)
  scores = Sigmoid (e1)
  selected = NonMaxSuppression (all_boxes, scores, most, iou, least)
  places = Gather <axis = 1> (selected, columns)
  boxes = GatherND (all_boxes, places)
}
"""
SEGMENTATION = """<ir_version: 8, opset_import: ["" : 17]>
unet (float[N, 3, H, W] image) => (float[N, 4, H, W] mask)
<float[16, 3, 3, 3] w1, float[16] b1, float[24, 16, 3, 3] w2, float[24] b2, float[32, 24, 3, 3] w3, float[32] b3,
 float[24, 56, 3, 3] w4, float[24] b4, float[16, 40, 3, 3] w5, float[16] b5, float[4, 16, 1, 1] w6, float[4] b6,
 float[4] twice = {1, 1, 2, 2}>
{
  [down1] a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
  a1 = Relu (a)
  a2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a1)
  [down2] b = Conv <pads = [1, 1, 1, 1]> (a2, w2, b2)
  b1_ = Relu (b)
  b2_ = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b1_)
  [bottom] c = Conv <pads = [1, 1, 1, 1]> (b2_, w3, b3)
  c1 = Relu (c)
  c2 = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (c1, , twice)
  c3 = Concat <axis = 1> (c2, b1_)
  [up2] d = Conv <pads = [1, 1, 1, 1]> (c3, w4, b4)
  d1 = Relu (d)
  d2 = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (d1, , twice)
  d3 = Concat <axis = 1> (d2, a1)
  [up1] e = Conv <pads = [1, 1, 1, 1]> (d3, w5, b5)
  e1 = Relu (e)
  [head] mask = Conv (e1, w6, b6)
}
"""
AUDIO = """<ir_version: 8, opset_import: ["" : 17]>
audio (float[N, 1, 256] wave) => (float[N, 1] speech)
<float[24, 1, 16] w1, float[24] b1, float[24, 24, 5] w2, float[24] b2, float[1, 96, 24] w, float[1, 96, 24] r,
 float[1, 192] b, float[24, 16] w3, float[16] b3, float[16, 1] w4, float[1] b4, int64[1] direction = {0}>
{
  [frames] a = Conv <strides = [8], pads = [4, 4]> (wave, w1, b1)
  a1 = Relu (a)
  [context] c = Conv <strides = [2], pads = [2, 2]> (a1, w2, b2)
  c1 = Relu (c)
  steps = Transpose <perm = [2, 0, 1]> (c1)
  [memory] all_states, last, cell = LSTM <hidden_size = 24> (steps, w, r, b)
  state = Squeeze (last, direction)
  [dense] d = Gemm (state, w3, b3)
  d1 = Relu (d)
  [head] speech = Gemm (d1, w4, b4)
}
"""
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[N, 12] ids, int64[N, 12] attention_mask) => (float[N, 32] embedding)
<float[50, 32] words, float[1, 12, 32] places, float[32, 32] wq, float[32, 32] wk, float[32, 32] wv, float[32, 32] wo,
 float[32] g1 = {ONES}, float[32] n1, float[32, 64] wf, float[64] bf, float[64, 32] wg, float[32] bg,
 float[32] g2 = {ONES}, float[32] n2, int64[4] heads = {0, 12, 4, 8}, int64[3] whole = {0, 12, 32},
 float root = {0.3535534}, int64[2] new_axes = {1, 2}, float far = {-10000.0}, float one = {1.0}>
{
  x0 = Gather (words, ids)
  x = Add (x0, places)
  m = Cast <to = 1> (attention_mask)
  m1 = Unsqueeze (m, new_axes)
  m2 = Sub (one, m1)
  bias = Mul (m2, far)
  [query] q = MatMul (x, wq)
  q1 = Reshape (q, heads)
  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
  [key] k = MatMul (x, wk)
  k1 = Reshape (k, heads)
  k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
  [value] v = MatMul (x, wv)
  v1 = Reshape (v, heads)
  v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
  s = MatMul (q2, k2)
  s1 = Mul (s, root)
  s2 = Add (s1, bias)
  p = Softmax <axis = -1> (s2)
  o = MatMul (p, v2)
  o1 = Transpose <perm = [0, 2, 1, 3]> (o)
  o2 = Reshape (o1, whole)
  [mix] o3 = MatMul (o2, wo)
  x1 = Add (x, o3)
  x2 = LayerNormalization (x1, g1, n1)
  [wide] f = MatMul (x2, wf)
  f1 = Add (f, bf)
  f2 = Relu (f1)
  [narrow] h = MatMul (f2, wg)
  h1 = Add (h, bg)
  x3 = Add (x2, h1)
  x4 = LayerNormalization (x3, g2, n2)
  embedding = ReduceMean <axes = [1], keepdims = 0> (x4)
}
"""


class Task(NamedTuple):
    """A network and what it is fed, by name; `words` are further options."""

    text: str
    samples: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    metric: str
    words: tuple[str, ...] = ()


def images(size: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Blurred noise: neighboring pixels are alike, as in photographs."""

    def made(rng: np.random.Generator, count: int) -> np.ndarray:
        x = rng.normal(size=(count, 3, size, size))
        for axis in (2, 3):
            x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
        return (x / x.std()).astype(np.float32)

    return made


def waves(rng: np.random.Generator, count: int) -> np.ndarray:
    time = np.arange(256) / 256
    tones = rng.uniform(4, 60, (count, 1, 3, 1)), rng.uniform(0, 6.3, (count, 1, 3, 1))
    return np.sin(2 * np.pi * tones[0] * time + tones[1]).sum(2).astype(np.float32)


def tokens(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    lengths = rng.integers(4, 13, (count, 1))
    mask = (np.arange(12) < lengths).astype(np.int64)
    return {"ids": rng.integers(1, 50, (count, 12)) * mask, "attention_mask": mask}


GRID = ", ".join(f"{y * 4}, {x * 4}, {y * 4 + 8}, {x * 4 + 8}" for y in range(8) for x in range(8))
TASKS = {
    "detector": Task(DETECTOR.replace("GRID", GRID), lambda r, n: {"image": images(32)(r, n)}, "found"),
    "segmentation": Task(SEGMENTATION, lambda r, n: {"image": images(16)(r, n)}, "relative_error"),
    "audio": Task(AUDIO, lambda r, n: {"wave": waves(r, n)}, "relative_error"),
    "text": Task(TEXT.replace("ONES", ", ".join("1" * 32)), tokens, "relative_error"),
}


def network(name: str) -> onnx.ModelProto:
    return filled(TASKS[name].text)
