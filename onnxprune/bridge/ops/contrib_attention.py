"""com.microsoft: attention as onnxruntime's optimizer writes it. Letters as in `attention`."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops import attention
from onnxprune.bridge.ops.attention import merge_heads, split_heads
from onnxprune.bridge.ops.quantization import DequantizeLinear
from onnxprune.bridge.ops.registry import torch_function
from onnxprune.errors import UnsupportedFormError

NOT_USED = (None, 0, -1, 0.0)
contrib = partial(torch_function, domain="com.microsoft")


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
        raise UnsupportedFormError("do_rotary and past_present_share_buffer are for decoding step by step")
    sizes = list(qkv_hidden_sizes) if qkv_hidden_sizes else [w.shape[1] // 3] * 3
    q, k, v = (split_heads(part, num_heads) for part in F.linear(x, w.t(), b).split(sizes, 2))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = _attend(q, k, v, mask, attention_bias, scale, bool(unidirectional), mask_filter_value)
    present = torch.stack([k, v]) if k.shape == v.shape else k
    return merge_heads(y), present


@contrib("QAttention", fixed=range(9), differentiable=False)
def QAttention(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    mask: Tensor | None = None,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    past: Tensor | None = None,
    **attributes: Any,
) -> tuple[Tensor, Tensor]:
    """As Attention, of integers that stand for (x - zero) * scale; scale and zero point of w may be per column."""
    given, weights = DequantizeLinear(x, x_scale, x_zero), DequantizeLinear(w, w_scale, w_zero)
    return Attention(given, weights, b, mask, past, **attributes)


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
        raise UnsupportedFormError("past_present_share_buffer is for decoding step by step")
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


@contrib("GroupQueryAttention", fixed=(5, 6, 9))
def GroupQueryAttention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    *rest: Tensor | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float | None = None,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    **attributes: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, L, H*D), k and v (N, L, K*D), or all in q; causal. `lengths` (N,) are those of the keys, less one."""
    unknown = [
        name for name in ("local_window_size", "softcap", "smooth_softmax") if attributes.get(name) not in NOT_USED
    ]
    if unknown or sink is not None or any(x is not None for x in rest):
        raise UnsupportedFormError(f"{', '.join(unknown) or 'sinks, scales of caches, or norms inside'}")
    if k is None or v is None:
        width = q.shape[2] // (num_heads + 2 * kv_num_heads)
        q, k, v = q.split([num_heads * width, kv_num_heads * width, kv_num_heads * width], 2)
    past = 0 if past_key is None else past_key.shape[2]
    if bool((lengths + 1 != past + q.shape[1]).any()):
        raise UnsupportedFormError("sequences of several lengths")
    if do_rotary:
        at = positions if positions is not None else torch.arange(past, past + q.shape[1], device=q.device)[None]
        turn = partial(attention.RotaryEmbedding, cos=cos, sin=sin, positions=at.expand(q.shape[0], -1))
        q = turn(q, num_heads=num_heads, interleaved=rotary_interleaved)
        k = turn(k, num_heads=kv_num_heads, interleaved=rotary_interleaved)
    assert k is not None
    assert v is not None
    query = split_heads(q, num_heads)
    key, value = split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    repeats = num_heads // kv_num_heads
    keys, values = (x.repeat_interleave(repeats, 1) for x in (key, value))
    y = _attend(query, keys, values, None, bias, scale, True, 0.0)
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
