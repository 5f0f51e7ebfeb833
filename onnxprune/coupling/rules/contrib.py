"""Operators of com.microsoft that onnxruntime's optimizer writes."""

from onnxprune.coupling.dims import resolve
from onnxprune.coupling.node import Axes, NodeAxes
from onnxprune.coupling.registry import coupling_rule
from onnxprune.coupling.rules.convolution import Conv
from onnxprune.coupling.rules.indexing import embedding
from onnxprune.coupling.rules.matrix import Gemm, matmul

MS = "com.microsoft"


@coupling_rule("Gelu", "QuickGelu", domain=MS)
def Gelu(n: NodeAxes) -> None:
    n.give(list(n.x(0)))


@coupling_rule("FastGelu", "BiasGelu", domain=MS)
def BiasGelu(n: NodeAxes) -> None:
    n.give(n.broadcast(*[n.x(i) for i in n.given()]))
    if n.has(1):
        n.roles(1, {len(n.x(1)) - 1: "produces"})


@coupling_rule("FusedConv", domain=MS)
def FusedConv(n: NodeAxes) -> None:
    """Conv, then optionally + z, then an activation."""
    Conv(n)
    if n.has(2):
        n.unify(n.x(2)[0], n.x(1)[0])
        n.roles(2, {0: "produces"})
    if n.has(3):
        n.broadcast(n.analysis.axes_of(n.node.outputs[0]), n.x(3))


@coupling_rule("FusedGemm", domain=MS)
def FusedGemm(n: NodeAxes) -> None:
    Gemm(n)


@coupling_rule("FusedMatMul", domain=MS)
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
