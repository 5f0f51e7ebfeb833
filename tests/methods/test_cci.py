"""CCI: exactly k of every G, the ramp, regrowth and freezing, permutation, and the closed form."""

import numpy as np
import onnx
import pytest
from onnx_text import proto
from toys import context_of, digits_context, outputs, toy

from onnxprune import graph
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods import base, layers
from onnxprune.methods.cci import cci, closed_form, permute
from onnxprune.outputs import metrics

torch = pytest.importorskip("torch")


def run(context: base.Context) -> base.Outcome:
    return base.run(base.get("cci"), context)


def counts(outcome: base.Outcome, axis: str, size: int) -> np.ndarray:
    """Non-zeros of every group of the layers that were pruned."""
    assert outcome.model is not None
    found = []
    for layer in layers.linear_layers(outcome.model):
        if layer.weight in outcome.zeros:
            w = graph.array_of(outcome.model.graph.initializers[layer.weight])
            moved = np.moveaxis(w, layer.outputs if axis == "output" else layer.inputs, -1)
            found.append(np.count_nonzero(moved.reshape(-1, size), axis=1))
    return np.concatenate(found)


@pytest.mark.parametrize("closed", ["no", "yes"])
@pytest.mark.parametrize(
    ("axis", "size", "kept"), [("output", 16, 8), ("input", 4, 2), ("output", 8, 1), ("input", 16, 5)]
)
def test_exactly_k_in_every_group(axis, size, kept, closed):
    options = {"axis": axis, "group": size, "kept": kept, "closed": closed}
    outcome = run(digits_context(train_samples=128, epochs=1, calibration=64, **options))
    assert len(outcome.zeros) >= 5
    assert (counts(outcome, axis, size) == kept).all()


def test_first_grouped_and_last_layers_stay_dense_unless_asked():
    context = digits_context(train_samples=64, epochs=1)
    outcome = run(context)
    assert "onnx::Conv_81" not in outcome.zeros  # reads the image
    assert "onnx::Conv_90" not in outcome.zeros  # depthwise
    assert "head.weight" not in outcome.zeros
    asked = run(digits_context(train_samples=64, epochs=1, last="yes", axis="input"))
    assert "head.weight" in asked.zeros


@pytest.mark.parametrize(("options", "floor"), [({"kept": 4}, 0.95)])
def test_accuracy_survives_training(options, floor):
    context = digits_context(train_samples=640, **options)
    held = load_samples("digits:test", input_infos(context.model))
    found = metrics.evaluate(sessions.open_session(run(context).model, threads=1), held)
    assert found is not None
    assert found.value > floor


def test_the_mask_keeps_the_largest_of_each_group():
    w = torch.tensor([[1.0, -5.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert cci.group_mask(w, 1, 4, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert cci.group_mask(w.T, 0, 4, 2).T.tolist() == [[False, True, True, False], [True, True, False, False]]


def trainer(**options: object) -> tuple:
    from onnxprune.bridge.network import Network

    model = toy("mlp")
    network = Network(model)
    chosen = [layer for layer in layers.linear_layers(model) if layer.weight == "w2"]
    return network, cci.Trainer(network, chosen, cci.Settings(axis="input", **options), 4, 2)


def test_k_falls_along_a_ramp_and_masks_freeze():
    network, held = trainer()
    ks = [held.count(p) for p in np.linspace(0, 1, 21)]
    assert ks[0] == 4
    assert ks == sorted(ks, reverse=True)
    assert ks[10:] == [2] * 11
    held.before(base_step(0.7))
    mask = held.masks["w2"].clone()
    with torch.no_grad():
        network.parameters_by_name["w2"].copy_(torch.randn(16, 10))
    held.before(base_step(0.8))
    assert (held.masks["w2"] == mask).all()


def base_step(progress: float):
    from onnxprune.methods.training import Step

    return Step(round(progress * 100), 100, 0, False)


def test_pruned_weights_shrink_take_gradients_and_return():
    network, held = trainer(shrink=0.5)
    held.refresh(2)
    w = network.parameters_by_name["w2"]
    pruned = ~held.masks["w2"]
    network({"x": torch.randn(8, 6, generator=torch.Generator().manual_seed(0))})["y"].square().sum().backward()
    assert w.grad is not None
    assert (w.grad[pruned] != 0).any()
    before = w.grad.clone()
    held.shrink(base_step(0.2))
    torch.testing.assert_close(w.grad[pruned], before[pruned] + 0.5 * w.detach()[pruned])
    with torch.no_grad():
        w[pruned] *= 100
    held.refresh(2)
    assert held.masks["w2"][pruned].any()


@pytest.mark.parametrize("network", ["cnn", "mlp", "attention", "concat"])
def test_permuting_units_leaves_the_function_as_it_is(network):
    context = context_of(toy(network))
    x = context.samples.batch(np.arange(2))[input_infos(context.model)[0].name]  # type: ignore[union-attr]
    model = context.model.clone()
    for dim in context.dims:
        permute.apply(context.coupling, model, dim, np.random.default_rng(dim.size).permutation(dim.size))
    y = outputs(context.model, x)
    np.testing.assert_allclose(outputs(model, x), y, atol=1e-5 * np.abs(y).max())


def test_permutation_raises_kept_energy_and_finds_a_planted_order():
    rng = np.random.default_rng(0)
    # Pairs of strong channels were put into the same group: one strong channel per group keeps all.
    rows = np.ones((8, 50)) * 1e-3
    rows[:4] = 1.0
    order = permute.improved(rows, 2, 1, rng)
    assert sorted(order) == list(range(8))
    strong = (order.reshape(-1, 2) < 4).sum(1)
    assert (strong == 1).all()
    context = digits_context()
    chosen = [layer for layer in layers.linear_layers(context.model) if not layer.first and layer.groups == 1][:5]
    for axis in ("input", "output"):
        _, before, after = permute.permute(context, chosen, axis, 4, 2)
        assert after > before


def test_closed_form_beats_magnitude_with_the_same_pattern():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 24)) @ rng.normal(size=(24, 4000))
    w = rng.normal(size=(8, 24))
    h = x @ x.T / x.shape[1]
    for rows in (True, False):
        fitted, mask = closed_form.solve(w, h, 4, 2, rows=rows)
        axis = 0 if rows else 1
        plain = w * cci.group_mask(torch.from_numpy(w), axis, 4, 2).numpy()
        errors = [np.linalg.norm((w - other) @ x) for other in (fitted, plain)]
        assert errors[0] < 0.8 * errors[1]
        assert not fitted[~mask].any()


def test_the_kept_weights_are_the_least_squares_solution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 12)) @ rng.normal(size=(12, 500))
    w, mask = rng.normal(size=(3, 12)), rng.random((3, 12)) < 0.5
    h = x @ x.T / x.shape[1]
    damped = h + np.eye(12) * 0.01 * np.diag(h).mean()
    found = closed_form.refined(w, w, h, mask)
    for row, kept, original in zip(found, mask, w, strict=True):
        expected = np.linalg.solve(damped[np.ix_(kept, kept)], (original @ damped)[kept])
        np.testing.assert_allclose(row[kept], expected, atol=1e-6)
        assert not row[~kept].any()


def test_without_correlation_the_closed_form_keeps_weights_as_they_are():
    w = np.random.default_rng(0).normal(size=(8, 16))
    fitted, mask = closed_form.solve(w, np.eye(16), 4, 2, rows=False)
    np.testing.assert_allclose(fitted, w * mask)
    np.testing.assert_array_equal(mask, cci.group_mask(torch.from_numpy(w), 1, 4, 2).numpy())


def test_second_moments_are_those_of_the_patches():
    """H w for the moments of a strided, padded convolution equals what the convolution computes."""
    context = digits_context()
    chosen = [layer for layer in layers.linear_layers(context.model) if layer.weight == "onnx::Conv_84"]
    moments = closed_form.second_moments(context, context.model, chosen, 32)["onnx::Conv_84"].double().numpy()
    from onnxprune.methods import objective

    feeds, _ = next(objective.walk(context, 32, 32))
    node = next(node for node in context.model.graph if node.name == chosen[0].node)
    session = sessions.open_session(context.model, threads=1, extra_outputs=[chosen[0].data, node.outputs[0].name])
    values = sessions.run(session, {"image": feeds["image"].numpy()})
    w = (
        chosen[0]
        .matrix(graph.array_of(context.model.graph.initializers["onnx::Conv_84"]))
        .reshape(32, -1)
        .astype(float)
    )
    b = graph.array_of(context.model.graph.initializers["onnx::Conv_85"])
    y = values[node.outputs[0].name] - b[None, :, None, None]
    expected = np.einsum("nohw,nphw->op", y, y) / (y.size / y.shape[1])
    np.testing.assert_allclose(w @ moments @ w.T, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_head_that_the_loss_does_not_see_is_pruned_without_its_gradient(cli, tmp_path):
    source, data, out = (tmp_path / name for name in ("in.onnx", "x.npz", "out.onnx"))
    text = "(float[n,16] x, float[16,32] w, float[32,16] u, float[32,16] v) => (float[n,16] y, float[n,16] z) "
    onnx.save(proto(text + "{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, u) z = MatMul(r, v) }"), source)
    np.savez(data, x=np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32))
    options = [word for key in ("group=4", "kept=2", "last=true", "permute=false") for word in ("--option", key)]
    ran = cli(source, out, "--method", "cci", "--data", data, "--recover", "none", "--no-latency", *options)
    assert ran.code == 0, ran.err
    heads = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if t.name in "uv"}
    assert all(((array != 0).reshape(32, 4, 4).sum(2) == 2).all() for array in heads.values())
    assert set(heads) == {"u", "v"}
