"""ASWL: attentions, dual tracking, the density target, and folding."""

import numpy as np
import onnx_ir as ir
import onnx_text
import pytest
from toys import context_of, digits_context, outputs, toy

from onnxprune import graph
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods import aswl, base, layers, zeros
from onnxprune.outputs import metrics

torch = pytest.importorskip("torch")

# Two branches of equal size, of which the second is scaled away: only the first matters.
BRANCHES = """(float[16,6] x, float[6,12] w1, float[12,12] wp, float[12,12] wq, float[1] small, float[12,4] wh)
    => (float[16,4] y) {
    a = MatMul(x, w1)
    r = Relu(a)
    p = MatMul(r, wp)
    q = MatMul(r, wq)
    s = Mul(q, small)
    t = Add(p, s)
    u = Relu(t)
    y = MatMul(u, wh)
}"""


def run(context: base.Context) -> base.Outcome:
    return base.run(base.get("aswl"), context)


def zero_share(outcome: base.Outcome) -> float:
    return sum(z.sum() for z in outcome.zeros.values()) / sum(z.size for z in outcome.zeros.values())


@pytest.mark.parametrize("density", [0.5, 0.2])
def test_density_meets_its_target_and_the_zeros_are_where_it_says(density):
    context = digits_context(density=density, train_samples=512, epochs=4)
    outcome = run(context)
    assert outcome.model is not None
    held, kept = 0, 0
    for layer in layers.linear_layers(outcome.model):
        if layer.groups == 1:
            w = graph.array_of(outcome.model.graph.initializers[layer.weight])
            held, kept = held + w.size, kept + np.count_nonzero(w)
            if layer.weight in outcome.zeros:
                assert not w[outcome.zeros[layer.weight]].any()
    assert kept / held == pytest.approx(density, abs=0.01)


def test_attentions_follow_importance_not_size():
    model = graph.normalize(onnx_text.model(BRANCHES, {"small": [0.001]}))
    outcome = run(context_of(model, samples=256, epochs=40, lr=0.005, density=0.5, batch_size=16))
    shares = {name: float(outcome.zeros[name].mean()) if name in outcome.zeros else 0.0 for name in ("wp", "wq")}
    assert shares["wq"] > shares["wp"] + 0.3


def test_accuracy_survives_at_thirty_percent_of_the_weights():
    context = digits_context(density=0.3, train_samples=640)
    outcome = run(context)
    accuracy = metrics.evaluate(
        sessions.open_session(outcome.model, threads=1), load_samples("digits:test", input_infos(context.model))
    )
    assert accuracy is not None
    assert accuracy.value > 0.95


def attention_of(model: ir.Model, **options: object) -> tuple:
    from onnxprune.bridge.network import Network

    network = Network(model)
    settings = aswl.Settings(**options)
    chosen = layers.linear_layers(model)
    sizes = np.array([float(network.parameters_by_name[layer.weight].numel()) for layer in chosen])
    return network, aswl.Attention(model, network, chosen, settings, [zeros.Allowance(sizes, 0.5)])


def test_the_function_is_unchanged_at_the_start_but_for_the_pruned_weights():
    model = toy("mlp")
    network, attention = attention_of(model)
    attention.masks = [torch.ones_like(mask) for mask in attention.masks]
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    y = network({"x": torch.from_numpy(x)})["y"].detach().numpy()
    np.testing.assert_allclose(y, outputs(model, x), atol=1e-5)


def test_pruned_weights_take_their_full_gradient_straight_through():
    network, attention = attention_of(toy("mlp"))
    attention.masks = [torch.zeros_like(mask) for mask in attention.masks]
    attention.masks[2][:] = 1  # the last layer passes, so the loss sees layer 1 at zero
    w = network.parameters_by_name["w2"]
    feeds = {"x": torch.randn(8, 6, generator=torch.Generator().manual_seed(0))}
    attention.masks[0][:] = 1
    network(feeds)["y"].square().sum().backward()
    assert w.grad is not None
    network(feeds)["y"].sum().backward()
    assert (w.grad != 0).any()


def test_folding_gives_the_model_that_was_trained():
    model = toy("cnn")
    network, attention = attention_of(model)
    with torch.no_grad():
        attention.theta += torch.linspace(-3, 0, len(attention.theta))
    attention.refresh()
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    y = network({"x": torch.from_numpy(x)})["y"].detach().numpy()
    attention.fold()
    network.write_back(model)
    np.testing.assert_allclose(outputs(model, x), y, atol=1e-5 * np.abs(y).max() + 1e-6)


def test_shares_are_capped_and_rise_as_attentions_fall():
    _, attention = attention_of(toy("mlp"), alpha=2.0)
    with torch.no_grad():
        attention.theta.fill_(-50)
    assert attention.pruned_shares().tolist() == pytest.approx([0.5, 0.98, 0.5])
    with torch.no_grad():
        attention.theta.fill_(0)
    assert attention.pruned_shares()[1].item() == pytest.approx((1 - 0.505) ** 2)


@pytest.mark.slow
def test_from_random_weights_it_learns_the_task():
    context = digits_context(reinit="yes", epochs=8, train_samples=640, density=0.5)
    outcome = run(context)
    accuracy = metrics.evaluate(
        sessions.open_session(outcome.model, threads=1), load_samples("digits:test", input_infos(context.model))
    )
    assert accuracy is not None
    assert accuracy.value > 0.9
    assert zero_share(outcome) == pytest.approx(0.5, abs=0.02)
