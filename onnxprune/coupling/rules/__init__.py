"""Coupling rules by family; importing this package fills the table."""

from onnxprune.coupling.rules import (
    attention,
    contrib,
    convolution,
    elementwise,
    experts,
    indexing,
    matrix,
    normalization,
    quantization,
    recurrent,
    reduction,
    sequences,
    shape,
    signal,
)

__all__ = [
    "attention",
    "contrib",
    "convolution",
    "elementwise",
    "experts",
    "indexing",
    "matrix",
    "normalization",
    "quantization",
    "recurrent",
    "reduction",
    "sequences",
    "shape",
    "signal",
]
