"""Norms of the weight groups of a network while it is trained: one group per unit of a Dim, over all its tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxprune.bridge.network import Network
from onnxprune.coupling import Dim, Member
from onnxprune.methods import units
from onnxprune.methods.base import Context


@dataclass(frozen=True)
class Part:
    """One tensor of a group: its parameter, the axis, the unit (L,) of each position, U where it has none."""

    name: str
    axis: int
    index: Tensor
    scale: Tensor  # (L,) what the tensor is multiplied with before it is measured


@dataclass(frozen=True)
class Groups:
    """The tensors of one Dim; `size` is the number of weights of one unit, `weights` of all of them."""

    dim: Dim
    parts: tuple[Part, ...]
    size: float

    @property
    def weights(self) -> float:
        return self.size * self.dim.size

    def squares(self, network: Network) -> Tensor:
        """Sum of squared weights of each unit: (U,), differentiable."""
        parameters = network.parameters_by_name
        total = torch.zeros(self.dim.size + 1, device=next(iter(parameters.values())).device)
        for part in self.parts:
            w = parameters[part.name].movedim(part.axis, 0)
            sums = w.reshape(len(w), -1).square().sum(1) * part.scale.to(w).square()
            total = total.index_add(0, part.index.to(sums.device), sums.float())
        return total[:-1]


def of(context: Context, network: Network, dim: Dim, role: str = "produces", *, relative: bool = False) -> Groups:
    """The groups of `dim`: weights that produce its units, or with role 'consumes' those that read them.

    Biases are left out; scales of BatchNormalization count as they are at the start. relative: each tensor is
    measured in units of its rms norm at the start, so that on a residual sum none speaks alone.
    """
    nodes = {node.name: node for node in context.model.graph.all_nodes()}
    known = network.parameters_by_name
    found = [entry for entry in units.in_role(context, dim, role) if not units.is_bias(entry[0], entry[1])]
    found = [entry for entry in found if entry[0].initializer in known]
    parts, size = [], 0.0
    for member, array, positions in found:
        scale = units.norm_scale(nodes[member.node]) if role == "produces" else None
        if scale is not None and scale.size != array.shape[member.axis]:
            scale = None
        factor = np.ones(len(positions)) if scale is None else np.abs(scale)
        if relative:
            factor = factor / max(_rms_norm(array, member.axis, factor), 1e-12)
        parts.append(_part(member, positions, dim, factor))
        size += array.size / array.shape[member.axis] * (positions >= 0).sum() / dim.size
    return Groups(dim, tuple(parts), size)


def _rms_norm(array: np.ndarray, axis: int, factor: np.ndarray) -> float:
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64) * factor[:, None]
    return float(np.sqrt((rows**2).sum(1).mean()))


def _part(member: Member, positions: np.ndarray, dim: Dim, factor: np.ndarray) -> Part:
    index = torch.from_numpy(np.where(positions < 0, dim.size, positions))
    return Part(member.initializer, member.axis, index, torch.from_numpy(factor.astype(np.float32)))
