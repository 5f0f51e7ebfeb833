"""Sequences and optionals: a sequence is a Python list, an empty optional is None."""

from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import ints, number

Sequence = list[Tensor]


@torch_function("SequenceConstruct")
def SequenceConstruct(*inputs: Tensor) -> tuple[Sequence]:
    return (list(inputs),)


@torch_function("SequenceEmpty")
def SequenceEmpty(*, dtype: int = 1) -> tuple[Sequence]:
    return ([],)


@torch_function("SequenceAt", host=(1,))
def SequenceAt(sequence: Sequence, position: Any) -> Tensor:
    return sequence[number(position)]


@torch_function("SequenceInsert", host=(2,))
def SequenceInsert(sequence: Sequence, tensor: Tensor, position: Any = None) -> tuple[Sequence]:
    longer = list(sequence)
    place = len(longer) if position is None else number(position)
    longer.insert(place if place >= 0 else place + len(longer), tensor)
    return (longer,)


@torch_function("SequenceErase", host=(1,))
def SequenceErase(sequence: Sequence, position: Any = None) -> tuple[Sequence]:
    shorter = list(sequence)
    del shorter[-1 if position is None else number(position)]
    return (shorter,)


@torch_function("SequenceLength", differentiable=False)
def SequenceLength(sequence: Sequence) -> Tensor:
    return torch.tensor(len(sequence), dtype=torch.int64)


@torch_function("ConcatFromSequence")
def ConcatFromSequence(sequence: Sequence, *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@torch_function("SplitToSequence", host=(1,))
def SplitToSequence(x: Tensor, split: Any = None, *, axis: int = 0, keepdims: int = 1) -> tuple[Sequence]:
    """Parts of one size (a number), of given sizes (a list), or single positions, then without the axis on request."""
    if split is None:
        parts = torch.split(x, 1, axis)
        return ([part if keepdims else part.squeeze(axis) for part in parts],)
    scalar = split.ndim == 0 if isinstance(split, Tensor) else not isinstance(split, list)
    return (list(torch.split(x, int(number(split)) if scalar else ints(split), axis)),)


@torch_function("Optional")
def Optional(value: Any = None, *, type: Any = None) -> tuple[Any]:
    return (value,)


@torch_function("OptionalGetElement")
def OptionalGetElement(value: Any) -> tuple[Any]:
    return (value,)


@torch_function("OptionalHasElement", differentiable=False)
def OptionalHasElement(value: Any = None) -> Tensor:
    return torch.tensor(value is not None)
