"""com.microsoft: what onnxruntime's optimizer writes. Letters as in the families of the standard domain."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops import attention
from onnxprune.bridge.ops.activation import Gelu, Swish
from onnxprune.bridge.ops.attention import merge_heads, split_heads
from onnxprune.bridge.ops.convolution import Conv
from onnxprune.bridge.ops.indexing import Trilu
from onnxprune.bridge.ops.matrix import Gemm, MatMulInteger
from onnxprune.bridge.ops.normalization import LayerNormalization, RMSNormalization
from onnxprune.bridge.ops.quantization import DynamicQuantizeLinear
from onnxprune.bridge.ops.registry import register, torch_function
from onnxprune.bridge.ops.shape import Pad

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


@contrib("RotaryEmbedding", fixed=(1,))
def RotaryEmbedding(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """As in the standard domain; positions (N, L), or (1,) where the first token stands."""
    length = x.shape[-2]
    if positions.numel() == 1:
        positions = (positions.reshape(1, 1) + torch.arange(length, device=x.device)).expand(x.shape[0], length)
    heads = num_heads or x.shape[-1] // (2 * cos.shape[-1])
    return attention.RotaryEmbedding(
        x, cos, sin, positions, interleaved=interleaved, num_heads=heads, rotary_embedding_dim=rotary_embedding_dim
    )


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


@contrib("Attention", fixed=(3, 6))
def Attention(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_length: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
    rotary_embedding_dim: int = 0,
) -> tuple[Tensor, Tensor]:
    """x (N, L, I), w (I, q + k + v): projection and attention in one."""
    if do_rotary or past_present_share_buffer:
        raise NotImplementedError("Attention with do_rotary or a shared buffer is for decoding only")
    sizes = list(qkv_hidden_sizes) if qkv_hidden_sizes else [w.shape[1] // 3] * 3
    q, k, v = (split_heads(part, num_heads) for part in F.linear(x, w.t(), b).split(sizes, 2))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = _attend(q, k, v, mask, attention_bias, scale, bool(unidirectional), mask_filter_value)
    present = torch.stack([k, v]) if k.shape == v.shape else k
    return merge_heads(y), present


@contrib("MultiHeadAttention", fixed=(4, 8, 9))
def MultiHeadAttention(
    q: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, L, H*D), or packed with k and v as (N, L, H, 3, D); k may be packed with v as (N, S, H, 2, D)."""
    if past_length is not None or cache_indirection is not None:
        raise NotImplementedError("MultiHeadAttention with a shared buffer is for decoding only")
    if q.ndim == 5:
        q, k, v = (part.squeeze(3).flatten(2) for part in q.split(1, 3))
    elif k is not None and k.ndim == 5:
        k, v = (part.squeeze(3).flatten(2) for part in k.split(1, 3))
    assert k is not None
    assert v is not None
    heads = [part if part.ndim == 4 else split_heads(part, num_heads) for part in _biased(q, k, v, bias)]
    query, key, value = heads
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    y = _attend(query, key, value, mask, attention_bias, scale, bool(unidirectional), mask_filter_value)
    return merge_heads(y), key, value


def _biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> list[Tensor]:
    if bias is None:
        return [q, k, v]
    width = q.shape[-1]
    parts = bias.split([width, width, bias.shape[0] - 2 * width])
    return [x if x.ndim == 4 else x + part for x, part in zip((q, k, v), parts, strict=True)]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    causal: bool,
    filler: float,
) -> Tensor:
    """softmax(q k' * scale + bias) v; masked scores get `filler`, or the lowest number for causality."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None or scale == 0 else scale
    total = bias
    if mask is not None:
        hidden = torch.where(_allowed(mask, q.shape[2], k.shape[2]), 0.0, filler).to(q.dtype)
        total = hidden if total is None else total + hidden
    if causal:
        ahead = torch.arange(k.shape[2], device=q.device) - torch.arange(q.shape[2], device=q.device)[:, None]
        future = ahead > k.shape[2] - q.shape[2]
        late = torch.zeros_like(ahead, dtype=q.dtype).masked_fill(future, torch.finfo(q.dtype).min)
        total = late if total is None else total + late
    return F.scaled_dot_product_attention(q, k, v, total, scale=scale)


def _allowed(mask: Tensor, length: int, keys: int) -> Tensor:
    """The mask as booleans that broadcast to (N, H, L, S): lengths (N,), key masks (N, S), or full ones."""
    if mask.ndim == 1:  # counts of keys from the left
        return torch.arange(keys, device=mask.device) < mask[:, None, None, None]
    if mask.ndim == 2:
        return mask[:, None, None, :] != 0
    if mask.ndim == 3:
        return mask[:, None] != 0
    return mask[:, :, keys - length : keys, :keys] != 0


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
