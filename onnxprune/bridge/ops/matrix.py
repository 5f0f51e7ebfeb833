"""Matrix products."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.ops.registry import register, torch_function

register("MatMul", torch.matmul)


@torch_function("Gemm", since=7)
def Gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha * a' (M, K) @ b' (K, N) + beta * c, where c broadcasts to (M, N)."""
    a = a.t() if transA else a
    columns = b.shape[0 if transB else 1]
    plain = alpha == 1 and beta == 1 and a.is_floating_point()
    if plain and (c is None or c.shape == (columns,)):
        return F.linear(a, b if transB else b.t(), c)
    y = torch.matmul(a, b.t() if transB else b)
    y = y if alpha == 1 else _scaled(y, alpha)
    return y if c is None else y + (c if beta == 1 else _scaled(c, beta))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return (x * factor).to(x.dtype)


@torch_function("Gemm")
def Gemm_1(a: Tensor, b: Tensor, c: Tensor, *, broadcast: int = 0, **attributes: Any) -> Tensor:
    return Gemm(a, b, c, **attributes)


@torch_function("Einsum")
def Einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *inputs)


@torch_function("Det")
def Det(x: Tensor) -> Tensor:
    return torch.linalg.det(x)


@torch_function("MatMulInteger", differentiable=False)
def MatMulInteger(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """(a - a_zero) @ (b - b_zero) in int32; a_zero per row of a, b_zero per column of b."""
    a32, b32 = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        zero = a_zero.to(torch.int32)
        a32 = a32 - (zero.unsqueeze(-1) if 0 < zero.ndim < a.ndim and zero.numel() > 1 else zero)
    if b_zero is not None:
        b32 = b32 - b_zero.to(torch.int32)
    return exact_matmul(a32, b32)


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in int32; devices without integer products compute in float64, which is exact below 2**53."""
    if a.device.type == "cpu":
        return torch.matmul(a, b)
    return torch.matmul(a.double(), b.double()).to(torch.int32)
