"""PAAM: the activation, the attention network, what it learns about planted filters, and selection."""

import numpy as np
import pytest
from toys import context_of, digits_context, scaled, toy, with_model

from onnxprune import surgery
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods import base
from onnxprune.methods.paam import network, paam
from onnxprune.outputs import metrics
from onnxprune.plan import cost, select

torch = pytest.importorskip("torch")


def run(context: base.Context) -> base.Outcome:
    return base.run(base.get("paam"), context)


def accuracy(context: base.Context, model) -> float:
    held = load_samples("digits:test", input_infos(context.model))
    found = metrics.evaluate(sessions.open_session(model, threads=1), held)
    assert found is not None
    return found.value


def test_the_activation_starts_at_one_stays_positive_and_keeps_a_gradient():
    x = torch.tensor([-20.0, -1.0, 0.0, 1.0, 50.0], requires_grad=True)
    y = network.leaky_exponential(x)
    y.sum().backward()
    assert y[2].item() == 1
    assert (y > 0).all()
    assert x.grad is not None
    assert (x.grad > 0).all()
    assert y[4].item() == pytest.approx(1.5)


def test_every_score_starts_at_one_and_filters_get_no_gradient():
    context = context_of(toy("cnn"))
    attention = network.AttentionNetwork(context, 8)
    scores = attention()
    assert all((score == 1).all() for score in scores.values())
    assert not any("filters" in name for name, _ in attention.named_parameters())


def test_scores_do_not_depend_on_the_number_of_filters_being_large():
    """Above 512 filters the dot-product form takes over; it too starts at one and learns."""
    head = network.LayerAttention(network.standardized(np.random.default_rng(0).normal(size=(600, 9))), 8)
    z = head()
    assert (z == 1).all()
    z.sum().backward()
    assert head.v.grad is not None
    assert (head.v.grad != 0).any()


def test_redundant_filters_score_below_critical_ones():
    """Half of a layer's filters are read by nobody; they look like the others."""
    context = digits_context(budget=0.5)
    dim = context.coupling.dim("stage1/body/body.0")
    redundant = np.random.default_rng(0).permutation(dim.size)[: dim.size // 2]
    model = context.model
    for unit in redundant:
        model = scaled(with_model(context, model).coupling, dim, int(unit), 0.0, roles=("consumes",))
    scores = run(with_model(context, model)).scores[dim]
    critical = np.setdiff1d(np.arange(dim.size), redundant)
    ranks = scores[critical][:, None] > scores[redundant][None]
    assert ranks.mean() > 0.9  # the share of pairs in the right order


def test_at_equal_macs_its_choice_loses_less_than_l2s():
    context = digits_context(target=0.5, train_samples=640)
    ours, theirs = run(context), base.run(base.get("l2"), context)
    kept = [
        accuracy(
            context,
            surgery.cut(
                select.Selection(
                    context.coupling,
                    select.select(o.scores, context.cost, select.Budget({"macs": 0.5}), comparable=o.comparable),
                )
            ),
        )
        for o in (ours, theirs)
    ]
    assert kept[0] > kept[1] + 0.3


def test_mass_selection_pools_all_dims_and_keeps_a_floor():
    context = context_of(toy("mlp"))
    a, b = context.dims
    scores = {a: np.linspace(0.5, 1, a.size), b: np.full(b.size, 1e-3)}
    keep = paam.kept_by_mass(scores, 0.95)
    assert keep[b].sum() == 2
    assert 0.9 < scores[a][keep[a]].sum() / sum(s.sum() for s in scores.values()) <= 1
    assert (np.sort(scores[a])[::-1][: keep[a].sum()] == np.sort(scores[a][keep[a]])[::-1]).all()


def test_without_a_target_no_more_goes_than_the_budget():
    """Scores that were driven far down hold 95 % of their sum in few units; the budget of MACs then decides."""
    context = context_of(toy("mlp"))
    scores = {dim: np.geomspace(1e-4, 1, dim.size) for dim in context.dims}

    def left(keep):
        sizes = {dim: int(mask.sum()) for dim, mask in keep.items()}
        return context.cost.total("macs", sizes) / context.cost.total("macs")

    assert left(paam.kept_by_mass(scores, 0.95)) < 0.3
    assert 0.5 <= left(paam.decided(context, scores, 0.95, 0.5)) < 0.7
    even = {dim: np.linspace(0.9, 1, dim.size) for dim in context.dims}
    assert left(paam.decided(context, even, 0.95, 0.5)) > 0.8  # the mass prunes less


@pytest.mark.slow
def test_one_stage_from_random_weights_decides_and_trains():
    context = digits_context(reinit="yes", epochs=12, train_samples=640, target=0.6)
    outcome = run(context)
    assert outcome.model is not None
    assert outcome.keep is not None
    left = context.cost.total("macs", cost.keep_sizes(outcome.keep)) / context.cost.total("macs")
    assert 0.6 <= left < 0.65  # it trains under the masks that the budget asks for, not under smaller ones
    whole = accuracy(context, outcome.model)
    assert whole > 0.8
    # What the masks silenced can be cut without a change.
    assert accuracy(
        context, surgery.cut(select.Selection(with_model(context, outcome.model).coupling, outcome.keep))
    ) == pytest.approx(whole, abs=0.01)
