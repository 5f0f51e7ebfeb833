"""A plan on another checkpoint whose exporter merged, or folded, other tensors: matched by where its slices stand.

Exporters store equal initializers once, and whether two are equal depends on the weights: a bias of zeros is shared in
one checkpoint and has a name of its own after more training. So a Dim that has another name is found by the weights
in which it stands, at the same nodes, or under the same names where nodes were numbered anew. Vectors (biases, norms)
follow from the Dims, and may be more or fewer; what contradicts the plan at a weight is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxprune.coupling import Coupling, dims
from onnxprune.coupling.dims import Axis, Dim
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.plan.plan import Plan, SlicePlan

Mask = npt.NDArray[np.bool_]
ADVICE = "it was edited, or made for a model that was exported in another way; prune this one anew"


def matched(plan: Plan, coupling: Coupling) -> dict[Dim, Mask]:
    """The kept positions of `plan` by Dim of `coupling`, of a model in which some initializers have other names.

    Raises: UsageError where the plan says something else of a weight than what follows, or a Dim is not found.
    """
    places = _Places(plan, coupling)
    known = {dim.name: dim for dim in coupling.dims}
    keep = {dim: mask_of(entry.keep, dim) for entry in plan.dims if (dim := known.get(entry.name)) is not None}
    for one in plan.slices:
        axis = places.axis_of(one)
        leaves = dims.leaves(axis) if axis is not None else []
        if axis == tuple((leaf,) for leaf in leaves) and len(leaves) == 1 and leaves[0] not in keep:
            keep[leaves[0]] = mask_of(one.keep, leaves[0])
    for one in plan.slices:
        _check_slice(one, places.axis_of(one), keep)
    for name, node, place, axis in places.not_in_plan():
        if not dims.keep_mask(axis, keep).all():
            raise UsageError(
                f"the plan's slices do not follow from its dims: '{name}' of node '{node}' would lose positions on axis"
                f" {place}, where the plan keeps all: {ADVICE}"
            )
    _check_all_found(plan, coupling, keep)
    return keep


def mask_of(keep: tuple[int, ...], dim: Dim) -> Mask:
    """`keep` as booleans (size,). Raises: UsageError where the Dim must stay, or has fewer positions."""
    if dim.frozen is not None:
        raise UsageError(f"the plan removes positions of '{dim.name}', which must stay: {dim.frozen}")
    if max(keep) >= dim.size:
        raise UsageError(
            f"the plan keeps position {max(keep)} of '{dim.name}', which has {dim.size}: it was made for another model"
        )
    mask = np.zeros(dim.size, np.bool_)
    mask[list(keep)] = True
    return mask


def _check_slice(one: SlicePlan, axis: Axis | None, keep: dict[Dim, Mask]) -> None:
    """Checks that a slice of the plan is what follows where it stands. Raises: UsageError otherwise."""
    if axis is None:
        return
    kept = np.flatnonzero(dims.keep_mask(axis, keep))
    if kept.tolist() != list(one.keep):
        raise UsageError(
            f"the plan's slices do not follow from its dims: of axis {one.axis} of '{one.initializer}' it keeps "
            f"{len(one.keep)} positions, in this model other {len(kept)} stay: {ADVICE}"
        )


def _check_all_found(plan: Plan, coupling: Coupling, keep: dict[Dim, Mask]) -> None:
    """Checks that as many positions leave as the plan says. Raises: UsageError otherwise."""
    wanted = sorted((entry.size, len(entry.keep)) for entry in plan.dims)
    found = sorted((dim.size, int(mask.sum())) for dim, mask in keep.items())
    if wanted == found:
        return
    names = {dim.name for dim in coupling.dims}
    lost = [entry.name for entry in plan.dims if entry.name not in names] or [entry.name for entry in plan.dims]
    named = f"; '{lost[0]}' is not one of its own" if lost else ""
    raise UsageError(
        f"the plan removes positions of {len(wanted)} dimensions, and {len(found)} are found in this model{named}: "
        f"{ADVICE}"
    )


class _Places:
    """The weights of a model, those with two axes or more: by node and input, or by name where nodes were renamed."""

    def __init__(self, plan: Plan, coupling: Coupling) -> None:
        self.axes: dict[tuple[str, int], tuple[str, str, tuple[Axis, ...]]] = {}
        names: dict[str, list[tuple[str, int]]] = {}
        for node in coupling.model.graph.all_nodes():
            for index, value in enumerate(node.inputs):
                axes = coupling.axes.get(value.name or "", ()) if value is not None and value.is_initializer() else ()
                if value is not None and len(axes) > 1:
                    place = (node.name or "", index)
                    self.axes[place] = (value.name or "", node.name or "", axes)
                    names.setdefault(value.name or "", []).append(place)
        # Where some weight of the plan stands at another node, nodes have other names here.
        stays = all((s.node, s.input) in names.get(s.initializer, [(s.node, s.input)]) for s in plan.slices)
        self.place_of = {
            (s.node, s.input): (s.node, s.input) if stays else names.get(s.initializer, [None])[0] for s in plan.slices
        }
        self.listed = {(self.place_of[s.node, s.input], s.axis) for s in plan.slices}

    def axis_of(self, one: SlicePlan) -> Axis | None:
        """The axis that a slice of the plan is about; None where the model has no such weight."""
        place = self.place_of[one.node, one.input]
        axes = self.axes[place][2] if place in self.axes else ()
        return axes[one.axis] if one.axis < len(axes) else None

    def not_in_plan(self) -> Iterator[tuple[str, str, int, Axis]]:
        """(initializer, node, position, axis) of every axis of a weight of which the plan says nothing."""
        for place, (name, node, axes) in self.axes.items():
            for position, axis in enumerate(axes):
                if (place, position) not in self.listed:
                    yield name, node, position, axis
