"""Rankings made of other rankings: one share for all, some Dims left out or dearer, the order or prices of others."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.coupling import Dim
from onnxprune.methods.base import Outcome

LEAST_PRICE = 1e-12  # what costs less costs nothing


def uniform(outcome: Outcome) -> Outcome:
    """The same order within each Dim; all lose the same share."""
    ranks = {
        dim: (np.argsort(np.argsort(values, kind="stable")) + 0.5) / len(values) for dim, values in _orders(outcome)
    }
    return replace(outcome, scores=ranks, losses=False, comparable=False, limits={}, keep=None)


def _orders(outcome: Outcome) -> Iterator[tuple[Dim, np.ndarray]]:
    return ((dim, np.asarray(values, np.float64)) for dim, values in outcome.ranking.items())


def without(outcome: Outcome, dims: frozenset[Dim]) -> Outcome:
    """`outcome` without these Dims, which then stay whole."""
    scores = {dim: values for dim, values in outcome.scores.items() if dim not in dims}
    return replace(outcome, scores=scores, keep=None)


def reordered(widths: Outcome, order: Outcome) -> Outcome:
    """The values of `widths`, which decide how many go, on the units in the order of `order`, which decides which."""
    scores = {dim: _placed(np.asarray(widths.ranking[dim], np.float64), values) for dim, values in _orders(order)}
    return replace(order, scores=scores, losses=False, comparable=widths.comparable, limits={}, keep=None)


def _placed(prices: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`prices`, the cheapest on the unit that is lowest in `order`, and so on."""
    found = np.empty(len(order))
    found[np.argsort(order, kind="stable")] = np.sort(prices)
    return found


def priced(outcome: Outcome, dims: Sequence[Dim], factor: float) -> Outcome:
    """`outcome` with units of these Dims `factor` times as dear."""
    return replace(outcome, prices={**outcome.prices, **{dim: outcome.prices.get(dim, 1.0) * factor for dim in dims}})


def between(one: Outcome, other: Outcome) -> Outcome:
    """The units in the order of `other`, each Dim's at prices halfway (geometric means) from those of `one` to its own.

    Both have the same Dims. Two estimates of what a unit is worth err in different Dims; their mean errs less.
    """
    scores = {}
    for dim, values in _orders(other):
        pair = (np.sort(np.asarray(each, np.float64)) for each in (one.ranking[dim], values))
        first, second = (np.log(np.maximum(each, LEAST_PRICE)) for each in pair)
        scores[dim] = _placed(np.exp((first + second) / 2), values)
    return replace(other, scores=scores, losses=False, limits={}, keep=None)
