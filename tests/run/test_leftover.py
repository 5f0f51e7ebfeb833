"""The order in which units cost least once what reads them is refitted, and the error that is left."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from networks import DIGITS
from onnx_text import model as text_model

from onnxprune.coupling import analyze
from onnxprune.options import Options
from onnxprune.run import leftover
from onnxprune.run.leftover import Moments, Reader
from onnxprune.run.subject import Subject, prepare
from onnxprune.system.clock import Clock


class Plain(Reader):
    """A reader of which the weights are given."""

    def __init__(self, w: np.ndarray, units: np.ndarray, name: str = "r"):
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "linear", type("Named", (), {"name": name})())

    @property
    def matrix(self) -> np.ndarray:
        return self.w.copy()


def made(features: int, seed: int = 0) -> tuple[np.ndarray, Moments]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, features)) @ rng.standard_normal((features, features)) + rng.standard_normal(features)
    return x, Moments(x.mean(axis=0), np.cov(x.T, bias=True))


def error(x: np.ndarray, w: np.ndarray, kept: np.ndarray) -> float:
    """What least squares leave of w x when features that are not kept go, as a share of its variance."""
    y = (x - x.mean(0)) @ w.T
    z = (x - x.mean(0))[:, kept]
    fit = np.linalg.lstsq(z, y, rcond=None)[0]
    return float(np.square(y - z @ fit).sum() / np.square(y).sum())


@pytest.mark.parametrize("taps", [1, 3])
def test_errors_are_those_of_least_squares_and_each_unit_is_the_cheapest_there_is(taps, monkeypatch):
    monkeypatch.setattr(leftover, "RIDGE", 1e-9)
    size = 6
    units = np.repeat(np.arange(size), taps)
    x, seen = made(size * taps)
    w = np.random.default_rng(1).standard_normal((4, size * taps))
    order = leftover.cheapest_first([Plain(w, units)], {"r": seen}, size)
    assert sorted(order.units) == list(range(size))
    for count in range(1, size - 1):
        gone = set(order.units[:count])
        left = error(x, w, ~np.isin(units, list(gone)))
        assert order.errors[count - 1] == pytest.approx(left, rel=1e-4)
        others = [gone - {order.units[count - 1]} | {u} for u in range(size) if u not in gone]
        assert all(left <= error(x, w, ~np.isin(units, list(each))) + 1e-9 for each in others)


def test_a_unit_that_repeats_others_goes_before_a_small_one_that_does_not():
    x = np.random.default_rng(0).standard_normal((500, 4))
    x[:, 3] = x[:, 0] + x[:, 1]  # large, and nothing is lost without it
    seen = Moments(x.mean(axis=0), np.cov(x.T, bias=True))
    w = np.array([[1.0, 1.0, 1.0, 5.0], [1.0, -1.0, 1.0, 5.0]])
    order = leftover.cheapest_first([Plain(w, np.arange(4))], {"r": seen}, 4)
    assert order.units[0] in (0, 1, 3)  # one of the three that depend on one another
    assert order.errors[0] < 1e-3 < order.errors[1]


def test_several_readers_count_together():
    size = 5
    _, seen = made(size)
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((3, size)), rng.standard_normal((2, size))
    first[:, 2] = 0  # one reader can do without unit 2, the other cannot
    second[:, 2] *= 100
    both = [Plain(first, np.arange(size), "a"), Plain(second, np.arange(size), "b")]
    assert leftover.cheapest_first(both[:1], {"a": seen}, size).units[0] == 2
    assert leftover.cheapest_first(both, {"a": seen, "b": seen}, size).units[0] != 2


def test_refitted_weights_are_the_best_there_are_and_the_bias_takes_the_mean(monkeypatch):
    monkeypatch.setattr(leftover, "RIDGE", 1e-9)
    x, seen = made(5)
    w = np.random.default_rng(2).standard_normal((3, 5))
    gone = np.array([False, True, False, False, True])
    new, bias = leftover.refitted(Plain(w, np.arange(5)), seen, gone)
    assert not new[:, gone].any()
    y = x @ w.T
    left = y - (x @ new.T + bias)
    assert np.abs(left.mean(axis=0)).max() < 1e-8 * np.abs(y).max()
    assert np.square(left).sum() / np.square(y - y.mean(0)).sum() == pytest.approx(error(x, w, ~gone), rel=1e-6)


def test_a_given_order_is_kept_and_its_errors_are_known_at_the_steps():
    x, seen = made(6)
    w = np.random.default_rng(4).standard_normal((3, 6))
    units = np.array([3, 1, 5, 0, 2, 4])
    found = leftover.in_order(units, [Plain(w, np.arange(6))], {"r": seen}, [2, 4])
    assert np.array_equal(found.units, units)
    assert found.errors[1] == pytest.approx(error(x, w, ~np.isin(np.arange(6), units[:2])), rel=0.05)
    assert found.errors[0] == pytest.approx(found.errors[1] / 2)
    assert (np.diff(found.errors) >= 0).all()
    nobody = leftover.in_order(units, [], {}, [2, 4])
    assert np.array_equal(nobody.units, units)
    assert (np.diff(nobody.errors) > 0).all()


@pytest.fixture(scope="module")
def digits() -> Subject:
    return prepare(Path(DIGITS), Options(method="l1", data="digits", target={"macs": 0.5}, latency=False), Clock())


def test_readers_are_layers_that_mix_units_and_their_moments_are_those_of_what_they_read(digits):
    found = leftover.readers(digits.coupling, digits.coupling.free)
    assert found
    for dim, each in found.items():
        for reader in each:
            assert np.array_equal(np.bincount(reader.units), np.full(dim.size, len(reader.units) // dim.size))
            assert reader.matrix.shape[1] == len(reader.units)
    seen = leftover.moments(digits.coupling, [r for each in found.values() for r in each], digits.tune, limit=64)
    for each in found.values():
        for reader in each:
            moments = seen[reader.linear.name]
            assert moments.covariance.shape == (len(reader.units),) * 2
            assert np.linalg.eigvalsh(moments.covariance).min() > -1e-4 * np.trace(moments.covariance)


def test_all_pairs_are_not_better_than_the_order_by_much(monkeypatch):
    """Greedy, but on small layers close to the best subset."""
    monkeypatch.setattr(leftover, "RIDGE", 1e-9)
    x, seen = made(6, seed=7)
    w = np.random.default_rng(5).standard_normal((4, 6))
    order = leftover.cheapest_first([Plain(w, np.arange(6))], {"r": seen}, 6)
    best = min(error(x, w, ~np.isin(np.arange(6), pair)) for pair in combinations(range(6), 2))
    assert order.errors[1] <= 1.5 * best


def test_layers_with_halves_behind_cast_are_readers():
    """Large weights of a MobileNetV2 stored as halves had no readers, and were measured as if nothing was refitted."""
    body = "z = Conv(x, a) r = Relu(z) w = Cast<to = 1>(h) y = Conv(r, w, c)"
    given = "float[N,3,6,6] x, float[8,3,1,1] a, float16[5,8,1,1] h, float[5] c"
    model = text_model(f"({given}) => (float[N,5,6,6] y) {{ {body} }}")
    coupling = analyze(model)
    (dim,) = (dim for dim in coupling.free if dim.size == 8)
    (reader,) = leftover.readers(coupling, [dim])[dim]
    assert reader.matrix.shape == (5, 8)
