"""One step of GRU and LSTM, and the activations that recurrent operators name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]


def activation_functions(
    names: Sequence[str], alphas: Sequence[float] | None, betas: Sequence[float] | None
) -> list[Activation]:
    """The functions by name; alphas and betas are consumed in order by those that take them."""
    alpha, beta = iter(alphas or ()), iter(betas or ())
    return [_activation(name, alpha, beta) for name in names]


def _activation(name: str, alphas: Any, betas: Any) -> Activation:
    plain: dict[str, Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": F.softsign,
        "softplus": F.softplus,
    }
    key = name.lower()
    if key in plain:
        return plain[key]
    if key == "leakyrelu":
        slope = next(alphas, 0.01)
        return lambda x: F.leaky_relu(x, slope)
    if key == "thresholdedrelu":
        threshold = next(alphas, 1.0)
        return lambda x: F.threshold(x, threshold, 0)
    if key == "elu":
        scale = next(alphas, 1.0)
        return lambda x: F.elu(x, scale)
    if key == "hardsigmoid":
        a, c = next(alphas, 0.2), next(betas, 0.5)
        return lambda x: torch.clamp(a * x + c, 0, 1)
    if key in ("affine", "scaledtanh"):
        a, c = next(alphas, 1.0), next(betas, 0.0 if key == "affine" else 1.0)
        return (lambda x: a * x + c) if key == "affine" else (lambda x: a * torch.tanh(c * x))
    raise ValueError(f"unknown activation {name}")


def clipped(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else x.clamp(-clip, clip)


def gru_cell(
    x: Tensor, h: Tensor, w: Tensor, r: Tensor, b: Tensor, functions: list[Activation], clip: float | None, linear: int
) -> Tensor:
    size = h.shape[1]
    wb, rb = b.chunk(2)
    xz, xr, xn = F.linear(x, w, wb).chunk(3, 1)
    hz, hr = F.linear(h, r[: 2 * size], rb[: 2 * size]).chunk(2, 1)
    z, reset = functions[0](clipped(xz + hz, clip)), functions[0](clipped(xr + hr, clip))
    if linear:
        hn = reset * F.linear(h, r[2 * size :], rb[2 * size :])
    else:
        hn = F.linear(reset * h, r[2 * size :], rb[2 * size :])
    n = functions[1](clipped(xn + hn, clip))
    return (1 - z) * n + z * h


def lstm_cell(
    gates: Tensor, c: Tensor, peepholes: Tensor, functions: list[Activation], clip: float | None, coupled: int
) -> State:
    i, o, f, g = gates.chunk(4, 1)
    pi, po, pf = peepholes.chunk(3)
    i = functions[0](clipped(i + pi * c, clip))
    f = 1 - i if coupled else functions[0](clipped(f + pf * c, clip))
    new = f * c + i * functions[1](clipped(g, clip))
    o = functions[0](clipped(o + po * new, clip))
    return o * functions[2](new), new
