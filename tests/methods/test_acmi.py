"""The ACMI scores: planted layers, the plain estimator as a twin, and what the estimator must not depend on."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from onnxprune.errors import UsageError
from onnxprune.methods.snacs import acmi
from onnxprune.methods.snacs.acmi import connection_scores
from onnxprune.methods.snacs.cells import bounded, middle, quantile_range

_SPEC = importlib.util.spec_from_file_location("bench_acmi", Path(__file__).parents[2] / "tools" / "bench_acmi.py")
assert _SPEC is not None
assert _SPEC.loader is not None
bench = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bench)


def planted(seed, parents=64, children=8, samples=2500, noise=0.3):
    """Children ReLU(linear mix + noise) of independent parents of uneven size."""
    random = np.random.default_rng(seed)
    a = np.abs(random.normal(size=(samples, parents))) * random.uniform(0.3, 1.5, parents)
    w = random.normal(size=(children, parents)) / parents**0.5
    mix = a @ w.T
    noisy = mix - mix.mean(0) + noise * mix.std(0) * random.normal(size=mix.shape)
    return a, np.maximum(0, noisy), w


@pytest.mark.parametrize("groups", [64, 16])
def test_scores_rank_parents_by_their_contribution(groups):
    a, x, w = planted(0)
    scores = connection_scores(a, x, w, parent_groups=groups, child_groups=8)
    blocks = np.split(np.arange(64), groups)
    truth = np.array([[(a[:, g] @ row[g]).std() for g in blocks] for row in w])
    ranks = [spearmanr(mine, true).statistic for mine, true in zip(scores, truth, strict=True)]
    assert np.mean(ranks) > 0.9


def test_information_alone_ranks_parents_without_help_of_phi():
    a, x, w = planted(1)
    scores = connection_scores(a, x, w, parent_groups=64, child_groups=8, weigh=False)
    assert np.mean([spearmanr(s, np.abs(r) * a.std(0)).statistic for s, r in zip(scores, w, strict=True)]) > 0.9


def test_a_parent_the_children_do_not_use_scores_lowest():
    a, _, w = planted(2, parents=8)
    w[:, 3] = 0
    scores = connection_scores(a, a @ w.T, w, parent_groups=8, child_groups=8)
    assert (scores.argmin(1) == 3).all()


def test_a_dead_parent_scores_zero_without_phi():
    a, _, w = planted(3, parents=8)
    a[:, 5] = 0.25
    scores = connection_scores(a, a @ w.T, w, parent_groups=8, child_groups=8, weigh=False)
    assert np.abs(scores[:, 5]).max() < 1e-5
    assert np.delete(scores, 5, 1).min() > 1e-3


@pytest.mark.parametrize("form", [bench.by_unique, bench.by_bincount, bench.by_dictionary])
def test_equals_the_plain_estimator(form):
    layer = bench.planted(64, 64, 2000, 0)
    pairs = np.stack(np.meshgrid(range(16), range(16)), -1).reshape(-1, 2)[::3]
    plain = bench.plain_scores(*layer, (16, 16), pairs, form)
    mine = connection_scores(*layer, parent_groups=16, child_groups=16)[tuple(pairs.T)]
    assert np.corrcoef(mine, plain)[0, 1] > 0.999
    assert np.abs(mine - plain).max() < 0.03 * plain.max()


def test_geometric_information_is_bounded_by_one_and_passes_one_half():
    # methods.md bounds it by 1/2; with these cells an exact copy reaches 1 - 2/(n+1) for n equal cells
    n = torch.diag(torch.full((8,), 100.0))
    m = torch.full((8, 8), 100.0 / 8)
    value = float(bounded(n, m, torch.empty(8, 8)).sum()) / 800
    assert value == pytest.approx(1 - 2 / 9)
    assert 0.5 < value < 1


def test_same_scores_whatever_the_threads():
    a, x, w = planted(5, parents=16, samples=500)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            results.append(connection_scores(a, x, w, parent_groups=16, child_groups=8))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(results[1], results[2])
    np.testing.assert_allclose(results[0], results[1], atol=2e-3 * results[0].max())


def test_permuted_parents_and_children_permute_the_scores():
    a, x, w = planted(6, parents=16)
    random = np.random.default_rng(0)
    p, c = random.permutation(16), random.permutation(8)
    scores = connection_scores(a, x, w, parent_groups=16, child_groups=8)
    moved = connection_scores(a[:, p], x[:, c], w[np.ix_(c, p)], parent_groups=16, child_groups=8)
    np.testing.assert_allclose(moved, scores[np.ix_(c, p)], atol=0.01 * scores.max())


def test_group_ids_equal_a_number_of_blocks_and_may_be_uneven():
    a, x, w = planted(7, parents=12)
    blocks = connection_scores(a, x, w, parent_groups=4, child_groups=8)
    np.testing.assert_array_equal(blocks, connection_scores(a, x, w, parent_groups=np.arange(12) // 3, child_groups=8))
    uneven = connection_scores(a, x, w, parent_groups=np.array([0] * 7 + [1] * 4 + [2]), child_groups=np.arange(8) % 3)
    assert uneven.shape == (3, 3)
    assert np.isfinite(uneven).all()


def test_more_parent_groups_than_one_block_holds_score_as_fewer_do(monkeypatch):
    a, x, w = planted(8, parents=32, samples=600)
    whole = connection_scores(a, x, w, parent_groups=32, child_groups=8)
    monkeypatch.setattr("onnxprune.methods.snacs.acmi.BLOCK_PAIRS", 5)
    parts = connection_scores(a, x, w, parent_groups=32, child_groups=8)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_quantiles_from_the_histogram_are_those_of_numpy():
    random = np.random.default_rng(0)
    v = np.stack([random.normal(size=2000), random.exponential(size=2000), random.standard_t(3, size=2000)])
    v = torch.tensor(v - v.mean(1, keepdims=True), dtype=torch.float32)
    low, high = quantile_range(v, torch.empty_like(v), torch.empty_like(v, dtype=torch.int32))
    exact = np.quantile(v.numpy(), (0.02, 0.98), axis=1)
    np.testing.assert_allclose(torch.cat([low, high], 1).T, exact, atol=0.01 * np.ptp(exact, axis=0).max())


def test_middle_of_an_even_number_is_a_mean():
    assert middle(torch.tensor([[4.0, 1.0, 9.0, 2.0]])).tolist() == [3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent_groups": 5}, "5 do not divide 12"),
        ({"child_groups": np.zeros(3, int)}, r"shape \(3,\) for 8"),
        ({"parent_groups": np.arange(12) * 2}, "none left out"),
        ({"magnitude": np.ones((2, 2))}, "both are"),
        ({"weights": np.ones((12, 8))}, "do not fit"),
        ({"parents": np.full((300, 12), np.nan)}, "3600 values that are not finite"),
    ],
)
def test_wrong_arguments_are_refused_with_the_numbers(change, message):
    a, x, w = planted(9, parents=12, samples=300)
    arguments = {"parents": a, "children": x, "weights": w, "parent_groups": 4, "child_groups": 4} | change
    with pytest.raises(UsageError, match=message):
        connection_scores(**arguments)


@pytest.mark.gpu
def test_cuda_gives_the_scores_of_the_cpu():
    a, x, w = planted(10)
    options = {"parent_groups": 64, "child_groups": 8}
    cpu, cuda = (connection_scores(a, x, w, device=d, **options) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda, cpu, atol=0.01 * cpu.max())


@pytest.mark.parametrize("shape", [(64, 16), (64, 64), (100, 10)], ids=str)
def test_the_compiled_kernel_agrees_with_torch(monkeypatch, shape):
    pytest.importorskip("numba")
    parents, groups = shape
    a, x, w = planted(2, parents)
    a[:, 3], w[5] = 1.0, 0.0  # constant rows
    scores = []
    for worth in (1, 1 << 62):
        monkeypatch.setattr(acmi, "WORTH_COMPILING", worth)
        layer = acmi.grouped(a, x, w, None, groups, 8, torch.device("cpu"))
        assert (acmi.compiled(layer) is not None) == (worth == 1)
        scores.append(connection_scores(a, x, w, parent_groups=groups, child_groups=8))
    # Rounding moves a few samples to the next cell.
    np.testing.assert_allclose(scores[0], scores[1], rtol=0.01, atol=2e-3 * scores[1].max())


def test_without_numba_torch_does_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "onnxprune.methods.snacs.kernel", raising=False)
    monkeypatch.delattr("onnxprune.methods.snacs.kernel", raising=False)
    monkeypatch.setattr(acmi, "WORTH_COMPILING", 1)
    a, x, w = planted(0, samples=300)
    assert acmi.compiled(acmi.grouped(a, x, w, None, 16, 8, torch.device("cpu"))) is None
    assert connection_scores(a, x, w, parent_groups=16, child_groups=8).shape == (8, 16)
