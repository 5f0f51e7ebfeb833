"""Fused attention operators. Letters: B batch, L queries, S keys, H heads, d head width, v value width, R repeats."""

from math import sqrt

from onnxprune.coupling.dims import Axis, length, resolve
from onnxprune.coupling.node import Axes, NodeAxes, OpaqueError
from onnxprune.coupling.registry import coupling_rule

MS = "com.microsoft"


def pin_scale(n: NodeAxes, width: int) -> None:
    """The default scale depends on the head width, so it is written down before the width changes."""
    if not n.attribute("scale", 0.0):
        n.analysis.pins.append((n.name, "scale", 1.0 / sqrt(width)))


@coupling_rule("Attention")
def Attention(n: NodeAxes) -> None:
    """q (B, H, L, d), k (B, K, S, d), v (B, K, S, v), H = K R; or flat (B, L, H d) with head counts as attributes."""
    q, k, v = n.x(0), n.x(1), n.x(2)
    flat = len(q) == 3
    if flat:
        heads, kv = n.attribute("q_num_heads"), n.attribute("kv_num_heads")
        qs = n.split(q[2], [kv, heads // kv, length(q[2]) // heads])
        ks = n.split(k[2], [kv, length(k[2]) // kv])
        vs = n.split(v[2], [kv, length(v[2]) // kv])
        rows, keys = q[1], k[1]
    else:
        kv = length(k[1])
        qs = [*n.split(q[1], [kv, length(q[1]) // kv]), q[3]]
        ks, vs, rows, keys = [k[1], k[3]], [v[1], v[3]], q[2], k[2]
    n.unify(qs[0], ks[0])
    n.unify(ks[0], vs[0])
    n.unify(qs[2], ks[1])
    n.analysis.contract(n.node, qs[2], inputs=(0, 1))
    n.freeze(keys, "softmax runs over keys")
    pin_scale(n, length(qs[2]))
    heads_axis = n.merge([qs[0], qs[1]])
    past_and_mask(n, heads_axis, ks, vs)
    if flat:
        n.length_attribute("q_num_heads", heads_axis)
        n.length_attribute("kv_num_heads", qs[0])
        y: Axes = [q[0], rows, n.merge([qs[0], qs[1], vs[1]])]
    else:
        y = [q[0], resolve(heads_axis), rows, resolve(vs[1])]
    n.give(y, *attention_extras(n, q[0], ks, vs, heads_axis))


def past_and_mask(n: NodeAxes, heads: Axis, K: Axes, V: Axes) -> None:
    if n.has(3):
        mask = n.x(3)
        for axis in mask[-2:]:
            n.freeze(axis, "attention mask")
        if len(mask) == 4 and length(mask[1]) > 1:
            n.unify(mask[1], heads)
    past(n, 4, K[0], K[1])
    past(n, 5, V[0], V[1])


def past(n: NodeAxes, index: int, heads: Axis, width: Axis, batch: Axis | None = None) -> None:
    """Earlier keys or values (B, K, P, w), where input `index` has some."""
    if n.has(index):
        cache = n.x(index)
        if batch is not None:
            n.unify(cache[0], batch)
        n.unify(cache[1], heads)
        n.freeze(cache[2], "past keys")
        n.unify(cache[3], width)


def attention_extras(n: NodeAxes, batch: Axis, K: Axes, V: Axes, heads: Axis) -> list[Axes]:
    """Axes of present_key, present_value and the attention scores."""
    extras: list[Axes] = []
    for index, value in enumerate(n.node.outputs[1:], start=1):
        if not value.name:
            extras.append([])
        elif index == 3:
            n.freeze(heads, "attention scores are an output")
            extras.append([batch, heads, *(n.fixed_output(index, k, "scores") for k in (2, 3))])
        else:
            pair = K if index == 1 else V
            extras.append([batch, pair[0], n.fixed_output(index, 2, "present keys"), pair[1]])
    return extras


@coupling_rule("MultiHeadAttention", domain=MS)
def MultiHeadAttention(n: NodeAxes) -> None:
    """q (B, L, H d), k (B, S, H d), v (B, S, H v), bias (3 H d), key padding mask, attention bias (B, H, L, S).

    Keys and values may come split, (B, H, S, d), and with a past (B, H, P, d), which is given on as present.
    """
    if not (n.has(1) and n.has(2)) or len(n.x(1)) == 5 or any(n.has(k) for k in (8, 9)):
        n.opaque("packed inputs, or a cache of fixed length")
        return
    q, k, v, heads = n.x(0), n.x(1), n.x(2), n.attribute("num_heads")
    H, d = n.split(q[2], [heads, length(q[2]) // heads])
    K, V = ([x[1], x[3]] if len(x) == 4 else n.split(x[2], [heads, length(x[2]) // heads]) for x in (k, v))
    n.unify(K[0], H)
    n.unify(K[1], d)
    n.unify(V[0], H)
    if n.has(7):
        n.unify(V[1], d)  # onnxruntime takes cached values of the width of the keys alone
    if n.has(3):
        n.unify(n.x(3)[0], q[2] + n.merge(K) + n.merge(V))
        n.roles(3, {0: "produces"})
    if n.has(4):
        for axis in n.x(4):
            n.freeze(axis, "padding mask")
    if n.has(5):
        attention_bias(n, n.x(5), H)
    past(n, 6, K[0], K[1], q[0])
    past(n, 7, V[0], V[1], q[0])
    n.analysis.contract(n.node, d, inputs=(0, 1))
    n.freeze(k[2] if len(k) == 4 else k[1], "softmax runs over keys")
    if any(value.name for value in n.node.outputs[3:]):
        n.opaque("attention scores are an output")
        return
    n.length_attribute("num_heads", H)
    pin_scale(n, length(d))
    n.give([q[0], q[1], n.merge([H, V[1]])], *attention_extras(n, q[0], K, V, H))


def attention_bias(n: NodeAxes, bias: Axes, heads: Axis) -> None:
    """Relates the axes of the term added to the scores: (B or 1, H or 1, L, S)."""
    if length(bias[1]) > 1:
        n.unify(bias[1], heads)
    for axis in bias[2:]:
        n.freeze(axis, "attention bias")


@coupling_rule("Attention", domain=MS)
def PackedAttention(n: NodeAxes) -> None:
    """x (B, L, C), w (C, H d + H d + H v), bias as w, mask, past, attention bias (B, H, L, L) -> y (B, L, H v)."""
    if n.has(5):
        attention_bias(n, n.x(5), packed(n, mask=3, past=4))
    else:
        packed(n, mask=3, past=4)


@coupling_rule("QAttention", domain=MS)
def QAttention(n: NodeAxes) -> None:
    """As Attention, x and w as integers: scales and zero points per tensor, those of w also per column."""
    for index in (4, 7):
        if n.has(index) and n.x(index) and length(n.x(index)[0]) > 1:
            n.unify(n.x(index)[0], n.x(1)[1])
            n.roles(index, {0: "scales"})
    packed(n, mask=5, past=8)


def packed(n: NodeAxes, *, mask: int, past: int) -> Axis:
    """Relates x, w, bias, the `mask` and the `past` (2, B, H, P, d) of an attention that projects; the heads."""
    x, w, heads = n.x(0), n.x(1), n.attribute("num_heads")
    if n.attribute("past_present_share_buffer", 0):
        raise OpaqueError("a cache of fixed length")
    n.unify(x[2], w[0])
    widths = n.attribute("qkv_hidden_sizes")
    sizes = widths or (length(w[1]) // 3,) * 3
    bounds = [0, sizes[0], sizes[0] + sizes[1], sum(sizes)]
    parts = n.cuts(w[1], bounds)
    (H, d), *others = [n.split(part, [heads, length(part) // heads]) for part in parts]
    presents = len(n.node.outputs) > 1 and bool(n.node.outputs[1].name)
    for index, (other, width) in enumerate(others):
        n.unify(other, H)
        if index == 0 or not widths or presents or n.has(past):
            n.unify(width, d)
    if widths:
        for entry, part in enumerate(parts):
            n.length_attribute("qkv_hidden_sizes", part, entry)
    if n.has(2):
        n.unify(n.x(2)[0], w[1])
        n.roles(2, {0: "produces"})
    for axis in n.x(mask) if n.has(mask) else []:
        n.freeze(axis, "attention mask")
    stacked_past(n, past, x[0], H, d)
    n.roles(1, {0: "consumes", 1: "produces"})
    n.freeze(x[1], "softmax runs over keys")
    n.length_attribute("num_heads", H)
    pin_scale(n, length(d))
    y = [x[0], x[1], resolve(parts[2])]
    if presents:
        pair, keys = n.fixed_output(1, 0, "keys and values"), n.fixed_output(1, 3, "present keys")
        n.give(y, [pair, x[0], resolve(H), keys, resolve(d)])
    else:
        n.give(y)
    return H


def stacked_past(n: NodeAxes, index: int, batch: Axis, heads: Axis, width: Axis) -> None:
    """Earlier keys and values in one (2, B, H, P, d), where input `index` has some."""
    if n.has(index):
        pair, rows, H, keys, d = n.x(index)
        n.unify(rows, batch)
        n.freeze(pair, "keys and values")
        n.freeze(keys, "past keys")
        n.unify(H, heads)
        n.unify(d, width)


@coupling_rule("RotaryEmbedding")
def RotaryEmbedding(n: NodeAxes) -> None:
    """x (B, H, L, d) or (B, L, H d), cos and sin (..., d / 2): pairs of positions of d turn together."""
    x, cos, sin = n.x(0), n.x(1), n.x(2)
    heads = n.attribute("num_heads", 0)
    flat = len(x) == 3
    if (flat and not heads) or n.attribute("rotary_embedding_dim", 0):
        n.opaque("partial rotation")
        return
    if flat:
        H, d = n.split(x[2], [heads, length(x[2]) // heads])
        n.length_attribute("num_heads", H)
    else:
        d = x[3]
    half = length(d) // 2
    if n.attribute("interleaved", 0):
        turned, pair = n.split(d, [half, 2])
    else:
        pair, turned = n.split(d, [2, half])
    n.freeze(pair, "pairs turn together")
    for table in (cos, sin):
        n.unify(table[-1], turned)
        for axis in table[:-1]:
            n.freeze(axis, "positions in the sequence")
    n.give(list(x))


@coupling_rule("GroupQueryAttention", domain=MS)
def GroupQueryAttention(n: NodeAxes) -> None:
    """q (B, L, H d), k and v (B, S, K d), or all three in q; past (B, K, P, d); H = K R: R queries share a key."""
    heads, kv = n.attribute("num_heads"), n.attribute("kv_num_heads")
    q = n.x(0)
    if n.has(1):
        parts = [q[2], n.x(1)[2], n.x(2)[2]]
    else:
        width = length(q[2]) // (heads + 2 * kv)
        parts = n.cuts(q[2], [0, heads * width, (heads + kv) * width, (heads + 2 * kv) * width])
    d = length(parts[0]) // heads
    Q, *KV = n.split(parts[0], [kv, heads // kv, d]), n.split(parts[1], [kv, d]), n.split(parts[2], [kv, d])
    for K, width in KV:
        n.unify(K, Q[0])
        n.unify(width, Q[2])
    n.freeze(Q[2], "the width of a head is that of its cache")
    n.freeze(q[1], "softmax runs over keys")
    H = n.merge(Q[:2])
    past(n, 3, Q[0], Q[2], q[0])
    past(n, 4, Q[0], Q[2], q[0])
    for index in (5, 6, 7, 8, 9, 12, 13, 14, 15):  # lengths, tables of rotations, positions, scales and norms
        for axis in n.x(index) if n.has(index) else []:
            n.freeze(axis, "read at its full size")
    if n.has(10):
        attention_bias(n, n.x(10), H)
    if n.has(11):
        n.unify(n.x(11)[0], H)
        n.roles(11, {0: "scales"})
    if len(n.node.outputs) > 3 and n.node.outputs[3].name:
        n.opaque("attention scores are an output")
        return
    n.length_attribute("num_heads", H)
    n.length_attribute("kv_num_heads", Q[0])
    present: list[Axes] = [
        [q[0], resolve(Q[0]), n.fixed_output(k, 2, "present keys"), resolve(Q[2])] if value.name else []
        for k, value in enumerate(n.node.outputs[1:3], start=1)
    ]
    n.give([q[0], q[1], n.merge(Q)], *present)


@coupling_rule("RotaryEmbedding", domain=MS)
def PositionedRotaryEmbedding(n: NodeAxes) -> None:
    """x (B, L, H d) or (B, H, L, d), positions, cos and sin (M, d / 2): pairs of d turn together, or some of them."""
    x, cos = n.x(0), n.x(2)
    partial = n.attribute("rotary_embedding_dim", 0)
    heads = n.attribute("num_heads", 0)
    if n.attribute("is_packed_batching", 0) or (partial and not heads and len(x) == 3):
        n.opaque("packed or partial rotation")
        return
    for index in (1, 2, 3):
        for axis in n.x(index):
            n.freeze(axis, "positions in the sequence, and their angles")
    if len(x) == 4:
        n.freeze(x[3], "pairs turn together")
        n.give(list(x))
        return
    width = length(x[2]) // heads if heads else 2 * length(cos[-1])
    H, d = n.split(x[2], [length(x[2]) // width, width])
    n.freeze(d, "pairs turn together")
    if heads:
        n.length_attribute("num_heads", H)
    n.give(list(x))
