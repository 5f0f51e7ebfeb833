"""Gates: one factor per unit of a Dim, multiplied onto the values that carry it; at 1 nothing changes.

The gradient with respect to a gate is the first-order effect of removing the unit, its bias and norm included:
d loss / d gate_u = sum over the unit's values of y * d loss / d y.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from onnxprune.bridge.network import Network
from onnxprune.coupling import Dim
from onnxprune.graph import half
from onnxprune.methods import units
from onnxprune.methods.base import Context, slices
from onnxprune.methods.objective import with_gradient

Hook = Callable[[Tensor], Tensor]


class Gates:
    """Gates on all Dims of `context`, put into `network`; `values` holds the factors, Dim -> (N or 1, U).

    Dims that no value carries whole (an LSTM's inner state, a packed projection) are gated on their weights.
    all_makers: gate what depthwise layers add as well; for factors of 0 and 1 alone. Gates that are there stay.
    """

    def __init__(self, context: Context, network: Network, *, all_makers: bool = False) -> None:
        self.values: dict[Dim, Tensor] = {}
        self.batched: dict[Dim, bool] = {}
        hooks: dict[str, list[Hook]] = {}
        overrides: dict[str, list[Hook]] = {}
        for dim in context.dims:
            found = units.sources(context.coupling, dim, all_makers=all_makers)
            self.batched[dim] = bool(found) and all(source.batched for source in found)
            for source in found:
                hooks.setdefault(source.value, []).append(self._hook(dim, source.axis, source.units))
            if not found:
                for member, array, positions in slices(context, dim, "produces", "scales"):
                    if half.is_floating(array.dtype):
                        hook = self._hook(dim, member.axis, positions)
                        overrides.setdefault(member.initializer, []).append(hook)
        for table, mine in ((network.gates, hooks), (network.overrides, overrides)):
            for name, found in mine.items():
                before = [table[name]] if name in table else []
                table[name] = partial(_chain, [*before, *found])

    def open(self, batch: int, device: str) -> None:
        """Sets every gate to ones that ask for their gradient, one row per sample where values are stacked so."""
        self.values = {
            dim: torch.ones(batch if batched else 1, dim.size, device=device, requires_grad=True)
            for dim, batched in self.batched.items()
        }

    def gradients(self, loss: Tensor) -> Mapping[Dim, Tensor]:
        """d loss / d gate: Dim -> (N or 1, U), zeros where the loss does not depend on it."""
        leaves = list(self.values.values())
        found = torch.autograd.grad(with_gradient(loss), leaves, allow_unused=True)
        return {
            dim: torch.zeros_like(leaf) if grad is None else grad
            for dim, leaf, grad in zip(self.values, leaves, found, strict=True)
        }

    def _hook(self, dim: Dim, axis: int, positions: np.ndarray) -> Hook:
        """A function that multiplies a value of the network by the gates of its units."""
        # Positions without a unit read the column of ones that is appended.
        index = torch.from_numpy(np.where(positions < 0, dim.size, positions))

        def apply(y: Tensor) -> Tensor:
            gate = self.values.get(dim)
            if gate is None:
                return y
            spread = torch.cat([gate, gate.new_ones(len(gate), 1)], 1)[:, index.to(gate.device)]
            shape = [1] * y.ndim
            shape[axis] = len(index)
            if len(gate) > 1:
                shape[0] = len(gate)
            return y * spread.reshape(shape).to(y.dtype)

        return apply


def _chain(hooks: list[Hook], y: Tensor) -> Tensor:
    for hook in hooks:
        y = hook(y)
    return y
