"""Selection: promises are kept or refused with a figure that can be reached; costs are exact."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import MODELS, NETWORKS, filled

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.errors import BudgetError, UsageError
from onnxprune.plan import cost
from onnxprune.plan.select import Budget, Selection, aligned, alignment, select, topped_up

KINDS = cost.KINDS
names = st.sampled_from([*sorted(NETWORKS), "digits", "digits-bn"])
kinds = st.sampled_from(KINDS)
fractions = st.floats(0.02, 1.0)
QUICK = settings(max_examples=60, deadline=None)


@cache
def subject(name):
    model = ir.from_proto(filled(NETWORKS[name])) if name in NETWORKS else graph.load(MODELS / f"{name}.onnx")
    coupling = analyze(graph.normalize(model))
    return coupling, cost.of(coupling)


def scores_of(coupling, seed):
    rng = np.random.default_rng(seed)
    return {dim: rng.gamma(1.0, 10.0 ** rng.integers(-2, 3), dim.size) for dim in coupling.free}


def sizes_of(keep):
    return cost.keep_sizes(keep)


def chosen(name, budget, seed=0, comparable=False):
    coupling, costs = subject(name)
    return select(scores_of(coupling, seed), costs, budget, comparable=comparable)


# The promise --------------------------------------------------------------------------------------------------------


@QUICK
@given(
    names, st.dictionaries(kinds, fractions, min_size=1), st.integers(0, 9), st.booleans(), st.sampled_from((1, 2, 4))
)
def test_targets_hold_or_the_nearest_is_told_and_holds(name, targets, seed, comparable, align):
    _, costs = subject(name)
    budget = Budget(targets, align=align)
    try:
        keep = chosen(name, budget, seed, comparable)
    except BudgetError as error:
        nearest = dict(targets)
        for part in str(error).split("the nearest is ")[1:]:
            kind, figure = part.split(";")[0].split("=")
            nearest["bytes" if kind == "size" else kind] = float(figure)
        assert nearest != targets
        keep = chosen(name, Budget(nearest, align=align), seed, comparable)
        targets = nearest
    for kind, fraction in targets.items():
        assert costs.total(kind, sizes_of(keep)) <= fraction * costs.total(kind)


@QUICK
@given(names, kinds, fractions, st.integers(0, 9))
def test_nothing_more_is_removed_than_needed(name, kind, fraction, seed):
    """Each removed block is needed: giving the last one of any Dim back breaks the promise."""
    coupling, costs = subject(name)
    try:
        keep = chosen(name, Budget({kind: fraction}, floor=0.0), seed)
    except BudgetError:
        return
    sizes = sizes_of(keep)
    for dim in coupling.free:
        if sizes[dim] < dim.size:
            grown = {**sizes, dim: sizes[dim] + 1}
            assert costs.total(kind, grown) > fraction * costs.total(kind)


@QUICK
@given(names, kinds, st.tuples(fractions, fractions), st.integers(0, 9))
def test_smaller_targets_cost_less(name, kind, pair, seed):
    _, costs = subject(name)
    try:
        less, more = (costs.total(kind, sizes_of(chosen(name, Budget({kind: f}), seed))) for f in sorted(pair))
    except BudgetError:
        return
    assert less <= more


@QUICK
@given(names, fractions, st.integers(0, 9), st.booleans())
def test_the_worst_units_of_a_dim_leave(name, fraction, seed, comparable):
    coupling, _ = subject(name)
    try:
        keep = chosen(name, Budget({"macs": fraction}), seed, comparable)
    except BudgetError:
        return
    for dim, values in scores_of(coupling, seed).items():
        if not keep[dim].all():
            assert values[~keep[dim]].max() <= values[keep[dim]].min()


def test_everything_stays_for_a_target_of_one():
    for name in NETWORKS:
        assert all(mask.all() for mask in chosen(name, Budget(dict.fromkeys(KINDS, 1.0))).values())


def test_dims_without_scores_are_not_touched():
    coupling, costs = subject("cnn")
    one = coupling.free[-1]
    keep = select({one: np.arange(one.size)}, costs, Budget({"macs": 0.97}))
    assert list(keep) == [one]


# Limits -------------------------------------------------------------------------------------------------------------


@QUICK
@given(names, st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.sampled_from((1, 2, 3, 4)))
def test_floor_limits_and_alignment_hold(name, floor, limit, align):
    coupling, _ = subject(name)
    limits = {coupling.free[0]: limit}
    budget = Budget({"macs": 0.3}, floor=floor, align=align, strict=True, limits=limits)
    try:
        keep = chosen(name, budget)
    except BudgetError:
        return
    for dim, mask in keep.items():
        kept = int(mask.sum())
        assert kept >= max(1, np.ceil(floor * dim.size))
        assert kept == dim.size or kept % align == 0
    first = coupling.free[0]
    assert keep[first].sum() >= np.ceil(first.size * (1 - limit) - 1e-9)


def test_strict_alignment_leaves_small_dims_whole():
    coupling, _ = subject("mlp")  # sizes 16 and 10
    keep = chosen("mlp", Budget({"params": 0.8}, align=8, strict=True))
    assert {dim.size: int(keep[dim].sum()) for dim in coupling.free} in (
        {16: 8, 10: 8},
        {16: 16, 10: 8},
        {16: 8, 10: 10},
    )


def test_automatic_alignment_is_halved_until_four_fit():
    assert [alignment(size, 16) for size in (8, 16, 32, 63, 64, 100, 512)] == [2, 4, 8, 8, 16, 16, 16]
    assert [alignment(size, 16, strict=True) for size in (8, 512)] == [16, 16]
    assert alignment(3, 1) == 1


def test_widths_between_full_multiples_are_left_to_units_that_are_worth_half():
    """A small Dim ends between multiples of 16 only where a whole block would cost over twice as much."""
    coupling, costs = subject("digits")
    dims = [dim for dim in coupling.free if dim.size == 32]
    first, second = dims[0], dims[1]
    for worth, expected in ((1.0, {16, 32}), (0.1, {8, 24, 32})):
        scores = {first: np.r_[np.full(16, 1.0), np.full(16, 9.0)], second: np.full(32, 5.0)}
        scores[first][:8] = worth
        scores[first][8:16] = 4.0 if worth < 1 else 1.0
        keep = select(scores, costs, Budget({"macs": 0.97}, align=16))
        assert int(keep[first].sum()) in expected - {32}, worth
        assert keep[second].all()


def test_aligned_keeps_the_nearest_multiple_by_score():
    keep = np.array([True] * 5 + [False] * 3)
    scores = np.array([5, 1, 4, 3, 2, 9, 7, 8.0])
    assert np.flatnonzero(aligned(keep, scores, 4, strict=True)).tolist() == [0, 2, 3, 4]
    assert np.flatnonzero(aligned(keep, scores, 3, strict=True)).tolist() == [0, 1, 2, 3, 4, 5]
    assert aligned(keep, scores, 64, strict=True).all()


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, 50, float("nan")])
def test_targets_that_are_no_fractions_are_refused(fraction):
    with pytest.raises(UsageError, match="--target size="):
        chosen("mlp", Budget({"bytes": fraction}))


def test_bytes_around_the_weights_count():
    _, costs = subject("mlp")
    total = costs.total("bytes")
    budget = Budget({"bytes": 0.5}, whole={"bytes": total + 100}, fixed={"bytes": 100})
    assert costs.total("bytes", sizes_of(chosen("mlp", budget))) + 100 <= 0.5 * (total + 100)
    with pytest.raises(BudgetError, match=r"size=0\.5 cannot be met"):
        chosen("mlp", Budget({"bytes": 0.5}, whole={"bytes": total}, fixed={"bytes": total}))


def test_comparable_scores_are_weighed_against_what_they_save():
    """Two Dims of equal scores: the one whose units cost more leaves first."""
    coupling, costs = subject("mlp")
    first, second = coupling.free
    scores = {dim: np.ones(dim.size) for dim in coupling.free}
    keep = select(scores, costs, Budget({"params": 0.9}), comparable=True)
    dear = max((first, second), key=lambda dim: costs.marginal("params", dim))
    assert not keep[dear].all()


# Costs --------------------------------------------------------------------------------------------------------------


@QUICK
@given(names, kinds, st.data())
def test_marginal_cost_is_the_difference_of_totals(name, kind, data):
    coupling, costs = subject(name)
    sizes = {dim: data.draw(st.integers(1, dim.size)) for dim in coupling.free}
    dim = data.draw(st.sampled_from(coupling.free))
    less = costs.total(kind, {**sizes, dim: sizes[dim] - 1})
    assert costs.marginal(kind, dim, sizes) == pytest.approx(costs.total(kind, sizes) - less)


@settings(max_examples=15, deadline=None)
@given(names, st.data())
def test_polynomials_equal_counting_on_the_cut_model(name, data):
    coupling, costs = subject(name)
    keep = {}
    for dim in coupling.free:
        mask = np.zeros(dim.size, bool)
        mask[list(data.draw(st.sets(st.integers(0, dim.size - 1), min_size=1)))] = True
        keep[dim] = mask
    cut = surgery.cut(Selection(coupling, keep))
    counted = cost.of(analyze(graph.normalize(cut))).totals()
    assert costs.totals(sizes_of(keep)) == counted
    params = sum(int(np.prod(value.shape.numpy())) for value in cut.graph.initializers.values())
    assert counted["params"] == params
    assert counted["bytes"] == 4 * params


def test_a_target_that_nothing_counts_towards_says_so():
    coupling, costs = subject("mlp")
    without = replace(costs, terms={**costs.terms, "params": ()})
    with pytest.raises(BudgetError, match=r"makes no difference to params .* Choose another target$"):
        select(scores_of(coupling, 0), without, Budget({"params": 0.5}, whole={"params": 5.0}, fixed={"params": 5.0}))


@given(st.integers(1, 80), st.integers(0, 9), st.sampled_from((1, 4, 16)))
def test_topping_up_gives_back_until_a_multiple_and_loses_nothing(size, seed, align):
    keep = np.random.default_rng(seed).random(size) < 0.7
    found = topped_up(keep, align)
    assert found[keep].all()
    step = align if size >= align else alignment(size, align)
    assert found.all() or found.sum() % step == 0
    assert found.sum() - keep.sum() < step
