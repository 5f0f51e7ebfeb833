"""Each baseline's own mechanism, against numbers computed another way."""

from dataclasses import replace

import numpy as np
import pytest
from networks import DIGITS_BN
from onnx_text import model
from toys import context_of, digits_context, last_affine, outputs, scaled, toy, with_model

from onnxprune import graph
from onnxprune.methods import base, fpgm, gates, objective, units
from onnxprune.outputs.describe import describe
from onnxprune.plan.select import Budget, select


def scores_of(name: str, context: base.Context) -> dict:
    return base.run(base.get(name), context).scores


def weight(context: base.Context, name: str) -> np.ndarray:
    return graph.array_of(context.model.graph.initializers[name]).astype(np.float64)


def test_l1_and_l2_are_the_norms_of_the_filters_in_units_of_their_mean():
    context = context_of(toy("mlp"))
    dim = next(dim for dim in context.dims if dim.size == 10)
    w = weight(context, "w2")
    l1, l2 = np.abs(w).sum(0), np.sqrt((w**2).sum(0))
    np.testing.assert_allclose(scores_of("l1", context)[dim], l1 / l1.mean())
    np.testing.assert_allclose(scores_of("l2", context)[dim], l2 / l2.mean())


def test_biases_do_not_count():
    context = context_of(toy("mlp"))
    louder = context.model.clone()
    graph.set_constant(louder.graph.initializers["b1"], np.full(16, 50, np.float32))
    for name in ("l1", "l2", "fpgm"):
        for dim in context.dims:
            np.testing.assert_array_equal(
                scores_of(name, context)[dim], scores_of(name, with_model(context, louder))[dim]
            )


def test_a_residual_dim_joins_its_tensors_relatively():
    context = context_of(toy("cnn"))
    dim = next(dim for dim in context.dims if dim.size == 8)
    # A tensor a hundred times larger must not drown the others.
    louder = context.model.clone()
    value = louder.graph.initializers["w1"]
    graph.set_constant(value, graph.array_of(value) * 100)
    np.testing.assert_allclose(
        scores_of("l2", context)[dim], scores_of("l2", with_model(context, louder))[dim], rtol=1e-6
    )


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "taylor"])
def test_folded_and_unfolded_norms_score_alike(name):
    folded = scores_of(name, digits_context(samples=64))
    kept = scores_of(name, digits_context(DIGITS_BN, samples=64))
    for a, b in zip(folded.values(), kept.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-3 * np.abs(a).max())


def test_bn_is_the_absolute_scale():
    context = digits_context(DIGITS_BN)
    dim = context.coupling.dim("last.0")
    np.testing.assert_allclose(scores_of("bn", context)[dim], np.abs(weight(context, "last.1.weight")))


def test_fpgm_gives_the_filter_at_the_geometric_median_the_lowest_score():
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(9, 12))
    filters[4] = np.median(filters, axis=0)
    context = context_of(toy("mlp"))
    dim = next(dim for dim in context.dims if dim.size == 10)
    planted = context.model.clone()
    w = rng.normal(size=(16, 10)) + 5  # far from zero: the smallest norm is not the median
    w[:, 7] = np.delete(w, 7, axis=1).mean(1)
    graph.set_constant(planted.graph.initializers["w2"], w.astype(np.float32))
    found = with_model(context, planted)
    assert scores_of("fpgm", found)[dim].argmin() == 7
    brute = np.array([[np.linalg.norm(a - b) for a in filters] for b in filters])
    np.testing.assert_allclose(fpgm.distances(filters), brute, atol=1e-6)
    assert brute.sum(1).argmin() == 4


@pytest.mark.parametrize("network", ["cnn", "mlp", "concat", "attention"])
def test_taylor_gates_agree_with_finite_differences(network):
    """d loss / d gate against the loss with everything that makes the unit scaled by 1 + h."""
    torch = pytest.importorskip("torch")
    from onnxprune.bridge.network import Network

    context = context_of(toy(network), samples=8, labelled=False)
    network_ = Network(context.model, trainable=()).eval()
    held = gates.Gates(context, network_)
    feeds, _ = next(objective.walk(context, 8, 8))
    size = len(next(iter(feeds.values())))
    held.open(size, "cpu")
    y = next(iter(network_(feeds).values()))
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(y.shape)).astype(np.float32))
    found = {dim: g.sum(0).numpy() for dim, g in held.gradients((y * direction).sum()).items()}
    x, h = next(iter(feeds.values())).numpy(), 1e-2
    for dim in context.dims:
        sources = units.sources(context.coupling, dim)
        assert sources, dim.name
        for unit in range(0, dim.size, 3):
            values = [
                float((outputs(_scaled_last(context, dim, unit, 1 + s * h), x) * direction.numpy()).sum())
                for s in (1, -1)
            ]
            expected = (values[0] - values[1]) / (2 * h)
            assert found[dim][unit] == pytest.approx(expected, rel=0.03, abs=0.03 * float(np.abs(found[dim]).max())), (
                dim.name
            )


def _scaled_last(context, dim, unit, factor):
    from dataclasses import replace

    members = tuple(m for m in context.coupling.members[dim] if (m.node, m.input) in last_affine(context, dim))
    coupling = replace(context.coupling, members={**context.coupling.members, dim: members})
    return scaled(coupling, dim, unit, factor)


def test_taylor_without_labels_uses_the_models_answers_and_says_so():
    classes = describe(toy("mlp"))  # this random network gives one answer only, which would be taken for none
    outcome = base.run(base.get("taylor"), replace(context_of(toy("mlp"), labelled=False), described=classes))
    assert outcome.comparable
    assert "own answers" in outcome.notes[0]
    labelled = replace(context_of(toy("mlp")), described=classes)
    with_labels = base.run(base.get("taylor"), labelled)  # its labels are those answers
    for a, b in zip(outcome.scores.values(), with_labels.scores.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_taylor_does_not_depend_on_how_samples_are_batched():
    one, many = (base.run(base.get("taylor"), context_of(toy("mlp"), score_batch=b)).scores for b in (1, 64))
    for a, b in zip(one.values(), many.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_a_backward_pass_takes_few_large_samples_at_a_time(monkeypatch):
    context, seen = context_of(toy("cnn")), []
    walk = objective.walk
    monkeypatch.setattr(objective, "walk", lambda *given: seen.append(given[2]) or walk(*given))
    whole = scores_of("taylor", context)
    monkeypatch.setattr(objective, "ALL_BYTES", 20_000)
    part = scores_of("taylor", context)
    assert 1 <= seen[1] < seen[0]
    for dim, scores in whole.items():
        np.testing.assert_allclose(part[dim], scores, rtol=1e-4)


def test_hessian_is_the_fisher_diagonal_of_a_softmax_layer():
    """For y = W2' tanh-free h the Fisher of logits is diag(p) - pp': checked on the last hidden layer by hand."""
    context = context_of(toy("mlp"), samples=1500, score_batch=1)
    dim = next(dim for dim in context.dims if dim.size == 10)
    found = base.run(base.get("hessian"), replace_options(context, samples=1500)).scores[dim]
    w1, b1, w2, w3 = (weight(context, name) for name in ("w1", "b1", "w2", "w3"))
    assert context.samples is not None
    x = context.samples.batch(np.arange(1500))["x"].astype(np.float64)
    h = np.maximum(x @ w1 + b1, 0)
    t = np.tanh(h @ w2)
    z = t @ w3
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    # E_y[(dL/dt_u)^2] = sum_ab w_ua F_ab w_ub; times tanh'^2 h_i^2 w_iu^2, summed over i
    fisher = np.einsum("ua,na,ua->nu", w3, p, w3) - np.einsum("ua,na->nu", w3, p) ** 2
    expected = np.einsum("nu,ni,iu->u", fisher * (1 - t**2) ** 2, h**2, w2**2) / len(x) / 2
    np.testing.assert_allclose(found, expected, rtol=0.25)


def replace_options(context: base.Context, **options: object) -> base.Context:
    from dataclasses import replace

    return replace(context, options={**context.options, **options})


def test_random_is_uniform_and_differs_between_dims():
    context = digits_context()
    scores = np.concatenate(list(scores_of("random", context).values()))
    assert scores.min() >= 0
    assert scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.06


def test_losses_of_units_that_go_together_add_up_as_changes():
    """k units of equal loss cost k^2 of it in all; the order of a Dim's own units stays."""
    np.testing.assert_allclose(base.together(np.full(4, 0.5)), [0.5, 1.5, 2.5, 3.5])
    losses = np.random.default_rng(0).gamma(0.5, size=50)
    added = base.together(losses)
    assert (np.argsort(added) == np.argsort(losses)).all()
    assert added.sum() == pytest.approx(np.sqrt(losses).sum() ** 2)


def test_first_order_scores_do_not_let_one_layer_collapse():
    """All units of one Dim alike and a little cheaper than any other: it does not lose all that may go."""
    context = digits_context()
    outcome = base.run(base.get("taylor"), context)
    assert outcome.losses
    first = max(context.dims, key=lambda dim: dim.size * context.cost.marginal("macs", dim, {}))
    flat = {}
    for dim in context.dims:  # per operation saved, as selection compares them
        price = context.cost.marginal("macs", dim, {})
        flat[dim] = np.full(dim.size, price if dim is first else 1.1 * price)
    alone, joint = (
        select(scores, context.cost, Budget({"macs": 0.8}), comparable=True)[first].sum()
        for scores in (flat, replace(outcome, scores=flat).ranking)
    )
    assert joint - alone > 0.25 * first.size


BLOCKED = (
    "(float[n,32] x, int8[64,32] a, float[64,2] as_, int8[64,2] az, int8[16,64] b, float[16,4] bs, int8[16,4] bz) => "
    "(float[n,16] y) { u = DequantizeLinear<axis = 1, block_size = 16>(a, as_, az) "
    "v = DequantizeLinear<axis = 1, block_size = 16>(b, bs, bz) "
    "c = Gemm<transB = 1>(x, u) d = Relu(c) y = Gemm<transB = 1>(d, v) }"
)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_weights_quantized_in_blocks_are_scored_as_what_they_stand_for(name):
    """Scales of two axes were laid out along one, which ended in an internal error."""
    context = context_of(model(BLOCKED, opset=21))
    (dim,) = context.dims
    q, scale, zero = (weight(context, part) for part in ("a", "as_", "az"))
    w = (q - np.repeat(zero, 16, axis=1)) * np.repeat(scale, 16, axis=1)
    found = scores_of(name, context)[dim]
    assert found.shape == (4,)
    if name != "fpgm":
        power = {"l1": 1, "l2": 2}[name]
        norms = (np.abs(w) ** power).reshape(4, -1).sum(1) ** (1 / power)
        np.testing.assert_allclose(found, norms / norms.mean(), rtol=1e-6)
