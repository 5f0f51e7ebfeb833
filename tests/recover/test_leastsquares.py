"""Ridge least squares from running sums, against numpy's own."""

import numpy as np
import pytest
from scipy import linalg as scipy_linalg

from onnxprune.recover.refit import leastsquares
from onnxprune.recover.refit.leastsquares import Bounds, Sums


def _data(rows: int = 400, groups: int = 2, features: int = 5, outs: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, groups, features)) + 3).astype(np.float32)
    w, b = rng.normal(size=(groups, outs, features)), rng.normal(size=(groups, outs))
    y = (np.einsum("rgd,god->rgo", x, w) + b).astype(np.float32)
    return x, y, w, b


def _sums(x, y, parts: int = 4) -> Sums:
    sums = Sums()
    for a, c in zip(np.array_split(x, parts), np.array_split(y, parts), strict=True):
        sums.add(a, c, np.arange(len(a)) % 5 == 4)
    return sums


def test_a_linear_layer_is_found_again():
    x, y, w, b = _data()
    fit = _sums(x, y).solve(np.zeros_like(w), np.zeros_like(b), 1e-9)
    assert fit is not None
    assert fit.better
    assert np.allclose(fit.weights, w, atol=1e-4)
    assert np.allclose(fit.bias, b, atol=1e-3)


def test_batches_do_not_matter():
    x, y, w, b = _data()
    one, many = (_sums(x, y, parts).solve(0 * w, 0 * b, 1e-3) for parts in (1, 10))
    assert one is not None
    assert many is not None
    assert np.allclose(one.weights, many.weights, atol=1e-4)


def test_what_data_do_not_determine_stays_as_it_was():
    x, y, w, b = _data()
    x[:, :, 4] = 0
    w0 = w + 1.0
    fit = _sums(x, y).solve(w0, b, 1e-6)
    assert fit is not None
    assert np.allclose(fit.weights[:, :, 4], w0[:, :, 4])


def test_a_fixed_bias_stays():
    x, y, w, b = _data()
    fit = _sums(x, y).solve(np.zeros_like(w), b, 1e-9, fixed_bias=True)
    assert fit is not None
    assert np.array_equal(fit.bias, b.astype(np.float32))
    assert np.allclose(fit.weights, w, atol=1e-4)


def test_noise_does_not_replace_good_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1, 40)).astype(np.float32)
    w = rng.normal(size=(1, 2, 40))
    y = (np.einsum("rgd,god->rgo", x, w) + 3 * rng.normal(size=(60, 1, 2))).astype(np.float32)
    fit = _sums(x, y, 1).solve(w, np.zeros((1, 2)), 1e-6)
    assert fit is not None
    assert not fit.better


@pytest.mark.parametrize("fixed_bias", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_few_rows_are_solved_as_many_are_without_the_square_of_all_features(monkeypatch, fixed_bias, behind):
    """Twenty rows of eighty features; one group has features that are all zero."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 3, 80)) + 2, rng.normal(size=(25, 3, 4)) + 1
    x[:, 2] = 0
    found = []
    monkeypatch.setattr(leastsquares._Thin, "columns", 3)
    for few in (leastsquares.FEW, 1000):
        monkeypatch.setattr(leastsquares, "FEW", few)
        sums = Sums()
        for part in np.array_split(np.arange(25), 5):
            bounds = Bounds(np.zeros((5, 3, 4)), np.full((5, 3, 4), 2.0)) if behind else None
            sums.add(x[part], y[part], np.arange(5) == 4, bounds)
        assert (sums.xx is None) == (few == leastsquares.FEW and few < 1000)
        w0, b0 = rng.normal(size=(3, 4, 80)) * 0 + 0.1, np.ones((3, 4))
        found.append(sums.solve(w0, b0, 1e-3, fixed_bias=fixed_bias))
    one, two = found
    assert one is not None
    assert two is not None
    assert one.ridge == two.ridge
    np.testing.assert_allclose(one.weights, two.weights, atol=2e-5)
    np.testing.assert_allclose(one.bias, two.bias, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_rows_give_nothing(rows: int):
    x, y, w, b = _data(max(rows, 1))
    sums = Sums()
    if rows:
        sums.add(x, y, np.zeros(rows, bool))
    assert sums.solve(w, b, 1e-3) is None


def test_what_an_activation_cuts_off_does_not_count():
    x = np.random.default_rng(0).uniform(-1, 1, (500, 1, 1)).astype(np.float32)
    y = np.where(x > 0, x, -5 * x**2)  # behind Relu it is x
    sums = Sums()
    bounds = Bounds(np.zeros_like(y), np.full_like(y, np.inf))
    sums.add(x, y, np.arange(500) % 5 == 4, bounds)
    fit = sums.solve(np.zeros((1, 1, 1)), np.zeros((1, 1)), 1e-9)
    assert fit is not None
    whole = _sums(x, y).solve(np.zeros((1, 1, 1)), np.zeros((1, 1)), 1e-9)
    assert whole is not None
    shown = np.maximum(y, 0)
    one, two = (np.square(np.maximum(f.weights * x + f.bias, 0) - shown).mean() for f in (whole, fit))
    assert two < 0.4 * one  # before the activation it follows the parabola


@pytest.mark.parametrize("kept_bytes", [10**9, 60_000])
def test_a_fit_behind_an_activation_is_better_there_than_one_before_it(kept_bytes: int):
    """A unit went, so that nothing fits exactly. Few kept rows stand for all of them."""
    x, y, w, b = _data(rows=2000)
    x = x - 3
    low, high = np.full_like(y, -1.0), np.full_like(y, 1.0)
    plain, behind = Sums(), Sums(kept_bytes)
    for sums, bounds in ((plain, None), (behind, (low, high))):
        for part in np.array_split(np.arange(len(x)), 10):
            given = None if bounds is None else Bounds(*(each[part] for each in bounds))
            sums.add(x[part][:, :, :3], y[part], part % 5 == 4, given)
    start = w[:, :, :3]
    one, two = (sums.solve(start, b, 1e-6) for sums in (plain, behind))
    assert one is not None
    assert two is not None

    def error(fit) -> float:
        guess = np.einsum("rgd,god->rgo", x[:, :, :3], fit.weights) + fit.bias
        return float(np.square(np.clip(guess, low, high) - np.clip(y, low, high)).mean())

    assert error(two) < 0.99 * error(one)
    assert two.after == pytest.approx(error(two), rel=0.2)


def test_targets_outside_become_the_prediction_or_the_bound():
    y, z = np.array([2.0, 0.5, -1.0, -1.0, 3.0]), np.array([0.0, 0.7, -4.0, 0.3, 9.0])
    bounds = Bounds(np.zeros(5), np.full(5, 2.5))
    assert np.array_equal(bounds.targets(y, z), [2.0, 0.5, -4.0, 0.0, 9.0])


@pytest.mark.parametrize("scipy", [True, False])
def test_wide_matrices_are_factored_once_for_a_ridge(monkeypatch, scipy):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, leastsquares.WIDE))
    a, c = x.T @ x / len(x), rng.normal(size=(1, leastsquares.WIDE, 3))
    square, made = leastsquares._Square(a[None].copy()), []
    if not scipy:
        monkeypatch.setattr(leastsquares, "find_spec", lambda _: None)
    factored = scipy_linalg.cho_factor
    monkeypatch.setattr(scipy_linalg, "cho_factor", lambda *given, **how: made.append(1) or factored(*given, **how))
    for ridge in (0.1, 1.0, 1.0, 1.0):
        wanted = np.linalg.solve(a + ridge * np.diagonal(a).mean() * np.eye(len(a)), c[0])
        np.testing.assert_allclose(square.solved(c, ridge)[0], wanted, rtol=1e-9, atol=1e-12)
    assert len(made) == 2 * scipy
    np.testing.assert_allclose(square.a[0], a)


def test_a_matrix_that_rounding_made_indefinite_is_solved_all_the_same():
    a = np.eye(leastsquares.WIDE)
    a[0, 0] = -1e-3
    c = np.ones((1, len(a), 1))
    wanted = np.linalg.solve(a + 1e-9 * np.diagonal(a).mean() * np.eye(len(a)), c[0])
    np.testing.assert_allclose(leastsquares._Square(a[None].copy()).solved(c, 1e-9)[0], wanted, rtol=1e-6)
