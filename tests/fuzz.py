"""Random networks for hypothesis: directed graphs of everyday operators, with random weights and shapes that fit."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Draw = Callable


@dataclass
class Network:
    """A graph under construction; images are (N, C, H, W) with N symbolic where `dynamic`."""

    draw: Draw
    dynamic: bool
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    images: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """The name of the first output; others end in .1, .2."""
        name = f"{op_type}_{len(self.nodes)}"
        names = [name, *(f"{name}.{k}" for k in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=f"n_{name}", **attributes))
        return name

    def weight(self, *shape: int, positive: bool = False) -> str:
        array = self.rng.normal(size=shape, scale=0.6).astype(np.float32)
        return self.constant(np.abs(array) + 0.5 if positive else array)

    def constant(self, array: np.ndarray | list[int] | int) -> str:
        name = f"w{len(self.weights)}"
        data = np.asarray(array, np.int64) if not isinstance(array, np.ndarray) else array
        self.weights.append(numpy_helper.from_array(data, name))
        return name

    def choose(self, *options: object):
        return self.draw(st.sampled_from(options))

    def reshape(self, x: str, *sizes: int) -> str:
        """`x` reshaped to (N, *sizes), with N written as 0, as a number, or computed from the shape of x."""
        way = self.choose("zero", "computed", "fixed") if not self.dynamic else self.choose("zero", "computed")
        if way == "computed":
            batch = self.node("Gather", self.node("Shape", x), self.constant([0]))
            return self.node("Reshape", x, self.node("Concat", batch, self.constant(list(sizes)), axis=0))
        return self.node("Reshape", x, self.constant([2 if way == "fixed" else 0, *sizes]))

    def conv(self, x: str, channels: int, out: int, kernel: int = 1, group: int = 1, stride: int = 1) -> str:
        w = self.weight(out, channels // group, kernel, kernel)
        inputs = [x, w, *([self.weight(out)] if self.choose(True, False) else [])]
        pad = kernel // 2
        return self.node("Conv", *inputs, group=group, pads=[pad] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2)

    def pick(self) -> tuple[str, tuple[int, int, int]]:
        return self.images[self.draw(st.integers(max(0, len(self.images) - 3), len(self.images) - 1))]

    def push(self, name: str, *shape: int) -> None:
        self.images.append((name, tuple(shape)))  # type: ignore[arg-type]

    def alike(self, shape: tuple[int, int, int]) -> str:
        """Another image of this shape: an earlier one, or a convolution of one of that size."""
        same = [name for name, other in self.images if other == shape]
        if self.choose(True, False):
            return same[self.draw(st.integers(0, len(same) - 1))]
        fits = [(name, other) for name, other in self.images if other[1:] == shape[1:]]
        name, other = fits[self.draw(st.integers(0, len(fits) - 1))]
        return self.conv(name, other[0], shape[0])


Step = Callable[[Network, str, int, int, int], None]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


@step
def conv(net: Network, x: str, c: int, h: int, w: int) -> None:
    out, stride = net.choose(4, 6, 8, 12), net.choose(1, 1, 2) if h > 2 else 1
    net.push(net.conv(x, c, out, net.choose(1, 3), stride=stride), out, -(-h // stride), -(-w // stride))


@step
def grouped(net: Network, x: str, c: int, h: int, w: int) -> None:
    group = net.choose(*[g for g in (2, 3, 4, c) if c % g == 0] or [1])
    out = group * net.choose(1, 2, 3)
    net.push(net.conv(x, c, out, 3, group), out, h, w)


@step
def batch_norm(net: Network, x: str, c: int, h: int, w: int) -> None:
    parameters = [net.weight(c), net.weight(c), net.weight(c), net.weight(c, positive=True)]
    net.push(net.node("BatchNormalization", x, *parameters), c, h, w)


@step
def activation(net: Network, x: str, c: int, h: int, w: int) -> None:
    op = net.choose("Relu", "Sigmoid", "Tanh", "Exp", "HardSwish", "Softplus", "Abs", "Erf", "Neg", "LeakyRelu", "Cos")
    x = net.node("Tanh", x) if op == "Exp" else x
    net.push(net.node(op, x), c, h, w)


@step
def prelu(net: Network, x: str, c: int, h: int, w: int) -> None:
    net.push(net.node("PRelu", x, net.weight(c, 1, 1)), c, h, w)


@step
def binary(net: Network, x: str, c: int, h: int, w: int) -> None:
    net.push(net.node(net.choose("Add", "Mul", "Sub", "Max"), x, net.alike((c, h, w))), c, h, w)


@step
def divide(net: Network, x: str, c: int, h: int, w: int) -> None:
    safe = net.node("Exp", net.node("Tanh", net.alike((c, h, w))))
    net.push(net.node("Div", x, safe), c, h, w)


@step
def concat(net: Network, x: str, c: int, h: int, w: int) -> None:
    fits = [(name, shape) for name, shape in net.images if shape[1:] == (h, w) and shape[0] + c <= 32]
    if fits:
        name, shape = fits[net.draw(st.integers(0, len(fits) - 1))]
        net.push(net.node("Concat", x, name, axis=1), c + shape[0], h, w)


@step
def split(net: Network, x: str, c: int, h: int, w: int) -> None:
    first = net.draw(st.integers(1, c - 1)) if c > 1 else 0
    if first:
        name = net.node("Split", x, net.constant([first, c - first]), outputs=2, axis=1)
        if net.choose(True, False):
            net.push(net.node("Concat", f"{name}.1", name, axis=1), c, h, w)
        else:
            net.push(name, first, h, w)
            net.push(f"{name}.1", c - first, h, w)


@step
def slice_channels(net: Network, x: str, c: int, h: int, w: int) -> None:
    start, stop = sorted((net.draw(st.integers(0, c - 1)), net.draw(st.integers(0, c - 1))))
    arguments = [net.constant([k]) for k in (start, stop + 1, 1)]
    net.push(net.node("Slice", x, *arguments), stop + 1 - start, h, w)


@step
def strided_slices(net: Network, x: str, c: int, h: int, w: int) -> None:
    if c % 2 == 0:
        parts = [net.node("Slice", x, *[net.constant([k]) for k in (start, c, 1, 2)]) for start in (0, 1)]
        net.push(net.node("Concat", net.node("Neg", parts[1]), parts[0], axis=1), c, h, w)


@step
def shuffle(net: Network, x: str, c: int, h: int, w: int) -> None:
    group = net.choose(*[g for g in (2, 3, 4) if c % g == 0] or [1])
    split_ = net.reshape(x, group, c // group, h, w)
    net.push(net.reshape(net.node("Transpose", split_, perm=[0, 2, 1, 3, 4]), c, h, w), c, h, w)


@step
def gather(net: Network, x: str, c: int, h: int, w: int) -> None:
    kind = net.choose("range", "shuffle", "repeat", "any")
    if kind == "shuffle" and c % 2 == 0:
        indices = np.arange(c).reshape(2, -1).T.ravel()
    elif kind == "repeat" and c <= 12:
        indices = np.repeat(np.arange(c), 2)
    elif kind == "any":
        indices = net.rng.permutation(c)
    else:
        indices = np.arange(c // 2, c)
    net.push(net.node("Gather", x, net.constant(indices), axis=1), len(indices), h, w)


@step
def pad_channels(net: Network, x: str, c: int, h: int, w: int) -> None:
    before, after = net.draw(st.integers(0, 2)), net.draw(st.integers(0, 2))
    net.push(net.node("Pad", x, net.constant([0, before, 0, 0, 0, after, 0, 0])), c + before + after, h, w)


@step
def pool(net: Network, x: str, c: int, h: int, w: int) -> None:
    op = net.choose("MaxPool", "AveragePool")
    net.push(net.node(op, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c, h, w)


@step
def gate(net: Network, x: str, c: int, h: int, w: int) -> None:
    pooled = net.choose(net.node("GlobalAveragePool", x), net.node("ReduceMean", x, net.constant([2, 3])))
    hidden = net.node("Relu", net.conv(pooled, c, 3))
    net.push(net.node("Mul", x, net.node("Sigmoid", net.conv(hidden, 3, c))), c, h, w)


@step
def channel_attention(net: Network, x: str, c: int, h: int, w: int) -> None:
    row = net.reshape(net.node("GlobalAveragePool", x), 1, c)
    scores = net.node("Sigmoid", net.node("Conv", row, net.weight(1, 1, 3), pads=[1, 1], kernel_shape=[3]))
    net.push(net.node("Mul", x, net.reshape(scores, c, 1, 1)), c, h, w)


@step
def spatial_gate(net: Network, x: str, c: int, h: int, w: int) -> None:
    mean = net.node(net.choose("ReduceMean", "ReduceMax", "ReduceSum"), x, net.constant([1]))
    net.push(net.node("Mul", x, net.node("Sigmoid", mean)), c, h, w)


@step
def group_norm(net: Network, x: str, c: int, h: int, w: int) -> None:
    groups = net.choose(*[g for g in (1, 2, 4) if c % g == 0])
    flat = net.reshape(x, groups, c // groups * h * w)
    normal = net.node("InstanceNormalization", flat, net.weight(groups), net.weight(groups))
    net.push(net.node("Mul", net.reshape(normal, c, h, w), net.weight(c, 1, 1)), c, h, w)


@step
def layer_norm(net: Network, x: str, c: int, h: int, w: int) -> None:
    last = net.node("Transpose", x, perm=[0, 2, 3, 1])
    normal = net.node("LayerNormalization", last, net.weight(c), net.weight(c), axis=-1)
    hidden = net.node("MatMul", normal, net.weight(c, 6))
    shrunk = net.node("MatMul", net.node("Relu", hidden), net.weight(6, c))
    net.push(net.node("Transpose", shrunk, perm=[0, 3, 1, 2]), c, h, w)


@step
def unit_length(net: Network, x: str, c: int, h: int, w: int) -> None:
    norm = net.node("ReduceL2", x, net.constant([1]))
    net.push(net.node("Div", x, net.node("Exp", net.node("Tanh", norm))), c, h, w)


@step
def attention(net: Network, x: str, c: int, h: int, w: int) -> None:
    heads, width = net.choose(1, 2, 3), net.choose(2, 4)
    tokens = net.node("Transpose", net.reshape(x, c, h * w), perm=[0, 2, 1])
    stacked = net.node("MatMul", tokens, net.weight(c, 3 * heads * width))
    stacked = net.node("Add", stacked, net.weight(3 * heads * width))
    parts = net.node("Transpose", net.reshape(stacked, h * w, 3, heads, width), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.node("Gather", parts, net.constant(np.int64(i).reshape(())), axis=0) for i in range(3))
    scores = net.node("Softmax", net.node("MatMul", q, net.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = net.node("Transpose", net.node("MatMul", scores, v), perm=[0, 2, 1, 3])
    out = net.node("MatMul", net.reshape(mixed, h * w, heads * width), net.weight(heads * width, c))
    net.push(net.reshape(net.node("Transpose", out, perm=[0, 2, 1]), c, h, w), c, h, w)


@step
def depth_to_space(net: Network, x: str, c: int, h: int, w: int) -> None:
    if c % 4 == 0 and h < 8:
        name = net.node("DepthToSpace", x, blocksize=2, mode=net.choose("DCR", "CRD"))
        net.push(name, c // 4, 2 * h, 2 * w)


@step
def focus(net: Network, x: str, c: int, h: int, w: int) -> None:
    if h % 2 == 0 and w % 2 == 0 and c <= 8:
        net.push(net.node("SpaceToDepth", x, blocksize=2), 4 * c, h // 2, w // 2)


@step
def transposed_conv(net: Network, x: str, c: int, h: int, w: int) -> None:
    group = net.choose(*[g for g in (1, 2) if c % g == 0])
    out = net.choose(2, 3)
    net.push(net.node("ConvTranspose", x, net.weight(c, out, 1, 1), group=group), out * group, h, w)


@step
def local_response(net: Network, x: str, c: int, h: int, w: int) -> None:
    net.push(net.node("LRN", x, size=3, alpha=0.1), c, h, w)


@step
def expand(net: Network, x: str, c: int, h: int, w: int) -> None:
    five = net.reshape(x, c, 1, h, w)
    size = [1, 1, 2, 1, 1]
    net.push(net.reshape(net.node("Expand", five, net.constant(size)), 2 * c, h, w), 2 * c, h, w) if c <= 8 else None


@step
def where(net: Network, x: str, c: int, h: int, w: int) -> None:
    y = net.alike((c, h, w))
    net.push(net.node("Where", net.node("Greater", x, y), x, y), c, h, w)


@st.composite
def models(draw: Draw, steps: int = 8) -> ir.Model:
    """A random network of up to `steps` steps, with one or two outputs."""
    net = Network(draw, draw(st.booleans()), np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    net.push("x", 3, 4, 4)
    net.push(net.conv("x", 3, 8), 8, 4, 4)
    for name in draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=steps)):
        image, shape = net.pick()
        STEPS[name](net, image, *shape)
    last, (c, *_) = net.images[-1]
    outputs = [net.conv(last, c, 3)]
    if draw(st.booleans()):
        other, (oc, oh, ow) = net.pick()
        outputs.append(net.node("Gemm", net.reshape(other, oc * oh * ow), net.weight(4, oc * oh * ow), transB=1))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n" if net.dynamic else 2, 3, 4, 4])
    graph = helper.make_graph(
        net.nodes,
        "g",
        [value],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        net.weights,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
