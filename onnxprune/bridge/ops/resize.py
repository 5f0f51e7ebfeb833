"""Resize and Upsample: separable, so axis by axis; torch's own interpolation where it means the same (it is faster)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import ints

# Exporters write 2.0 as 1.9999999 at times; floor(in * scale) must not lose a pixel for it.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Kernel:
    """How one axis is resampled."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool


@torch_function("Resize", since=10, host=(1,))
def Resize_10(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    """Opset 10 knows neither coordinates nor rounding: asymmetric, floor."""
    return Resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@torch_function("Upsample", since=9, host=(1,))
def Upsample(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    return Resize_10(x, scales, mode=mode)


@torch_function("Upsample", since=7)
def Upsample_7(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    return Resize_10(x, scales, mode=mode)


@torch_function("Upsample")
def Upsample_1(x: Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest") -> Tensor:
    return Resize_10(x, (1.0, 1.0, height_scale, width_scale), mode="linear" if mode == "bilinear" else mode)


@torch_function("Resize", since=11, host=(1, 2, 3))
def Resize(
    x: Tensor,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    factors, targets, by_size = _targets(x, axes, scales, sizes, keep_aspect_ratio_policy)
    changed = [k for k in range(len(axes)) if targets[k] != x.shape[axes[k]] or factors[k] != 1]
    cropping = coordinate_transformation_mode == "tf_crop_and_resize"
    if not changed and not cropping:
        return x
    kernel = Kernel(
        mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias)
    )
    if not cropping:
        quick = _by_torch(x, kernel, [axes[k] for k in changed], axes, factors, targets, by_size)
        if quick is not None:
            return quick
    regions = ints(roi) if cropping else []
    work = x if x.is_floating_point() or mode == "nearest" else x.float()
    for k in range(len(axes)) if cropping else changed:
        region = (regions[k], regions[len(axes) + k]) if cropping else (0.0, 1.0)
        work = _along(work, axes[k], factors[k], targets[k], kernel, region, extrapolation_value)
    return _to_type(work, x.dtype)


def _to_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.dtype == dtype:
        return x
    limits = torch.iinfo(dtype)
    return x.round().clamp(limits.min, limits.max).to(dtype)


def _targets(
    x: Tensor, axes: list[int], scales: Any, sizes: Any, policy: str
) -> tuple[Sequence[float], list[int], bool]:
    """Scale and new length for each of `axes`, and whether the sizes were given."""
    lengths = [x.shape[axis] for axis in axes]
    given = ints(scales) if scales is not None else []
    if given:
        return given, [math.floor(n * s + ROUNDING) for n, s in zip(lengths, given, strict=True)], False
    wanted = ints(sizes)
    if policy == "stretch":
        return [w / n for w, n in zip(wanted, lengths, strict=True)], wanted, True
    ratios = [w / n for w, n in zip(wanted, lengths, strict=True)]
    common = min(ratios) if policy == "not_larger" else max(ratios)
    return [common] * len(axes), [math.floor(common * n + 0.5) for n in lengths], False


def _by_torch(
    x: Tensor,
    kernel: Kernel,
    changed: list[int],
    axes: list[int],
    factors: Sequence[float],
    targets: list[int],
    by_size: bool,
) -> Tensor | None:
    """The result from F.interpolate where it computes the same, else None."""
    if (
        x.ndim not in (4, 5)
        or min(changed) < 2
        or not x.is_floating_point()
        or kernel.exclude_outside
        or kernel.antialias
    ):
        return None
    size = [targets[axes.index(axis)] if axis in axes else x.shape[axis] for axis in range(2, x.ndim)]
    scale = [float(factors[axes.index(axis)]) if axis in axes else 1.0 for axis in range(2, x.ndim)]
    exact = all(n * s == t for n, s, t in zip(x.shape[2:], scale, size, strict=True))
    if not exact and not by_size:
        return None
    if kernel.mode == "nearest":
        whole = all(t % n == 0 for n, t in zip(x.shape[2:], size, strict=True))
        repeats = kernel.coordinates in ("asymmetric", "half_pixel", "pytorch_half_pixel") and whole
        rounded = kernel.coordinates != "asymmetric" and kernel.nearest.startswith("round")
        floored = kernel.coordinates == "asymmetric" and kernel.nearest == "floor"
        return F.interpolate(x, size, mode="nearest") if repeats and (rounded or floored) else None
    names = {("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    name = names.get((kernel.mode, x.ndim))
    same_cubic = kernel.mode != "cubic" or kernel.cubic_a == -0.75
    if name is None or not same_cubic or 1 in size:
        return None
    if kernel.coordinates == "align_corners":
        return F.interpolate(x, size, mode=name, align_corners=True)
    if kernel.coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        return F.interpolate(x, size, mode=name, align_corners=False)
    return None


def _along(
    x: Tensor, axis: int, scale: float, target: int, kernel: Kernel, region: tuple[float, float], outside_value: float
) -> Tensor:
    """x resampled along one axis to `target` positions."""
    places, weights, outside = _taps(x.shape[axis], target, float(scale), kernel, *region)
    indices = torch.from_numpy(places).to(x.device)
    shape = [-1 if k == axis else 1 for k in range(x.ndim)]
    if kernel.mode == "nearest":
        y = x.index_select(axis, indices[:, 0])
    elif places.shape[1] <= 4:
        factors = torch.from_numpy(weights).to(x.device, x.dtype)
        parts = [x.index_select(axis, indices[:, k]) * factors[:, k].reshape(shape) for k in range(places.shape[1])]
        y = sum(parts[1:], parts[0])
    else:
        dense = np.zeros((target, x.shape[axis]))
        np.add.at(dense, (np.arange(target)[:, None], places), weights)
        matrix = torch.from_numpy(dense).to(x.device, x.dtype)
        y = torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)
    if outside.any():
        y = torch.where(torch.from_numpy(outside).to(x.device).reshape(shape), outside_value, y).to(x.dtype)
    return y


@lru_cache(maxsize=256)
def _taps(
    length: int, target: int, scale: float, kernel: Kernel, start: float, end: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new position: the old positions read (target, taps), their weights, and whether it lies outside."""
    center = _source_coordinates(length, target, scale, kernel.coordinates, start, end).astype(np.float64)
    outside = np.zeros(target, dtype=bool)
    if kernel.coordinates == "tf_crop_and_resize":
        outside = (center < 0) | (center > length - 1)
    if kernel.mode == "nearest":
        return _rounded(center, kernel.nearest).clip(0, length - 1)[:, None], np.ones((target, 1)), outside
    stretch = max(1.0, 1 / scale) if kernel.antialias else 1.0
    reach = math.ceil((1 if kernel.mode == "linear" else 2) * stretch)
    places = np.floor(center).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(places - center[:, None]) / stretch
    weights = np.maximum(0, 1 - distance) if kernel.mode == "linear" else _cubic(distance, kernel.cubic_a)
    if kernel.exclude_outside:
        weights = np.where((places < 0) | (places >= length), 0, weights)
    if kernel.exclude_outside or kernel.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    return places.clip(0, length - 1), weights, outside


def _source_coordinates(length: int, target: int, scale: float, mode: str, start: float, end: float) -> np.ndarray:
    # In float32, as runtimes compute it: in float64 a scale of 0.6 would put 1.5 / 0.6 on the other side of a tie.
    y, scale = np.arange(target, dtype=np.float32), float(np.float32(scale))
    if mode == "align_corners":
        return y * (length - 1) / max(target - 1, 1)
    if mode == "asymmetric":
        return y / scale
    if mode == "tf_crop_and_resize":
        inner = y * (end - start) / (target - 1) if target > 1 else y * 0 + (end - start) / 2
        return (inner + start) * (length - 1)
    if mode == "tf_half_pixel_for_nn":
        return (y + 0.5) / scale
    if mode == "pytorch_half_pixel" and target == 1:
        return y * 0
    # scale * length is the width before it was cut to a whole number
    offset = length / 2 * (1 - target / (scale * length)) if mode == "half_pixel_symmetric" else 0.0
    return offset + (y + 0.5) / scale - 0.5


def _rounded(x: np.ndarray, mode: str) -> np.ndarray:
    y = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[mode]
    return y.astype(np.int64)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel: (a+2)|d|^3 - (a+3)|d|^2 + 1 up to 1, a|d|^3 - 5a|d|^2 + 8a|d| - 4a up to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
