"""Random weights that no wrong index survives: nothing constant, activations of unit scale, outputs that vary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm,)
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def is_constant(x: Tensor) -> bool:
    """True if all elements of x (any shape) are equal, so that a wrong index would not show."""
    return x.numel() > 0 and bool((x == x.flatten()[0]).all())


def has_norms(network: nn.Module) -> bool:
    """True if some module is a batch normalization."""
    return any(isinstance(module, NORMS) for module in network.modules())


@torch.no_grad()
def vary(x: Tensor) -> None:
    """Replaces a constant float tensor in place: zeros by small noise, scales by values around them."""
    value = float(x.flatten()[0])
    if value == 0:
        x.normal_(std=0.05 if x.dim() < 2 else 1 / math.sqrt(x.shape[-1]))
    elif abs(value) < 0.01:  # a layer scale that starts at 1e-6 would hide its whole branch
        x.uniform_(0.1, 0.4)
    else:
        x.mul_(torch.empty_like(x).uniform_(0.6, 1.4))


@torch.no_grad()
def widen(layer: nn.Module) -> None:
    """Scales weights (O, I, *K) up to std 1/sqrt(fan-in) where they start so small that nothing depends on them."""
    w = layer.weight
    assert isinstance(w, Tensor)
    fan_in = w[0].numel() if w.dim() > 1 else 1
    std, least = float(w.std()), 1 / math.sqrt(fan_in)
    if w.numel() > 1 and 0 < std < 0.8 * least:
        w.mul_(least / std)


@torch.no_grad()
def calibrate(network: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Sets the running statistics of every BN to those of the inputs, then varies them a little."""
    norms = [m for m in network.modules() if isinstance(m, NORMS) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # cumulative average
        m.train()
    try:
        network(*inputs)
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            m.eval()
    for m in norms:
        assert m.running_mean is not None
        assert m.running_var is not None
        # A channel that hardly varies would be divided by almost nothing, and rounding errors would fill the network.
        least = max(0.2 * float(m.running_var.mean()), 1e-4)
        m.running_var.clamp_(min=least).mul_(torch.empty_like(m.running_var).uniform_(0.8, 1.25))
        m.running_mean += 0.1 * m.running_var.sqrt() * torch.randn_like(m.running_var)


def randomize(network: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> nn.Module:
    """The network in evaluation mode, parameters varied, BN statistics calibrated on inputs (a batch of 2 or more)."""
    torch.manual_seed(seed)
    network.eval()
    for module in network.modules():
        if isinstance(module, LAYERS):
            widen(module)
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point() and tensor.dim() and tensor.numel() > 1 and is_constant(tensor):
            vary(tensor)
    calibrate(network, inputs)
    return network.eval()


@torch.no_grad()
def trouble(network: nn.Module, first: Sequence[Tensor], second: Sequence[Tensor]) -> str | None:
    """Why the outputs are no use as a test (not finite, constant, blind to the input), or None."""
    for index, (a, b) in enumerate(zip(tensors(network(*first)), tensors(network(*second)), strict=True)):
        if not a.is_floating_point():
            continue
        if not torch.isfinite(a).all():
            return f"output {index} is not finite"
        scale = float(a.abs().max()) if a.numel() else 0.0
        if a.numel() > 1 and (scale == 0 or float(a.std()) < 1e-3 * scale):
            return f"output {index} is constant: scale {scale:.2g}"
        if a.shape == b.shape and float((a - b).abs().max()) < 1e-3 * scale:
            return f"output {index} hardly depends on the input: scale {scale:.2g}"
    return None


def tensors(outputs: object) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [t for value in outputs for t in tensors(value)] if isinstance(outputs, (list, tuple)) else []
