"""BatchNormalization folded, put back and folded again."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from bridge_models import assert_same, parse, random, run_onnxruntime

from onnxprune.bridge import Network
from onnxprune.bridge.batchnorm import fold_batchnorm, insert_batchnorm, normalizable
from onnxprune.errors import BridgeError


def norm(name: str, channels: int, seed: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.g": random(channels, seed=seed),
        f"{name}.b": random(channels, seed=seed + 1),
        f"{name}.m": random(channels, seed=seed + 2),
        f"{name}.v": random(channels, seed=seed + 3) ** 2 + 0.3,
    }


def layer(
    op: str, attributes: str, weight: tuple[int, ...], bias: int | None, channels: int, rank: int = 4
) -> ir.Model:
    shape = "[2, 4, 6, 6]" if rank == 4 else "[2, 4]"
    inputs = "x, w" + (", c" if bias else "")
    text = f"""
    g (float{shape} x) => (float[A, B] y) {{
        a = {op} <{attributes}> ({inputs})
        y = BatchNormalization <epsilon=0.01> (a, n.g, n.b, n.m, n.v)
    }}
    """.replace("float[A, B] y", "float[A, B, C, D] y" if rank == 4 else "float[A, B] y")
    arrays = {"w": random(*weight), **norm("n", channels, 10)}
    return parse(text, {**arrays, **({"c": random(bias, seed=3)} if bias else {})})


LAYERS = [
    ("Conv", "kernel_shape=[3, 3]", (5, 4, 3, 3), 5, 5, 4),
    ("Conv", "kernel_shape=[3, 3], group=2", (6, 2, 3, 3), None, 6, 4),
    ("ConvTranspose", "kernel_shape=[3, 3], strides=[2, 2]", (4, 5, 3, 3), 5, 5, 4),
    ("ConvTranspose", "kernel_shape=[2, 2], group=2", (4, 3, 2, 2), None, 6, 4),
    ("Gemm", "alpha=0.5, beta=2.0", (4, 3), 3, 3, 2),
    ("Gemm", "transB=1", (3, 4), None, 3, 2),
]


@pytest.mark.parametrize("case", LAYERS, ids=[f"{k}-{c[0]}" for k, c in enumerate(LAYERS)])
def test_fold_keeps_the_function_and_the_names(case):
    op, attributes, weight, bias, channels, rank = case
    model = layer(op, attributes, weight, bias, channels, rank)
    x = {"x": random(2, 4, 6, 6) if rank == 4 else random(2, 4)}
    before = run_onnxruntime(model, x)
    assert fold_batchnorm(model) == 1
    assert [node.op_type for node in model.graph] == [op]
    assert set(model.graph.initializers) == {"w", "c" if bias else "w.bias"}
    onnx.checker.check_model(ir.to_proto(model))
    assert_same(run_onnxruntime(model, x), before)


def test_norms_that_cannot_be_folded_stay():
    text = """
    g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y, float[2, 3, 4, 4] z) {
        a = Conv (x, w)
        y = BatchNormalization (a, n.g, n.b, n.m, n.v)
        z = Relu (a)
    }
    """
    model = parse(text, {"w": random(3, 3, 1, 1), **norm("n", 3, 5)})
    assert fold_batchnorm(model) == 0
    assert len(list(model.graph)) == 3


def test_a_weight_that_others_read_is_copied():
    text = """
    g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y) {
        a = Conv (x, w)
        n = BatchNormalization (a, n.g, n.b, n.m, n.v)
        y = Conv (n, w)
    }
    """
    model = parse(text, {"w": random(3, 3, 1, 1), **norm("n", 3, 5)})
    before = run_onnxruntime(model, {"x": random(2, 3, 4, 4)})
    assert fold_batchnorm(model) == 1
    assert_same(run_onnxruntime(model, {"x": random(2, 3, 4, 4)}), before)


TWO_LAYERS = """
g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv <pads=[1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <strides=[2, 2]> (r, w2)
    s = Relu (c)
    m = GlobalAveragePool (s)
    f = Flatten (m)
    y = Gemm <transB=1> (f, w3, b3)
}
"""


def two_layers() -> ir.Model:
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (6, 4, 3, 3), "w3": (5, 6), "b3": (5,)}
    return parse(TWO_LAYERS, {name: random(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())})


def statistics(model: ir.Model, x: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = normalizable(model)
    with torch.no_grad():
        values = Network(model).eval()({"x": torch.from_numpy(x)}, capture=names)
    return {n: (values[n].mean((0, 2, 3)).numpy(), values[n].var((0, 2, 3), correction=0).numpy()) for n in names}


def test_inserted_norms_change_nothing_and_fold_away_again():
    model, x = two_layers(), random(16, 3, 8, 8)
    before = run_onnxruntime(model, {"x": x})
    nodes = insert_batchnorm(model, statistics(model, x))
    assert nodes == ["Conv_0.norm", "Conv_2.norm"]
    onnx.checker.check_model(ir.to_proto(model))
    assert_same(run_onnxruntime(model, {"x": x}), before)
    assert fold_batchnorm(model) == 2
    assert_same(run_onnxruntime(model, {"x": x}), before, tolerance=1e-4)
    assert [node.op_type for node in model.graph] == [node.op_type for node in two_layers().graph]
    assert {v.name for n in model.graph for v in n.outputs} == {v.name for n in two_layers().graph for v in n.outputs}
    assert set(model.graph.initializers) == {*two_layers().graph.initializers, "w2.bias"}


def test_inserted_norms_learn_and_fold_into_what_was_learned():
    model, x = two_layers(), random(32, 3, 8, 8)
    insert_batchnorm(model, statistics(model, x))
    network = Network(model).train()
    assert len(network.statistics_by_name) == 4
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        network({"x": torch.from_numpy(x)})["y"].square().mean().backward()
        optimizer.step()
    network.write_back(model)
    trained = run_onnxruntime(model, {"x": x})
    assert np.abs(trained["y"] - run_onnxruntime(two_layers(), {"x": x})["y"]).max() > 1e-2
    fold_batchnorm(model)
    assert_same(run_onnxruntime(model, {"x": x}), trained, tolerance=1e-4)


def test_a_convolution_with_its_norm_takes_no_second_one():
    model = layer(*LAYERS[0])
    assert normalizable(model) == []
    with pytest.raises(BridgeError, match="'a' is no output of a Conv that could take"):
        insert_batchnorm(model, {"a": (np.zeros(5), np.ones(5))})


def test_statistics_of_another_length_are_refused():
    with pytest.raises(BridgeError, match=r"'a': 4 channels, but statistics \(3,\) and \(3,\)"):
        insert_batchnorm(two_layers(), {"a": (np.zeros(3), np.ones(3))})


def test_a_norm_behind_a_graph_output_keeps_the_interface():
    text = "g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y) { y = Conv (x, w) }"
    model = parse(text, {"w": random(3, 3, 1, 1)})
    x = random(2, 3, 4, 4)
    before = run_onnxruntime(model, {"x": x})
    insert_batchnorm(model, statistics(model, x))
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert_same(run_onnxruntime(model, {"x": x}), before)
    fold_batchnorm(model)
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert_same(run_onnxruntime(model, {"x": x}), before)


def test_one_value_per_channel_takes_the_running_statistics():
    torch = pytest.importorskip("torch")
    from onnxprune.bridge.ops.normalization import batch_norm

    x, ones, zeros = torch.randn(1, 3, 1), torch.ones(3), torch.zeros(3)
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    y = batch_norm(x, ones, zeros, mean.clone(), var.clone(), True, 1e-5, 0.9)
    torch.testing.assert_close(y, (x - mean[:, None]) / (var[:, None] + 1e-5).sqrt())
