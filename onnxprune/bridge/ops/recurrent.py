"""RNN, GRU and LSTM. Letters: x (T, N, I), w (D, g*H, I), r (D, g*H, H), b (D, 2*g*H), states (D, N, H).

D is the number of directions, g the number of gates: LSTM i o f c, GRU z r h. torch's fused functions serve the usual
case; peepholes, clipping, other activations, lengths and the like take the loop over time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.cells import State, activation_functions, clipped, gru_cell, lstm_cell
from onnxprune.bridge.ops.registry import torch_function


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


def _run(
    x: Tensor,
    states: State,
    lengths: Tensor | None,
    direction: str,
    layout: int,
    steps: list[Callable[[Tensor, State], State]],
) -> tuple[Tensor, ...]:
    """y (T, D, N, H) and the last states (D, N, H); layout 1 has the batch first."""
    results = [
        _over_time(x, tuple(state[k] for state in states), lengths, backward, steps[k])
        for k, backward in enumerate(_directions(direction))
    ]
    y = torch.stack([result[0] for result in results], 1)
    last = [torch.stack([result[1][k] for result in results]) for k in range(len(states))]
    return _laid_out(y, last, layout)


def _laid_out(y: Tensor, last: list[Tensor], layout: int) -> tuple[Tensor, ...]:
    if layout:
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (y, *last)


def _prepared(
    x: Tensor, r: Tensor, b: Tensor | None, states: Sequence[Tensor | None], layout: int, gates: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x with time first, b, and the initial states; what is left out is zero."""
    x = x.transpose(0, 1) if layout else x
    b = r.new_zeros(r.shape[0], 2 * gates * r.shape[2]) if b is None else b
    ready = [
        x.new_zeros(r.shape[0], x.shape[1], r.shape[2])
        if state is None
        else (state.transpose(0, 1) if layout else state)
        for state in states
    ]
    return x, b, ready


def _fused(
    function: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    states: Any,
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
    y, *last = function(x, states, flat, True, 1, 0.0, False, direction == "bidirectional", False)
    y = y.flip(0) if reverse else y
    y = y.reshape(y.shape[0], y.shape[1], w.shape[0], r.shape[2]).transpose(1, 2)
    return (y, *last)


def _is_usual(names: Sequence[str] | None, usual: Sequence[str], clip: float | None, lengths: Tensor | None) -> bool:
    plain = names is None or [name.lower() for name in names] == [*usual] * (len(names) // len(usual))
    return plain and clip is None and lengths is None


@torch_function("RNN", fixed=(4,))
def RNN(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """h = f(x w' + h r' + b)."""
    x, b, states = _prepared(x, r, b, [initial_h], layout, 1)
    for usual, function in (("tanh", torch.rnn_tanh), ("relu", torch.rnn_relu)):
        if (activations or usual == "tanh") and _is_usual(activations, [usual], clip, sequence_lens):
            y, last = _fused(function, x, w, r, b, states[0], [0], direction)
            return _laid_out(y, [last], layout)
    functions = activation_functions(activations or ["Tanh"] * w.shape[0], activation_alpha, activation_beta)

    def step(k: int, xt: Tensor, state: State) -> State:
        total = F.linear(xt, w[k]) + F.linear(state[0], r[k]) + sum(b[k].chunk(2))
        return (functions[k](clipped(total, clip)),)

    return _run(x, tuple(states), sequence_lens, direction, layout, [partial(step, k) for k in range(len(w))])


@torch_function("GRU", fixed=(4,))
def GRU(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """z, r = f(...); n = g(x w' + reset h r' + b); h = (1 - z) n + z h."""
    x, b, states = _prepared(x, r, b, [initial_h], layout, 3)
    if linear_before_reset and _is_usual(activations, ["sigmoid", "tanh"], clip, sequence_lens):
        y, last = _fused(torch.gru, x, w, r, b, states[0], [1, 0, 2], direction)
        return _laid_out(y, [last], layout)
    functions = activation_functions(activations or ["Sigmoid", "Tanh"] * w.shape[0], activation_alpha, activation_beta)

    def step(k: int, xt: Tensor, state: State) -> State:
        return (gru_cell(xt, state[0], w[k], r[k], b[k], functions[2 * k : 2 * k + 2], clip, linear_before_reset),)

    return _run(x, tuple(states), sequence_lens, direction, layout, [partial(step, k) for k in range(len(w))])


@torch_function("LSTM", fixed=(4,))
def LSTM(
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
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    """c = f c + i g; h = o tanh(c); p (D, 3*H) holds the peepholes of i, o and f."""
    x, b, states = _prepared(x, r, b, [initial_h, initial_c], layout, 4)
    if p is None and not input_forget and _is_usual(activations, ["sigmoid", "tanh", "tanh"], clip, sequence_lens):
        y, *last = _fused(torch.lstm, x, w, r, b, tuple(states), [0, 2, 3, 1], direction)
        return _laid_out(y, last, layout)
    names = activations or ["Sigmoid", "Tanh", "Tanh"] * w.shape[0]
    functions = activation_functions(names, activation_alpha, activation_beta)
    peepholes = r.new_zeros(w.shape[0], 3 * r.shape[2]) if p is None else p

    def step(k: int, xt: Tensor, state: State) -> State:
        gates = F.linear(xt, w[k], b[k].chunk(2)[0]) + F.linear(state[0], r[k], b[k].chunk(2)[1])
        return lstm_cell(gates, state[1], peepholes[k], functions[3 * k : 3 * k + 3], clip, input_forget)

    return _run(x, tuple(states), sequence_lens, direction, layout, [partial(step, k) for k in range(len(w))])


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
    return LSTM(x, w, r, b, sequence_lens, initial_h, initial_c, p, **attributes)


def _per_direction(parameter: Tensor, weight: Tensor) -> Tensor:
    """(D,) or (D, 4*H) so that it broadcasts to (D, I, 4*H)."""
    return parameter.reshape(weight.shape[0], 1, -1)
