"""Gather and scatter. Negative indices count from the end."""

from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import number, torch_type

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _positive(indices: Tensor, length: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + length, indices)


@torch_function("Gather", fixed=(1,))
def Gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """x (..., L, ...) at `axis`, indices (*I) -> (..., *I, ...)."""
    axis = axis % x.ndim
    if indices.ndim == 0 and indices.device.type == "cpu":
        return x.select(axis, int(indices))
    flat = _positive(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@torch_function("GatherElements", fixed=(1,))
def GatherElements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


@torch_function("GatherND", fixed=(1,))
def GatherND(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """indices (*B, *I, K) -> (*B, *I, *rest): the last axis holds K coordinates behind the batch axes."""
    batch = [
        torch.arange(size, device=x.device).reshape([-1 if k == axis else 1 for k in range(indices.ndim - 1)])
        for axis, size in enumerate(x.shape[:batch_dims])
    ]
    return x[(*batch, *indices.to(torch.int64).unbind(-1))]


@torch_function("ScatterElements", "Scatter", fixed=(1,))
def ScatterElements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    indices, updates = _positive(indices, x.shape[axis]), updates.to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, _REDUCE[reduction], include_self=True)


@torch_function("ScatterND", fixed=(1,))
def ScatterND(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """indices (*I, K), updates (*I, *rest): x with updates at the coordinates."""
    coordinates = tuple(indices.to(torch.int64).unbind(-1))
    updates = updates.to(x.dtype)
    if reduction in ("none", "add"):
        return x.index_put(coordinates, updates, accumulate=reduction == "add")
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)[coordinates]
    flat = x.reshape(-1).scatter_reduce(0, places.reshape(-1), updates.reshape(-1), _REDUCE[reduction])
    return flat.reshape(x.shape)


@torch_function("TensorScatter", fixed=(2,))
def TensorScatter(
    past: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """past (N, ..., S, ...), update (N, ..., L, ...): written from write_indices (N,) on."""
    axis, length = axis % past.ndim, past.shape[axis]
    start = write_indices if write_indices is not None else torch.zeros(past.shape[0], device=past.device)
    places = start.to(torch.int64)[:, None] + torch.arange(update.shape[axis], device=past.device)
    places = places % length if mode == "circular" else places
    shape = [1] * past.ndim
    shape[0], shape[axis] = places.shape
    return past.scatter(axis, places.reshape(shape).expand(update.shape), update.to(past.dtype))


@torch_function("OneHot", host=(1,), fixed=(2,), differentiable=False)
def OneHot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """values (2,): off and on. Indices outside [-depth, depth - 1] give a row of off."""
    size = int(number(depth))
    axis = axis if axis >= 0 else axis + indices.ndim + 1
    wanted = indices.to(torch.int64)
    wanted = torch.where(wanted < 0, wanted + size, wanted).unsqueeze(axis)
    lines = torch.arange(size, device=indices.device).reshape([-1 if k == axis else 1 for k in range(wanted.ndim)])
    off, on = values.unbind(0)
    return torch.where(wanted == lines, on, off)


@torch_function("Compress", fixed=(1,))
def Compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    x = x.reshape(-1) if axis is None else x
    return x.index_select(axis or 0, condition.nonzero().reshape(-1))


@torch_function("Trilu", host=(1,))
def Trilu(x: Tensor, k: Any = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(number(k))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@torch_function("EyeLike", differentiable=False)
def EyeLike(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = x.shape
    line = torch.arange(columns, device=x.device) == torch.arange(rows, device=x.device)[:, None] + k
    return line.to(x.dtype if dtype is None else torch_type(dtype))


@torch_function("ReverseSequence", fixed=(1,))
def ReverseSequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first `lengths` steps of each sequence in reverse order, the others as they are."""
    time = torch.arange(x.shape[time_axis], device=x.device)
    length = lengths.to(torch.int64)[:, None]
    places = torch.where(time < length, length - 1 - time, time)  # (batch, time)
    places = places if batch_axis < time_axis else places.t()
    shape = [1] * x.ndim
    shape[batch_axis], shape[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    return torch.gather(x, time_axis, places.reshape(shape).expand(x.shape))
