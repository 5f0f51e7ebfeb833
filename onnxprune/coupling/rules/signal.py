"""Fourier transforms: what is transformed stays whole, the other axes pass."""

from onnxprune.coupling.node import NodeAxes
from onnxprune.coupling.registry import coupling_rule


@coupling_rule("DFT")
def DFT(n: NodeAxes) -> None:
    """x (..., 1 or 2) -> y (..., 2), or of one number where it is inverse and onesided."""
    x = n.x(0)
    place = n.attribute("axis", 1)
    if n.opset >= 20:
        given = n.numbers(2)
        if n.has(2) and given is None:
            n.opaque("the axis is computed")
            return
        place = -2 if given is None else int(given.item())
    y = list(x)
    for k, text in ((place % len(x), "transformed"), (len(x) - 1, "parts of complex numbers")):
        n.freeze(x[k], text)
        y[k] = n.fixed_output(0, k, text)
    n.give(y)


@coupling_rule("STFT")
def STFT(n: NodeAxes) -> None:
    """x (N, length) or (N, length, 1 or 2), step, window, frame length -> y (N, frames, bins, 2)."""
    x = n.x(0)
    for axis in [*x[1:], *(axis for index in n.given()[1:] for axis in n.x(index))]:
        n.freeze(axis, "cut into frames and transformed")
    n.give([x[0], *(n.fixed_output(0, k, "frames and frequencies") for k in (1, 2, 3))])
