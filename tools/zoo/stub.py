"""Makes `import torchvision` work beside any build of torch, also where its compiled operators cannot be loaded.

torchvision's wheel is built for one torch (often a CUDA one). With another its library of operators does not load and
its registrations fail at import. Nothing that is exported here needs compiled code: the registrations are left out, and
`nms` and `roi_align`, which detectors ask for, are declared with a plain implementation.
"""

from __future__ import annotations

import sys
import types

import torch
from torch import Tensor

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
)
_library: torch.library.Library | None = None


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Positions kept by greedy non-maximum suppression: dets (N, 4) as x1 y1 x2 y2, scores (N,) -> (K,)."""
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    left = scores.argsort(descending=True)
    kept = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(int(first))
        low = torch.maximum(dets[left, :2], dets[first, :2])
        high = torch.minimum(dets[left, 2:], dets[first, 2:])
        both = (high - low).clamp(min=0).prod(1)
        left = left[both / (area[left] + area[first] - both) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Features of each box, one sample per bin: input (N, C, H, W), rois (R, 5) -> (R, C, ph, pw)."""
    size = (pooled_height, pooled_width)
    box = rois[:, 1:] * spatial_scale
    steps = [(torch.arange(n) + 0.5) / n for n in size]
    ys = box[:, 1, None] + (box[:, 3] - box[:, 1])[:, None] * steps[0]
    xs = box[:, 0, None] + (box[:, 2] - box[:, 0])[:, None] * steps[1]
    height, width = input.shape[2:]
    grid = torch.stack(
        [
            (xs / width * 2 - 1)[:, None, :].expand(-1, *size),
            (ys / height * 2 - 1)[:, :, None].expand(-1, *size),
        ],
        dim=-1,
    )
    return torch.nn.functional.grid_sample(input[rois[:, 0].long()], grid, align_corners=False)


def install() -> None:
    """Declares torchvision's operators unless its own library loads; safe to call twice."""
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return
    for name in ("_meta_registrations", "_autograd_registrations"):
        sys.modules[f"torchvision.{name}"] = types.ModuleType(f"torchvision.{name}")
    _library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        _library.define(schema)
    _library.impl("nms", nms, "CPU")
    _library.impl("roi_align", roi_align, "CPU")
    import torchvision.extension

    torchvision.extension._assert_has_ops = lambda: None
    torchvision.extension._has_ops = lambda: True
