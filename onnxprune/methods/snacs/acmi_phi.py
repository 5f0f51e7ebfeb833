"""The adaptive weight phi of ACMI: its ten forms (SNACS code), here on magnitudes relative to the layer.

    w = mean |w| of the slices between two groups / their mean over the layer
    a = L2 norm of the parent group's activations, per sample / root mean square of that norm over the layer

The published code maps signed weights of the whole checkpoint to [0, 1], so that strongly negative kernels weigh
least; that looks unintended, and w above is what we use instead. Forms of w alone are a factor before the
information; forms of a weigh each cell inside its sum by the mean of phi over the cell's samples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxprune.errors import UsageError

from .acmi_groups import Groups

PHIS = (
    "one",
    "weight",
    "weight_squared",
    "activation",
    "activation_squared",
    "weight_activation",
    "weight_activation_squared",
    "exp_weight",
    "exp_activation",
    "exp_weight_activation",
)


def weight_phi(phi: str, layer: Groups) -> Tensor:
    """The factor (J, G) before the information. Raises UsageError for an unknown phi."""
    if phi not in PHIS:
        raise UsageError(f"phi '{phi}' is unknown; use one of {', '.join(PHIS)}")
    w = relative_weight(layer)
    if phi in ("weight", "weight_activation"):
        return w
    if phi in ("weight_squared", "weight_activation_squared"):
        return w.square()
    return torch.exp(-w.square() / 2) if phi == "exp_weight" else torch.ones_like(w)


def sample_phi(phi: str, layer: Groups) -> Callable[[int, int, int], Tensor] | None:
    """A function (child group, first, last parent group) -> phi (R, N) inside the sum, None where there is none."""
    if "activation" not in phi:
        return None
    a = relative_activation(layer)
    if phi == "exp_weight_activation":
        w = relative_weight(layer)
        return lambda j, start, stop: torch.exp(-(w[j, start:stop, None] * a[start:stop]).square() / 2)
    values = {"exp_activation": torch.exp(-a.square() / 2)}.get(phi, a.square() if phi.endswith("squared") else a)
    return lambda j, start, stop: values[start:stop]


def relative_weight(layer: Groups) -> Tensor:
    """w (J, G) of the module's docstring; 0 in a layer without weights."""
    return layer.magnitude / layer.magnitude.mean().clamp(min=torch.finfo(torch.float32).tiny)


def relative_activation(layer: Groups) -> Tensor:
    """a (G, N) of the module's docstring."""
    return layer.norm / layer.norm.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
