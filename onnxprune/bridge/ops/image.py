"""Sampling at computed places: grids, regions, deformable convolution."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import ints


@torch_function("GridSample")
def GridSample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    """x (N, C, *D), grid (N, *O, len(D)) in [-1, 1], last coordinate first -> (N, C, *O)."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    if x.ndim == 4 or (x.ndim == 5 and mode != "cubic"):
        name = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}[mode]
        return F.grid_sample(x, grid.to(x.dtype), name, padding_mode, bool(align_corners))
    return _grid_sample(x, grid, bool(align_corners), mode, padding_mode)


def _grid_sample(x: Tensor, grid: Tensor, align_corners: bool, mode: str, padding: str) -> Tensor:
    """The general case, as the weighted sum over the neighbors of each place."""
    axes = []
    for k, length in enumerate(x.shape[2:]):
        place = grid[..., x.ndim - 3 - k]
        place = (place + 1) / 2 * (length - 1) if align_corners else ((place + 1) * length - 1) / 2
        axes.append(_neighbors(place, length, align_corners, mode, padding))
    y = 0
    batch = torch.arange(x.shape[0], device=x.device).reshape(-1, *([1] * (grid.ndim - 2)))
    for taps in product(*axes):
        weight = torch.ones_like(taps[0][1])
        for _, factor in taps:
            weight = weight * factor
        picked = x.movedim(1, -1)[(batch, *(index for index, _ in taps))]
        y = y + picked * weight.unsqueeze(-1)
    return torch.as_tensor(y).movedim(-1, 1)


def _neighbors(place: Tensor, length: int, align: bool, mode: str, padding: str) -> list[tuple[Tensor, Tensor]]:
    """The positions read on one axis with their weights."""
    if padding == "border":
        place = place.clamp(0, length - 1)
    elif padding == "reflection":
        place = _reflected(place, length, align)
    if mode == "nearest":
        index = torch.round(place)
        return [_inside(index, torch.ones_like(index), length, align, padding)]
    base = torch.floor(place)
    ratio = place - base
    if mode == "linear":
        taps = [(base, 1 - ratio), (base + 1, ratio)]
    else:
        taps = [(base + k, _keys((ratio - k).abs())) for k in range(-1, 3)]
    return [_inside(index, weight, length, align, padding) for index, weight in taps]


def _keys(d: Tensor, a: float = -0.75) -> Tensor:
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    return torch.where(d <= 1, near, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


def _inside(index: Tensor, weight: Tensor, length: int, align: bool, padding: str) -> tuple[Tensor, Tensor]:
    if padding == "reflection":
        index = _reflected(index, length, align)
    elif padding == "zeros":
        weight = weight * ((index >= 0) & (index < length))
    return index.clamp(0, length - 1).long(), weight


def _reflected(place: Tensor, length: int, align: bool) -> Tensor:
    """Mirrored at the outer pixels' centers (align_corners) or edges until it is inside."""
    low, high = (0.0, length - 1.0) if align else (-0.5, length - 0.5)
    span = high - low
    if span == 0:
        return torch.zeros_like(place)
    distance = (place - low).abs()
    rest, turns = distance % span, torch.floor(distance / span)
    return torch.where(turns % 2 == 0, rest + low, span - rest + low).clamp(0, length - 1)


@torch_function("AffineGrid", host=(1,))
def AffineGrid(theta: Tensor, size: Any, *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, ints(size), bool(align_corners))


@torch_function("RoiAlign", fixed=(1, 2))
def RoiAlign_10(x: Tensor, rois: Tensor, batch_indices: Tensor, **attributes: Any) -> Tensor:
    return RoiAlign(x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", **attributes)


@torch_function("RoiAlign", since=16, fixed=(1, 2))
def RoiAlign(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """rois (R, 4) as x1, y1, x2, y2 -> (R, C, height, width): mean or maximum over bilinear samples of each cell."""
    half = coordinate_transformation_mode == "half_pixel"
    patches = []
    for box, image in zip(rois.tolist(), batch_indices.tolist(), strict=True):
        x1, y1, x2, y2 = (value * spatial_scale - (0.5 if half else 0.0) for value in box)
        height, width = y2 - y1, x2 - x1
        if not half:
            height, width = max(height, 1.0), max(width, 1.0)
        rows = _sample_places(y1, height, output_height, sampling_ratio)
        columns = _sample_places(x1, width, output_width, sampling_ratio)
        samples = _samples(x[image], rows.to(x), columns.to(x), mode)
        cells = samples.reshape(x.shape[1], output_height, -1, output_width, columns.numel() // output_width)
        patches.append(cells.mean((2, 4)) if mode == "avg" else cells.amax((2, 4)))
    return torch.stack(patches) if patches else x.new_zeros(0, x.shape[1], output_height, output_width)


def _sample_places(start: float, length: float, cells: int, ratio: int) -> Tensor:
    count = ratio if ratio > 0 else max(1, -int(-(length / cells) // 1))
    return start + (torch.arange(cells * count, dtype=torch.float64) + 0.5) * (length / cells / count)


def _samples(image: Tensor, rows: Tensor, columns: Tensor, mode: str) -> Tensor:
    """image (C, H, W) at all pairs of places; for `max` the largest of the four weighted neighbors, as ONNX has it."""
    y0, y1, dy, in_y = _pair(rows, image.shape[1])
    x0, x1, dx, in_x = _pair(columns, image.shape[2])
    inside = (in_y[:, None] & in_x[None]).to(image.dtype)
    corners = [
        image[:, ys][:, :, xs] * (wy[:, None] * wx[None])
        for ys, wy in ((y0, 1 - dy), (y1, dy))
        for xs, wx in ((x0, 1 - dx), (x1, dx))
    ]
    combined = torch.stack(corners).amax(0) if mode == "max" else sum(corners[1:], corners[0])
    return combined * inside


def _pair(places: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inside = (places >= -1) & (places <= length)
    places = places.clamp(0, length - 1)
    low = torch.floor(places).long()
    return low, (low + 1).clamp(max=length - 1), places - low, inside


@torch_function("DeformConv")
def DeformConv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """offset (N, G * K * rank, *O): each tap of the kernel reads beside its place, by linear interpolation."""
    rank, n, kernel, output = w.ndim - 2, x.shape[0], tuple(w.shape[2:]), tuple(offset.shape[2:])
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * (2 * rank)
    taps = torch.Size(kernel).numel()
    moved = offset.reshape(n, offset_group, taps, rank, *output)
    grids = []
    for k in range(rank):
        in_kernel = torch.arange(kernel[k], device=x.device).reshape([-1 if j == k else 1 for j in range(rank)])
        tap = (in_kernel * dilations[k]).expand(kernel).reshape(taps, *([1] * rank))
        start = torch.arange(output[k], device=x.device).reshape([-1 if j == k else 1 for j in range(rank)])
        place = tap + start * strides[k] - pads[k] + moved[:, :, :, k]
        size = x.shape[2 + k]
        grids.append((2 * place + 1) / size - 1)
    grid = torch.stack(grids[::-1], -1).flatten(0, 1)  # (N * G, taps, *O, rank)
    groups = x.reshape(n * offset_group, -1, *x.shape[2:])
    lines = grid.reshape(n * offset_group, *([1] * (rank - 1)), -1, rank)
    read = GridSample(groups, lines).reshape(n, offset_group, -1, taps, *output)
    if mask is not None:
        read = read * mask.reshape(n, offset_group, 1, taps, *output)
    columns = read.reshape(n, group, -1, torch.Size(output).numel())  # (N, group, C / group * taps, places)
    y = torch.einsum("ngkp,gok->ngop", columns, w.reshape(group, w.shape[0] // group, -1))
    y = y.reshape(n, w.shape[0], *output)
    return y if b is None else y + b.reshape(-1, *([1] * rank))
