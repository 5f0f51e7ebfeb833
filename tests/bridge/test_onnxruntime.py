"""Old signatures, fused operators and shapes that change, against onnxruntime."""

import numpy as np
import pytest
import torch
from bridge_models import assert_same, compare, node_model, parse, random, run_bridge, run_onnxruntime
from torch.utils._python_dispatch import TorchDispatchMode

from onnxprune.bridge import Network

X = random(2, 3, 8, 9)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# op, opset, inputs, attributes: the first input is fed, the others are constants.
OLD = [
    ("Slice", 9, {"x": X}, {"starts": [1, -7], "ends": [9, -1], "axes": [1, 2]}),
    ("Slice", 13, {"x": X, "s": ints(-1), "e": ints(-100), "a": ints(3), "t": ints(-2)}, {}),
    ("Slice", 13, {"x": X, "s": ints(7, 1), "e": ints(0, 100), "a": ints(2, 3), "t": ints(-3, 2)}, {}),
    ("Pad", 10, {"x": X}, {"pads": [0, 0, 1, 2, 0, 1, 3, 0], "value": 1.5}),
    ("Pad", 10, {"x": X}, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "mode": "reflect"}),
    ("Pad", 13, {"x": X, "p": ints(0, 0, 2, -1, 0, 0, -1, 3)}, {"mode": "edge"}),
    ("Pad", 18, {"x": X, "p": ints(1, 2), "v": np.float32(2).reshape(()), "a": ints(-1)}, {}),
    ("Squeeze", 11, {"x": random(2, 1, 3, 1)}, {"axes": [1, -1]}),
    ("Unsqueeze", 11, {"x": random(2, 3)}, {"axes": [0, 2]}),
    ("Unsqueeze", 13, {"x": random(2, 3), "a": ints(-1, 0)}, {}),
    ("Clip", 10, {"x": X}, {"min": -0.5, "max": 0.25}),
    ("Clip", 12, {"x": X, "l": None, "h": np.float32(0.1).reshape(())}, {}),
    ("Softmax", 11, {"x": X}, {"axis": 2}),
    ("LogSoftmax", 11, {"x": X}, {}),
    ("Hardmax", 11, {"x": X}, {"axis": 2}),
    ("Upsample", 8, {"x": X}, {"scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", 9, {"x": X, "s": np.array([1, 1, 2, 1.5], np.float32)}, {"mode": "linear"}),
    ("Resize", 10, {"x": X, "s": np.array([1, 1, 0.5, 2.3], np.float32)}, {"mode": "nearest"}),
    ("ReduceMean", 11, {"x": X}, {"axes": [2, -1], "keepdims": 0}),
    ("ReduceSum", 13, {"x": X, "a": ints(1)}, {"keepdims": 0}),
    ("ReduceL2", 18, {"x": X, "a": ints(-1)}, {}),
    ("Split", 11, {"x": X}, {"axis": 3, "split": [2, 7]}),
    ("TopK", 11, {"x": X, "k": ints(3)}, {"axis": 2, "largest": 0}),
    ("Gemm", 9, {"a": random(4, 3), "b": random(3, 5), "c": random(5)}, {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", 13, {"a": random(3, 4), "b": random(5, 3), "c": random(4, 1)}, {"transA": 1, "transB": 1}),
    ("PRelu", 9, {"x": X, "s": random(3, 1, 1)}, {}),
    ("PRelu", 9, {"x": X, "s": random(9)}, {}),
    ("BatchNormalization", 9, {"x": X, **{k: random(3, seed=n) ** 2 + 0.1 for n, k in enumerate("sbmv")}}, {}),
    ("InstanceNormalization", 6, {"x": X, "s": random(3), "b": random(3, seed=1)}, {}),
    ("LRN", 13, {"x": random(2, 7, 4, 4)}, {"size": 5, "alpha": 0.5}),
    ("Dropout", 10, {"x": X}, {"ratio": 0.5}),
    ("AveragePool", 11, {"x": X}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 0, 0, 1]}),
    ("AveragePool", 11, {"x": X}, {"kernel_shape": [900, 900], "strides": [900, 900], "ceil_mode": 1}),
    ("AveragePool", 11, {"x": X}, {"kernel_shape": [3, 2], "count_include_pad": 1, "pads": [1, 1, 2, 0]}),
    ("AveragePool", 11, {"x": X}, {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("MaxPool", 12, {"x": X}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", 12, {"x": X}, {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [0, 1, 1, 1]}),
    ("MaxPool", 12, {"x": X}, {"kernel_shape": [3, 3], "strides": [3, 2], "auto_pad": "SAME_UPPER"}),
    ("LpPool", 11, {"x": X}, {"kernel_shape": [2, 3], "p": 3, "pads": [1, 1, 0, 1]}),
    ("ConvTranspose", 11, {"x": X, "w": random(3, 2, 3, 3)}, {"strides": [2, 2], "output_padding": [1, 1]}),
    ("ConvTranspose", 11, {"x": X, "w": random(3, 2, 3, 3)}, {"strides": [2, 3], "pads": [0, 1, 2, 1]}),
    ("ConvTranspose", 11, {"x": X, "w": random(3, 2, 3, 3)}, {"strides": [2, 2], "output_shape": [15, 17]}),
    ("ConvTranspose", 11, {"x": X, "w": random(3, 1, 2, 2), "b": random(3)}, {"group": 3, "dilations": [2, 2]}),
    ("Conv", 11, {"x": X, "w": random(6, 1, 3, 2), "b": random(6)}, {"group": 3, "pads": [0, 1, 2, 1]}),
    ("Conv", 11, {"x": X, "w": random(2, 3, 4, 3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ("Conv", 11, {"x": X, "w": random(2, 3, 3, 3)}, {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    ("Conv", 11, {"x": random(2, 3, 11), "w": random(4, 3, 5)}, {"pads": [2, 2]}),
    ("Conv", 11, {"x": random(1, 2, 5, 6, 7), "w": random(4, 2, 3, 1, 2)}, {"strides": [1, 2, 2]}),
    ("DepthToSpace", 11, {"x": random(2, 8, 3, 3)}, {"blocksize": 2, "mode": "CRD"}),
    ("DepthToSpace", 11, {"x": random(2, 8, 3, 3)}, {"blocksize": 2}),
    ("OneHot", 11, {"i": ints(1, -1, 9), "d": ints(4), "v": np.array([2, 5], np.float32)}, {"axis": 0}),
    ("ScatterND", 11, {"x": random(4, 3), "i": np.array([[2], [0]]), "u": random(2, 3, seed=1)}, {}),
    ("ScatterElements", 11, {"x": random(3, 3), "i": np.array([[1, -1, 0]]), "u": random(1, 3, seed=1)}, {"axis": 0}),
    ("GatherND", 12, {"x": random(2, 3, 4), "i": np.array([[[1]], [[-1]]])}, {"batch_dims": 1}),
    ("CumSum", 11, {"x": X, "a": np.array(2)}, {"exclusive": 1, "reverse": 1}),
    ("Mod", 10, {"a": np.array([7, -7, 7, -7]), "b": np.array([3, 3, -3, -3])}, {}),
    ("Mod", 10, {"a": random(5), "b": np.full(5, 0.3, np.float32)}, {"fmod": 1}),
    ("Div", 13, {"a": np.array([7, -7, 7, -7]), "b": np.array([2, 2, -2, -2])}, {}),
    ("MeanVarianceNormalization", 9, {"x": X}, {}),
    (
        "RoiAlign",
        10,
        {"x": X, "r": np.array([[0, 0, 5, 6], [1, 2, 8, 7]], np.float32), "b": ints(1, 0)},
        {"output_height": 2, "output_width": 3, "sampling_ratio": 2},
    ),
]


@pytest.mark.parametrize(
    ("op", "opset", "inputs", "attributes"), OLD, ids=[f"{k}-{c[0]}-{c[1]}" for k, c in enumerate(OLD)]
)
def test_operator(op, opset, inputs, attributes):
    first, *rest = inputs
    count = {"Split": 2, "TopK": 2}.get(op, 1)
    model = node_model(
        op, inputs, count, opset=opset, constants=tuple(n for n in rest if inputs[n] is not None), **attributes
    )
    compare(model, {first: inputs[first]})


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize(
    "mode",
    ["linear", "cubic", "nearest:floor", "nearest:ceil", "nearest:round_prefer_floor", "nearest:round_prefer_ceil"],
)
@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.6, 1.7), (3.0, 0.5)])
def test_resize(coordinates, mode, scales):
    name, _, rounding = mode.partition(":")
    extra = {"nearest_mode": rounding} if rounding else {}
    inputs = {"x": X, "roi": None, "scales": np.array([1, 1, *scales], np.float32)}
    model = node_model(
        "Resize",
        inputs,
        opset=13,
        constants=("scales",),
        mode=name,
        coordinate_transformation_mode=coordinates,
        **extra,
    )
    compare(model, {"x": X})


def test_resize_to_sizes():
    inputs = {"x": X, "roi": None, "scales": None, "sizes": ints(2, 3, 5, 13)}
    compare(node_model("Resize", inputs, opset=13, constants=("sizes",), mode="linear"), {"x": X})


RECURRENT = [
    ("LSTM", 4, {}),
    ("LSTM", 4, {"direction": "reverse"}),
    ("LSTM", 4, {"direction": "bidirectional"}),
    ("LSTM", 4, {"clip": 0.3}),
    ("LSTM", 4, {"input_forget": 1}),
    ("LSTM", 4, {"activations": ["HardSigmoid", "Relu", "Tanh"]}),
    ("GRU", 3, {}),
    ("GRU", 3, {"linear_before_reset": 1}),
    ("GRU", 3, {"direction": "bidirectional", "linear_before_reset": 1}),
    ("GRU", 3, {"direction": "reverse"}),
    ("RNN", 1, {}),
    ("RNN", 1, {"direction": "bidirectional", "activations": ["Relu", "Relu"]}),
    ("RNN", 1, {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}),
]


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize(("op", "gates", "attributes"), RECURRENT)
def test_recurrence(op, gates, attributes, lengths):
    d, h = 2 if attributes.get("direction") == "bidirectional" else 1, 5
    inputs = {
        "x": random(7, 3, 4),
        "w": random(d, gates * h, 4),
        "r": random(d, gates * h, h),
        "b": random(d, 2 * gates * h),
        "l": np.array([7, 2, 4], np.int32) if lengths else None,
        "h": random(d, 3, h),
    }
    if op == "LSTM":
        inputs["c"] = random(d, 3, h, seed=1)
        if not lengths and attributes.get("direction") is None:
            inputs["p"] = random(d, 3 * h)
    names = tuple(name for name, array in inputs.items() if array is not None and name != "x")
    model = node_model(op, inputs, 3 if op == "LSTM" else 2, opset=14, constants=names, hidden_size=h, **attributes)
    compare(model, {"x": inputs["x"]})


FUSED = [
    ("FusedConv", {"x": X, "w": random(4, 3, 3, 3), "b": random(4)}, {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    ("FusedConv", {"x": X, "w": random(4, 3, 3, 3)}, {"activation": "LeakyRelu", "activation_params": [0.2]}),
    (
        "FusedGemm",
        {"a": random(4, 3), "b": random(3, 5), "c": random(5)},
        {"activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
    ("FusedMatMul", {"a": random(2, 4, 3), "b": random(2, 4, 5)}, {"transA": 1, "alpha": 0.5}),
    ("FusedMatMul", {"a": random(2, 3, 4), "b": random(2, 5, 4)}, {"transB": 1}),
    ("FusedMatMul", {"a": random(2, 3, 4), "b": random(4, 3, 5)}, {"transBatchA": 1, "transBatchB": 1}),
    ("FusedMatMul", {"a": random(2, 3, 4), "b": random(2, 3, 5)}, {"transBatchA": 1, "transA": 1, "transBatchB": 1}),
    ("Gelu", {"x": X}, {}),
    ("BiasGelu", {"x": X, "b": random(9)}, {}),
    ("FastGelu", {"x": X, "b": random(9)}, {}),
    ("QuickGelu", {"x": X}, {"alpha": 1.5}),
    (
        "SkipLayerNormalization",
        {
            "x": random(2, 4, 6),
            "s": random(2, 4, 6, seed=1),
            "g": random(6),
            "b": random(6, seed=1),
            "c": random(6, seed=2),
        },
        {"epsilon": 1e-5},
    ),
    (
        "SkipSimplifiedLayerNormalization",
        {"x": random(2, 4, 6), "s": random(2, 4, 6, seed=1), "g": random(6)},
        {"epsilon": 1e-5},
    ),
    ("Attention", {"x": random(2, 4, 6), "w": random(6, 18), "b": random(18)}, {"num_heads": 2}),
    ("Attention", {"x": random(2, 4, 6), "w": random(6, 18), "b": random(18)}, {"num_heads": 3, "unidirectional": 1}),
    (
        "Attention",
        {
            "x": random(2, 4, 6),
            "w": random(6, 18),
            "b": random(18),
            "m": np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.int32),
        },
        {"num_heads": 2},
    ),
    (
        "Attention",
        {"x": random(2, 4, 6), "w": random(6, 18), "b": random(18), "m": np.array([3, 2], np.int32)},
        {"num_heads": 2},
    ),
    (
        "MultiHeadAttention",
        {"q": random(2, 4, 6), "k": random(2, 5, 6, seed=1), "v": random(2, 5, 6, seed=2), "b": random(18)},
        {"num_heads": 2},
    ),
    (
        "MultiHeadAttention",
        {
            "q": random(2, 4, 6),
            "k": random(2, 5, 6, seed=1),
            "v": random(2, 5, 8, seed=2),
            "b": None,
            "m": None,
            "a": random(1, 2, 4, 5),
        },
        {"num_heads": 2, "scale": 0.7},
    ),
    (
        "RotaryEmbedding",
        {"x": random(2, 3, 8), "p": np.array([[0, 1, 2], [3, 4, 5]]), "c": random(9, 2), "s": random(9, 2, seed=1)},
        {},
    ),
    (
        "EmbedLayerNormalization",
        {
            "i": np.array([[1, 2, 0]], np.int32),
            "s": np.array([[0, 1, 1]], np.int32),
            "w": random(4, 6),
            "p": random(5, 6),
            "t": random(2, 6),
            "g": random(6),
            "b": random(6, seed=1),
        },
        {},
    ),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), FUSED, ids=[f"{k}-{c[0]}" for k, c in enumerate(FUSED)])
def test_microsoft_operator(op, inputs, attributes):
    first, *rest = inputs
    constants = tuple(name for name in rest if inputs[name] is not None)
    outputs = 2 if op == "EmbedLayerNormalization" else 1
    model = node_model(op, inputs, outputs, domain="com.microsoft", constants=constants, **attributes)
    compare(model, {first: inputs[first]})


@pytest.mark.parametrize("op", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_quantized_product(op):
    b = np.random.default_rng(0).integers(-100, 100, (6, 4)).astype(np.int8)
    scale, zero = np.full(4, 0.02, np.float32), np.arange(4).astype(np.int8)
    if op == "DynamicQuantizeMatMul":
        inputs = {"a": random(3, 6), "b": b, "s": scale, "z": zero, "c": random(4)}
    else:
        a = np.random.default_rng(1).integers(0, 200, (3, 6)).astype(np.uint8)
        inputs = {"a": a, "b": b, "t": np.float32(0.1).reshape(()), "s": scale, "y": np.uint8(9).reshape(()), "z": zero}
    model = node_model(op, inputs, domain="com.microsoft", constants=tuple(inputs)[1:])
    compare(model, {"a": inputs["a"]}, tolerance=1e-4)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("past", [0, 3])
def test_attention_of_integers(columns, past):
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.integers(0, 200, (2, 5, 8)).astype(np.uint8),
        "w": rng.integers(-100, 100, (8, 24)).astype(np.int8),
        "b": random(24),
        "xs": np.float32(0.1).reshape(()),
        "ws": np.full(24, 0.02, np.float32) if columns else np.float32(0.02).reshape(()),
        "m": None,
        "xz": np.uint8(99).reshape(()),
        "wz": np.arange(24).astype(np.int8) if columns else np.int8(3).reshape(()),
        "past": random(2, 2, 2, past, 4) if past else None,
    }
    constants = tuple(name for name in inputs if name != "x" and inputs[name] is not None)
    how = {"num_heads": 2, "unidirectional": 1 if past else 0}
    model = node_model("QAttention", inputs, 2 if past else 1, domain="com.microsoft", constants=constants, **how)
    compare(model, {"x": inputs["x"]}, tolerance=1e-4)


@pytest.mark.parametrize(
    "op", ["QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool"]
)
def test_quantized_operator_is_within_one_step(op):
    x = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 4)).astype(np.uint8)
    q = {"s": np.float32(0.05).reshape(()), "z": np.uint8(120).reshape(())}
    other = {"b": x[::-1].copy(), "bs": q["s"], "bz": q["z"]} if op in ("QLinearAdd", "QLinearMul") else {}
    inputs = {"x": x, **q, **other, "ys": np.float32(0.1).reshape(()), "yz": np.uint8(100).reshape(())}
    model = node_model(op, inputs, domain="com.microsoft", constants=tuple(inputs)[1:])
    ours, theirs = run_bridge(model, {"x": x})["y0"], run_onnxruntime(model, {"x": x})["y0"]
    assert ours.dtype == theirs.dtype
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_opset_6_broadcasts_by_attribute():
    """onnxruntime begins at opset 7, so numpy is the judge here."""
    for op, function in (("Add", np.add), ("Mul", np.multiply), ("Sub", np.subtract), ("Div", np.divide)):
        inputs = {"x": X, "b": random(3) + 2}
        model = node_model(op, inputs, opset=6, constants=("b",), broadcast=1, axis=1)
        assert_same(run_bridge(model, {"x": X}), {"y0": function(X, inputs["b"].reshape(3, 1, 1))})


DYNAMIC = """
g (float[N, 3, H, W] x) => (float[N, M] y, float[N, 3, A, B] z, float[P, Q] t) {
    s = Shape (x)
    n = Gather (s, zero)
    nv = Unsqueeze (n, first)
    hw = Slice (s, two, four, first)
    h = Gather (s, two_scalar)
    halved = Div (h, two_scalar)
    hv = Unsqueeze (halved, first)
    doubled = Mul (hw, two_scalar)
    nc = Slice (s, first, two, first)
    sizes = Concat <axis=0> (nc, doubled)
    z = Resize <mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"> (x, , , sizes)
    flat = Concat <axis=0> (nv, minus)
    y = Reshape (x, flat)
    cut = Slice (x, first, hv, two)
    rank = Shape (s)
    ones = ConstantOfShape <value: tensor = int64[1] {1}> (rank)
    same = Mul (ones, minus_scalar)
    equal = Equal (s, same)
    target = Where (equal, ones, s)
    wide = Expand (cut, ones)
    t = Flatten <axis=2> (wide)
}
"""


@pytest.mark.parametrize("shape", [(1, 3, 6, 4), (2, 3, 4, 10)])
def test_computed_shapes(shape):
    constants = {
        "zero": np.array(0), "first": ints(0), "two": ints(2), "four": ints(4), "minus": ints(-1),
        "two_scalar": np.array(2), "minus_scalar": np.array(-1),
    }  # fmt: skip
    model = parse(DYNAMIC, constants)
    compare(model, {"x": random(*shape)})


def test_computed_shapes_need_no_device():
    """On the meta device reading a value fails, and so does an operation between it and the CPU."""
    constants = {
        "zero": np.array(0), "first": ints(0), "two": ints(2), "four": ints(4), "minus": ints(-1),
        "two_scalar": np.array(2), "minus_scalar": np.array(-1),
    }  # fmt: skip
    network = Network(parse(DYNAMIC, constants)).to("meta")
    results = network({"x": torch.empty(2, 3, 4, 10, device="meta")})
    assert {name: tuple(tensor.shape) for name, tensor in results.items()} == {
        "y": (2, 120),
        "z": (2, 3, 8, 20),
        "t": (6, 20),
    }
    assert {tensor.device.type for tensor in results.values()} == {"meta"}


def test_host_values_are_moved_where_device_values_are():
    text = """
    g (float[N, 3] x, int64 i) => (float[N, 3] y, float[3] r, int64 d, float[N] o) {
        s = Shape (x)
        f = Cast <to=1> (s)
        n = Gather (f, zero)
        y = Mul (x, n)
        r = Gather (x, i)
        d = Gather (s, i)
        v = Slice (s, first, one)
        o = ConstantOfShape (v)
    }
    """
    constants = {"zero": np.array(0), "first": ints(0), "one": ints(1)}
    model = parse(text, constants)
    compare(model, {"x": random(4, 3), "i": np.array(1)})
    feeds = {"x": torch.empty(4, 3, device="meta"), "i": torch.empty((), dtype=torch.int64, device="meta")}
    results = Network(model).to("meta")(feeds)
    assert {tensor.device.type for tensor in results.values()} == {"meta"}


class Counted(TorchDispatchMode):
    """Notes the torch operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_shape_arithmetic_runs_no_torch_operator():
    """On a GPU each would be a launch or a wait."""
    constants = {"zero": np.array(0), "first": ints(0), "three": ints(3)}
    text = """
    g (float[N, 3] x) => (float[M] y) {
        s = Shape (x) n = Gather (s, zero) v = Unsqueeze (n, first) t = Mul (v, three) y = Reshape (x, t)
    }
    """
    network = Network(parse(text, constants))
    x = torch.from_numpy(random(4, 3))
    with Counted() as counted:
        y = network({"x": x})["y"]
    assert counted.seen == ["view.default"]
    assert torch.equal(y, x.reshape(-1))
