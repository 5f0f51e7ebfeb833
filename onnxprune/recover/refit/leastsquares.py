"""Ridge least squares from running sums. Letters: R rows, G groups, D features of a group, O outputs of a group.

    minimize over W, b   |X W + b - Y|^2 / R + lambda |W - W0|^2,   lambda = ridge * mean of the features' variance

The penalty pulls towards the present weights W0, not towards zero: what data do not determine stays as it was.
Of rows that are few beside their features X X' is formed, which is small, in place of X' X.

Where an activation behind the layer is flat outside of low .. high, as Relu is below zero, only what it lets through
counts: |clip(X W + b) - clip(Y)|^2. Steps that never raise it: a target outside becomes the prediction as long as that
is outside on the same side, and the bound itself otherwise, and so on from the new prediction (majorize-minimize; Zhang
et al. 2015, "Accelerating very deep convolutional networks", fit behind the activation as well).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # times the ridge that was asked for; held-out rows choose
WORSE = 2  # of these in a row that are worse than the best end the search: each costs as much as all steps behind
WIDE = 256  # features from which on a matrix is factored once for all that it is solved for
HELD = 5  # every fifth sample is held out
STEPS = 6  # of the fit behind an activation
FURTHER = 1.5  # of each step: what a majorizer says is too short, and up to twice as far still no loss
AT_ONCE = 256  # rows of a product that are made at a time: all of them are as large as the matrix
FEW = 4  # features to a row, from which on rows are few
KEPT_BYTES = 200_000_000  # of rows that are kept for these steps, of all layers that are fitted at once
Array = np.ndarray | float
Found = tuple[float, np.ndarray, np.ndarray]  # error on held-out rows, weights (G, D, O), biases (G, O)


@dataclass(frozen=True)
class Bounds:
    """The range, low and high (R, G, O), in which the activation behind a layer is not flat at the rows' targets."""

    low: np.ndarray
    high: np.ndarray

    def clip(self, y: np.ndarray) -> np.ndarray:
        """y clipped to the range that the activation lets through."""
        return np.clip(y, self.low, self.high)

    def targets(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The targets y where they count; elsewhere the predictions z, or the bound that these should not cross."""
        below, above = np.minimum(z, self.low), np.maximum(z, self.high)
        return np.where(y <= self.low, below, np.where(y >= self.high, above, y))


@dataclass(frozen=True)
class Rows:
    """Rows x (R, G, D) and y (R, G, O), and the bounds behind which targets do not count; None: all of them count."""

    x: np.ndarray
    y: np.ndarray
    bounds: Bounds | None = None

    def at(self, places: np.ndarray) -> "Rows":
        """Some of the rows."""
        bounds = None if self.bounds is None else Bounds(self.bounds.low[places], self.bounds.high[places])
        return Rows(self.x[places], self.y[places], bounds)

    @staticmethod
    def joined(parts: "Sequence[Rows]") -> "Rows":
        """All rows of some parts."""
        x, y = (np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y"))
        bounds = [part.bounds for part in parts if part.bounds is not None]
        if not bounds:
            return Rows(x, y)
        low, high = (np.concatenate([getattr(each, name) for each in bounds]) for name in ("low", "high"))
        return Rows(x, y, Bounds(low, high))


@dataclass(frozen=True)
class Fit:
    """Weights (G, O, D), bias (G, O), the ridge that was best, and mean squared errors on held-out rows.

    before: of the present weights; scale: variance of the targets. `better` where the new weights are.
    """

    weights: np.ndarray
    bias: np.ndarray
    ridge: float
    before: float
    after: float
    scale: float

    @property
    def better(self) -> bool:
        """Whether held-out rows are nearer to the original's than before."""
        return self.after < self.before


class Sums:
    """What least squares needs of rows that are then forgotten; kept are the few held-out ones, and those that the
    steps behind an activation look at."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.rows = 0
        self.xx: np.ndarray | None = None  # once there are more than a few rows
        self.few: list[np.ndarray] = []  # until then these themselves, (G, R, D), from x0 on
        self.held: list[Rows] = []
        self.kept: list[Rows] = []
        self.room = kept_bytes

    def add(self, x: np.ndarray, y: np.ndarray, held: np.ndarray, bounds: Bounds | None = None) -> None:
        """Rows x (R, G, D) and y (R, G, O); held (R,) are not fitted."""
        every = Rows(np.asarray(x, np.float32), np.asarray(y, np.float32), bounds)
        if held.any():
            self.held.append(every.at(held))
        fitted = every.at(~held)
        if bounds is not None:
            row = 4 * (x[:1].size + 3 * y[:1].size)  # y and its two bounds
            self.kept.append(fitted.at(np.arange(min(len(fitted.x), self.room // row))))
            self.room -= row * len(self.kept[-1].x)
        x, y = fitted.x.transpose(1, 0, 2), fitted.y.transpose(1, 0, 2)
        if x.shape[1] == 0:
            return
        if not self.rows:
            self._start(x, y)
        x, y = x - self.x0, y - self.y0  # near zero mean, the products lose no digits
        self.few.append(x)
        if FEW * sum(part.shape[1] for part in self.few) > x.shape[2]:
            self._multiply()
        self.xy += x.transpose(0, 2, 1) @ y
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.rows += x.shape[1]

    def _start(self, x: np.ndarray, y: np.ndarray) -> None:
        groups, _, features = x.shape
        self.x0 = x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        self.y0 = y.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        self.xy = np.zeros((groups, features, y.shape[2]))
        self.x, self.y = np.zeros((groups, features)), np.zeros((groups, y.shape[2]))

    def _multiply(self) -> None:
        """Adds the products of the few rows, which are then forgotten."""
        for x in self.few:
            if self.xx is None:
                self.xx = np.zeros((x.shape[0], x.shape[2], x.shape[2]))
            self.xx += x.transpose(0, 2, 1) @ x
        self.few.clear()

    def solve(self, w0: np.ndarray, b0: np.ndarray, ridge: float, *, fixed_bias: bool = False) -> Fit | None:
        """The best fit near w0 (G, O, D), b0 (G, O); None where there are too few rows. The sums are used up.

        fixed_bias: b0 stays as it is.
        """
        if self.rows < 2 or not self.held:
            return None
        if self.xx is not None:
            self._multiply()
        start = w0.transpose(0, 2, 1)
        held, normal = Rows.joined(self.held), _Normal(self, start, b0, fixed_bias)
        found: tuple[float, float, np.ndarray, np.ndarray] | None = None
        worse = 0  # ridges in a row that were
        for factor in RIDGES:
            w, b = normal.solved(ridge * factor)
            error = _error(held, w, b)
            worse += 1
            if found is None or error < found[0]:  # no more than two are held: of a large layer each is much memory
                found, worse = (error, ridge * factor, w, b), 0
            if worse == WORSE:
                break
        assert found is not None
        after, best, w, b = found
        if sum(len(part.x) for part in self.kept):
            after, w, b = self._behind(normal, held, best, (after, w, b))
        weights = np.ascontiguousarray(w.transpose(0, 2, 1)).astype(np.float32)
        return Fit(weights, b.astype(np.float32), best, _error(held, start, b0), after, _variance(held))

    def _behind(self, normal: "_Normal", held: "Rows", ridge: float, best: Found) -> Found:
        """The fit behind the activation, from `best` on; as many steps as bring held-out rows nearer."""
        kept = Rows.joined(self.kept)
        share = self.rows / len(kept.x)  # what they stand for
        x = kept.x.transpose(1, 0, 2)
        turned = (x - self.x0).transpose(0, 2, 1)
        assert kept.bounds is not None
        w, b = best[1:]
        for _ in range(STEPS):
            wanted = kept.bounds.targets(kept.y, _guess(kept, w, b)) - kept.y
            wanted = wanted.transpose(1, 0, 2)
            new = normal.solved(ridge, share * (turned @ wanted), share * wanted.sum(axis=1, dtype=np.float64))
            w, b = (old + FURTHER * (found - old) for old, found in zip((w, b), new, strict=True))
            after = _error(held, w, b)
            if not after < best[0]:
                break
            best = after, w, b
        return best


class _Normal:
    """The normal equations around the present weights start (G, D, O) and b0 (G, O)."""

    def __init__(self, sums: Sums, start: np.ndarray, b0: np.ndarray, fixed_bias: bool) -> None:
        self.sums, self.start, self.b0, self.fixed_bias = sums, start, b0, fixed_bias
        self.near = sums.x / sums.rows  # the means, from x0 on
        self.mean = self.near + sums.x0[:, 0]
        means = self.mean if fixed_bias else None  # then they count as well
        if sums.xx is None:
            self.a = _Thin(np.concatenate(sums.few, axis=1), self.near, means)
            return
        a, sums.xx = sums.xx, None  # of a large layer a second one would be much memory
        a /= sums.rows
        for group, near in zip(a, self.near, strict=True):
            add_product(group, -near[:, None], near[None])
        for group, mean in zip(a, self.mean, strict=True) if fixed_bias else ():
            add_product(group, mean[:, None], mean[None])
        self.a = _Square(a)

    def solved(self, ridge: float, more_xy: Array = 0.0, more_y: Array = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Weights (G, D, O) and biases (G, O); more_xy, more_y: what the sums over the targets gain."""
        sums = self.sums
        mean_y = (sums.y + more_y) / sums.rows
        mean = mean_y + sums.y0[:, 0]
        w = np.empty(self.start.shape)
        for first in range(0, self.start.shape[2], self.a.columns):
            part = slice(first, first + self.a.columns)
            c = sums.xy[:, :, part] + (more_xy[:, :, part] if isinstance(more_xy, np.ndarray) else more_xy)
            c /= sums.rows
            c -= self.near[:, :, None] * mean_y[:, None, part]
            if self.fixed_bias:
                c += self.mean[:, :, None] * (mean - self.b0)[:, None, part]
            start = self.start[:, :, part].astype(np.float64)
            w[:, :, part] = start + self.a.solved(c - self.a.times(start), ridge)
        return w, self.b0 if self.fixed_bias else mean - np.einsum("gd,gdo->go", self.mean, w)


class _Square:
    """The covariance a (G, D, D) of the features."""

    columns = 1 << 30  # solved at a time: all

    def __init__(self, a: np.ndarray) -> None:
        self.a = a
        self.factor: tuple[float, Any] | None = None  # of the ridge that was asked for last

    def times(self, w: np.ndarray) -> np.ndarray:
        """a w"""
        return self.a @ w

    def solved(self, c: np.ndarray, ridge: float) -> np.ndarray:
        """(a + lambda I)^-1 c for each group."""
        if len(self.a) == 1 and self.a.shape[1] >= WIDE and find_spec("scipy") is not None:
            try:
                return self._by_factor(c[0], ridge)[None]
            except np.linalg.LinAlgError:  # by rounding it is not positive definite
                self.factor = None
        with self._damped(ridge):
            return np.linalg.solve(self.a, c)

    def _by_factor(self, c: np.ndarray, ridge: float) -> np.ndarray:
        from scipy.linalg import cho_factor, cho_solve

        if self.factor is None or self.factor[0] != ridge:
            self.factor = None  # before the next one is made: of a large layer each is much memory
            with self._damped(ridge):
                self.factor = ridge, cho_factor(self.a[0], lower=True, check_finite=False)
        return cho_solve(self.factor[1], c, check_finite=False)

    @contextmanager
    def _damped(self, ridge: float) -> Iterator[None]:
        features = np.arange(self.a.shape[1])
        diagonal = self.a[:, features, features].copy()
        self.a[:, features, features] += _penalty(diagonal.mean(axis=1), ridge)[:, None]
        try:
            yield
        finally:
            self.a[:, features, features] = diagonal


class _Thin:
    """The same of few rows x (G, R, D), where a = z' z is never formed: by Woodbury's identity

    (z' z + lambda I)^-1 c = (c - z' (z z' + lambda I)^-1 z c) / lambda
    """

    columns = 128  # solved at a time: what is held meanwhile is as large as so many of the weights

    def __init__(self, x: np.ndarray, near: np.ndarray, means: np.ndarray | None) -> None:
        z = (x - near[:, None, :]) / np.sqrt(x.shape[1])
        self.z = z if means is None else np.concatenate([z, means[:, None, :]], axis=1)
        self.turned = self.z.transpose(0, 2, 1)

    def times(self, w: np.ndarray) -> np.ndarray:
        """a w"""
        return self.turned @ (self.z @ w)

    def solved(self, c: np.ndarray, ridge: float) -> np.ndarray:
        """(a + lambda I)^-1 c for each group."""
        penalty = _penalty(np.square(self.z).sum(axis=(1, 2)) / self.z.shape[2], ridge)[:, None, None]
        inner = self.z @ self.turned + penalty * np.eye(self.z.shape[1])
        return (c - self.turned @ np.linalg.solve(inner, self.z @ c)) / penalty


def _penalty(spread: np.ndarray, ridge: float) -> np.ndarray:
    """lambda of each group (G,) for the mean variance of its features."""
    return ridge * np.maximum(spread, 1e-12)


def add_product(a: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """a (D, E) += left (D, K) right (K, E), in place, some rows at a time."""
    for start in range(0, len(a), AT_ONCE):
        a[start : start + AT_ONCE] += left[start : start + AT_ONCE] @ right


def _guess(rows: Rows, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x (R, G, D) times w (G, D, O) plus b (G, O) -> (R, G, O)."""
    guess = np.matmul(rows.x.transpose(1, 0, 2), w.astype(np.float32)) + b[:, None].astype(np.float32)
    return guess.transpose(1, 0, 2)


def _error(rows: Rows, w: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error behind the activation of what w and b make of the rows."""
    guess, y = _guess(rows, w, b), rows.y
    if rows.bounds is not None:
        guess, y = rows.bounds.clip(guess), rows.bounds.clip(y)
    error = float(np.mean(np.square(guess - y), dtype=np.float64))
    return error if np.isfinite(error) else float("inf")


def _variance(rows: Rows) -> float:
    """The mean variance of the targets, behind the activation."""
    y = rows.y if rows.bounds is None else rows.bounds.clip(rows.y)
    return float(y.var(axis=0, dtype=np.float64).mean())
