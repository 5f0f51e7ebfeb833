"""Matrix products: contracted axes are unified, batch axes broadcast."""

import onnx_ir as ir

from onnxprune.coupling.dims import Axis, length, resolve
from onnxprune.coupling.layers import Weights
from onnxprune.coupling.node import Axes, NodeAxes
from onnxprune.coupling.registry import coupling_rule


def gemm_weights(node: ir.Node) -> Weights:
    """b (I, O), or (O, I) with transB; with transA the rows of a are its columns."""
    out, into = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
    channels = 0 if node.attributes.get_int("transA", 0) else 1
    return Weights(outputs=out, inputs=into, x_axis=channels, alpha="alpha", beta="beta")


MATRIX = Weights(bias=None, outputs=-1, inputs=-2, x_axis=-1, y_axis=-1)


def matmul_weights(node: ir.Node) -> Weights | None:
    """b (..., I, O); a vector b has no output channels."""
    b = node.inputs[1]
    return None if b is None or b.shape is None or len(b.shape) < 2 else MATRIX


@coupling_rule("Gemm", weights=gemm_weights)
def Gemm(n: NodeAxes) -> None:
    """a (M, K), b (K, N), c broadcast to (M, N) -> y (M, N); transA and transB swap."""
    a = n.x(0)[::-1] if n.attribute("transA", 0) else n.x(0)
    trans = bool(n.attribute("transB", 0))
    b = n.x(1)[::-1] if trans else n.x(1)
    n.unify(a[1], b[0])
    n.roles(0, {0: "produces", 1: "consumes"} if not n.attribute("transA", 0) else {0: "consumes", 1: "produces"})
    y = [a[0], b[1]]
    if n.has(2):
        y = n.broadcast(y, n.x(2))
    n.give([resolve(axis) for axis in y])


@coupling_rule("MatMul", weights=matmul_weights)
@coupling_rule("MatMulInteger")
def MatMul(n: NodeAxes) -> None:
    """a (..., M, K), b (..., K, N) -> y (..., M, N); vectors as in numpy. Zero points: one, or (M,) and (N,)."""
    for index, axes, position in ((2, n.x(0), -2), (3, n.x(1), -1)):
        if n.has(index) and n.x(index) and length(n.x(index)[0]) > 1:
            n.unify(n.x(index)[0], axes[position])
            n.roles(index, {0: "scales"})
    matmul(n, n.x(0), n.x(1))


def matmul(n: NodeAxes, a: Axes, b: Axes) -> None:
    n.roles(1, {len(b) - 1: "produces", len(b) - 2: "consumes"} if len(b) > 1 else {0: "consumes"})
    n.roles(0, {len(a) - 2: "produces", len(a) - 1: "consumes"} if len(a) > 1 else {0: "consumes"})
    n.unify(a[-1], b[-2] if len(b) > 1 else b[0])
    batch = n.broadcast(a[:-2], b[:-2]) if len(a) > 2 or len(b) > 2 else []
    y: Axes = list(batch)
    if len(a) > 1:
        y.append(resolve(a[-2]))
    if len(b) > 1:
        y.append(resolve(b[-1]))
    n.give(y)


@coupling_rule("QLinearMatMul", "QLinearConv")
def QLinear(n: NodeAxes) -> None:
    n.opaque("quantized operator format is not cut; convert the model to QDQ")


@coupling_rule("Einsum")
def Einsum(n: NodeAxes) -> None:
    """One axis per letter; an ellipsis broadcasts."""
    terms, output = einsum_terms(n)
    by_letter: dict[str, Axis] = {}
    ellipses: list[Axes] = []
    for index, term in enumerate(terms):
        axes = n.x(index)
        letters, dotted = expand_term(term, len(axes))
        ellipses.append([axis for letter, axis in zip(letters, axes, strict=True) if letter == "."])
        for letter, axis in zip(letters, axes, strict=True):
            if letter != ".":
                known = by_letter.get(letter)
                if known is None or known == ((),):
                    by_letter[letter] = axis
                elif axis != ((),):
                    n.unify(known, axis)
        del dotted
        if index > 0:
            kept = set(output)
            n.roles(index, {k: ("produces" if x in kept else "consumes") for k, x in enumerate(letters) if x != "."})
    batch = n.broadcast(*ellipses) if any(ellipses) else []
    y: Axes = []
    for letter in output.replace("...", "."):
        y += [resolve(axis) for axis in batch] if letter == "." else [resolve(by_letter[letter])]
    n.give(y)


def einsum_terms(n: NodeAxes) -> tuple[list[str], str]:
    """Input terms and the output term of the equation; an implicit output is made explicit."""
    equation = str(n.attribute("equation")).replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        output = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return terms, output


def expand_term(term: str, rank: int) -> tuple[str, bool]:
    """`term` with one '.' for each axis of its ellipsis, and whether it had one."""
    if "..." not in term:
        return term, False
    return term.replace("...", "." * (rank - len(term) + 3)), True
