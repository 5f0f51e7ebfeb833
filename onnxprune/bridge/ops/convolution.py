"""Convolutions. Letters: x (N, C, *D), w (O, C/group, *K), transposed w (C, O/group, *K), b (O,)."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import ints

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
Sizes = Sequence[int]


def window_pads(
    auto_pad: str, size: Sizes, kernel: Sizes, strides: Sizes, dilations: Sizes, pads: Sizes | None
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis of `size` for windows of `kernel`, as auto_pad or `pads` ask."""
    rank = len(kernel)
    if auto_pad in ("NOTSET", "") or auto_pad == "VALID":
        given = list(pads) if pads and auto_pad != "VALID" else [0] * (2 * rank)
        return given[:rank], given[rank:]
    before, after = [], []
    for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (k - 1) * dilation + 1 - length)
        small = total // 2
        before.append(small if auto_pad == "SAME_UPPER" else total - small)
        after.append(total - small if auto_pad == "SAME_UPPER" else small)
    return before, after


def pad_spatial(x: Tensor, before: Sizes, after: Sizes, value: float = 0.0) -> Tensor:
    """x with its last axes padded; F.pad counts from the last axis."""
    pairs = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return F.pad(x, pairs, value=value) if any(pairs) else x


@torch_function("Conv")
def Conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    rank = w.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    before, after = window_pads(auto_pad, x.shape[2:], w.shape[2:], strides, dilations, pads)
    if before == after:
        return CONV[rank](x, w, b, strides, before, dilations, group)
    return CONV[rank](pad_spatial(x, before, after), w, b, strides, 0, dilations, group)


@torch_function("ConvTranspose")
def ConvTranspose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    output_padding: Sizes | None = None,
    output_shape: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """Output length = stride * (in - 1) + output_padding + (k - 1) * dilation + 1 - pads."""
    rank = w.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    extra = list(output_padding or (0,) * rank)
    before, after = _transposed_pads(auto_pad, x.shape[2:], w.shape[2:], strides, dilations, pads, extra, output_shape)
    if before == after and all(p >= 0 for p in before) and all(map(_padding_fits, extra, strides, dilations)):
        return CONV_TRANSPOSE[rank](x, w, b, strides, before, extra, group, dilations)
    # torch takes equal pads only: compute everything, then crop; output_padding is a negative crop at the end.
    y = CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, group, dilations)
    y = pad_spatial(y, [-p for p in before], [e - p for e, p in zip(extra, after, strict=True)])
    return y if b is None else y + b.reshape(-1, *([1] * rank))


def _padding_fits(extra: int, stride: int, dilation: int) -> bool:
    return extra < max(stride, dilation)


def _transposed_pads(
    auto_pad: str,
    size: Sizes,
    kernel: Sizes,
    strides: Sizes,
    dilations: Sizes,
    pads: Sizes | None,
    extra: Sizes,
    output_shape: Sizes | None,
) -> tuple[list[int], list[int]]:
    rank = len(kernel)
    if output_shape is None and auto_pad in ("NOTSET", "", "VALID"):
        given = list(pads) if pads and auto_pad != "VALID" else [0] * (2 * rank)
        return given[:rank], given[rank:]
    wanted = list(output_shape)[-rank:] if output_shape else [n * s for n, s in zip(size, strides, strict=True)]
    before, after = [], []
    for i in range(rank):
        full = strides[i] * (size[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        total = full - wanted[i]  # negative when the output is longer than everything that is computed
        small = total // 2
        upper = auto_pad != "SAME_LOWER" if output_shape is None else auto_pad == "SAME_UPPER"
        before.append(small if upper else total - small)
        after.append(total - small if upper else small)
    return before, after


@torch_function("CausalConvWithState")
def CausalConvWithState(
    x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """x (N, C, L), w (C, 1, K), past (N, C, K - 1) -> the depthwise causal convolution and the new state."""
    keep = w.shape[2] - 1
    past = x.new_zeros(*x.shape[:2], keep) if past is None else past
    whole = torch.cat([past.to(x.dtype), x], 2)
    y = F.conv1d(whole, w, b, groups=x.shape[1])
    y = F.silu(y) if activation in ("silu", "swish") else y
    return y, whole[:, :, whole.shape[2] - keep :]


@torch_function("Col2Im", host=(1, 2))
def Col2Im(
    x: Tensor,
    image_shape: Any,
    block_shape: Any,
    *,
    dilations: Sizes | None = None,
    pads: Sizes | None = None,
    strides: Sizes | None = None,
) -> Tensor:
    """x (N, C * prod(block), L) -> (N, C, *image): the sum of the blocks at their places."""
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, list(pads or (0,) * (2 * rank))
    n, channels = x.shape[0], x.shape[1] // prod(block)
    padded = [size + pads[i] + pads[rank + i] for i, size in enumerate(image)]
    steps = [(padded[i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    places = torch.zeros([*block, *steps], dtype=torch.long, device=x.device)
    for i in range(rank):
        in_block = torch.arange(block[i], device=x.device) * dilations[i]
        start = torch.arange(steps[i], device=x.device) * strides[i]
        line = in_block.reshape([-1 if k == i else 1 for k in range(2 * rank)]) + start.reshape(
            [-1 if k == rank + i else 1 for k in range(2 * rank)]
        )
        places = places * padded[i] + line
    flat = x.reshape(n, channels, -1)
    y = flat.new_zeros(n, channels, prod(padded)).index_add(2, places.reshape(-1), flat)
    return pad_spatial(y.reshape(n, channels, *padded), [-p for p in pads[:rank]], [-p for p in pads[rank:]])
