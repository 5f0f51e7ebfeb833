"""Widths by what the whole model loses when a dimension is narrowed alone and its readers are refitted."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from networks import DIGITS

from onnxprune.errors import UsageError
from onnxprune.methods import rankings
from onnxprune.methods.base import Outcome
from onnxprune.options import Options
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.run import allocation, leftover, schedule, search, widths
from onnxprune.run.leftover import Order
from onnxprune.run.settings import resolved
from onnxprune.run.subject import Subject, prepare
from onnxprune.run.widths import Measured
from onnxprune.system.clock import Clock

OPTIONS = Options(method="random", target={"macs": 0.4}, data="digits", recover="reconstruct", latency=False, align=1)


@pytest.fixture(scope="module")
def scored() -> tuple[Subject, Outcome]:
    subject = prepare(Path(DIGITS), OPTIONS, Clock())
    return schedule.scored(subject, resolved(OPTIONS), Clock())


@pytest.fixture(scope="module")
def by_refit(scored) -> Outcome:
    subject, outcome = scored
    return allocation.allocated(subject, outcome, resolved(replace(OPTIONS, allocate="refit")), Clock())


def kept(subject: Subject, outcome: Outcome) -> dict:
    return dict(search.near_the_target(subject, outcome, resolved(OPTIONS), {"macs": 0.4}).keep)


def test_prices_add_up_to_the_losses_measured_and_rise_in_the_order():
    order = Order(np.array([2, 0, 3, 1]), np.array([0.01, 0.04, 0.09, 0.3]))
    found = widths.prices(Measured(order, {1: 0.001, 3: 0.05}))
    assert (np.diff(found[order.units]) > 0).all()
    assert found[order.units][0] == pytest.approx(0.001)
    assert found[order.units][:3].sum() == pytest.approx(0.05)
    assert found.sum() == pytest.approx(0.05 * 0.3 / 0.09)  # beyond what was measured, in proportion to the errors


def test_losses_that_fall_by_noise_give_prices_that_do_not():
    order = Order(np.arange(6), np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5]))
    found = widths.prices(Measured(order, {2: 0.08, 3: 0.02, 5: 0.3}))
    assert (found >= 0).all()
    assert np.array_equal(np.argsort(found, kind="stable"), order.units)


def test_divergence_is_of_distributions_or_a_share_of_the_variance():
    t = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))
    y = np.log(np.array([[0.5, 0.5], [0.4, 0.6]], np.float32))
    wanted = 0.5 * (0.9 * np.log(0.9 / 0.4) + 0.1 * np.log(0.1 / 0.6))
    assert widths.divergence(y, t) == pytest.approx(wanted, rel=1e-5)
    assert widths.divergence(np.exp(y), np.exp(t)) == pytest.approx(wanted, rel=1e-4)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert widths.divergence(x + 1, x) == pytest.approx(1 / x.var(), rel=1e-4)


def test_places_that_are_masked_out_say_nothing():
    t = np.array([[0.0, 1.0, -np.inf]], np.float32)
    assert widths.divergence(t, t) == pytest.approx(0, abs=1e-9)
    assert 0.01 < widths.divergence(np.array([[1.0, 0.0, -np.inf]], np.float32), t) < 1
    x = np.array([[[1.0, 2.0, np.inf]]], np.float32)
    assert widths.divergence(x, x) == 0
    assert widths.divergence(np.full_like(x, np.inf), x) == 0


def test_outputs_whose_shape_depends_on_the_numbers_are_not_compared():
    said = {"boxes": np.ones((3, 4), np.float32)}
    original = SimpleNamespace(
        said=said, average=lambda _: None, answers=lambda _: {"boxes": np.ones((2, 4), np.float32)}
    )
    assert widths._Judge(original).loss(None) == 0  # type: ignore[arg-type]


def test_what_cannot_be_measured_is_not_tried_where_nobody_asked_for_it(scored, monkeypatch):
    def nothing(*_, **__):
        raise UsageError("no output of the model can be compared")

    subject, outcome = scored
    monkeypatch.setattr(allocation, "_evaluator", nothing)
    monkeypatch.setattr(widths, "by_refit", lambda _, outcome, *__, **___: outcome)
    found = allocation.allocated(subject, outcome, replace(resolved(OPTIONS), method_found=True), Clock())
    assert found.scores
    assert not any(allocation.BY_REFIT in note for note in found.notes)


def test_random_units_in_random_widths_become_those_that_cost_least_after_the_refit(scored, by_refit):
    subject, outcome = scored
    evaluate = allocation._evaluator(subject, resolved(OPTIONS))
    own, found = (
        evaluate(search.near_the_target(subject, each, resolved(OPTIONS), {"macs": 0.4})).mean()
        for each in (rankings.without(outcome, subject.coupling.residual), by_refit)
    )
    assert found < 0.7 * own
    assert by_refit.comparable
    assert allocation.BY_REFIT in by_refit.notes
    keep = kept(subject, by_refit)
    assert subject.cost.total("macs", cost.keep_sizes(keep)) <= 0.4 * subject.cost.total("macs")


def test_the_methods_order_can_stay(scored):
    subject, outcome = scored
    spared = rankings.without(outcome, subject.coupling.residual)
    found = widths.by_refit(subject, spared, 0, reorder=False)
    for dim, values in spared.scores.items():
        assert np.array_equal(np.argsort(found.scores[dim], kind="stable"), np.argsort(values, kind="stable"))


def test_a_dimension_that_no_stored_weight_reads_is_measured_in_the_methods_order(scored, monkeypatch):
    subject, outcome = scored
    monkeypatch.setattr(widths.leftover, "readers", lambda *_: {})
    found = widths.by_refit(subject, outcome, 0, reorder=True)
    for dim, values in outcome.scores.items():
        assert np.array_equal(np.argsort(found.scores[dim], kind="stable"), np.argsort(values, kind="stable"))


def test_without_a_method_asked_for_they_are_taken_where_they_are_clearly_better(scored):
    subject, outcome = scored
    plain = allocation.allocated(subject, outcome, resolved(OPTIONS), Clock())
    assert not any("lost in a trial" in note for note in plain.notes)  # random was asked for
    found = allocation.allocated(subject, outcome, replace(resolved(OPTIONS), method_found=True), Clock())
    (note,) = (note for note in found.notes if "lost in a trial" in note)
    own, *others = (float(word) for word in note.replace("(", " ").split() if word.startswith("0."))
    assert len(others) == 2
    assert min(others) < 0.9 * own  # the units were random


def test_units_go_in_the_order_of_the_refit_in_the_methods_widths(scored):
    """ResNet-20 at half of the MACs, in taylor's widths: 86.4 % in taylor's order, 87.7 % in this one."""
    subject, outcome = scored
    spared = rankings.without(outcome, subject.coupling.residual)
    orders = widths.Orders(subject, leftover.readers(subject.coupling, spared.scores), 0)
    own, found = (kept(subject, each) for each in (spared, widths.in_order(spared, orders)))
    assert {dim: mask.sum() for dim, mask in own.items()} == {dim: mask.sum() for dim, mask in found.items()}
    for dim, mask in found.items():
        order = orders.of(dim)
        assert order is not None
        assert not mask[order.units[: int((~mask).sum())]].any()
    evaluate = allocation._evaluator(subject, resolved(OPTIONS))
    worse, better = (evaluate(Selection(subject.coupling, keep)).mean() for keep in (own, found))
    assert better < 0.9 * worse


@pytest.mark.parametrize(("loss", "taken"), [(0.9, "loss"), (1.0, "order"), (1.1, "order")])
def test_widths_without_the_methods_limits_are_taken_where_they_are_better(loss, taken):
    """ResNet-20 at 0.35 of its MACs: 81.0 % in snacs' widths, whose limits keep layers wide, 82.1 % without limits."""
    names = {"own": "snacs", "order": allocation.BY_ORDER, "loss": allocation.BY_LOSS}
    best = allocation._best(candidates(names.values(), (1.05, 1.0, loss)), "snacs")
    assert best is not None
    assert best.name == names[taken]


def test_widths_that_lose_less_by_chance_are_not_taken():
    own, other = candidates(("snacs", allocation.BY_LOSS), (1.0, 1.0))
    noise = np.array([-0.5, 0.4, -0.5, 0.4, -0.5, 0.4, -0.5, 0.4])
    assert allocation._best([own, replace(other, losses=other.losses + noise)], "snacs") is own
    assert allocation._best([own, replace(other, losses=other.losses + noise - 0.2)], "snacs") is not own


def candidates(names, losses) -> list[allocation.Candidate]:
    return [
        allocation.Candidate(name, Outcome({}), Selection(None, {}), np.full(8, loss))  # type: ignore[arg-type]
        for name, loss in zip(names, losses, strict=True)
    ]


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ((1.0, 1.0, 1.1), "order"),
        ((1.0, 1.05, 1.1), "own"),
        ((1.0, 1.05, 0.95), "refit"),
        ((1.0, 0.9, 0.95), "order"),
        ((1.0, 0.9, 0.85), "refit"),
    ],
)
def test_the_order_is_taken_unless_it_is_worse_and_the_widths_where_they_are_better(losses, taken):
    """MobileNetV2 at half of its MACs: 48.2 % by the order, 56.4 % by widths that lose 0.95 of that in the trial."""
    names = {"own": "snacs", "order": allocation.BY_ORDER, "refit": allocation.BY_REFIT}
    best = allocation._best(candidates(names.values(), losses), "snacs")
    assert best is not None
    assert best.name == names[taken]


@pytest.mark.parametrize(
    ("order", "refit", "taken"), [(0.9, 1.2, "order"), (1.1, 1.2, ""), (1.1, 0.8, "refit"), (0.9, 0.8, "refit")]
)
def test_a_search_takes_what_loses_least_at_all_sizes_together(scored, monkeypatch, order, refit, taken):
    subject, outcome = scored
    losses = iter([1.0, 1.0, order - 0.2, order + 0.2, refit + 0.2, refit - 0.2, *[9.0] * 2])  # at each of two sizes
    monkeypatch.setattr(allocation, "_evaluator", lambda *_: lambda choice: np.full(800, next(losses)))
    monkeypatch.setattr(widths, "by_refit", lambda subject, outcome, *_, **__: outcome)
    searching = replace(resolved(replace(OPTIONS, target={}, max_drop=1.0)), method_found=True)
    found = allocation.allocated(subject, outcome, searching, Clock())
    names = {"order": allocation.BY_ORDER, "refit": allocation.BY_REFIT}
    assert [key for key, name in names.items() if found.notes[-1].startswith(name)] == ([taken] if taken else [])
    assert found.prices  # streams go last, as before
    assert found.scores.keys() == outcome.scores.keys()


def test_as_many_units_as_a_method_decides_without_a_target_go_in_the_order_of_the_refit(scored):
    """Runs without a target kept the method's order, of which those with one had shown that it is worse."""
    subject, outcome = scored
    own, settings = kept(subject, outcome), resolved(replace(OPTIONS, target={}))
    decided = replace(outcome, keep=own)
    assert allocation.allocated(subject, decided, settings, Clock()) is decided  # random was asked for
    found = allocation.allocated(subject, decided, replace(settings, method_found=True), Clock())
    assert found.keep is not None
    macs = [subject.cost.total("macs", cost.keep_sizes(keep)) for keep in (own, found.keep)]
    assert 0.9 * macs[0] < macs[1] <= macs[0]
    (selection,) = search.selections(subject, found, settings)
    assert all(np.array_equal(mask, found.keep[dim]) for dim, mask in selection.keep.items())
    evaluate = allocation._evaluator(subject, settings)
    worse, better = (evaluate(Selection(subject.coupling, keep)).mean() for keep in (own, found.keep))
    assert better < 0.9 * worse


def test_an_order_leaves_as_many_units_of_what_was_decided(scored):
    subject, outcome = scored
    own = kept(subject, outcome)
    orders = widths.Orders(subject, leftover.readers(subject.coupling, outcome.scores), 0)
    found = widths.in_order(replace(outcome, keep=own), orders).keep
    assert found is not None
    assert {dim: mask.sum() for dim, mask in own.items()} == {dim: mask.sum() for dim, mask in found.items()}
    for dim, mask in found.items():
        order = orders.of(dim)
        assert order is None or not mask[order.units[: int((~mask).sum())]].any()


@pytest.mark.parametrize("comparable", [True, False])
def test_widths_between_those_of_the_loss_and_of_the_refit_are_tried(scored, by_refit, comparable, monkeypatch):
    """ResNet-20 at 0.35 of its MACs: 82.6 % by the loss, 82.3 % by the refit, 83.0 % halfway."""
    subject, outcome = scored
    monkeypatch.setattr(allocation, "_refit", lambda *_: by_refit)
    orders = widths.Orders(subject, leftover.readers(subject.coupling, outcome.scores), 0)
    given = replace(outcome, comparable=comparable)
    found = dict(allocation._rankings(subject, given, given, resolved(OPTIONS), orders))
    assert (allocation.BETWEEN in found) == comparable
    if comparable:
        between = found[allocation.BETWEEN]
        for dim, values in between.scores.items():
            assert np.array_equal(np.argsort(values, kind="stable"), np.argsort(by_refit.scores[dim], kind="stable"))
            ends = np.sort([np.sort(outcome.scores[dim]), np.sort(by_refit.scores[dim])], axis=0)
            assert (ends[0] <= np.sort(values) * (1 + 1e-9)).all()
            assert (np.sort(values) <= ends[1] * (1 + 1e-9)).all()


@pytest.mark.parametrize("comparable", [True, False])
def test_widths_beyond_a_methods_limits_are_tried_where_its_scores_are_losses(scored, comparable):
    subject, outcome = scored
    limited = replace(outcome, limits=dict.fromkeys(outcome.scores, 0.3), comparable=comparable)
    settings = resolved(replace(OPTIONS, target={"macs": 0.6}))
    orders = widths.Orders(subject, leftover.readers(subject.coupling, outcome.scores), 0)
    found = dict(allocation._rankings(subject, limited, limited, settings, orders))
    assert (allocation.BY_LOSS in found) == comparable
    if comparable:
        keep = search.near_the_target(subject, found[allocation.BY_LOSS], settings, {"macs": 0.4}).keep
        assert min(mask.mean() for mask in keep.values()) < 0.7


def test_larger_models_are_tried_on_fewer_samples(scored, monkeypatch):
    subject, _ = scored
    seen: list[int] = []
    monkeypatch.setattr(allocation.fair, "mixed", lambda judged, axes, most, seed: seen.append(most) or judged)
    monkeypatch.setattr(allocation, "refitted", lambda selection, learned, seed: seen.append(len(learned)))
    monkeypatch.setattr(allocation, "compared", lambda *_: SimpleNamespace(losses=lambda model: np.zeros(4)))
    for part in (1, 4):
        monkeypatch.setattr(allocation, "MOST_MACS", allocation.PASSES * subject.cost.totals()["macs"] / part)
        allocation._evaluator(subject, resolved(OPTIONS))(Selection(subject.coupling, {}))
    assert seen == [allocation.COMPARED, 256, allocation.COMPARED // 4, 64]


@pytest.mark.parametrize("limit", ["MOST_MACS", "MOST_WORK"])
def test_they_are_not_tried_where_that_would_take_long(scored, monkeypatch, limit):
    subject, outcome = scored
    monkeypatch.setattr(allocation, limit, 1.0)
    monkeypatch.setattr(widths, "by_refit", lambda *_, **__: pytest.fail("tried"))
    found = allocation.allocated(subject, outcome, replace(resolved(OPTIONS), method_found=True), Clock())
    assert found.scores


def test_they_need_samples(scored):
    subject, outcome = scored
    with pytest.raises(UsageError, match="--allocate refit needs samples"):
        allocation.allocated(
            replace(subject, tune=None), outcome, resolved(replace(OPTIONS, allocate="refit")), Clock()
        )


def test_a_dimension_that_a_layer_reads_and_gives_is_measured_without_a_refit(cli, cnn_path, tmp_path):
    """The residual stream of this network: a convolution goes from it to it, and lost its outputs beside its inputs."""
    x = np.random.default_rng(0).standard_normal((80, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    words = (
        "--data",
        tmp_path / "x.npz",
        "--align",
        1,
        "--allocate",
        "refit",
        "--recover",
        "constants",
        "--no-latency",
    )
    ran = cli(cnn_path, tmp_path / "o.onnx", *words, "--method", "l1", "--target", "macs=0.3", "-q")
    assert ran.code == 0, ran.err
