"""Losses by size: few measurements, made monotone, and bent to where the full recovery was measured."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.run.curve import Curve, falling, knee

NUMBERS = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(NUMBERS)
def test_falling_never_rises_and_keeps_the_mean(values):
    found = falling(values)
    assert len(found) == len(values)
    assert all(a >= b - 1e-9 for a, b in pairwise(found))
    assert np.mean(found) == pytest.approx(np.mean(values), abs=1e-6)


@given(NUMBERS)
def test_falling_leaves_what_falls_already(values):
    ordered = sorted(values, reverse=True)
    np.testing.assert_allclose(falling(ordered), ordered)


def test_falling_is_nearest_in_squares():
    assert falling([1.0, 3.0, 2.0]) == [2.0, 2.0, 2.0]
    assert falling([5.0, 1.0, 2.0, 0.0]) == [5.0, 1.5, 1.5, 0.0]


def test_the_original_loses_nothing_and_noise_is_averaged():
    curve = Curve([(0.25, 8.0), (0.5, 1.0), (0.75, 2.0)])
    assert curve.lost(1.0) == pytest.approx(0.0)
    assert curve.lost(0.5) == curve.lost(0.75) == pytest.approx(1.5)
    assert curve.lost(0.875) == pytest.approx(0.75)


def test_full_recoveries_bend_the_curve_where_they_were_measured():
    cheap = [(0.2, 40.0), (0.5, 10.0), (0.8, 2.0)]
    one = Curve(cheap, [(0.5, 2.0)])
    assert one.lost(0.5) == pytest.approx(2.0)
    assert 7 < one.lost(0.2) < 10
    two = Curve(cheap, [(0.5, 2.0), (0.2, 20.0)])
    assert two.lost(0.2) == pytest.approx(20.0)
    assert 2.0 < two.lost(0.35) < 20.0


def test_smallest_holds_from_there_on():
    curve = Curve([(0.2, 16.0), (0.6, 4.0)])
    found = curve.smallest(2.0, 0.1, 1.0)
    assert found is not None
    assert found == pytest.approx(0.8, abs=0.005)
    assert curve.lost(found) <= 2.0
    assert curve.smallest(2.0, 0.1, 0.7) is None
    assert curve.smallest(100.0, 0.1, 1.0) == pytest.approx(0.1)


def test_the_knee_is_where_most_is_saved_for_what_is_lost():
    points = [(1.0, 0.0), (0.8, 0.2), (0.6, 0.5), (0.4, 1.5), (0.3, 8.0), (0.2, 30.0), (0.1, 70.0)]
    assert points[knee(points)][0] == 0.3
    assert knee([(1.0, 0.0), (0.5, 10.0)]) in (0, 1)
