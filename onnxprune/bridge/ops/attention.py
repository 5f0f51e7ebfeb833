"""Attention of the standard domain. Letters: q (N, Hq, L, D), k (N, Hk, S, D), v (N, Hk, S, E)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.program import Body
from onnxprune.bridge.tensors import torch_type


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, H * D) -> (N, H, L, D)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(N, H, L, D) -> (N, L, H * D)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def shared_heads(x: Tensor, heads: int) -> Tensor:
    """k or v with each head repeated for the query heads that share it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def masked_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis; rows where everything is masked are zero."""
    empty = torch.isneginf(scores).all(-1, keepdim=True)
    return torch.where(empty, torch.zeros_like(scores), torch.softmax(scores, -1))


@torch_function("Attention", since=23, fixed=(6,))
def Attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: int = 1,
    opset: int = 25,
) -> tuple[Tensor | None, ...]:
    packed = q.ndim == 3
    if packed:
        assert q_num_heads
        assert kv_num_heads
        q, k, v = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present_key, present_value = k, v
    k, v = shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    limits = (bool(is_causal), left_window_size, right_window_size)
    bias = _bias(q, k, mask, nonpad, past, limits)
    if (
        outputs < 4
        and not softcap
        and softmax_precision is None
        and (bias is None or not _hides_rows(limits, mask, nonpad))
    ):
        y = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        return (merge_heads(y) if packed else y), present_key, present_value
    y, seen = _spelled_out(q, k, v, bias, scale, softcap, softmax_precision, qk_matmul_output_mode)
    return (merge_heads(y) if packed else y), present_key, present_value, seen


def _hides_rows(limits: tuple[bool, int, int], mask: Tensor | None, nonpad: Tensor | None) -> bool:
    """Whether a query may find every key masked, where torch's attention would give NaN."""
    return mask is not None or nonpad is not None or limits[1] >= 0 or limits[2] >= 0


def _bias(
    q: Tensor, k: Tensor, mask: Tensor | None, nonpad: Tensor | None, past: int, limits: tuple[bool, int, int]
) -> Tensor | None:
    """The term that is added to the scores: the mask, -inf where a key is out of sight."""
    causal, left, right = limits
    length, total = q.shape[2], k.shape[2]
    allowed = None
    offset: Any = past
    if nonpad is not None:
        keys = torch.arange(total, device=q.device)
        allowed = keys < nonpad[:, None, None, None]
        offset = past if past else (nonpad - length)[:, None, None, None]
    if causal or left >= 0 or right >= 0:
        ahead = torch.arange(total, device=q.device) - torch.arange(length, device=q.device)[:, None] - offset
        seen = torch.ones_like(ahead, dtype=torch.bool)
        seen = seen & (ahead <= 0) if causal else seen
        seen = seen & (ahead >= -left) if left >= 0 else seen
        seen = seen & (ahead <= right) if right >= 0 else seen
        allowed = seen if allowed is None else allowed & seen
    bias = None
    if mask is not None:
        missing = total - mask.shape[-1]
        if mask.dtype == torch.bool:
            mask = F.pad(mask, (0, missing)) if missing > 0 else mask
            allowed = mask if allowed is None else allowed & mask
        else:
            bias = F.pad(mask, (0, missing), value=-torch.inf) if missing > 0 else mask
    if allowed is not None:
        hidden = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -torch.inf)
        bias = hidden if bias is None else bias + hidden
    return bias


def _spelled_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float,
    precision: int | None,
    output_mode: int,
) -> tuple[Tensor, Tensor]:
    """The attention and the scores of one stage: 0 raw, 1 capped, 2 with bias, 3 after the softmax."""
    root = math.sqrt(scale)
    raw = torch.matmul(q * root, (k * root).transpose(-1, -2))
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    biased = capped if bias is None else capped + bias
    weights = masked_softmax(biased if precision is None else biased.to(torch_type(precision))).to(v.dtype)
    return torch.matmul(weights, v), (raw, capped, biased, weights)[output_mode]


@torch_function("RotaryEmbedding", since=23, fixed=(3,))
def RotaryEmbedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """cos, sin (positions, R/2) with positions (N, L), or (N, L, R/2): pairs of the first R features are rotated."""
    packed = x.ndim == 3
    heads = split_heads(x, num_heads) if packed else x
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (N, 1, L, R/2)
    size = rotary_embedding_dim or heads.shape[-1]
    turned, rest = heads[..., :size], heads[..., size:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    y = torch.cat([turned, rest], -1) if rest.shape[-1] else turned
    return merge_heads(y) if packed else y


@torch_function("FlexAttention", domain="ai.onnx.preview")
def FlexAttention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *captured: Any,
    context: Any,
    scale: float | None = None,
    softmax_precision: int | None = None,
    score_mod: Body | None = None,
    prob_mod: Body | None = None,
) -> Tensor:
    precision = torch.float64 if q.dtype == torch.float64 else torch.float32
    precision = precision if softmax_precision is None else torch_type(softmax_precision)
    k, v = shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (torch.matmul(q, k.transpose(-1, -2)) * scale).to(precision)
    scores = scores if score_mod is None else score_mod([scores], captured, context)[0]
    weights = torch.softmax(scores, -1)
    weights = weights if prob_mod is None else prob_mod([weights], captured, context)[0]
    return torch.matmul(weights.to(v.dtype), v)


@torch_function("LinearAttention", since=27)
def LinearAttention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """S = exp(g) S + beta k (v - exp(g) S'k)', o = scale S'q, token by token; simpler rules leave g or beta out."""
    scale = scale or 1 / math.sqrt(q.shape[2] // q_num_heads)
    queries, keys, values = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    state = q.new_zeros(q.shape[0], kv_num_heads, keys.shape[3], values.shape[3]) if past is None else past
    gates = None if decay is None else torch.exp(split_heads(decay, kv_num_heads))  # (N, H, T, D or 1)
    rates = None if beta is None else beta.transpose(1, 2).unsqueeze(-1)  # (N, H or 1, T, 1)
    rows = []
    for time in range(q.shape[1]):
        kt, vt = keys[:, :, time], values[:, :, time]
        if gates is not None and "gated" in update_rule:
            state = gates[:, :, time].unsqueeze(-1) * state
        if "delta" in update_rule and rates is not None:
            vt = rates[:, :, time] * (vt - torch.einsum("nhd,nhde->nhe", kt, state))
        state = state + kt.unsqueeze(-1) * vt.unsqueeze(-2)
        shared = shared_heads(state, q_num_heads)
        rows.append(scale * torch.einsum("nhd,nhde->nhe", queries[:, :, time], shared))
    return torch.stack(rows, 1).flatten(2).to(q.dtype), state
