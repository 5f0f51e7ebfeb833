"""Ridge least squares from running sums, against numpy's own."""

import numpy as np
import pytest

from onnxprune.recover.leastsquares import Sums


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


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_rows_give_nothing(rows: int):
    x, y, w, b = _data(max(rows, 1))
    sums = Sums()
    if rows:
        sums.add(x, y, np.zeros(rows, bool))
    assert sums.solve(w, b, 1e-3) is None
