"""Chains that become one step: same numbers, fewer steps, inner values still at hand when somebody looks."""

import numpy as np
import pytest
import torch
from bridge_models import assert_same, compare, parse, random, run_bridge

from onnxprune.bridge import Network

NUMBERS = {"half": 0.5, "one": 1.0, "root": 2**0.5, "inverse": 0.5**0.5, "two": 2.0, "eps": 1e-5, "scale": 0.35}
SCALARS = {name: np.float32(value).reshape(()) for name, value in NUMBERS.items()}

GELU = [
    "a = Div (x, root) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)",
    "a = Mul (x, inverse) b = Erf (a) c = Add (one, b) d = Mul (x, half) y = Mul (c, d)",
]
NORM = """
    m = ReduceMean <keepdims=1> (x, last) d = Sub (x, m) p = Pow (d, two) v = ReduceMean <keepdims=1> (p, last)
    e = Add (v, eps) s = Sqrt (e) n = Div (d, s) g = Mul (n, gamma) y = Add (g, beta)
"""


def unary(body: str) -> dict[str, np.ndarray]:
    """The initializers that `body` reads."""
    arrays = {**SCALARS, "gamma": random(5), "beta": random(5, seed=1), "last": np.array([-1]), "w": random(5, 5)}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in arrays.items() if name in words}


def model_of(body: str, shape: str = "2, 3, 5"):
    return parse(f"g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}", unary(body))


CHAINS = [
    *GELU,
    NORM,
    "a = MatMul (x, w) y = Add (a, beta)",
    "a = Sigmoid (x) y = Mul (x, a)",
    "a = HardSigmoid <alpha=0.16666667, beta=0.5> (x) y = Mul (a, x)",
]


@pytest.mark.parametrize("body", CHAINS)
def test_a_chain_becomes_one_step_with_the_same_numbers(body):
    model, x = model_of(body), random(2, 3, 5)
    network = Network(model)
    assert len(network.program.steps) == 1
    assert len(network.plain_program.steps) > 1
    compare(model, {"x": x})
    fused = network({"x": torch.from_numpy(x)})["y"]
    network.program = network.plain_program
    torch.testing.assert_close(fused, network({"x": torch.from_numpy(x)})["y"], rtol=1e-4, atol=1e-5)


NOT_FUSED = [
    "a = Div (x, two) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)",  # not the square root of two
    "a = Sigmoid (x) b = Relu (x) y = Mul (b, a)",
    "a = HardSigmoid <alpha=0.2, beta=0.5> (x) y = Mul (a, x)",
]


@pytest.mark.parametrize("body", NOT_FUSED)
def test_what_only_looks_alike_is_left_alone(body):
    model = model_of(body)
    assert len(Network(model).program.steps) == len(Network(model).plain_program.steps)
    compare(model, {"x": random(2, 3, 5)})


ATTENTION = """
g (float[2, 3, 4, 5] q, float[2, 3, 6, 5] k, float[2, 3, 6, 7] v) => (float[2, 3, 4, 7] y) {
    t = Transpose <perm=[0, 1, 3, 2]> (k)
    qs = Mul (q, scale)
    float[2, 3, 4, 6] s = MatMul (qs, t)
    m = Add (s, mask)
    p = Softmax <axis=-1> (m)
    y = MatMul (p, v)
}
"""


def attention():
    import onnx_ir as ir
    from onnx import shape_inference

    text = ATTENTION.replace("float[2, 3, 4, 6] s", "s")
    model = parse(text, {"scale": SCALARS["scale"], "mask": random(4, 6)})
    return ir.from_proto(shape_inference.infer_shapes(ir.to_proto(model)))


def test_attention_becomes_one_step():
    feeds = {"q": random(2, 3, 4, 5), "k": random(2, 3, 6, 5, seed=1), "v": random(2, 3, 6, 7, seed=2)}
    model = attention()
    network = Network(model)
    assert len(network.program.steps) == 2
    compare(model, feeds)
    assert set(network.parameters_by_name) == {"mask"}
    network({name: torch.from_numpy(array) for name, array in feeds.items()})["y"].square().sum().backward()
    fused = network.parameters_by_name["mask"].grad.clone()
    network.zero_grad()
    network.program = network.plain_program
    network({name: torch.from_numpy(array) for name, array in feeds.items()})["y"].square().sum().backward()
    torch.testing.assert_close(fused, network.parameters_by_name["mask"].grad, rtol=1e-3, atol=1e-5)


def test_inner_values_can_be_captured_and_gated():
    model, x = model_of(GELU[0]), {"x": torch.from_numpy(random(2, 3, 5))}
    network = Network(model)
    plain = network(x)["y"]
    np.testing.assert_allclose(network(x, capture=["b"])["b"].numpy(), torch.erf(x["x"] / 2**0.5).numpy(), rtol=1e-5)
    network.gates["b"] = torch.zeros_like
    torch.testing.assert_close(network(x)["y"], x["x"] / 2)
    network.gates.clear()
    torch.testing.assert_close(network(x)["y"], plain)


def test_a_chain_whose_inside_is_read_elsewhere_stays():
    body = "a = Sigmoid (x) b = Mul (x, a) y = Add (b, a)"
    assert len(Network(model_of(body)).program.steps) == 3
    compare(model_of(body), {"x": random(2, 3, 5)})


def test_a_chain_whose_inside_is_an_output_stays():
    model = parse("g (float[4] x) => (float[4] y, float[4] a) { a = Sigmoid (x) y = Mul (x, a) }")
    assert len(Network(model).program.steps) == 2
    assert_same(
        run_bridge(model, {"x": random(4)}),
        {"y": random(4) / (1 + np.exp(-random(4))), "a": 1 / (1 + np.exp(-random(4)))},
    )


def normed_conv(body: str):
    arrays = {"w": random(6, 2, 3, 3), "b": random(6, seed=1), "gamma": random(6, seed=2), "beta": random(6, seed=3)}
    arrays |= {"mean": random(6, seed=4), "var": np.abs(random(6, seed=5)) + 0.3}
    names = {name: array for name, array in arrays.items() if name != "b" or "(x, w, b)" in body}
    return parse(f"g (float[N, 4, 7, 7] x) => (float[N, 6, P, Q] y) {{ {body} }}", names)


NORMED = [
    "a = Conv <group=2, pads=[1, 1, 1, 1], strides=[2, 2]> (x, w) y = BatchNormalization (a, gamma, beta, mean, var)",
    'a = Conv <auto_pad="SAME_LOWER", group=2> (x, w, b) '
    "y = BatchNormalization <epsilon=0.5> (a, gamma, beta, mean, var)",
]


@pytest.mark.parametrize("body", NORMED)
@pytest.mark.parametrize("mode", ["eval", "frozen", "batch"])
def test_a_convolution_and_its_norm_are_one_step_in_every_mode(body, mode):
    """Also the gradients, and the running statistics where those of the batch are used."""
    x, found = torch.from_numpy(random(3, 4, 7, 7)), []
    for fused in (True, False):
        network = Network(normed_conv(body), freeze_norm=mode == "frozen").train(mode != "eval")
        assert len(network.program.steps) == 1
        if not fused:
            network.program = network.plain_program
        y = network({"x": x})["y"]
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        grads = {name: p.grad for name, p in network.parameters_by_name.items()}
        found.append([y.detach(), *(grads[name] for name in sorted(grads)), *network.statistics_by_name.values()])
    assert len(found[0]) >= 6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_onnxruntime_agrees_on_a_convolution_with_its_norm():
    for body in NORMED:
        compare(normed_conv(body), {"x": random(3, 4, 7, 7)})


def test_a_norm_whose_convolution_is_read_elsewhere_stays_a_step():
    body = "a = Conv <group=2> (x, w) c = BatchNormalization (a, gamma, beta, mean, var) y = Add (a, c)"
    assert len(Network(normed_conv(body)).program.steps) == 3
