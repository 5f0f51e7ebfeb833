"""Closed-form recovery without labels: each layer refitted by least squares to what the dense model says there.

Layers are taken in topological order with the cut model's own inputs, so that each also makes good what those before
it could not. Both models are walked once, a wave of layers at a time; of each layer only sums over sampled output
positions are kept. New weights are taken only where they do better on samples that were not fitted.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.data import Samples
from onnxprune.errors import GraphError
from onnxprune.graph import extras
from onnxprune.graph.stored import Spill
from onnxprune.plan.select import Selection
from onnxprune.recover.biases import add_to_bias, read_bias, takes_bias
from onnxprune.recover.constants import batch_within, first_batches
from onnxprune.recover.linear import read_weights, stored_behind, write_weights
from onnxprune.recover.patches import outputs, window_of, windows
from onnxprune.recover.refit import layers, logits
from onnxprune.recover.refit.layers import Item, Layer, Norm
from onnxprune.recover.refit.leastsquares import HELD, KEPT_BYTES, Bounds, Sums
from onnxprune.recover.refit.segments import Walk
from onnxprune.system.progress import progress

LOG = logging.getLogger("onnxprune")
# Output positions per layer: so many for each feature, within bounds, but always enough to determine the weights.
ROWS_PER_FEATURE, FEWEST_ROWS, MOST_ROWS, LEAST_PER_FEATURE = 64, 16_000, 40_000, 4
# In a trial wide layers, which cost most, are fitted to fewer.
MOST_ROWS_TRIED = 10_000
# More of them where that costs little: so many multiplications, and bytes of what they see.
CHEAP_ROWS, CHEAP_WORK, CHEAP_BYTES = 64_000, 12e9, 256_000_000


@dataclass(frozen=True)
class Refit:
    """One layer: its error on held-out samples before and after, as shares of the target's variance (of its square for
    products of queries and keys).

    `accepted` says whether the new weights are better and were taken; for a norm the errors are 0.
    """

    node: str
    before: float
    after: float
    ridge: float
    rows: int
    accepted: bool


def refit(
    selection: Selection,
    cut_model: ir.Model,
    samples: Samples,
    *,
    limit: int = 512,
    ridge: float = 1e-3,
    seed: int = 0,
    bar: bool = False,
    dense: ir.Model | None = None,
    gone: Collection[str] = (),
    tried: bool = False,
) -> list[Refit]:
    """Refits the layers of `cut_model`, in place, on the first `limit` samples; what became of each.

    ridge: of the features' mean variance; powers of ten up to 1e5 times as much are tried too. dense, gone: a model
    that has more blocks than that of the coupling, to which layers are fitted, and the nodes that added them there.
    tried: this is a trial, which tells sizes apart by less than a result is made of.
    """
    items, coupling = layers.find(selection, cut_model, gone), selection.coupling
    if not items:
        return []
    feeds = list(first_batches(coupling.model, samples, limit, batch_within(coupling, [item.x for item in items])))
    cut_targets = [name for item in items for name in _cut_values(item)]
    dense_targets = [name for item in items for name in _dense_values(item)]
    records: list[Refit] = []
    spill = Spill()
    with (
        closing(Walk(cut_model, feeds, cut_targets)) as cut_walk,
        closing(Walk(dense or coupling.model, feeds, dense_targets)) as dense_walk,
        progress("least squares", "layer", len(items), bar=bar) as shown,
    ):
        rng = np.random.default_rng(seed)
        try:
            for wave in layers.waves(items):
                states = [_state(item, cut_walk.batches, rng, KEPT_BYTES // len(wave), tried) for item in wave]
                records += _refit_wave(wave, states, cut_walk, dense_walk, ridge, spill)
                shown.update(len(wave))
        except GraphError as error:  # each layer done so far is better than before
            note = f"least squares refitted {len(records)} of {len(items)} layers, then stopped: {error}"
            LOG.warning("%s", note)
            extras.note(cut_model, note)
    return records


def _refit_wave(
    wave: list[Item], states: "list[State]", cut_walk: Walk, dense_walk: Walk, ridge: float, spill: Spill
) -> list[Refit]:
    """Refits layers that do not depend on each other, in one walk over the samples; the states are used up."""
    pairs = zip(cut_walk.to(_all(_cut_values, wave)), dense_walk.to(_all(_dense_values, wave)), strict=True)
    for cut_values, dense_values in pairs:
        for state in states:
            state.add(cut_values, dense_values)
    found: list[Refit] = []
    while states:  # the sums of one layer are let go before the next is solved
        found.append(states.pop(0).finish(cut_walk, ridge, spill))
    return found


def _all(values_of, wave: Iterable[Item]) -> list[str]:
    return [name for item in wave for name in values_of(item)]


def _cut_values(item: Item) -> list[str]:
    if isinstance(item, logits.Logits):
        return [*(value.name or "" for value in item.path), item.other]
    return [item.x] if isinstance(item, Norm) or item.other is None else [item.x, item.other]


def _dense_values(item: Item) -> list[str]:
    return [item.x] if isinstance(item, Norm) else [item.target]


def _state(item: Item, batches: int, rng: np.random.Generator, kept: int, tried: bool) -> "State":
    if isinstance(item, Norm):
        return _NormState(item)
    if isinstance(item, logits.Logits):
        return _LogitsState(logits.Products(item, kept))
    groups, _, *seen = read_weights(item.linear).shape
    rows = rows_for(groups, int(np.prod(seen)), tried=tried)
    return _LayerState(item, -(-rows // batches), rng, Sums(kept))


def rows_for(groups: int, features: int, *, tried: bool = False) -> int:
    """How many output positions a layer with so many features in each group is fitted to, in a trial or for good."""
    cheap = min(CHEAP_ROWS, CHEAP_WORK / (groups * features**2), CHEAP_BYTES / (4 * groups * features))
    needed = min(max(ROWS_PER_FEATURE * features, FEWEST_ROWS), MOST_ROWS_TRIED if tried else MOST_ROWS)
    return max(int(cheap), needed, LEAST_PER_FEATURE * features)


@dataclass(eq=False)
class _LayerState:
    """The sums of one layer while its wave is walked."""

    layer: Layer
    rows: int  # of one batch
    rng: np.random.Generator
    sums: Sums

    def add(self, cut_values: Mapping[str, np.ndarray], dense_values: Mapping[str, np.ndarray]) -> None:
        layer, linear = self.layer, self.layer.linear
        y = dense_values[layer.target].astype(np.float32)
        for axis, left in layer.rows.items():
            y = y.take(left, axis)
        positions = y.size // y.shape[linear.y_axis]
        picks = self.rng.permutation(positions)[: self.rows] if positions > self.rows else np.arange(positions)
        goal = outputs(y, linear.y_axis, picks)[:, layer.kept]
        other = (
            None if layer.other is None else outputs(cut_values[layer.other].astype(np.float32), linear.y_axis, picks)
        )
        x = _features(layer, cut_values[layer.x].astype(np.float32), y, picks)
        held = (picks // max(1, positions // len(y))) % HELD == HELD - 1
        shape = (len(picks), x.shape[1], -1)
        goal, bounds = _before(layer, goal, other), None
        if layer.counts is not None:
            ends = (np.broadcast_to(_before(layer, np.float32(end), other), goal.shape) for end in layer.counts)
            one, two = (end.reshape(shape) for end in ends)
            bounds = Bounds(np.minimum(one, two), np.maximum(one, two))  # a negative scale turns them round
        self.sums.add(x, goal.reshape(shape), held, bounds)

    def finish(self, walk: Walk, ridge: float, spill: Spill) -> Refit:
        linear = self.layer.linear
        w, b = read_weights(linear), read_bias(linear)
        assert b is not None
        groups, outs = w.shape[:2]
        fixed = not takes_bias(linear)
        fit = self.sums.solve(w.reshape(groups, outs, -1), b.reshape(groups, outs), ridge, fixed_bias=fixed)
        if fit is None:
            return Refit(linear.name, 0.0, 0.0, 0.0, self.sums.rows, False)
        accepted = fit.better and bool(np.isfinite(fit.weights).all())
        if accepted:
            write_weights(linear, fit.weights.reshape(w.shape), spill)
            if not fixed:
                add_to_bias(walk.model, linear, fit.bias.reshape(-1) - b)
        scale = max(fit.scale, 1e-30)
        return Refit(linear.name, fit.before / scale, fit.after / scale, fit.ridge, self.sums.rows, accepted)


def _before(layer: Layer, y: np.ndarray | np.float32, other: np.ndarray | None) -> np.ndarray:
    """The layer's own target, with which the norm and the sum behind it come to y (R, O)."""
    y = np.asarray(y, np.float32) if other is None else y - other
    if layer.scale is None or layer.shift is None:
        return y
    return ((y - layer.shift) / layer.scale).astype(np.float32)


def _features(layer: Layer, x: np.ndarray, y: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The inputs (R, G, D) of the picked output positions."""
    linear = layer.linear
    if linear.spatial:
        seen = windows(x, window_of(linear, x.shape[2:], y.shape[2:]), picks)
        return seen.reshape(len(picks), linear.groups, -1)
    return outputs(x, linear.x_axis, picks)[:, None, :]


@dataclass(eq=False)
class _NormState:
    """Moments of what a norm reads, in both models."""

    norm: Norm
    count: int = 0
    moments: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, cut_values: Mapping[str, np.ndarray], dense_values: Mapping[str, np.ndarray]) -> None:
        for which, x in (("cut", cut_values[self.norm.x]), ("dense", dense_values[self.norm.x])):
            rows = outputs(x.astype(np.float64), 1, None)
            both = np.stack([rows.mean(axis=0), np.square(rows).mean(axis=0)])
            self.moments[which] = self.moments.get(which, 0.0) + both
        self.count += 1

    def finish(self, walk: Walk, ridge: float, spill: Spill) -> Refit:
        """Moves the running statistics as those of these samples moved: they come of far more data than is here."""
        mean, var = (stored_behind(value) for value in self.norm.node.inputs[3:5])
        assert mean is not None
        assert var is not None
        (m, s), (m0, s0) = (self.moments[which] / self.count for which in ("cut", "dense"))
        m0, s0 = m0[self.norm.kept], s0[self.norm.kept]
        ratio = np.clip(s - m * m, 1e-12, None) / np.clip(s0 - m0 * m0, 1e-12, None)
        graph.set_constant(mean, graph.array_of(mean) + (m - m0))
        graph.set_constant(var, graph.array_of(var) * np.clip(ratio, 0.01, 100.0))
        return Refit(self.norm.node.name or "", 0.0, 0.0, 0.0, self.count, True)


@dataclass(eq=False)
class _LogitsState:
    """The sums of one product of queries and keys while its wave is walked."""

    products: logits.Products

    def add(self, cut_values: Mapping[str, np.ndarray], dense_values: Mapping[str, np.ndarray]) -> None:
        self.products.add(cut_values, dense_values)

    def finish(self, walk: Walk, ridge: float, spill: Spill) -> Refit:
        """Changes the layer, and what the walk has of it already."""
        item, errors = self.products.item, self.products.fit()
        if errors is not None:
            logits.take(self.products, walk.model, spill)
            walk.change(item.x, self.products.turned)
        before, after = errors or (0.0, 0.0)
        return Refit(item.node.name or "", before, after, 0.0, walk.batches, errors is not None)


State = _LayerState | _NormState | _LogitsState
