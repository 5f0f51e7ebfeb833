"""Random weights that no wrong index survives: nothing constant, activations of unit scale, outputs that vary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm,)
FLOOR = 0.1  # least variance of a BN channel, as a share of its mean square
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
def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Gives a BN the statistics of its input (N, C, *spatial), with a floor under the variance."""
    assert isinstance(norm, NORMS)
    if norm.running_mean is None or norm.running_var is None:
        return
    x = inputs[0].transpose(0, 1).flatten(1)
    mean, square = x.mean(1), x.square().mean(1)
    # A channel that hardly varies would be divided by almost nothing: some networks then blow rounding errors up to
    # the size of their outputs, and no comparison means anything any more.
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(torch.maximum(square - mean.square(), FLOOR * square).clamp(min=1e-4))


@torch.no_grad()
def calibrate(network: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Sets the running statistics of every BN from these inputs, each BN seeing what those before it already give."""
    hooks = [m.register_forward_pre_hook(observe) for m in network.modules() if isinstance(m, NORMS)]
    if hooks:
        network(*inputs)
    for hook in hooks:
        hook.remove()


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
    # At twice the size of what comes later: squeeze-and-excite grows faster than its input, and a sample larger than
    # those behind the statistics would blow up from block to block.
    calibrate(network, [2 * x if x.is_floating_point() else x for x in inputs])
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
