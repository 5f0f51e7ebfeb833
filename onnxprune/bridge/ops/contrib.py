"""com.microsoft: what onnxruntime's optimizer writes. Letters as in the families of the standard domain."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.activation import Gelu, Swish
from onnxprune.bridge.ops.convolution import Conv
from onnxprune.bridge.ops.indexing import Trilu
from onnxprune.bridge.ops.matrix import Gemm, MatMulInteger
from onnxprune.bridge.ops.normalization import LayerNormalization, RMSNormalization
from onnxprune.bridge.ops.quantization import DynamicQuantizeLinear
from onnxprune.bridge.ops.registry import register, torch_function
from onnxprune.bridge.ops.shape import Pad
from onnxprune.errors import UnsupportedFormError

MICROSOFT = "com.microsoft"
contrib = partial(torch_function, domain=MICROSOFT)

# Activations that fusions append, with their parameters in order.
_FUSED: dict[str, Callable[..., Tensor]] = {
    "": lambda x: x,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Clip": lambda x, low=None, high=None: torch.clamp(x, low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": F.hardswish,
    "Gelu": F.gelu,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Swish": F.silu,
}

register("Gelu", Gelu, domain=MICROSOFT)
register("Trilu", Trilu, domain=MICROSOFT, host=(1,))
register("Pad", Pad, domain=MICROSOFT, host=(1, 2))


@contrib("FusedConv")
def FusedConv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    **attributes: Any,
) -> Tensor:
    """activation(Conv(x, w, b) + z)."""
    y = Conv(x, w, b, **attributes)
    return _FUSED[activation](y if z is None else y + z, *activation_params)


@contrib("FusedGemm")
def FusedGemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    **attributes: Any,
) -> Tensor:
    given = [value for value in (activation_alpha, activation_beta, activation_gamma) if value is not None]
    return _FUSED[activation](Gemm(a, b, c, **attributes), *given)


@contrib("FusedMatMul", "TransposeMatMul")
def FusedMatMul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """alpha * a' @ b'; transBatch moves the first axis behind the other batch axes."""
    a = _transposed(a.movedim(0, -2) if transBatchA else a, transA)
    b = _transposed(b.movedim(0, -2) if transBatchB else b, transB)
    y = torch.matmul(a, b)
    return y if alpha == 1 else y * alpha


def _transposed(x: Tensor, wanted: int) -> Tensor:
    return x.transpose(-1, -2) if wanted and x.ndim > 1 else x


@contrib("FusedMatMulActivation")
def FusedMatMulActivation(
    a: Tensor,
    b: Tensor,
    *,
    activation: str,
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    activation_axis: int | None = None,
    **attributes: Any,
) -> Tensor:
    y = FusedMatMul(a, b, **attributes)
    if activation == "Softmax":
        return torch.softmax(y, -1 if activation_axis is None else activation_axis)
    given = [value for value in (activation_alpha, activation_beta, activation_gamma) if value is not None]
    return _FUSED[activation](y, *given)


@contrib("BiasAdd")
def BiasAdd(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    return x + bias + skip


@contrib("BiasGelu")
def BiasGelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@contrib("FastGelu")
def FastGelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@contrib("QuickGelu")
def QuickGelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return Swish(x, alpha=alpha)


@contrib("BiasSplitGelu")
def BiasSplitGelu(x: Tensor, bias: Tensor) -> Tensor:
    left, right = (x + bias).chunk(2, -1)
    return left * F.gelu(right)


@contrib("BiasSoftmax")
def BiasSoftmax(x: Tensor, bias: Tensor, *, axis: int = 1, is_inner_broadcast: int = 1) -> Tensor:
    """Softmax over the axes from `axis` on of x + bias; bias broadcasts inside (numpy's way) or in front."""
    if not is_inner_broadcast:
        bias = bias.reshape(bias.shape[0], *([1] * (x.ndim - bias.ndim)), *bias.shape[1:])
    y = x + bias
    return torch.softmax(y.flatten(axis % x.ndim), -1).reshape(y.shape)


@contrib("SimplifiedLayerNormalization")
@torch_function("SimplifiedLayerNormalization")
def SimplifiedLayerNormalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return RMSNormalization(x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)


@contrib("SkipLayerNormalization")
def SkipLayerNormalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    """The second and third output (statistics for training) are not given by onnxruntime for inference either."""
    total = x + skip if bias is None else x + skip + bias
    return LayerNormalization(total, gamma, beta, epsilon=epsilon), None, None, total  # type: ignore[return-value]


@contrib("SkipSimplifiedLayerNormalization")
def SkipSimplifiedLayerNormalization(
    x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return RMSNormalization(total, gamma, epsilon=epsilon), None, None, total


@contrib("EmbedLayerNormalization", fixed=(0, 1, 7, 8))
def EmbedLayerNormalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    words: Tensor,
    positions: Tensor,
    segments: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    places = torch.arange(input_ids.shape[1], device=words.device) if position_ids is None else position_ids.long()
    total = words[input_ids.long()] + positions[places]
    if segments is not None and segment_ids is not None:
        total = total + segments[segment_ids.long()]
    counts = input_ids.new_zeros(input_ids.shape[0]) if mask is None else mask.sum(1)
    normalized = LayerNormalization(total, gamma, beta, epsilon=epsilon)
    assert isinstance(normalized, Tensor)
    return normalized, counts.to(torch.int32), total


@contrib("DynamicQuantizeMatMul", fixed=(1, 2, 3))
def DynamicQuantizeMatMul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """a is quantized to uint8 over its range; backwards the rounding counts as the identity."""
    quantized, scale, zero = DynamicQuantizeLinear(a.detach())
    weights = b.float() - (0 if b_zero is None else b_zero.float())
    exact = MatMulInteger(quantized, b, zero, b_zero).float() * (scale * b_scale)
    smooth = torch.matmul(a, (weights * b_scale).to(a.dtype)) if a.requires_grad else exact
    y = exact + (smooth - smooth.detach()) if a.requires_grad else exact
    return y if bias is None else y + bias


@contrib("MatMulIntegerToFloat", fixed=range(6))
def MatMulIntegerToFloat(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    y = MatMulInteger(a, b, a_zero, b_zero).float() * (a_scale * b_scale)
    return y if bias is None else y + bias


@contrib("MatMulNBits", fixed=(1, 3, 4))
def MatMulNBits(
    x: Tensor,
    b: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    order: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
    accuracy_level: int = 0,
    **_: Any,
) -> Tensor:
    """x (..., K), b (N, blocks, bytes of a block): numbers of `bits` share a byte, the lowest first."""
    if order is not None:
        raise UnsupportedFormError("g_idx: columns in another order")
    blocks = b.shape[1]
    q = _unpacked(b, bits)[..., :block_size]
    points = q.new_full((N, blocks), 2 ** (bits - 1))
    if zeros is not None:
        rows = zeros.reshape(N, -1)
        points = (_unpacked(rows, bits) if zeros.dtype == torch.uint8 else rows)[:, :blocks]
    w = (q - points[..., None]) * scales.reshape(N, blocks, 1)
    return F.linear(x, w.reshape(N, -1)[:, :K].to(x.dtype), bias)


def _unpacked(array: Tensor, bits: int) -> Tensor:
    """(..., n) bytes -> (..., 8 n / bits) numbers."""
    shifts = torch.arange(0, 8, bits, device=array.device)
    parts = (array[..., None].int() >> shifts) & ((1 << bits) - 1)
    return parts.reshape(*array.shape[:-1], -1).float()


_EXPERTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda x: x,
}


@contrib("MoE")
def MoE(
    x: Tensor,
    router: Tensor,
    fc1: Tensor,
    b1: Tensor | None,
    fc2: Tensor,
    b2: Tensor | None = None,
    fc3: Tensor | None = None,
    b3: Tensor | None = None,
    *,
    k: int = 1,
    activation_type: str = "relu",
    normalize_routing_weights: int = 0,
    **attributes: Any,
) -> Tensor:
    """x (..., C), router (T, E), fc1 (E, F, C), fc2 (E, C, F): each token through k experts, weighed by the router."""
    if activation_type not in _EXPERTS or attributes.get("swiglu_fusion"):
        raise UnsupportedFormError(f"activation {activation_type}")
    tokens = x.reshape(-1, x.shape[-1])
    weights, chosen = torch.softmax(router.reshape(len(tokens), -1), 1).topk(k, 1)
    if normalize_routing_weights:
        weights = weights / weights.sum(1, keepdim=True)
    share = torch.zeros_like(router.reshape(len(tokens), -1)).scatter(1, chosen, weights)
    hidden = torch.einsum("tc,efc->etf", tokens, fc1) + (0 if b1 is None else b1[:, None])
    hidden = _EXPERTS[activation_type](hidden)
    if fc3 is not None:
        hidden = hidden * (torch.einsum("tc,efc->etf", tokens, fc3) + (0 if b3 is None else b3[:, None]))
    y = torch.einsum("etf,ecf->etc", hidden, fc2) + (0 if b2 is None else b2[:, None])
    return torch.einsum("etc,te->tc", y, share).reshape(x.shape)
