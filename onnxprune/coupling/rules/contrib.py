"""Operators of com.microsoft that onnxruntime's optimizer writes."""

from dataclasses import replace

import onnx_ir as ir

from onnxprune.coupling.dims import Axis, length, resolve
from onnxprune.coupling.layers import Weights
from onnxprune.coupling.node import Axes, NodeAxes
from onnxprune.coupling.registry import coupling_rule
from onnxprune.coupling.rules.convolution import CONVOLUTION, Conv
from onnxprune.coupling.rules.indexing import embedding
from onnxprune.coupling.rules.matrix import MATRIX, Gemm, gemm_weights, matmul

MS = "com.microsoft"


@coupling_rule("Gelu", "QuickGelu", domain=MS)
def Gelu(n: NodeAxes) -> None:
    n.give(list(n.x(0)))


@coupling_rule("FastGelu", "BiasGelu", domain=MS)
def BiasGelu(n: NodeAxes) -> None:
    n.give(n.broadcast(*[n.x(i) for i in n.given()]))
    if n.has(1):
        n.roles(1, {len(n.x(1)) - 1: "produces"})


@coupling_rule("FusedConv", domain=MS, weights=replace(CONVOLUTION, fused=True))
def FusedConv(n: NodeAxes) -> None:
    """Conv, then optionally + z, then an activation."""
    Conv(n)
    if n.has(2):
        n.unify(n.x(2)[0], n.x(1)[0])
    if n.has(3):
        n.broadcast(n.analysis.axes_of(n.node.outputs[0]), n.x(3))


@coupling_rule("FusedGemm", domain=MS, weights=lambda node: replace(gemm_weights(node), fused=True))
def FusedGemm(n: NodeAxes) -> None:
    Gemm(n)


def _matmul_weights(node: ir.Node) -> Weights | None:
    """b (..., I, O), or (..., O, I) with transB; none where batch axes move."""
    b, flag = node.inputs[1], node.attributes.get_int
    if b is None or b.shape is None or len(b.shape) < 2 or flag("transBatchA", 0) or flag("transBatchB", 0):
        return None
    out, into = (-2, -1) if flag("transB", 0) else (-1, -2)
    channels = -2 if flag("transA", 0) else -1
    return replace(MATRIX, outputs=out, inputs=into, x_axis=channels, alpha="alpha")


@coupling_rule("FusedMatMul", domain=MS, weights=_matmul_weights)
def FusedMatMul(n: NodeAxes) -> None:
    """As MatMul of a and b with axes in another order; transBatch brings the first behind the other batch axes."""
    a, b = (
        _order(len(n.x(k)), n.attribute(f"transBatch{x}", 0), n.attribute(f"trans{x}", 0)) for k, x in enumerate("AB")
    )
    matmul(n, [n.x(0)[k] for k in a], [n.x(1)[k] for k in b])
    n.roles(0, dict(zip(a[-2:], ("produces", "consumes"), strict=True)) if len(a) > 1 else {})
    n.roles(1, dict(zip(b[-2:], ("consumes", "produces"), strict=True)) if len(b) > 1 else {})


def _order(rank: int, batch: int, last: int) -> list[int]:
    order = list(range(rank))
    if batch and rank > 2:
        order = [*order[1:-1], 0, order[-1]]
    return [*order[:-2], order[-1], order[-2]] if last and rank > 1 else order


@coupling_rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MS)
def SkipLayerNormalization(n: NodeAxes) -> None:
    """x and skip (B, L, C), vectors (C,): the sum is normalized over C, and is the fourth output."""
    x = n.broadcast(n.x(0), n.x(1))
    for index in n.given()[2:]:
        n.unify(n.x(index)[0], x[-1])
        n.roles(index, {0: "scales"})
    n.reduce(x[-1], "normalizes over it")
    statistics: Axes = [*x[:-1], ((),)]
    n.give(x, statistics, statistics, x)


@coupling_rule("EmbedLayerNormalization", domain=MS)
def EmbedLayerNormalization(n: NodeAxes) -> None:
    """ids (B, L), segments, three tables (V, C), gamma, beta, mask -> y (B, L, C), mask index, sum."""
    ids = n.x(0)
    width = embedding(n, 2)
    for index in (3, 4):
        if n.has(index):
            n.unify(embedding(n, index), width)
    for index in (5, 6):
        n.unify(n.x(index)[0], width)
        n.roles(index, {0: "scales"})
    n.reduce(width, "normalizes over it")
    y: Axes = [*ids, resolve(width)]
    mask = [n.fixed_output(1, k, "mask index") for k in range(len(n.analysis.sizes_of(n.node.outputs[1]) or ()))]
    n.give(y, mask, y)


@coupling_rule("MatMulNBits", domain=MS)
def MatMulNBits(n: NodeAxes) -> None:
    """x (..., K), b (N, K / block, bytes of a block), scales and zero points as b, bias (N): K shrinks by blocks."""
    x, (rows, blocks, stored) = n.x(0), n.x(1)
    count, block = length(blocks), n.attribute("block_size")
    n.freeze(stored, "bytes of a block")
    if n.has(4) or length(x[-1]) % block:
        n.freeze(x[-1], "blocks that the order of the columns, or their number, does not fill")
        n.freeze(blocks, "blocks that the order of the columns, or their number, does not fill")
        for axis in n.x(4) if n.has(4) else []:
            n.freeze(axis, "order of the columns")
    else:
        outer, inner = n.split(x[-1], [count, block])
        n.freeze(inner, "positions of a block share a scale")
        n.unify(outer, blocks)
    for index in (2, 3):
        if n.has(index):
            _of_blocks(n, n.x(index), rows, blocks)
    if n.has(5):
        n.unify(n.x(5)[0], rows)
        n.roles(5, {0: "produces"})
    n.roles(1, {0: "produces", 1: "consumes"})
    n.length_attribute("N", rows)
    n.length_attribute("K", x[-1])
    n.give([*x[:-1], resolve(rows)])


def _of_blocks(n: NodeAxes, parameter: Axes, rows: Axis, blocks: Axis) -> None:
    """Scales, or zero points of which several may share a byte: (N, count) or (N count)."""
    count, rest = length(blocks), sum(map(length, parameter)) if len(parameter) == 1 else length(parameter[-1])
    per_row = rest // length(rows) if len(parameter) == 1 else rest
    if per_row == count:
        inner = blocks
    elif 0 < per_row < count and count % per_row == 0:
        inner, shared = n.split(blocks, [per_row, count // per_row])
        n.freeze(shared, "zero points that share a byte")
    else:
        n.freeze(blocks, "zero points that share a byte")
        inner = n.fixed(per_row, "zero points that share a byte")
    if len(parameter) == 1:
        n.unify(parameter[0], n.merge([rows, inner]))
    else:
        n.unify(parameter[0], rows)
        n.unify(parameter[-1], inner)
