"""RNN, GRU and LSTM. Letters: x (T, N, I), w (D, g*H, I), r (D, g*H, H), b (D, 2*g*H), states (D, N, H).

D is the number of directions, g the number of gates: LSTM i o f c, GRU z r h. torch's fused functions serve the usual
case; peepholes, clipping, other activations, lengths and the like take the loop over time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import register, torch_function

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


def _over_time(
    x: Tensor, states: State, lengths: Tensor | None, backward: bool, step: Callable[[Tensor, State], State]
) -> tuple[Tensor, State]:
    """All outputs (T, N, H) and the last states of one direction.

    Past its length a sample stands still and gives zeros.
    """
    outputs: list[Tensor] = []
    order = range(x.shape[0] - 1, -1, -1) if backward else range(x.shape[0])
    for time in order:
        new = step(x[time], states)
        if lengths is not None:
            alive = (time < lengths).unsqueeze(1)
            new = tuple(torch.where(alive, a, b) for a, b in zip(new, states, strict=True))
            outputs.append(torch.where(alive, new[0], torch.zeros_like(new[0])))
        else:
            outputs.append(new[0])
        states = new
    return torch.stack(outputs[::-1] if backward else outputs), states


def _directions(direction: str) -> list[bool]:
    return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]


def _laid_out(y: Tensor, last: Sequence[Tensor], layout: int) -> tuple[Tensor, ...]:
    if layout:
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (y, *last)


def _fused(
    function: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    states: Sequence[Tensor],
    order: Sequence[int],
    direction: str,
) -> tuple[Tensor, ...]:
    """torch's fused recurrence; `order` lists our gates in torch's order."""
    gates = len(order)
    reverse = direction == "reverse"
    flat: list[Tensor] = []
    for k in range(w.shape[0]):
        parts = [w[k], r[k], *b[k].chunk(2)]
        flat += [torch.cat([part.chunk(gates)[g] for g in order]) for part in parts]
    x = x.flip(0) if reverse else x
    first = states[0] if len(states) == 1 else tuple(states)
    y, *last = function(x, first, flat, True, 1, 0.0, False, direction == "bidirectional", False)
    y = y.flip(0) if reverse else y
    y = y.reshape(y.shape[0], y.shape[1], w.shape[0], r.shape[2]).transpose(1, 2)
    return (y, *last)


@dataclass(frozen=True)
class Step:
    """The parameters of one direction: weights (g*H, I) and (g*H, H), bias (2*g*H,), peepholes (3*H,)."""

    w: Tensor
    r: Tensor
    b: Tensor
    p: Tensor
    functions: Sequence[Activation]
    clip: float | None
    coupled: int  # the LSTM's input_forget
    linear: int  # the GRU's linear_before_reset

    def activated(self, k: int, x: Tensor) -> Tensor:
        """Activation number k of x, which is clipped before it."""
        return self.functions[k](x if self.clip is None else x.clamp(-self.clip, self.clip))


def _rnn(s: Step, x: Tensor, states: State) -> State:
    """h = f(x w' + h r' + b)."""
    return (s.activated(0, F.linear(x, s.w) + F.linear(states[0], s.r) + sum(s.b.chunk(2))),)


def _gru(s: Step, x: Tensor, states: State) -> State:
    """z, r = f(...); n = g(x w' + reset h r' + b); h = (1 - z) n + z h."""
    (h,) = states
    size = h.shape[1]
    wb, rb = s.b.chunk(2)
    xz, xr, xn = F.linear(x, s.w, wb).chunk(3, 1)
    hz, hr = F.linear(h, s.r[: 2 * size], rb[: 2 * size]).chunk(2, 1)
    z, reset = s.activated(0, xz + hz), s.activated(0, xr + hr)
    if s.linear:
        hn = reset * F.linear(h, s.r[2 * size :], rb[2 * size :])
    else:
        hn = F.linear(reset * h, s.r[2 * size :], rb[2 * size :])
    n = s.activated(1, xn + hn)
    return ((1 - z) * n + z * h,)


def _lstm(s: Step, x: Tensor, states: State) -> State:
    """c = f c + i g; h = o tanh(c)."""
    h, c = states
    wb, rb = s.b.chunk(2)
    i, o, f, g = (F.linear(x, s.w, wb) + F.linear(h, s.r, rb)).chunk(4, 1)
    pi, po, pf = s.p.chunk(3)
    i = s.activated(0, i + pi * c)
    f = 1 - i if s.coupled else s.activated(0, f + pf * c)
    new = f * c + i * s.activated(1, g)
    o = s.activated(0, o + po * new)
    return o * s.functions[2](new), new


@dataclass(frozen=True)
class Cell:
    """RNN, GRU or LSTM. fused: torch's functions by the activations that they have, the default first.

    order: our gates in torch's order. states: h, and the LSTM's c.
    """

    step: Callable[[Step, Tensor, State], State]
    fused: Mapping[tuple[str, ...], Callable[..., tuple[Tensor, ...]]]
    order: Sequence[int]
    states: int = 1


CELLS = {
    "RNN": Cell(_rnn, {("tanh",): torch.rnn_tanh, ("relu",): torch.rnn_relu}, (0,)),
    "GRU": Cell(_gru, {("sigmoid", "tanh"): torch.gru}, (1, 0, 2)),
    "LSTM": Cell(_lstm, {("sigmoid", "tanh", "tanh"): torch.lstm}, (0, 2, 3, 1), states=2),
}


def _recurrent(
    cell: Cell,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """y (T, D, N, H) and the last states (D, N, H); layout 1 has the batch first. What is left out is zero.

    p (D, 3*H): the LSTM's peepholes of i, o and f.
    """
    count, hidden, default = w.shape[0], r.shape[2], next(iter(cell.fused))
    x = x.transpose(0, 1) if layout else x
    b = r.new_zeros(count, 2 * len(cell.order) * hidden) if b is None else b
    states = [
        x.new_zeros(count, x.shape[1], hidden) if state is None else (state.transpose(0, 1) if layout else state)
        for state in (initial_h, initial_c)[: cell.states]
    ]
    names = [name.lower() for name in activations or default * count]
    fused = next((function for usual, function in cell.fused.items() if names == [*usual] * count), None)
    plain = clip is None and sequence_lens is None and p is None and not input_forget
    if fused is not None and plain and (linear_before_reset or cell is not CELLS["GRU"]):
        y, *last = _fused(fused, x, w, r, b, states, cell.order, direction)
        return _laid_out(y, last, layout)
    functions = activation_functions(names, activation_alpha, activation_beta)
    p = r.new_zeros(count, 3 * hidden) if p is None else p
    results = []
    for k, backward in enumerate(_directions(direction)):
        own = functions[k * len(default) : (k + 1) * len(default)]
        step = partial(cell.step, Step(w[k], r[k], b[k], p[k], own, clip, input_forget, linear_before_reset))
        results.append(_over_time(x, tuple(state[k] for state in states), sequence_lens, backward, step))
    y = torch.stack([outputs for outputs, _ in results], 1)
    return _laid_out(y, [torch.stack([last[k] for _, last in results]) for k in range(cell.states)], layout)


for _name, _cell in CELLS.items():
    register(_name, partial(_recurrent, _cell), fixed=(4,))


@torch_function("DynamicQuantizeLSTM", domain="com.microsoft", fixed=(1, 2, 4, 8, 9, 10, 11))
def DynamicQuantizeLSTM(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero: Tensor,
    r_scale: Tensor,
    r_zero: Tensor,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """LSTM with the weights w (D, I, 4*H) and r (D, H, 4*H) dequantized; the rounding of x and h, which onnxruntime
    does at every step, is left out, so numbers agree to its 8 bits and gradients are those of the smooth function.
    """
    wide = [
        (weight.float() - _per_direction(zero.float(), weight)) * _per_direction(scale, weight)
        for weight, scale, zero in ((w, w_scale, w_zero), (r, r_scale, r_zero))
    ]
    w, r = (weight.transpose(1, 2) for weight in wide)
    return _recurrent(CELLS["LSTM"], x, w, r, b, sequence_lens, initial_h, initial_c, p, **attributes)


def _per_direction(parameter: Tensor, weight: Tensor) -> Tensor:
    """(D,) or (D, 4*H) so that it broadcasts to (D, I, 4*H)."""
    return parameter.reshape(weight.shape[0], 1, -1)
