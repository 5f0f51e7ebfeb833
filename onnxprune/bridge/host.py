"""Shape arithmetic on Python ints: vectors of int64 as lists, scalars as numbers.

Exporters compute the arguments of Reshape, Expand or Slice by chains such as Shape, Gather, Concat. Done on lists these
cost next to nothing, wait for no device, and can be traced by torch.compile with symbolic sizes. A function here gives
NotImplemented for what is no vector or scalar of int64 (or bool); then the op's torch function does it, on the CPU.
"""

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

INT64 = 7

Plain = Callable[..., Any]


def as_tensor(value: Any) -> Any:
    """A host value as a CPU tensor; sequences and tensors as they are."""
    if isinstance(value, bool) or (isinstance(value, list) and _has_bools(value)):
        return torch.tensor(value)
    whole = isinstance(value, int) or (isinstance(value, list) and all(isinstance(item, int) for item in value))
    return torch.tensor(value, dtype=torch.int64) if whole else value


def call(*arguments: Any, function: Plain, plain: Plain | None, positions: frozenset[int]) -> Any:
    """An op between host values: on Python numbers where that is possible, else in torch.

    positions: inputs that the torch function takes as Python numbers anyway.
    """
    if plain is not None and all(_is_plain(value) for value in arguments):
        result = plain(*arguments)
        if result is not NotImplemented:
            return result
    return function(*(value if k in positions else as_tensor(value) for k, value in enumerate(arguments)))


def shape(x: Any, *, start: int = 0, end: int | None = None) -> list[int]:
    """The shape of a tensor or of a host value."""
    if isinstance(x, Tensor):
        return list(x.shape)[start:end]
    return [len(x)][start:end] if isinstance(x, list) else []


def size(x: Any) -> int:
    if isinstance(x, Tensor):
        return x.numel()
    return len(x) if isinstance(x, list) else 1


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, list))


def _each(a: Any, b: Any, *, function: Callable[[int, int], Any], axis: int | None = None, broadcast: int = 0) -> Any:
    """`function` between numbers and vectors, with broadcasting."""
    if not isinstance(a, list) and not isinstance(b, list):
        return function(a, b)
    left, right = a if isinstance(a, list) else [a], b if isinstance(b, list) else [b]
    count = len(right) if len(left) == 1 else len(left)
    if len(left) not in (1, count) or len(right) not in (1, count):
        return NotImplemented
    return [function(left[k % len(left)], right[k % len(right)]) for k in range(count)]


def _divide(a: int, b: int) -> int:
    """Truncated toward zero, as integers are divided in ONNX."""
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def _gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    if not isinstance(x, list):
        return NotImplemented
    return [x[k] for k in indices] if isinstance(indices, list) else x[indices]


def _unsqueeze(x: Any, axes: Any = None) -> Any:
    return [x] if not isinstance(x, list) and len(_listed(axes)) == 1 else NotImplemented


def _squeeze(x: Any, axes: Any = None) -> Any:
    return x[0] if isinstance(x, list) and len(x) == 1 else NotImplemented


def _concat(*parts: Any, axis: int = 0) -> Any:
    if not all(isinstance(part, list) for part in parts):
        return NotImplemented
    return [value for part in parts for value in part]


def _slice(x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    starts, ends, steps = _listed(starts), _listed(ends), _listed(steps if steps is not None else 1)
    if not isinstance(x, list) or len(starts) != 1 or steps[0] < 0:
        return NotImplemented
    return x[starts[0] : ends[0] : steps[0]]


def _reshape(x: Any, shape: Any, *, allowzero: int = 0) -> Any:
    shape, values = _listed(shape), x if isinstance(x, list) else [x]
    if not shape and len(values) == 1:
        return values[0]
    return values if len(shape) == 1 and shape[0] in (-1, len(values)) else NotImplemented


def _cast(x: Any, *, to: int, **_: Any) -> Any:
    return x if to == INT64 and not _has_bools(x) else NotImplemented


def _constant_of_shape(shape: Any, *, value: Tensor | None = None) -> Any:
    shape = _listed(shape)
    whole = value is not None and value.dtype == torch.int64
    return [int(value)] * shape[0] if whole and len(shape) == 1 else NotImplemented  # type: ignore[arg-type]


def _where(condition: Any, x: Any, y: Any) -> Any:
    if not all(isinstance(value, list) and len(value) == len(condition) for value in (condition, x, y)):
        return NotImplemented
    return [a if c else b for c, a, b in zip(condition, x, y, strict=True)]


def _product(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    if not isinstance(x, list) or noop_with_empty_axes:
        return NotImplemented
    return [math.prod(x)] if keepdims else math.prod(x)


def _modulo(a: Any, b: Any, *, fmod: int = 0) -> Any:
    return NotImplemented if fmod else _each(a, b, function=operator.mod)


def _identity(x: Any) -> Any:
    return x


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _has_bools(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(isinstance(item, bool) for item in value))


PLAIN: dict[str, Plain] = {
    "Add": partial(_each, function=operator.add),
    "Sub": partial(_each, function=operator.sub),
    "Mul": partial(_each, function=operator.mul),
    "Div": partial(_each, function=_divide),
    "Max": partial(_each, function=max),
    "Min": partial(_each, function=min),
    "Equal": partial(_each, function=operator.eq),
    "Greater": partial(_each, function=operator.gt),
    "Less": partial(_each, function=operator.lt),
    "Mod": _modulo,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Slice": _slice,
    "Reshape": _reshape,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Where": _where,
    "ReduceProd": _product,
    "Identity": _identity,
}

SHAPE_ONLY: dict[str, Plain] = {"Shape": shape, "Size": size}
