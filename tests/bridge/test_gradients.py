"""Gradients: finite differences in float64, torch's own modules, and the straight-through estimator."""

import numpy as np
import pytest
import torch
from bridge_models import node_model, parse, random

from onnxprune.bridge import Network

D = np.float64

CASES = [
    (
        "Conv",
        {"x": random(1, 2, 5, 5, dtype=D), "w": random(3, 2, 3, 3, dtype=D), "b": random(3, dtype=D)},
        {"pads": [0, 1, 2, 1], "strides": [2, 1]},
    ),
    (
        "ConvTranspose",
        {"x": random(1, 2, 3, 4, dtype=D), "w": random(2, 2, 3, 3, dtype=D)},
        {"strides": [2, 2], "pads": [0, 1, 2, 1]},
    ),
    (
        "Gemm",
        {"x": random(3, 4, dtype=D), "w": random(4, 2, dtype=D), "b": random(3, 1, dtype=D)},
        {"alpha": 0.5, "beta": 2.0},
    ),
    ("Einsum", {"x": random(2, 3, dtype=D), "w": random(4, 3, dtype=D)}, {"equation": "bi,oi->bo"}),
    ("LayerNormalization", {"x": random(3, 4, dtype=D), "w": random(4, dtype=D), "b": random(4, dtype=D)}, {}),
    ("RMSNormalization", {"x": random(3, 4, dtype=D), "w": random(4, dtype=D)}, {"stash_type": 11}),
    (
        "GroupNormalization",
        {"x": random(2, 4, 3, dtype=D), "w": random(4, dtype=D), "b": random(4, dtype=D)},
        {"num_groups": 2},
    ),
    ("InstanceNormalization", {"x": random(2, 2, 4, dtype=D), "w": random(2, dtype=D), "b": random(2, dtype=D)}, {}),
    ("LpNormalization", {"x": random(3, 4, dtype=D)}, {}),
    ("LRN", {"x": random(1, 5, 2, 2, dtype=D)}, {"size": 3, "alpha": 0.5}),
    ("PRelu", {"x": random(2, 3, 2, dtype=D), "w": random(3, 1, dtype=D)}, {}),
    (
        "AveragePool",
        {"x": random(1, 1, 5, 5, dtype=D)},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 0, 0, 1]},
    ),
    ("LpPool", {"x": random(1, 1, 4, 4, dtype=D)}, {"kernel_shape": [2, 2]}),
    ("Softmax", {"x": random(3, 4, dtype=D)}, {}),
    ("ReduceLogSumExp", {"x": random(3, 4, dtype=D)}, {}),
    ("ReduceL2", {"x": random(3, 4, dtype=D)}, {}),
    ("GatherElements", {"x": random(3, 3, dtype=D), "i": np.array([[0, -1, 2]])}, {"axis": 0}),
    (
        "ScatterND",
        {"x": random(4, 2, dtype=D), "i": np.array([[2], [0]]), "w": random(2, 2, dtype=D)},
        {"reduction": "add"},
    ),
    (
        "LSTM",
        {
            "x": random(3, 2, 2, dtype=D),
            "w": random(2, 12, 2, dtype=D),
            "r": random(2, 12, 3, dtype=D),
            "b": random(2, 24, dtype=D),
        },
        {"hidden_size": 3, "direction": "bidirectional"},
    ),
    (
        "LSTM",
        {"x": random(3, 2, 2, dtype=D), "w": random(1, 12, 2, dtype=D), "r": random(1, 12, 3, dtype=D)},
        {"hidden_size": 3, "clip": 0.9},
    ),
    (
        "GRU",
        {
            "x": random(3, 2, 2, dtype=D),
            "w": random(1, 9, 2, dtype=D),
            "r": random(1, 9, 3, dtype=D),
            "b": random(1, 18, dtype=D),
        },
        {"hidden_size": 3},
    ),
    (
        "GRU",
        {
            "x": random(3, 2, 2, dtype=D),
            "w": random(1, 9, 2, dtype=D),
            "r": random(1, 9, 3, dtype=D),
            "b": random(1, 18, dtype=D),
        },
        {"hidden_size": 3, "linear_before_reset": 1},
    ),
    (
        "RNN",
        {"x": random(3, 2, 2, dtype=D), "w": random(1, 3, 2, dtype=D), "r": random(1, 3, 3, dtype=D)},
        {"hidden_size": 3, "direction": "reverse"},
    ),
    (
        "Attention",
        {"x": random(1, 3, 4, dtype=D), "w": random(1, 3, 4, dtype=D), "b": random(1, 3, 4, dtype=D)},
        {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": 1},
    ),
    ("GridSample", {"x": random(1, 1, 4, 4, dtype=D), "w": np.tanh(random(1, 3, 3, 2, dtype=D))}, {"mode": "linear"}),
    (
        "DeformConv",
        {"x": random(1, 2, 4, 4, dtype=D), "w": random(2, 2, 2, 2, dtype=D), "o": 0.3 * random(1, 8, 3, 3, dtype=D)},
        {},
    ),
    (
        "Resize",
        {"x": random(1, 1, 3, 4, dtype=D), "r": None, "s": np.array([1, 1, 1.7, 0.6], np.float32)},
        {"mode": "cubic"},
    ),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=[f"{k}-{c[0]}" for k, c in enumerate(CASES)])
def test_finite_differences(op, inputs, attributes):
    first, *rest = inputs
    constants = tuple(name for name in rest if inputs[name] is not None)
    network = Network(node_model(op, inputs, opset=23, constants=constants, **attributes)).double().eval()
    parameters = network.parameters_by_name

    def function(x, *values):
        network.overrides = {
            name: (lambda _, value=value: value) for name, value in zip(parameters, values, strict=True)
        }
        return network({first: x})["y0"]

    x = torch.from_numpy(inputs[first]).requires_grad_()
    values = [parameter.detach().clone().requires_grad_() for parameter in parameters.values()]
    assert torch.autograd.gradcheck(function, (x, *values), eps=1e-6, atol=1e-5)


def test_lstm_gradients_are_those_of_torch():
    """The same weights in torch.nn.LSTM, whose gates are i f g o where ONNX has i o f c."""
    arrays = {"w": random(1, 20, 3), "r": random(1, 20, 5), "b": random(1, 40)}
    inputs = {"x": random(6, 2, 3), **arrays}
    network = Network(node_model("LSTM", inputs, opset=14, constants=("w", "r", "b"), hidden_size=5))
    plain = torch.nn.LSTM(3, 5)

    def reordered(array):
        i, o, f, c = np.split(array, 4)
        return torch.from_numpy(np.concatenate([i, f, c, o]))

    halves = np.split(arrays["b"][0], 2)
    state = {
        "weight_ih_l0": reordered(arrays["w"][0]),
        "weight_hh_l0": reordered(arrays["r"][0]),
        "bias_ih_l0": reordered(halves[0]),
        "bias_hh_l0": reordered(halves[1]),
    }
    plain.load_state_dict(state)
    x = torch.from_numpy(inputs["x"])
    ours, theirs = network({"x": x})["y0"].squeeze(1), plain(x)[0]
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradient = network.parameters_by_name["w"].grad[0].numpy()
    torch.testing.assert_close(reordered(gradient), plain.weight_ih_l0.grad)


def test_quantization_passes_the_gradient_straight_through_inside_the_range():
    text = """
    g (float[4] x) => (float[4] y) {
        u = Mul (x, w)
        q = QuantizeLinear (u, scale, zero)
        y = DequantizeLinear (q, scale, zero)
    }
    """
    constants = {
        "w": np.array([1.0, 1.0, 1.0, 1.0], np.float32),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(3, np.int8),
    }
    network = Network(parse(text, constants))
    assert set(network.parameters_by_name) == {"w"}  # scales are not trained
    x = torch.tensor([0.52, -1.0, 100.0, -100.0])
    y = network({"x": x})["y"]
    torch.testing.assert_close(y, torch.tensor([0.5, -1.0, 12.4, -13.1]))
    y.sum().backward()
    torch.testing.assert_close(network.parameters_by_name["w"].grad, torch.tensor([0.52, -1.0, 0.0, 0.0]))


def test_quantized_weights_are_constants_and_activations_are_trained_through():
    text = """
    g (float[2, 3] x) => (float[2, 4] y) {
        w = DequantizeLinear <axis=1> (w8, scale, zero)
        h = Add (x, b)
        y = MatMul (h, w)
    }
    """
    w8 = np.arange(-6, 6).reshape(3, 4).astype(np.int8)
    scale, zero = np.array([0.1, 0.2, 0.3, 0.4], np.float32), np.array([1, 0, -1, 2], np.int8)
    network = Network(parse(text, {"w8": w8, "scale": scale, "zero": zero, "b": random(3)}))
    assert set(network.parameters_by_name) == {"b"}
    assert [step.node.split()[0] for step in network.program.steps] == ["Add", "MatMul"]  # computed once
    y = network({"x": torch.from_numpy(random(2, 3))})["y"]
    expected = (random(2, 3) + random(3)) @ ((w8 - zero.astype(np.float32)) * scale)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weights_behind_a_cast_are_trained_in_float32():
    text = "g (float[2, 3] x) => (float[2, 4] y) { w = Cast <to=1> (half) y = MatMul (x, w) }"
    model = parse(text, {"half": random(3, 4).astype(np.float16)})
    network = Network(model)
    network({"x": torch.from_numpy(random(2, 3))})["y"].sum().backward()
    parameter = network.parameters_by_name["half"]
    assert parameter.dtype == parameter.grad.dtype == torch.float32
