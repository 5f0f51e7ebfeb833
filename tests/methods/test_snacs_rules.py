"""SNACS' limits, thresholds and protected filters on examples worked out by hand."""

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.methods.snacs import rules as select

A = np.array([[1.0, 2.0], [3.0, 4.0]])
B = np.array([[5.0, 6.0], [7.0, 7.0]])


def test_one_global_threshold_where_no_limit_is_reached():
    masks = select.select_connections({"a": A, "b": B}, {"a": 0.9, "b": 0.9}, 2 / 7)
    # unique 1..7, delta = the value at round(2/7 * 7) = 2, which is 3
    np.testing.assert_array_equal(masks["a"], [[False, False], [False, True]])
    assert masks["b"].all()


def test_a_layer_at_its_limit_takes_its_own_threshold():
    masks = select.select_connections({"a": A, "b": B}, {"a": 0.25, "b": 1.0}, 5 / 7)
    # delta = 6: all of a would go, so a uses its value at round(0.25 * 4) = 1, which is 2; b loses 5 and 6
    np.testing.assert_array_equal(masks["a"], [[False, False], [True, True]])
    np.testing.assert_array_equal(masks["b"], [[False, False], [True, True]])


def test_ties_leave_together_and_count_once_in_the_threshold():
    masks = select.select_connections({"b": B}, {"b": 1.0}, 1.0)
    assert not masks["b"].any()


def test_protected_children_keep_all_their_connections():
    protected = {"a": np.array([True, False])}
    masks = select.select_connections({"a": A, "b": B}, {"a": 1.0, "b": 1.0}, 1.0, protected)
    np.testing.assert_array_equal(masks["a"], [[True, True], [False, False]])


def test_nothing_is_removed_at_fraction_or_limit_zero():
    assert all(m.all() for m in select.select_connections({"a": A}, {"a": 1.0}, 0.0).values())
    assert all(m.all() for m in select.select_connections({"a": A}, {"a": 0.0}, 0.9).values())
    assert select.select_connections({}, {}, 0.5) == {}


def test_more_is_removed_as_the_fraction_grows():
    scores = {"a": np.random.default_rng(0).random((8, 8)), "b": np.random.default_rng(1).random((8, 8)) * 2}
    kept = [
        sum(m.sum() for m in select.select_connections(scores, {"a": 0.5, "b": 0.8}, q).values())
        for q in np.linspace(0, 1, 21)
    ]
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize(
    ("limits", "fraction", "message"),
    [({}, 0.5, "no limit"), ({"a": 2.0}, 0.5, "limit of 'a' is 2.0"), ({"a": 0.5}, -1, "fraction is -1")],
)
def test_wrong_limits_and_fractions_are_refused(limits, fraction, message):
    with pytest.raises(UsageError, match=message):
        select.select_connections({"a": A}, limits, fraction)


def test_accuracy_limit_on_a_curve_by_hand():
    curve = {0.1: 1.0, 0.3: 0.9, 0.5: 0.5, 0.7: 0.31, 0.9: 0.0}  # allowed from 1 - 0.7 = 0.3 on
    assert select.accuracy_limit(curve.__getitem__, tuple(curve)) == 0.7
    assert select.accuracy_limit(curve.__getitem__, tuple(curve), drop=0.2) == 0.3
    assert select.accuracy_limit(lambda p: 0.8, tuple(curve)) == 0.9


def test_accuracy_limit_takes_the_largest_share_even_behind_a_dip():
    curve = {0.1: 1.0, 0.3: 0.1, 0.5: 0.6, 0.7: 0.0}
    assert select.accuracy_limit(curve.__getitem__, tuple(curve)) == 0.5


def test_error_limit_and_its_absence():
    assert select.error_limit(lambda p: p, 0.3) == pytest.approx(0.29)
    assert select.error_limit(lambda p: 1.0, 0.3) == 0.0


def test_grid_is_every_second_percent_from_1_to_97():
    assert len(select.GRID) == 49
    assert (select.GRID[0], select.GRID[-1]) == (0.01, 0.97)


def test_class_accuracy_falls_when_activations_are_lost():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    x = np.eye(3)[labels] + 0.2 * random.normal(size=(300, 3))
    accuracy = select.class_accuracy(x, labels)
    assert accuracy(x) > 0.95
    assert accuracy(x * [1, 0, 0]) < 0.8


def test_lowest_pruned_removes_the_lowest_share():
    np.testing.assert_array_equal(select.lowest_pruned(A, 0.5), [[False, False], [True, True]])


def test_automatic_fraction_finds_the_last_that_holds():
    assert select.automatic_fraction(lambda q: q**2, 0.25) == pytest.approx(0.5, abs=1 / 128)
    assert select.automatic_fraction(lambda q: 0.0, 0.1) == 1.0
    assert select.automatic_fraction(lambda q: 1.0, 0.1) == 0.0


def test_the_children_the_next_layer_leans_on_are_protected():
    w = np.full((3, 10), 0.1)
    w[:, 4] = 5.0
    assert np.flatnonzero(select.protected_children(w, np.ones(10), 0.1)).tolist() == [4]
    quiet = np.where(np.arange(10) == 4, 1e-3, 1.0)  # a large weight on a child that is almost silent
    assert 4 not in np.flatnonzero(select.protected_children(w, quiet, 0.1))


def test_protected_groups_of_children_and_none_at_fraction_zero():
    w = np.full((3, 8), 0.1)
    w[:, 5] = -5.0
    assert select.protected_children(w, np.ones(8), 0.05, np.repeat(np.arange(4), 2)).tolist() == [0, 0, 1, 0]
    assert not select.protected_children(w, np.ones(8), 0.0).any()
