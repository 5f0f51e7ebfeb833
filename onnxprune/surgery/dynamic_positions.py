"""Kept positions of an axis whose length is only known when the model runs, such as channels x time.

Let D be the product of the dynamic Dims of the axis, the same in every segment that has one. Then its length is
a + b * D, and so is the number of kept positions, with other constants. Both follow from the length that is found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune.coupling import dims
from onnxprune.coupling.dims import Axis, Dim, Keep

Add = Callable[..., ir.Value]  # add(op_type, *values or arrays, **attributes): the output of a new node


@dataclass(frozen=True)
class Part:
    """One segment, as factors: booleans (size,) of what is kept, or None for the dynamic ones together."""

    factors: tuple[np.ndarray | None, ...]

    @property
    def dynamic(self) -> bool:
        """Whether its length depends on D."""
        return any(mask is None for mask in self.factors)

    def count(self, *, kept: bool) -> int:
        """Positions, all or kept, for each of the dynamic ones."""
        return prod(int(mask.sum()) if kept else len(mask) for mask in self.factors if mask is not None)

    def sizes(self, *, kept: bool) -> list[int]:
        """The factors as a shape, all positions or the kept ones; the dynamic ones together are what is left, -1."""
        return [-1 if mask is None else int(mask.sum()) if kept else len(mask) for mask in self.factors]


Parts = Sequence[Part]


def parts_of(axis: Axis, keep: Keep) -> Parts | None:
    """The segments of a dynamic `axis`, or None where it is not dynamic, or its lengths do not follow from one D."""
    found: list[Part] = []
    dynamic: set[tuple[Dim, ...]] = set()
    for segment in dims.resolve(axis):
        factors: list[np.ndarray | None] = []
        moving: list[Dim] = []
        for dim in segment:
            if not dims.is_dynamic(((dim,),)):
                factors.append(dims.keep_mask(((dim,),), keep))
                continue
            if moving and factors[-1] is not None:
                return None  # two dynamic factors with others between them: -1 can stand for one run of them only
            if not moving:
                factors.append(None)
            moving.append(dim)
        if moving:
            dynamic.add(tuple(moving))
        found.append(Part(tuple(factors)))
    # Segments with different dynamic factors would need more than one number, and only the whole length is found; a
    # dynamic factor that loses positions itself has no mask of a known length.
    if len(dynamic) != 1 or any(dim in keep for dim in dims.leaves((next(iter(dynamic)),))):
        return None
    return found


def _line(parts: Parts, *, kept: bool) -> tuple[int, int]:
    """(a, b) of length = a + b * D."""
    counts = [(part.dynamic, part.count(kept=kept)) for part in parts]
    return sum(n for moving, n in counts if not moving), sum(n for moving, n in counts if moving)


def kept_at(parts: Parts, length: int) -> np.ndarray:
    """The kept positions (K,) of an axis that has `length` now."""
    a, b = _line(parts, kept=False)
    masks: list[np.ndarray] = []
    for part in parts:
        mask = np.ones(1, bool)
        for factor in part.factors:
            mask = np.outer(mask, np.ones((length - a) // b, bool) if factor is None else factor).reshape(-1)
        masks.append(mask)
    return np.flatnonzero(np.concatenate(masks))


def chosen(add: Add, value: ir.Value, position: int, parts: Parts) -> ir.Value:
    """`value` at the kept positions of its axis `position`."""
    d = _dynamic(add, value, position, _line(parts, kept=False))
    return add("Gather", value, _joined(add, d, parts, kept=False), axis=position)


def spread(add: Add, value: ir.Value, padded: ir.Value, position: int, parts: Parts) -> ir.Value:
    """Zeros at the removed positions; `value` has the kept ones, `padded` a zero behind them."""
    line = _line(parts, kept=True)
    d = _dynamic(add, value, position, line)
    end = _length(add, d, line)
    return add("Gather", padded, _joined(add, d, parts, kept=True, removed=end), axis=position)


def _dynamic(add: Add, value: ir.Value, position: int, line: tuple[int, int]) -> ir.Value:
    """D (1,), from the length of the axis."""
    length = add("Gather", add("Shape", value), np.array([position]), axis=0)
    return add("Div", add("Sub", length, np.array(line[:1])), np.array(line[1:]))


def _length(add: Add, d: ir.Value, line: tuple[int, int]) -> ir.Value:
    """a + b * D (1,), of line (a, b)."""
    return add("Add", add("Mul", d, np.array(line[1:])), np.array(line[:1]))


def _joined(add: Add, d: ir.Value, parts: Parts, *, kept: bool, removed: ir.Value | None = None) -> ir.Value:
    """Indices by which a Gather takes the kept positions out of an axis that holds all of them.

    kept: the way back: the axis holds the kept ones alone, and the result has all positions; `removed` is the index
    that is read for those that are not there."""
    found: list[ir.Value] = []
    for number, part in enumerate(parts):
        count = _length(add, d, (0, n) if part.dynamic else (n, 0)) if (n := part.count(kept=kept)) else None
        if count is None:
            grid = add("ConstantOfShape", np.array([0]), value=ir.tensor(np.array([0])))
        else:
            # The positions of as many ones are 0, 1, ...
            ones = add("ConstantOfShape", count, value=ir.tensor(np.array([1])))
            grid = add("Reshape", add("NonZero", ones), np.array(part.sizes(kept=kept)))
            start = _length(add, d, _line(parts[:number], kept=kept))
            grid = add("Add", grid, start)
        lost = [(axis, mask) for axis, mask in enumerate(part.factors) if mask is not None and not mask.all()]
        for axis, mask in lost:
            # Into the kept ones: position k stands where the kept ones up to it end; removed ones read any, and are
            # replaced below.
            places = np.cumsum(mask) - 1 if kept else np.flatnonzero(mask)
            grid = add("Gather", grid, np.maximum(places, 0), axis=axis)
        if removed is not None and lost:
            masks = [np.ones(1, bool) if mask is None else mask for mask in part.factors]
            grid = add("Where", np.stack(np.meshgrid(*masks, indexing="ij")).all(axis=0), grid, removed)
        found.append(add("Reshape", grid, np.array([-1])))
    return add("Concat", *found, axis=0)
