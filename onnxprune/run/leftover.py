"""Which units cost least when the layers that read them are refitted, and what error is then left.

A layer y = W x + b reads units; C is the covariance of x over samples and output positions. Where unit u with the
features F goes and all others are refitted, the squared error of y grows by

    W[:, F] (C^-1[F, F])^-1 W[:, F]^T    (its trace)

The cheapest unit goes, W and C^-1 are brought up to date, and so on: optimal brain surgeon (Hassibi and Stork 1993,
eq. 5) for whole units, as OSSCAR and SlimGPT use it. Means are fitted by the bias, so C is centered.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.coupling import Coupling, Dim, unit_positions
from onnxprune.data import Samples
from onnxprune.recover.biases import read_bias
from onnxprune.recover.constants import batch_within, first_batches
from onnxprune.recover.linear import Linear, linears, read_weights, users
from onnxprune.recover.patches import outputs, window_of, windows
from onnxprune.recover.refit.leastsquares import add_product
from onnxprune.recover.refit.segments import Walk

RIDGE = 1e-3  # of the features' mean variance, as least squares begin with
ROWS = 16_000  # output positions that a layer is looked at
MOST_FEATURES = 2500  # of a layer: one step of the order costs their square
CARRIED = 0.2  # share of units that have gone and are still carried along
DEEPEST = 0.95  # share of the units that are put in order; the floor keeps the others


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads units of a Dim, and nothing else: units (D,) says which unit each feature belongs to."""

    linear: Linear
    units: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """Its weights (O, D), float64."""
        w = read_weights(self.linear)
        return w.reshape(w.shape[1], -1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and covariance (D, D) of what a layer reads; those of all layers are held at once, so in float32."""

    mean: np.ndarray
    stored: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """In float64, in which it is inverted."""
        return self.stored.astype(np.float64)


def readers(coupling: Coupling, wanted: Iterable[Dim]) -> dict[Dim, tuple[Reader, ...]]:
    """The layers that read each Dim, for those Dims that nothing but such layers reads.

    Layers that pass units on, such as depthwise convolutions, are none of them; a Dim that some layer both reads and
    gives, as between two blocks of a stream, is left out: such a layer also loses what it gives.
    """
    nodes = linears(coupling.model)
    found: dict[Dim, tuple[Reader, ...]] = {}
    for dim in wanted:
        reading = [linear for linear in nodes.values() if linear.groups == 1 and coupling.stands(dim, [linear.x])]
        if _read_otherwise(coupling, dim, {linear.name for linear in reading}):
            continue
        made = [_reader(coupling, linear, dim) for linear in reading]
        if made and all(each is not None for each in made):
            found[dim] = tuple(each for each in made if each is not None)
    return found


def _read_otherwise(coupling: Coupling, dim: Dim, reading: set[str]) -> bool:
    """Whether a node beside those in `reading` reads `dim` and does not pass it on, such as a product of two values."""
    return any(
        node.name not in reading and coupling.stands(dim, _computed(node)) and not coupling.stands(dim, node.outputs)
        for node in coupling.model.graph.all_nodes()
    )


def _computed(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and not value.is_initializer()]


def _reader(coupling: Coupling, linear: Linear, dim: Dim) -> Reader | None:
    """`linear` as a reader of `dim`; None where it does not read whole units, or cannot be refitted."""
    axes = coupling.axes.get(linear.x.name or "")
    w = read_weights(linear)
    shared = len(list(users(linear.stored))) > 1
    if coupling.stands(dim, [linear.y]):
        return None
    if not axes or shared or read_bias(linear) is None or w.shape[2] * w.shape[3] > MOST_FEATURES:
        return None
    units = unit_positions(axes[linear.x_axis], dim)
    whole = len(units) == w.shape[2] and (np.bincount(units[units >= 0], minlength=dim.size) == len(units) // dim.size)
    return Reader(linear, np.repeat(units, w.shape[3])) if np.all(whole) and (units >= 0).all() else None


def moments(
    coupling: Coupling, found: Iterable[Reader], samples: Samples, *, limit: int = 256, seed: int = 0
) -> dict[str, Moments]:
    """Moments of each layer's inputs in the dense model on the first `limit` samples, by the name of its node."""
    order = {node.name: number for number, node in enumerate(coupling.model.graph)}
    layers = sorted({r.linear.name: r.linear for r in found}.values(), key=lambda linear: order[linear.name])
    needed = [[linear.x.name or "", *([linear.y.name or ""] if linear.spatial else [])] for linear in layers]
    names = [name for each in needed for name in each]
    feeds = list(first_batches(coupling.model, samples, limit, batch_within(coupling, names)))
    rng = np.random.default_rng(seed)
    result: dict[str, Moments] = {}
    with closing(Walk(coupling.model, feeds, names)) as walk:
        for linear, each in zip(layers, needed, strict=True):
            sums = _Sums()
            for values in walk.to(each):
                sums.add(_rows(linear, values, -(-ROWS // len(feeds)), rng))
            result[linear.name] = sums.finish()
    return result


def _rows(linear: Linear, values: Mapping[str, np.ndarray], most: int, rng: np.random.Generator) -> np.ndarray:
    """The inputs (R, D) of up to `most` output positions of a layer."""
    x = values[linear.x.name or ""].astype(np.float32)
    if not linear.spatial:
        rows = outputs(x, linear.x_axis, None)
        return rows[rng.permutation(len(rows))[:most]]
    y = values[linear.y.name or ""]
    places = len(y) * int(np.prod(y.shape[2:]))
    picks = rng.permutation(places)[:most]
    return windows(x, window_of(linear, x.shape[2:], y.shape[2:]), picks).reshape(len(picks), -1)


class _Sums:
    """Sums of rows around the mean of the first, so that the products lose no digits."""

    def __init__(self) -> None:
        self.rows = 0

    def add(self, x: np.ndarray) -> None:
        if not self.rows:
            self.around = x.mean(axis=0)
            self.x, self.xx = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        x = x - self.around
        self.x += x.sum(axis=0, dtype=np.float64)
        self.xx += x.T @ x
        self.rows += len(x)

    def finish(self) -> Moments:
        mean = self.x / self.rows
        return Moments(self.around + mean, (self.xx / self.rows - np.outer(mean, mean)).astype(np.float32))


# Order ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Order:
    """Units (size,) in the order in which they go, and the error that is left when the first 1, 2, ... have gone.

    errors (size,): shares of the readers' variance, summed over readers; they never fall.
    """

    units: np.ndarray
    errors: np.ndarray


def cheapest_first(found: Sequence[Reader], seen: Mapping[str, Moments], size: int) -> Order:
    """The order in which units go where each is the one that costs least once its readers are refitted."""
    states = [_State.of(reader, seen[reader.linear.name], size) for reader in found]
    left, order, errors, error = np.arange(size), [], [], 0.0  # left: the units that the states still hold
    gone = np.zeros(size, bool)  # among these
    for _ in range(max(1, min(size - 1, round(DEEPEST * size)))):
        prices = np.sum([state.prices(gone) for state in states], axis=0)
        prices[gone] = np.inf
        unit = int(np.argmin(prices))
        error += float(prices[unit])
        order.append(int(left[unit]))
        errors.append(error)
        gone[unit] = True
        for state in states:
            state.remove(unit)
        if gone.mean() > CARRIED:
            for state in states:
                state.forget(gone)
            left, gone = left[~gone], gone[~gone]
    rest = left[~gone]  # as dear as is needed to go last
    return Order(
        np.concatenate([order, rest]).astype(int), np.concatenate([errors, error * (2 + np.arange(len(rest)))])
    )


def in_order(units: np.ndarray, found: Sequence[Reader], seen: Mapping[str, Moments], steps: Sequence[int]) -> Order:
    """The given order, with the errors at a few `steps` (numbers of units that have gone) and straight between.

    Without readers changes of units are taken to add up: their error is the square of how many have gone.
    """
    if not found:
        return Order(np.asarray(units, int), np.square(np.arange(1, len(units) + 1) / len(units)))
    known = [0.0]
    for count in steps:
        gone = np.isin(np.arange(len(units)), units[:count])
        known.append(sum(_error(reader, seen[reader.linear.name], gone) for reader in found))
    errors = np.interp(np.arange(1, len(units) + 1), [0, *steps], np.maximum.accumulate(known))
    return Order(np.asarray(units, int), errors)


def _error(reader: Reader, seen: Moments, gone: np.ndarray) -> float:
    change, covariance = reader.matrix - refitted(reader, seen, gone)[0], seen.covariance
    return float(np.sum((change @ covariance) * change)) / _variance(reader, seen)


def _variance(reader: Reader, seen: Moments) -> float:
    w = reader.matrix
    return max(float(np.sum((w @ seen.covariance) * w)), 1e-30)


@dataclass(eq=False)
class _State:
    """One reader while units go: features (U, K), weights (O, D), inverse covariance (D, D)."""

    features: np.ndarray
    w: np.ndarray
    inverse: np.ndarray
    variance: float

    @staticmethod
    def of(reader: Reader, seen: Moments, size: int) -> "_State":
        features = np.argsort(reader.units, kind="stable").reshape(size, -1)
        damped = seen.covariance
        damped[np.diag_indices_from(damped)] += _penalty(damped)
        return _State(features, reader.matrix.copy(), np.linalg.inv(damped), _variance(reader, seen))

    def prices(self, gone: np.ndarray) -> np.ndarray:
        """The growth of the error (U,) if each unit went next; at units that have `gone` the number means nothing."""
        f = self.features
        if f.shape[1] == 1:
            diagonal = np.where(gone, 1.0, np.diagonal(self.inverse)[f[:, 0]])
            return np.square(self.w[:, f[:, 0]]).sum(axis=0) / np.maximum(diagonal, 1e-30) / self.variance
        blocks = self.inverse[f[:, :, None], f[:, None, :]]
        blocks[gone] = np.eye(f.shape[1])
        w = self.w[:, f].transpose(1, 2, 0)  # (U, K, O)
        return np.einsum("ukl,ulk->u", np.linalg.inv(blocks), w @ w.transpose(0, 2, 1)) / self.variance

    def remove(self, unit: int) -> None:
        f = self.features[unit]
        across = np.linalg.solve(self.inverse[np.ix_(f, f)], self.inverse[f])
        self.w -= self.w[:, f] @ across
        add_product(self.inverse, -self.inverse[:, f], across)
        self.w[:, f] = self.inverse[f] = self.inverse[:, f] = 0.0

    def forget(self, gone: np.ndarray) -> None:
        """Leaves out the rows and columns of units that have `gone`: each step costs the square of what is there."""
        alive = self.features[~gone]
        flat = np.sort(alive.ravel())
        self.w, self.inverse = self.w[:, flat], self.inverse[np.ix_(flat, flat)]
        self.features = np.searchsorted(flat, alive)


def _penalty(covariance: np.ndarray) -> float:
    return RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)


def refitted(reader: Reader, seen: Moments, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (O, D) that are zero for the units `gone` (size,), the others refitted, and what its bias gains (O,)."""
    w, removed = reader.matrix, gone[reader.units]
    kept = ~removed
    c = seen.covariance
    damped = c[np.ix_(kept, kept)] + _penalty(c) * np.eye(int(kept.sum()))
    told = np.linalg.solve(damped, c[np.ix_(kept, removed)])  # what is removed, by what is kept
    new = np.zeros_like(w)
    new[:, kept] = w[:, kept] + w[:, removed] @ told.T
    return new, (w - new) @ seen.mean
