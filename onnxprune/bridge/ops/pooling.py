"""Pooling. Letters: x (N, C, *D), kernel (*K). torch's own functions where they mean the same, else spelled out."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.convolution import CONV, pad_spatial, window_pads
from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import ints

AVG_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
Sizes = Sequence[int]


def _ceil_pads(
    size: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes, before: Sizes, after: Sizes, ceil_mode: int
) -> list[int]:
    """`after`, longer where ceil_mode lets a last window reach over the end; it must start before the right padding."""
    if not ceil_mode:
        return list(after)
    longer = []
    for n, k, s, d, p, q in zip(size, kernel, strides, dilations, before, after, strict=True):
        reach = (k - 1) * d + 1
        count = -(-(n + p + q - reach) // s) + 1
        if (count - 1) * s >= n + p:
            count -= 1
        longer.append(max(q, (count - 1) * s + reach - n - p))
    return longer


def _within(size: Sizes, kernel: Sizes, dilations: Sizes, before: Sizes, after: Sizes, ceil_mode: int) -> Sizes:
    """`kernel`, no longer than what it pools: with ceil_mode exporters write kernels of any length for the whole."""
    if not ceil_mode:
        return kernel
    sizes = zip(size, kernel, dilations, before, after, strict=True)
    return tuple(min(k, n + p + q) if d == 1 else k for n, k, d, p, q in sizes)


def _windows(
    x: Tensor, kernel: Sizes, auto_pad: str, ceil_mode: int, dilations: Sizes | None, pads: Sizes | None, strides: Any
) -> tuple[Sizes, Sizes, Sizes, Sizes, Sizes, Sizes]:
    """(kernel, strides, dilations, pads before, pads after, those with what ceil_mode adds) of the windows of x."""
    ones = (1,) * len(kernel)
    strides, dilations = strides or ones, dilations or ones
    before, after = window_pads(auto_pad, x.shape[2:], kernel, strides, dilations, pads)
    kernel = _within(x.shape[2:], kernel, dilations, before, after, ceil_mode)
    longer = _ceil_pads(x.shape[2:], kernel, strides, dilations, before, after, ceil_mode)
    return kernel, strides, dilations, before, after, longer


@torch_function("MaxPool")
def MaxPool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    storage_order: int = 0,
    strides: Sizes | None = None,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    kernel, strides, dilations, before, _, after = _windows(
        x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides
    )
    if outputs > 1:
        return _max_pool_with_indices(x, kernel, strides, dilations, before, after, storage_order)
    floating = x.is_floating_point()
    pool = MAX_POOL[len(kernel)]
    native = before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    if native and floating:
        return pool(x, kernel, strides, before, dilations)
    lowest = float("-inf") if floating else torch.iinfo(x.dtype).min
    wide = pad_spatial(x, before, after, lowest)
    if floating:
        return pool(wide, kernel, strides, 0, dilations)
    return pool(wide.double(), kernel, strides, 0, dilations).to(x.dtype)


def _max_pool_with_indices(
    x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes, before: Sizes, after: Sizes, storage_order: int
) -> tuple[Tensor, Tensor]:
    """Also the index of each maximum in the whole of x; storage_order 1 counts columns first."""
    size = list(x.shape[2:])
    wide = pad_spatial(x if x.is_floating_point() else x.double(), before, after, float("-inf"))
    y, places = MAX_POOL[len(kernel)](wide, kernel, strides, 0, dilations, False, True)
    coordinates: list[Tensor] = []
    for n, p in zip(reversed(wide.shape[2:]), reversed(before), strict=True):
        coordinates.insert(0, places % n - p)
        places = places // n
    order = list(range(len(size))) if storage_order == 0 else list(reversed(range(len(size))))
    flat = torch.zeros_like(places)
    for axis in order:
        flat = flat * size[axis] + coordinates[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *([1] * len(size)))
    count = 1
    for n in size:
        count *= n
    return y.to(x.dtype), flat + images * count


def _sum_pool(x: Tensor, kernel: Sizes, strides: Sizes, dilations: Sizes) -> Tensor:
    """Sum over each window of x, which is padded already."""
    rank = len(kernel)
    ones = x.new_ones(1, 1, *kernel)
    y = CONV[rank](x.reshape(-1, 1, *x.shape[2:]), ones, None, strides, 0, dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


@torch_function("AveragePool")
def AveragePool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Mean of each window over the positions inside x, with count_include_pad also over the padding that was given."""
    kernel, strides, dilations, before, after, longer = _windows(
        x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides
    )
    native = before == after == longer and set(dilations) == {1}
    if native and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return AVG_POOL[len(kernel)](x, kernel, strides, before, False, bool(count_include_pad))
    counted = x.new_ones(1, 1, *x.shape[2:])
    counted = pad_spatial(counted, before, after, 1.0 if count_include_pad else 0.0)
    rest = [b - a for a, b in zip(after, longer, strict=True)]
    counted = pad_spatial(counted, [0] * len(rest), rest)
    total = _sum_pool(pad_spatial(x, before, longer), kernel, strides, dilations)
    return total / _sum_pool(counted, kernel, strides, dilations)


@torch_function("LpPool")
def LpPool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sizes | None = None,
    p: float = 2,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    kernel, strides, dilations, before, _, after = _windows(
        x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides
    )
    powers = pad_spatial(x.abs() ** p, before, after)
    return _sum_pool(powers, kernel, strides, dilations) ** (1 / p)


@torch_function("GlobalAveragePool")
def GlobalAveragePool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else x


@torch_function("GlobalMaxPool")
def GlobalMaxPool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True) if x.ndim > 2 else x


@torch_function("GlobalLpPool")
def GlobalLpPool(x: Tensor, *, p: float = 2) -> Tensor:
    return torch.linalg.vector_norm(x, p, list(range(2, x.ndim)), keepdim=True)


@torch_function("MaxUnpool", host=(2,), fixed=(1,))
def MaxUnpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Any = None,
    *,
    kernel_shape: Sizes,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """The indices count in a tensor of the inferred shape; output_shape gives room around it."""
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    inferred = [(n - 1) * strides[i] - pads[i] - pads[rank + i] + kernel_shape[i] for i, n in enumerate(x.shape[2:])]
    inferred = [*x.shape[:2], *inferred]
    shape = inferred if output_shape is None else ints(output_shape)
    flat = x.new_zeros(prod(inferred)).scatter(0, indices.reshape(-1), x.reshape(-1))
    y = flat.reshape(inferred)
    return y if shape == inferred else pad_spatial(y, [0] * len(shape), _difference(shape, inferred))


def _difference(a: Sizes, b: Sizes) -> list[int]:
    return [x - y for x, y in zip(a, b, strict=True)]


@torch_function("MaxRoiPool", fixed=(1,))
def MaxRoiPool(x: Tensor, rois: Tensor, *, pooled_shape: Sizes, spatial_scale: float = 1.0) -> Tensor:
    """rois (R, 5): image, x1, y1, x2, y2 -> (R, C, *pooled_shape), the maximum of each cell."""
    height, width = pooled_shape
    cells = []
    for image, x1, y1, x2, y2 in rois.tolist():
        left, top, right, bottom = (round(v * spatial_scale) for v in (x1, y1, x2, y2))
        rows, columns = _cells(top, bottom, height, x.shape[2]), _cells(left, right, width, x.shape[3])
        patch = x[int(image)]
        for r0, r1 in rows:
            for c0, c1 in columns:
                empty = r1 <= r0 or c1 <= c0
                cells.append(x.new_zeros(x.shape[1]) if empty else patch[:, r0:r1, c0:c1].amax((1, 2)))
    if not cells:
        return x.new_zeros(0, x.shape[1], height, width)
    return torch.stack(cells).reshape(-1, height, width, x.shape[1]).permute(0, 3, 1, 2)


def _cells(start: int, stop: int, count: int, limit: int) -> list[tuple[int, int]]:
    length = max(stop - start + 1, 1) / count
    edges = [(int(i * length // 1), -int(-(i + 1) * length // 1)) for i in range(count)]
    return [(min(max(a + start, 0), limit), min(max(b + start, 0), limit)) for a, b in edges]
