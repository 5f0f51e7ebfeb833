"""Shapes: what only moves or describes elements. Shape vectors arrive as lists or CPU tensors (`host` inputs)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import register, torch_function
from onnxprune.bridge.tensors import ints, number, torch_type

Sizes = Sequence[int]


@torch_function("Shape", shape_only=True, differentiable=False)
def Shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@torch_function("Size", shape_only=True, differentiable=False)
def Size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@torch_function("Reshape")
def Reshape_1(x: Tensor, *, shape: Sizes) -> Tensor:
    return Reshape(x, shape)


@torch_function("Reshape", since=5, host=(1,))
def Reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    """0 copies the axis of x, unless allowzero; -1 is what remains."""
    sizes = ints(shape)
    if not allowzero and 0 in sizes:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@torch_function("Flatten")
def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = 1
    for size in x.shape[: axis if axis >= 0 else axis + x.ndim]:
        rows *= size
    return x.reshape(rows, x.numel() // rows if rows else -1)


@torch_function("Transpose")
def Transpose(x: Tensor, *, perm: Sizes | None = None) -> Tensor:
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.ndim))))


@torch_function("Squeeze")
def Squeeze_1(x: Tensor, *, axes: Sizes | None = None) -> Tensor:
    return Squeeze(x, axes)


@torch_function("Squeeze", since=13, host=(1,))
def Squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


@torch_function("Unsqueeze")
def Unsqueeze_1(x: Tensor, *, axes: Sizes) -> Tensor:
    return Unsqueeze(x, axes)


@torch_function("Unsqueeze", since=13, host=(1,))
def Unsqueeze(x: Tensor, axes: Any) -> Tensor:
    """The axes count in the result."""
    axes = ints(axes)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@torch_function("Concat")
def Concat(*inputs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(inputs, axis)


@torch_function("Split")
def Split_1(x: Tensor, *, axis: int = 0, split: Sizes | None = None, outputs: int = 1) -> tuple[Tensor, ...]:
    return Split(x, split, axis=axis, outputs=outputs)


@torch_function("Split", since=13, host=(1,))
def Split(
    x: Tensor, split: Any = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Without `split` equal parts, the last one shorter where they do not fit."""
    if split is None:
        count, length = num_outputs or outputs, x.shape[axis]
        part = -(-length // count)
        sizes = [max(0, min(part, length - k * part)) for k in range(count)]
    else:
        sizes = ints(split)
    return torch.split(x, sizes, axis)


@torch_function("Slice")
def Slice_1(x: Tensor, *, starts: Sizes, ends: Sizes, axes: Sizes | None = None) -> Tensor:
    return Slice(x, starts, ends, axes)


@torch_function("Slice", since=10, host=(1, 2, 3, 4))
def Slice(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """numpy's slicing, except that a negative step reads through a flip of the sliced positions."""
    starts, ends = ints(starts), ints(ends)
    axes = range(len(starts)) if axes is None else ints(axes)
    steps = [1] * len(starts) if steps is None else ints(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = x.shape[axis]
        first, last, step = slice(start, _open(end, step, length), step).indices(length)
        if step > 0:
            x = (
                x.narrow(axis, min(first, length), max(0, last - first))
                if step == 1
                else _strided(x, axis, first, last, step)
            )
        else:
            count = max(0, -(-(first - last) // -step))
            low = first + (count - 1) * step if count else 0
            x = _strided(x, axis, low, first + 1 if count else 0, -step).flip(axis)
    return x


def _open(end: int, step: int, length: int) -> int | None:
    """`end` as Python's slice takes it: far below zero with a negative step means 'through the first'."""
    return None if step < 0 and end < -length else end


def _strided(x: Tensor, axis: int, first: int, last: int, step: int) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(first, max(first, last), step)
    return x[tuple(index)]


@torch_function("Expand", host=(1,))
def Expand(x: Tensor, shape: Any) -> Tensor:
    """Broadcasts in both directions: a 1 in `shape` keeps the axis of x."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(ints(shape))))


@torch_function("Tile", host=(1, 2))
def Tile_1(x: Tensor, tiles: Any, axis: Any) -> Tensor:
    repeats = [1] * x.ndim
    repeats[number(axis)] = number(tiles)
    return x.repeat(repeats)


@torch_function("Tile", since=6, host=(1,))
def Tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(ints(repeats))


@torch_function("ConstantOfShape", host=(0,))
def ConstantOfShape(shape: Any, *, value: Tensor | None = None) -> Tensor:
    return torch.zeros(ints(shape)) if value is None else value.reshape(()).expand(ints(shape)).clone()


@torch_function("Range", differentiable=False)
def Range(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    """start, start + delta, ... below limit; the inputs stay tensors, because they carry the element type."""
    first, last, step = start.item(), limit.item(), delta.item()
    count = max(0, math.ceil((last - first) / step))
    if start.is_floating_point():
        return (torch.arange(count, dtype=torch_type(stash_type), device=start.device) * step + first).to(start.dtype)
    return torch.arange(count, dtype=start.dtype, device=start.device) * step + first


@torch_function("Pad")
def Pad_1(
    x: Tensor, *, pads: Sizes | None = None, paddings: Sizes | None = None, mode: str = "constant", value: float = 0.0
) -> Tensor:
    return Pad(x, pads if pads is not None else paddings, value, mode=mode)


@torch_function("Pad", since=11, host=(1, 2, 3))
def Pad(x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant") -> Tensor:
    """pads: all begins, then all ends, of `axes`; negative ones crop."""
    pads = ints(pads)
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[len(axes) + k]
    if mode == "constant":
        pairs = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
        return F.pad(x, pairs, value=0 if value is None or value == [] else number(value))
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            x = x.index_select(axis, _source(x.shape[axis], before[axis], after[axis], mode, x.device))
    return x


def _source(length: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """For each position of a padded axis the position that it copies."""
    places = torch.arange(-before, length + after, device=device)
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    period = max(2 * (length - 1), 1)  # reflect: 0 1 2 3 2 1 0 1 ...
    places = places % period
    return torch.where(places < length, places, period - places)


@torch_function("CenterCropPad", host=(1,))
def CenterCropPad(x: Tensor, shape: Any, *, axes: Sizes | None = None) -> Tensor:
    for axis, size in zip(range(x.ndim) if axes is None else axes, ints(shape), strict=True):
        length = x.shape[axis]
        if size < length:
            x = x.narrow(axis, (length - size) // 2, size)
        elif size > length:
            before = (size - length) // 2
            pads = [0] * (2 * x.ndim)
            pads[axis], pads[axis % x.ndim + x.ndim] = before, size - length - before
            x = Pad(x, pads)
    return x


@torch_function("DepthToSpace")
def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, channels, height, width = x.shape
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    y = x.reshape(n, blocksize, blocksize, channels // blocksize**2, height, width)
    return y.permute(0, 3, 4, 1, 5, 2).reshape(n, channels // blocksize**2, height * blocksize, width * blocksize)


@torch_function("SpaceToDepth")
def SpaceToDepth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, channels, height, width = x.shape
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    y = x.reshape(n, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return y.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * blocksize**2, height // blocksize, width // blocksize)


def Identity(x: Any) -> Any:
    return x


register("Identity", Identity)
