"""Ridge least squares from running sums. Letters: R rows, G groups, D features of a group, O outputs of a group.

    minimize over W, b   |X W + b - Y|^2 / R + lambda |W - W0|^2,   lambda = ridge * mean of the features' variance

The penalty pulls towards the present weights W0, not towards zero: what data do not determine stays as it was.
"""

from dataclasses import dataclass

import numpy as np

RIDGES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # times the ridge that was asked for; held-out rows choose
HELD = 5  # every fifth sample is held out


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
    """What least squares needs of rows that are then forgotten; the few held-out rows are kept."""

    def __init__(self) -> None:
        self.rows = 0
        self.xx: np.ndarray | None = None
        self.held: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, x: np.ndarray, y: np.ndarray, held: np.ndarray) -> None:
        """Rows x (R, G, D) and y (R, G, O); held (R,) are not fitted."""
        if held.any():
            self.held.append((x[held].astype(np.float32), y[held].astype(np.float32)))
        x, y = x[~held].transpose(1, 0, 2), y[~held].transpose(1, 0, 2)
        if x.shape[1] == 0:
            return
        if self.xx is None:
            self._start(x, y)
        x, y = x - self.x0, y - self.y0  # near zero mean, the products lose no digits
        turned = x.transpose(0, 2, 1)
        self.xx += turned @ x
        self.xy += turned @ y
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.rows += x.shape[1]

    def _start(self, x: np.ndarray, y: np.ndarray) -> None:
        groups, _, features = x.shape
        self.x0 = x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        self.y0 = y.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        self.xx = np.zeros((groups, features, features))
        self.xy = np.zeros((groups, features, y.shape[2]))
        self.x, self.y = np.zeros((groups, features)), np.zeros((groups, y.shape[2]))

    def solve(self, w0: np.ndarray, b0: np.ndarray, ridge: float, *, fixed_bias: bool = False) -> Fit | None:
        """The best fit near w0 (G, O, D), b0 (G, O); None where there are too few rows.

        fixed_bias: b0 stays as it is.
        """
        if self.rows < 2 or not self.held or self.xx is None:
            return None
        mean_x, mean_y = self.x / self.rows, self.y / self.rows
        a = self.xx / self.rows - mean_x[:, :, None] * mean_x[:, None, :]
        c = self.xy / self.rows - mean_x[:, :, None] * mean_y[:, None, :]
        mean_x, mean_y = mean_x + self.x0[:, 0], mean_y + self.y0[:, 0]
        if fixed_bias:  # then the means count as well
            a = a + mean_x[:, :, None] * mean_x[:, None, :]
            c = c + mean_x[:, :, None] * (mean_y - b0)[:, None, :]
        start = w0.transpose(0, 2, 1).astype(np.float64)
        residual = c - a @ start
        x, y = (np.concatenate([part[k] for part in self.held]) for k in (0, 1))
        fits = []
        for factor in RIDGES:
            w = start + _solve(a, residual, ridge * factor)
            b = b0 if fixed_bias else mean_y - np.einsum("gd,gdo->go", mean_x, w)
            fits.append((_error(x, y, w, b), ridge * factor, w, b))
        after, best, w, b = min(fits, key=lambda fit: fit[0])
        weights = np.ascontiguousarray(w.transpose(0, 2, 1)).astype(np.float32)
        scale = float(y.var(axis=0, dtype=np.float64).mean())
        return Fit(weights, b.astype(np.float32), best, _error(x, y, start, b0), after, scale)


def _solve(a: np.ndarray, c: np.ndarray, ridge: float) -> np.ndarray:
    """(a + lambda I)^-1 c for each group."""
    features = a.shape[1]
    spread = np.trace(a, axis1=1, axis2=2) / features
    penalty = ridge * np.maximum(spread, 1e-12)
    return np.linalg.solve(a + penalty[:, None, None] * np.eye(features), c)


def _error(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error of x (R, G, D) times w (G, D, O) plus b (G, O) against y (R, G, O)."""
    guess = np.matmul(x.transpose(1, 0, 2), w.astype(np.float32)) + b[:, None].astype(np.float32)
    error = float(np.mean(np.square(guess - y.transpose(1, 0, 2)), dtype=np.float64))
    return error if np.isfinite(error) else float("inf")
