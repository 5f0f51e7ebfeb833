"""Widths from what the whole model loses when a dimension is narrowed alone and the layers that read it are refitted.

    loss(d, k) ~ c errors(d, k)^b      errors: what is left behind the readers when k units of d have gone

The errors of all k come of one walk of the model (leftover.py). What they do to the answers is measured at a
few k, by the divergence from the original's on mixtures of samples; between these it follows the errors. The price of a
unit is what the loss grows by when it goes. Such losses add up where each of them is more than noise.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import surgery
from onnxprune.coupling import Dim
from onnxprune.data import Samples, batch_axes, input_infos
from onnxprune.methods.base import Outcome
from onnxprune.outputs import metrics
from onnxprune.plan.select import Selection
from onnxprune.recover import fair
from onnxprune.recover.biases import add_to_bias
from onnxprune.recover.linear import linears, read_weights, write_weights
from onnxprune.run import leftover
from onnxprune.run.compared import Compared, compared, learned_and_judged
from onnxprune.run.curve import falling
from onnxprune.run.leftover import Order
from onnxprune.run.subject import Subject

LOG = logging.getLogger("onnxprune")
SHARES = (0.25, 0.5, 0.75)  # of a Dim that go when its loss is measured
WALKED = 256  # samples of which the covariances are taken
LEAST_SAMPLES, MOST_SAMPLES, MACS = 8, 64, 2_000_000_000_000  # that a loss is measured on, and what all may cost
NOISE = 1e-5  # a divergence below it is none
Readers = Mapping[Dim, tuple[leftover.Reader, ...]]


@dataclass(frozen=True)
class Measured:
    """One Dim: its units in the order in which they go, and the losses measured, by the number that had gone."""

    order: Order
    losses: Mapping[int, float]


class Orders:
    """In which order the units of Dims go by what they cost once their readers are refitted, each found when asked for.

    A Dim that is read otherwise than by layers with stored weights has none. seen: what readers see, on samples that
    are not among `judged`.
    """

    def __init__(self, subject: Subject, readers: Readers, seed: int) -> None:
        assert subject.tune is not None
        self.readers = readers
        learned, self.judged = learned_and_judged(subject.tune, seed)
        every = [reader for each in self.readers.values() for reader in each]
        self.seen = leftover.moments(subject.coupling, every, learned, limit=WALKED, seed=seed)
        self.known: dict[Dim, Order] = {}

    def of(self, dim: Dim) -> Order | None:
        """The order of `dim`."""
        if dim not in self.readers or dim.size < 2:  # its only unit stays
            return None
        if dim not in self.known:
            self.known[dim] = leftover.cheapest_first(self.readers[dim], self.seen, dim.size)
        return self.known[dim]


def in_order(outcome: Outcome, orders: Orders) -> Outcome:
    """`outcome`, by which as many units of each Dim go, but those first that cost least after the refit."""
    scores, keep = {}, dict(outcome.keep or {})
    for dim, values in outcome.ranking.items():
        order = orders.of(dim)
        scores[dim] = np.asarray(values, np.float64)
        if order is not None:
            scores[dim] = np.empty(dim.size)
            scores[dim][order.units] = np.sort(values)
            if dim in keep:
                keep[dim] = ~np.isin(np.arange(dim.size), order.units[: int((~keep[dim]).sum())])
    return replace(outcome, scores=scores, losses=False, keep=keep if outcome.keep is not None else None)


def by_refit(subject: Subject, outcome: Outcome, seed: int, *, reorder: bool, orders: Orders | None = None) -> Outcome:
    """`outcome` with widths by what is lost after the refit.

    A Dim that is read otherwise than by stored weights keeps its order of units; it is measured without a refit.
    reorder: whether the units of others go in the order of what they cost after the refit, not in that of `outcome`.
    """
    orders = orders or Orders(subject, leftover.readers(subject.coupling, outcome.scores), seed)
    judge = _Judge.of(subject, orders.judged, len(outcome.scores) * len(SHARES), seed)
    scores = {}
    for dim, values in outcome.ranking.items():
        if dim.size < 2:
            scores[dim] = values
            continue
        readers = orders.readers.get(dim, ())
        steps = sorted({max(1, min(dim.size - 1, round(share * dim.size))) for share in SHARES})
        order = orders.of(dim) if reorder else None
        if order is None:
            order = leftover.in_order(np.argsort(values, kind="stable"), readers, orders.seen, steps)
        losses = {}
        for count in steps:
            gone = np.isin(np.arange(dim.size), order.units[:count])
            losses[count] = judge.loss(_narrowed(subject, dim, readers, orders.seen, gone))
        LOG.debug("  %s: %s", dim.name, ", ".join(f"{k} units lose {loss:.4f}" for k, loss in losses.items()))
        scores[dim] = prices(Measured(order, losses))
    return replace(outcome, scores=scores, comparable=True, losses=False, limits={}, keep=None)


def affordable(subject: Subject, outcome: Outcome) -> bool:
    """Whether the losses of all Dims can be measured, on the fewest samples at least."""
    return LEAST_SAMPLES * len(SHARES) * len(outcome.scores) * subject.cost.totals()["macs"] <= MACS


def work(readers: Readers) -> float:
    """Multiplications that it takes to put the units of all Dims in order."""
    return float(sum(dim.size * len(reader.units) ** 2 for dim, each in readers.items() for reader in each))


def prices(measured: Measured) -> np.ndarray:
    """The growth of the loss with each unit (size,), when all that go before it have gone."""
    order = measured.order
    errors = np.log(np.maximum(order.errors, 1e-9))
    counts = sorted(measured.losses)
    x = errors[np.array(counts) - 1]
    y = np.maximum.accumulate(np.log([max(measured.losses[count], NOISE) for count in counts]))
    # Between the measured points losses follow the errors, beyond them in proportion.
    losses = np.exp(np.interp(errors, x, y) + np.minimum(errors - x[0], 0) + np.maximum(errors - x[-1], 0))
    # Units are removed by rising price: where a later one costs less, both cost their mean.
    rising = -np.array(falling(list(-np.diff(losses, prepend=0.0))))
    values = np.empty(len(rising))
    values[order.units] = rising * (1 + 1e-9 * np.arange(len(rising)))  # ties stay in order
    return values


def _narrowed(subject: Subject, dim: Dim, readers: Sequence[leftover.Reader], seen, gone: np.ndarray):
    """The model without the units `gone` (size,) of one Dim, its readers refitted."""
    model = surgery.cut(Selection(subject.coupling, {dim: ~gone}))
    nodes = linears(model)
    for reader in readers:
        w, b = leftover.refitted(reader, seen[reader.linear.name], gone)
        mine = nodes[reader.linear.name]
        write_weights(mine, w[:, ~gone[reader.units]].reshape(read_weights(mine).shape).astype(np.float32))
        add_to_bias(model, mine, b.astype(np.float32))
    return model


@dataclass(frozen=True)
class _Judge:
    """Compares answers with the original's on samples that nothing was fitted to."""

    original: Compared

    @staticmethod
    def of(subject: Subject, judged: Samples, models: int, seed: int) -> "_Judge":
        macs = max(1, subject.cost.totals()["macs"]) * models
        count = min(MOST_SAMPLES, max(LEAST_SAMPLES, MACS // macs))
        mixed = fair.mixed(judged, batch_axes(input_infos(subject.model)), count, seed)
        few = mixed.subset(np.linspace(0, len(mixed) - 1, min(count, len(mixed))).astype(int))
        return _Judge(compared(subject, few))

    def loss(self, model) -> float:
        """The mean divergence over the outputs of floats that have one shape in both models, or over the parts of those
        that classify nothing."""
        lost = self.original.average(model)
        if lost is not None:
            return lost
        found, said = self.original.answers(model), self.original.said
        pairs = [(found[name], t) for name, t in said.items() if t.dtype.kind == "f" and t.ndim]
        losses = [divergence(y, t) for y, t in pairs if y.shape == t.shape]
        return float(np.mean(losses)) if losses else 0.0


def divergence(y: np.ndarray, t: np.ndarray) -> float:
    """Between distributions over classes the mean Kullback-Leibler divergence from t, else the squared error as a share
    of the variance of t."""
    y, t = y.astype(np.float64), t.astype(np.float64)
    if metrics.is_classes(t):
        p, q = _logs(t), _logs(y)
        share = np.exp(p)
        return float(np.where(share > 0, share * (p - q), 0.0).sum(axis=1).mean())
    alike = np.isfinite(y) & np.isfinite(t)  # places that are masked out are infinite in both
    y, t = y[alike], t[alike]
    return float(np.square(y - t).mean() / max(float(t.var()), 1e-30)) if len(t) else 0.0


def _logs(z: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities (N, C), from these or from logits."""
    z = z.reshape(len(z), -1)
    if metrics.is_distribution(z):
        return np.log(np.maximum(z, 1e-12))
    z = np.maximum(z - z.max(axis=1, keepdims=True), -700.0)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
