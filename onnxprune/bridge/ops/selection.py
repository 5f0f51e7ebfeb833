"""Operators whose result sizes depend on values: sorting, searching, detection."""

from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import number


@torch_function("TopK")
def TopK_1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return TopK(x, k, axis=axis)


@torch_function("TopK", since=10, host=(1,))
def TopK(x: Tensor, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Largest values by a stable sort: of equal ones ONNX puts the lower index first, which torch.topk need not."""
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, int(number(k))), indices.narrow(axis, 0, int(number(k)))


@torch_function("NonZero", differentiable=False)
def NonZero(x: Tensor) -> Tensor:
    return (x.reshape(1) if x.ndim == 0 else x).nonzero().t()[: x.ndim]


@torch_function("Unique", differentiable=False)
def Unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """Unique values or slices, the index of each one's first occurrence, the inverse, and the counts."""
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = first.argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=x.device)
        values, first, counts = values.index_select(axis or 0, order), first[order], counts[order]
        inverse = rank[inverse]
    return values, first, inverse, counts


@torch_function("NonMaxSuppression", host=(2, 3, 4), differentiable=False)
def NonMaxSuppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Any = None,
    iou_threshold: Any = None,
    score_threshold: Any = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """boxes (N, B, 4), scores (N, classes, B) -> (kept, 3): image, class, box; best scores first in each class."""
    limit = 0 if max_output_boxes_per_class is None else int(number(max_output_boxes_per_class))
    threshold = 0.0 if iou_threshold is None else float(number(iou_threshold))
    floor = None if score_threshold is None else float(number(score_threshold))
    kept = []
    for image in range(boxes.shape[0]):
        corners = _corners(boxes[image].float(), center_point_box)
        for label in range(scores.shape[1]):
            for box in _suppressed(corners, scores[image, label], limit, threshold, floor):
                kept.append((image, label, box))
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, center_point_box: int) -> Tensor:
    """(B, 4) as y1, x1, y2, x2 with the smaller first."""
    if center_point_box:  # x center, y center, width, height
        x, y, w, h = boxes.unbind(1)
        return torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], 1)
    a, b = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], 1)


def _suppressed(corners: Tensor, scores: Tensor, limit: int, threshold: float, floor: float | None) -> list[int]:
    order = torch.sort(scores, descending=True, stable=True).indices
    if floor is not None:
        order = order[scores[order] > floor]
    if limit <= 0 or order.numel() == 0:
        return []
    overlap = (_iou(corners[order]) > threshold).cpu()
    alive = torch.ones(order.numel(), dtype=torch.bool)
    kept: list[int] = []
    for place, box in enumerate(order.tolist()):
        if alive[place]:
            kept.append(box)
            alive &= ~overlap[place]
            if len(kept) == limit:
                break
    return kept


def _iou(corners: Tensor) -> Tensor:
    """Intersection over union of all pairs: (B, 4) -> (B, B)."""
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    high = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    union = area[:, None] + area[None] - common
    return torch.where(union > 0, common / union, torch.zeros_like(common))
