"""A layer's activations and weights arranged by groups of channels, for the estimator of connection scores.

Letters: N samples, C children, P parents, G parent groups, J child groups, K channels of the largest parent group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxprune.errors import UsageError
from onnxprune.system.words import counted


@dataclass(frozen=True)
class Groups:
    """One layer by groups; groups with fewer than K channels are filled up with channels that are zero."""

    x: Tensor  # (J, N) mean activation of each child group, less its mean over the samples
    parents: Tensor  # (G, K, N) activations less their means
    weights: Tensor  # (J, G, K) mean over the child group of its summed kernels
    magnitude: Tensor  # (J, G) mean |w| of the slices between two groups

    @property
    def samples(self) -> int:
        return self.x.shape[1]

    @property
    def child_groups(self) -> int:
        return self.x.shape[0]

    @property
    def parent_groups(self) -> int:
        return self.parents.shape[0]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def contributions(self, children: list[int], start: int, stop: int) -> Tensor:
        """What parent groups start .. stop-1 add to some child groups: (stop - start, children, N)."""
        return torch.bmm(self.weights[children, start:stop].transpose(0, 1), self.parents[start:stop])

    def totals(self, children: list[int]) -> Tensor:
        """What all parents together add to some child groups: (children, N)."""
        return self.weights[children].flatten(1) @ self.parents.flatten(0, 1)


def grouped(parents, children, weights, magnitude, parent_groups, child_groups, device) -> Groups:
    """The layer of `connection_scores`' arguments as Groups on the device. Raises UsageError if lengths disagree."""
    a, x, w = (torch.as_tensor(v, dtype=torch.float32).to(device) for v in (parents, children, weights))
    size = w.abs() if magnitude is None else torch.as_tensor(magnitude, dtype=torch.float32).to(device)
    _check(a, x, w, size)
    to_parents = _members(group_ids(parent_groups, w.shape[1], "parent"), device)
    to_children = _members(group_ids(child_groups, w.shape[0], "child"), device)
    over_children, over_parents = _means(to_children, w.shape[0]), _means(to_parents, w.shape[1])
    present = to_parents >= 0
    a = a.T.contiguous()
    centered = a - a.mean(1, keepdim=True)  # a shift changes no information, and rows of mean zero save passes later
    return Groups(
        x=over_children @ (x - x.mean(0)).T,
        parents=torch.where(present[..., None], centered[to_parents], 0),
        weights=torch.where(present, (over_children @ w)[:, to_parents], 0),
        magnitude=over_children @ size @ over_parents.T,
    )


def group_ids(groups, channels: int, what: str) -> np.ndarray:
    """Group of each channel (channels,): contiguous equal blocks for a number, else the given ids 0 .. G-1."""
    if isinstance(groups, int | np.integer):
        if groups < 1 or channels % groups:
            raise UsageError(f"{what} groups: {groups} do not divide {channels} channels; use a divisor, or group ids")
        return np.repeat(np.arange(groups), channels // groups)
    ids = np.asarray(groups)
    if ids.shape != (channels,):
        raise UsageError(f"{what} groups: ids of shape {ids.shape} for {channels} channels; give one id per channel")
    if not np.array_equal(np.unique(ids), np.arange(ids.max() + 1)):
        raise UsageError(f"{what} groups: ids must be 0 .. {ids.max()} with none left out or negative")
    return ids.astype(np.int64)


def _members(ids: np.ndarray, device: torch.device) -> Tensor:
    """Channels (G, K) of each group, -1 where a group has fewer than K."""
    groups = [np.flatnonzero(ids == g).tolist() for g in range(ids.max() + 1)]
    most = max(len(members) for members in groups)
    return torch.tensor([members + [-1] * (most - len(members)) for members in groups], device=device)


def _means(members: Tensor, channels: int) -> Tensor:
    """The matrix (G, channels) that averages over the members of each group."""
    one_hot = torch.zeros(len(members), channels + 1, device=members.device).scatter_(1, members % (channels + 1), 1.0)
    return one_hot[:, :channels] / one_hot[:, :channels].sum(1, keepdim=True)


def _check(a: Tensor, x: Tensor, w: Tensor, size: Tensor) -> None:
    if a.ndim != 2 or x.ndim != 2 or w.ndim != 2 or len(a) != len(x) or w.shape != (x.shape[1], a.shape[1]):
        raise UsageError(
            f"parents {tuple(a.shape)}, children {tuple(x.shape)} and weights {tuple(w.shape)} do not fit: "
            "they must be (N, P), (N, C) and (C, P)"
        )
    if size.shape != w.shape:
        raise UsageError(f"magnitude {tuple(size.shape)} and weights {tuple(w.shape)} differ; both are (C, P)")
    if len(a) < 2:
        raise UsageError(f"{counted(len(a), 'sample')} cannot be scored; give at least some hundreds")
    for name, array in (("parents", a), ("children", x), ("weights", w)):
        if not torch.isfinite(array).all():
            raise UsageError(f"{name} hold {int((~torch.isfinite(array)).sum())} values that are not finite")
