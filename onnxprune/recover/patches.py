"""The inputs of each output position of a linear node: windows of taps in convolutions, the row itself elsewhere.

Letters: N batch, C channels, K kernel taps, S spatial axes, R chosen rows. A transposed convolution is a
convolution of its input with zeros inserted between the positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.recover.linear import Linear


@dataclass(frozen=True)
class Window:
    """Where the taps of a convolution lie; `inserted` positions stand for each position of the input."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]  # padding before, negative where positions are cropped
    out: tuple[int, ...]  # output sizes
    inserted: tuple[int, ...]

    def taps(self) -> Iterator[tuple[int, ...]]:
        """Offsets of the taps, in the order in which kernels store them."""
        return product(*(range(0, k * d, d) for k, d in zip(self.kernel, self.dilations, strict=True)))


def window_of(linear: Linear, sizes: tuple[int, ...], out: tuple[int, ...]) -> Window:
    """The window of a convolution whose input has spatial `sizes` and whose output has `out`."""
    rank = len(sizes)
    kernel = graph.array_of(linear.stored).shape[2:]
    strides, dilations = (_ints(linear.node, name, (1,) * rank) for name in ("strides", "dilations"))
    begin = _pads(linear, sizes, out, kernel, strides, dilations)
    if linear.kind == "convolution":
        return Window(kernel, strides, dilations, begin, out, (1,) * rank)
    begin = tuple(d * (k - 1) - p for d, k, p in zip(dilations, kernel, begin, strict=True))
    return Window(kernel, (1,) * rank, dilations, begin, out, strides)


def _ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.value)


def _pads(linear: Linear, sizes, out, kernel, strides, dilations) -> tuple[int, ...]:
    """Padding before each axis; what stands behind follows from the output's size."""
    node = linear.node
    auto = node.attributes.get("auto_pad")
    how = "NOTSET" if auto is None else auto.value
    if how not in ("SAME_UPPER", "SAME_LOWER"):
        return _ints(node, "pads", (0,) * (2 * len(sizes)))[: len(sizes)]
    small, large = (sizes, out) if linear.kind == "transposed" else (out, sizes)
    total = [
        max(0, (s - 1) * stride + d * (k - 1) + 1 - big)
        for s, big, k, stride, d in zip(small, large, kernel, strides, dilations, strict=True)
    ]
    return tuple(t // 2 if how == "SAME_UPPER" else t - t // 2 for t in total)


def _spread(x: np.ndarray, window: Window) -> np.ndarray:
    """x (N, C, *S) with zeros inserted, padded and cropped so that tap t of output o reads o * stride + t."""
    sizes = [(s - 1) * n + 1 for s, n in zip(x.shape[2:], window.inserted, strict=True)]
    reach = [
        (o - 1) * s + d * (k - 1) + 1
        for o, s, d, k in zip(window.out, window.strides, window.dilations, window.kernel, strict=True)
    ]
    result = np.zeros((*x.shape[:2], *reach), x.dtype)
    into: list[slice] = [slice(None), slice(None)]
    source: list[slice] = [slice(None), slice(None)]
    for begin, size, room, step in zip(window.begin, sizes, reach, window.inserted, strict=True):
        first = -(-max(0, -begin) // step)  # the first input position that is not cropped
        count = max(0, min(x.shape[len(into)], (room - 1 - begin) // step + 1) - first)
        start = begin + first * step
        into.append(slice(start, start + (count - 1) * step + 1 if count else start, step))
        source.append(slice(first, first + count))
        assert size >= 1
    result[tuple(into)] = x[tuple(source)]
    return result


def mean_taps(x: np.ndarray, window: Window) -> np.ndarray:
    """The mean input of each tap over samples and output positions: x (N, C, *S) -> (C, K)."""
    spread = _spread(x.mean(axis=0, keepdims=True, dtype=np.float64), window)[0]
    means = []
    for tap in window.taps():
        places = (slice(t, t + (o - 1) * s + 1, s) for t, o, s in zip(tap, window.out, window.strides, strict=True))
        means.append(spread[(slice(None), *places)].mean(axis=tuple(range(1, spread.ndim))))
    return np.stack(means, axis=1)


def windows(x: np.ndarray, window: Window, picks: np.ndarray) -> np.ndarray:
    """The windows of chosen output positions: x (N, C, *S), picks (R,) of N x prod(S') -> (R, C, K)."""
    spread = _spread(x, window)
    n, *places = np.unravel_index(picks, (len(x), *window.out))
    result = np.empty((len(picks), x.shape[1], prod(window.kernel)), x.dtype)
    channels_last = np.ascontiguousarray(np.moveaxis(spread, 1, -1))  # one row then copies C neighbors
    for k, tap in enumerate(window.taps()):
        index = tuple(p * s + t for p, s, t in zip(places, window.strides, tap, strict=True))
        result[:, :, k] = channels_last[(n, *index)]
    return result


def outputs(y: np.ndarray, axis: int, picks: np.ndarray | None) -> np.ndarray:
    """Rows of channels: y with channels on `axis`, picks (R,) of the other positions, None for all -> (R, O)."""
    rows = np.moveaxis(y, axis, -1).reshape(-1, y.shape[axis])
    return rows if picks is None else rows[picks]
