"""The algebra of named dimensions: every axis of every tensor is a sum of products of `Dim`s.

    axis    = (segment, segment, ...)   sum, in order of position: what Concat makes
    segment = (dim, dim, ...)           product, outer to inner: what Flatten makes; () has length 1

A `Dim` is a leaf, or is defined by an axis of other Dims. One definition covers the three refinements:
`((b,),)` is an alias of b, `((b, c),)` a product, `((b,), (c,))` a sum. Defining a Dim refines it at every place
where it stands. A sum inside a product stays a factor of its own unless it is the outermost one, where it
distributes over the segment: (A + B) x C = A x C + B x C, while C x (A + B) interleaves and keeps its sum.

All relations between axes are stated with `unify`, `cut`, `merge`, `split` and `freeze`. Whatever does not align
is frozen with a reason, never guessed. A unit of a Dim is one of its positions; removing it removes it wherever
the Dim stands, so every tensor stays rectangular by construction.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Reason:
    """Why a Dim is frozen or reduced, and the node that makes it so."""

    text: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.node})" if self.node else self.text


class Dim:
    """A named set of `size` positions: a leaf, or defined by an axis of other Dims."""

    __slots__ = ("definition", "dynamic", "frozen", "name", "picks", "reduced", "size")

    def __init__(self, size: int, name: str = "", *, frozen: Reason | None = None, dynamic: bool = False):
        self.size = size
        self.name = name
        self.frozen = frozen
        self.reduced: Reason | None = None
        self.dynamic = dynamic
        self.definition: Axis | None = None
        self.picks = 0  # of its positions the model picks so many for each input, as a router picks experts

    @property
    def least(self) -> int:
        """How many of its positions have to stay."""
        return max(1, self.picks)

    def __repr__(self) -> str:
        marks = ("*" if self.frozen else "") + ("~" if self.reduced else "") + ("?" if self.dynamic else "")
        return f"{self.name or 'dim'}[{self.size}{marks}]"


Segment = tuple[Dim, ...]
Axis = tuple[Segment, ...]
ONE: Axis = ((),)
Keep = Mapping[Dim, npt.NDArray[np.bool_]]  # the units of each Dim that stay


def fresh(size: int, name: str = "") -> Axis:
    """An axis of one new, free Dim; an axis of length 1 couples with nothing."""
    return ONE if size == 1 else ((Dim(size, name),),)


def fixed(size: int, reason: Reason, *, dynamic: bool = False, name: str = "") -> Axis:
    """An axis of one new Dim that must stay whole."""
    if size == 1:
        return ONE
    return ((Dim(size, name, frozen=reason, dynamic=dynamic),),)


def segment_length(segment: Segment) -> int:
    """Number of positions of a segment: the product of its factors' sizes."""
    # Asked for thousands of times per model, mostly of one Dim.
    return segment[0].size if len(segment) == 1 else prod([dim.size for dim in segment])


def length(axis: Axis) -> int:
    """Number of positions of `axis`."""
    return segment_length(axis[0]) if len(axis) == 1 else sum([segment_length(segment) for segment in axis])


# Reading axes ---------------------------------------------------------------------------------------------------


def resolve(axis: Axis) -> Axis:
    """`axis` with every definition expanded, except sums that stand inside a product."""
    if len(axis) == 1:
        return _resolve_segment(axis[0])
    return tuple(part for segment in axis for part in _resolve_segment(segment))


def _resolve_segment(segment: Segment) -> Axis:
    """A product of Dims as the sum of products that it is once its Dims are replaced by their definitions."""
    if len(segment) == 1 and segment[0].definition is None and segment[0].size > 1:
        return (segment,)
    if all(dim.definition is None and dim.size != 1 for dim in segment):
        return (segment,) if all(dim.size for dim in segment) else ()
    factors = tuple(_splice(segment))
    if any(dim.size == 0 for dim in factors):
        return ()
    if not factors or factors[0].definition is None:
        return (factors,)
    outer, inner = resolve(factors[0].definition), factors[1:]
    factors[0].definition = outer  # remembered, so sums of sums stay flat
    # A part of length 1 brings the next factor to the front, which may be a sum as well.
    return tuple(piece for part in outer for piece in _resolve_segment(part + inner)) if inner else outer


def _splice(segment: Segment) -> Iterator[Dim]:
    for dim in segment:
        if dim.definition is not None and len(dim.definition) == 1:
            yield from _factors(dim, dim.definition[0])
        elif dim.size != 1:
            yield dim


def _factors(dim: Dim, segment: Segment) -> Segment:
    """The product that `dim` is, expanded; what was expanded is remembered, so chains of aliases stay short."""
    if any(part.definition is not None or part.size == 1 for part in segment):
        segment = tuple(_splice(segment))
        dim.definition = (segment,)
    return segment


def leaves(axis: Axis) -> list[Dim]:
    """Every leaf Dim of `axis`, as often as it stands there."""
    found: list[Dim] = []
    for segment in axis:
        for dim in segment:
            if dim.definition is not None:
                found += leaves(dim.definition)
            elif dim.size != 1:
                found.append(dim)
    return found


def keep_mask(axis: Axis, keep: Mapping[Dim, npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Kept positions of `axis` as booleans (length,), given those of its leaves; absent leaves are kept whole."""
    parts = [_segment_mask(segment, keep) for segment in axis]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.ones(0, bool)


def _segment_mask(segment: Segment, keep: Mapping[Dim, npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """True at the positions of a product of Dims at which every factor is kept."""
    mask = np.ones(1, bool)
    for dim in segment:
        if dim.definition is not None:
            factor = keep_mask(dim.definition, keep)
        else:
            factor = keep.get(dim)
            if factor is None:
                factor = np.ones(dim.size, bool)
        mask = np.logical_and.outer(mask, factor).ravel()
    return mask


def kept_length(axis: Axis, sizes: Mapping[Dim, int]) -> int:
    """Length of `axis` when each leaf in `sizes` has that many positions: a polynomial in the sizes."""
    total = 0
    for segment in axis:
        product = 1
        for dim in segment:
            product *= kept_length(dim.definition, sizes) if dim.definition is not None else sizes.get(dim, dim.size)
        total += product
    return total


def is_frozen(axis: Axis) -> bool:
    """Whether no position of `axis` can be removed."""
    return all(dim.frozen is not None for dim in leaves(axis))


def is_dynamic(axis: Axis) -> bool:
    """Whether the length of `axis` changes from run to run."""
    return any(dim.dynamic for dim in leaves(axis))


# Marks ----------------------------------------------------------------------------------------------------------


def freeze(axis: Axis, reason: Reason) -> None:
    """Marks every leaf of `axis` as one that must stay whole; the first reason stands."""
    for dim in leaves(axis):
        if dim.frozen is None:
            dim.frozen = reason


def reduce(axis: Axis, reason: Reason) -> None:
    """Marks every leaf of `axis` as averaged, normalized or otherwise summarized over, by the node in `reason`."""
    for dim in leaves(axis):
        if dim.reduced is None:
            dim.reduced = reason


def pick(axis: Axis, count: int, reason: Reason) -> None:
    """Marks `axis` as one of which the model picks `count` positions: at least so many stay.

    Where it is made of several Dims, or all positions are picked, it is frozen.
    """
    axis = resolve(axis)
    found = leaves(axis)
    if len(found) == 1 and len(axis) == 1 and count < found[0].size:
        found[0].picks = max(found[0].picks, count)
    else:
        freeze(axis, reason)


# Refining -------------------------------------------------------------------------------------------------------


def _define(dim: Dim, definition: Axis) -> None:
    """Makes `dim` another name of `definition`, which takes over its marks: frozen, reduced, picked, dynamic."""
    assert dim.definition is None, dim
    assert length(definition) == dim.size, (dim, definition)
    dim.definition = definition
    if dim.frozen is not None:
        freeze(definition, dim.frozen)
    if dim.reduced is not None:
        reduce(definition, dim.reduced)
    if dim.picks:
        pick(definition, dim.picks, Reason("the model picks among what these are parts of"))
    if dim.dynamic:
        for leaf in leaves(definition):
            leaf.dynamic = True


def _refine_sum(dim: Dim, first: int) -> None:
    parts = [Dim(size, f"{dim.name}.{i}", dynamic=dim.dynamic) for i, size in enumerate((first, dim.size - first))]
    _define(dim, tuple((part,) for part in parts))


def _refine_product(dim: Dim, inner: int) -> None:
    outer = Dim(dim.size // inner, f"{dim.name}.outer", dynamic=dim.dynamic)
    _define(dim, ((outer, Dim(inner, f"{dim.name}.inner", dynamic=dim.dynamic)),))


def _identify(a: Dim, b: Dim, explain: Callable[[str], Reason]) -> None:
    """Makes two Dims of equal size one."""
    if a.definition is not None and b.definition is not None:
        unify(a.definition, b.definition, explain)
        a.definition = ((b,),)
    elif a.definition is not None:
        _define(b, ((a,),))
    else:
        _define(a, ((b,),))


# The four verbs -------------------------------------------------------------------------------------------------


def unify(a: Axis, b: Axis, explain: Callable[[str], Reason] = Reason) -> None:
    """Makes two axes of equal length the same, refining their Dims; what cannot be aligned is frozen on both sides.

    explain: turns a text into the Reason (it adds the node).
    """
    if length(a) != length(b):
        why = explain(f"axes of length {length(a)} and {length(b)} meet")
        freeze(a, why)
        freeze(b, why)
        return
    if is_frozen(a) and is_frozen(b):
        return  # nothing to gain, and overlapping windows of one axis would be refined without end
    # Segments are aligned from the first on: what is already the same is dropped, the first difference is refined.
    left, right = list(reversed(a)), list(reversed(b))  # the next segment stands last
    while _expand_last(left) and _expand_last(right):
        x, y = left[-1], right[-1]
        short, long = sorted((x, y), key=segment_length)
        if segment_length(short) != segment_length(long):
            if not _split_segment(long, segment_length(short)):
                _misaligned(tuple(reversed(left)), tuple(reversed(right)), explain)
                return
        elif x == y or not _unify_factor(x, y, explain):
            if x != y:
                _misaligned((x,), (y,), explain)
            left.pop()
            right.pop()


def _expand_last(segments: list[Segment]) -> bool:
    """Expands the last segment until it stands in leaves; False where none is left."""
    while segments:
        last = segments.pop()
        expanded = _resolve_segment(last)
        segments.extend(reversed(expanded))
        if expanded:
            return True
    return False


def _misaligned(a: Axis, b: Axis, explain: Callable[[str], Reason]) -> None:
    why = explain(f"{_words(a)} does not align with {_words(b)}")
    freeze(a, why)
    freeze(b, why)


def _split_segment(segment: Segment, first: int) -> bool:
    """Refines the outermost factor so that a boundary falls behind `first` positions; False where none can."""
    inner = segment_length(segment[1:])
    if first % inner:
        return False
    _refine_sum(segment[0], first // inner)
    return True


def _unify_factor(a: Segment, b: Segment, explain: Callable[[str], Reason]) -> bool:
    """Aligns the innermost factors that differ, one step; False where they cannot be."""
    x, y = next((x, y) for x, y in zip(reversed(a), reversed(b), strict=False) if x is not y)
    if x.size == y.size:
        _identify(x, y, explain)
        return True
    small, big = (x, y) if x.size < y.size else (y, x)
    if big.definition is not None or big.size % small.size:
        return False
    _refine_product(big, small.size)
    return True


def cut(axis: Axis, start: int, stop: int, explain: Callable[[str], Reason] = Reason) -> Axis:
    """The sub-axis of positions start <= p < stop, refining where a boundary falls inside a Dim."""
    first = next(iter(leaves(axis)), None)
    if 0 < stop - start < length(axis) and first is not None and first.frozen is not None and is_frozen(axis):
        return fixed(stop - start, first.frozen, dynamic=is_dynamic(axis))
    while True:
        axis = resolve(axis)
        position = 0
        parts: list[Segment] = []
        for segment in axis:
            size = segment_length(segment)
            inside = [b - position for b in (start, stop) if position < b < position + size]
            if inside:
                if not _split_segment(segment, inside[0]):
                    why = explain(f"positions {start} to {stop} cut through {_words((segment,))}")
                    freeze(axis, why)
                    return fixed(stop - start, why)
                break
            if start <= position and position + size <= stop:
                parts.append(segment)
            position += size
        else:
            return tuple(parts)


def merge(axes: Sequence[Axis]) -> Axis:
    """The product of several axes, outer to inner: one axis that runs through all of them."""
    merged: Axis = ONE
    for outer in reversed(axes):
        outer = resolve(outer)
        if len(merged) > 1 and outer != ONE:
            merged = ((_sum_dim(merged),),)
        merged = tuple(segment + merged[0] for segment in outer) if len(merged) == 1 else merged
    return merged


def _sum_dim(axis: Axis) -> Dim:
    """A Dim that stands for the sum `axis` as one factor of a product."""
    dim = Dim(length(axis), "sum")
    dim.definition = axis
    return dim


def split(axis: Axis, sizes: Sequence[int], explain: Callable[[str], Reason] = Reason) -> list[Axis]:
    """One axis as several of the given sizes, outer to inner."""
    assert prod(sizes) == length(axis), (sizes, axis)
    rest = resolve(axis)
    parts: list[Axis] = []
    for size in reversed(sizes[1:]):
        peeled = _peel(rest, size, explain)
        if peeled is None:
            why = explain(f"{_words(rest)} does not split into {' x '.join(map(str, sizes))}")
            freeze(axis, why)
            return [fixed(size, why) for size in sizes]
        rest, inner = peeled
        parts.append(inner)
    return [resolve(rest), *reversed(parts)]


def _peel(axis: Axis, size: int, explain: Callable[[str], Reason]) -> tuple[Axis, Axis] | None:
    """`axis` as (outer, inner) with an inner length of `size`: the same inner tail is taken off each segment."""
    if size == 1:
        return axis, ONE
    if any(segment_length(segment) % size for segment in resolve(axis)):
        return _peel_chunks(axis, size, explain)
    rests: list[Segment] = []
    inner: Axis | None = None
    for segment in resolve(axis):
        parts = _peel_segment(segment, size, explain)
        if parts is None:
            return None
        rest, tail = parts
        rests.append(rest)
        if inner is None:
            inner = tail
        else:
            unify(inner, tail, explain)
    assert inner is not None
    return tuple(rests), inner


def _peel_chunks(axis: Axis, size: int, explain: Callable[[str], Reason]) -> tuple[Axis, Axis] | None:
    """Segments that straddle rows of `size`: each row is a chunk, the outer positions can then not be removed."""
    count = length(axis) // size
    if count > 64:
        return None
    chunks = [cut(axis, i * size, (i + 1) * size, explain) for i in range(count)]
    for chunk in chunks[1:]:
        unify(chunks[0], chunk, explain)
    return ((),) * count, chunks[0]


def _peel_segment(segment: Segment, size: int, explain: Callable[[str], Reason]) -> tuple[Segment, Axis] | None:
    """One product as (outer factors, inner axis of length `size`), refining the factor that straddles."""
    tail: Segment = ()
    rest = segment
    while True:
        need = size // segment_length(tail)
        if need == 1:
            return rest, (tail,)
        dim = rest[-1]
        if need % dim.size == 0:
            rest, tail = rest[:-1], (dim, *tail)
        elif dim.size % need:
            return None
        elif dim.definition is None:
            _refine_product(dim, need)
            rest, tail = tuple(_splice(rest)), tuple(_splice(tail))
        else:
            peeled = _peel(dim.definition, need, explain)
            if peeled is None:
                return None
            outer = peeled[0][0] if len(peeled[0]) == 1 else (_sum_dim(peeled[0]),)
            inner = peeled[1][0] if len(peeled[1]) == 1 else (_sum_dim(peeled[1]),)
            return (*rest[:-1], *outer), ((*inner, *tail),)


def reshape(axes: Sequence[Axis], sizes: Sequence[int], explain: Callable[[str], Reason] = Reason) -> list[Axis]:
    """The axes of a tensor reshaped to `sizes`: blocks of equal product are merged, then split."""
    lengths = [length(axis) for axis in axes]
    if 0 in lengths:
        why = explain("a tensor without elements is reshaped")
        for axis in axes:
            freeze(axis, why)
        return [fixed(size, why) for size in sizes]
    parts: list[Axis] = []
    for block, wanted in _blocks([axis for axis in axes if length(axis) != 1], [size for size in sizes if size != 1]):
        parts += split(merge(block), wanted, explain)
    remaining = iter(parts)
    return [next(remaining) if size != 1 else ONE for size in sizes]


def _blocks(axes: Sequence[Axis], sizes: Sequence[int]) -> Iterator[tuple[Sequence[Axis], Sequence[int]]]:
    """The shortest runs of axes and of sizes, none of length 1, that have equal products."""
    i = j = 0
    while i < len(axes):
        k, m, left, right = i + 1, j + 1, length(axes[i]), sizes[j]
        while left != right:
            if left < right:
                left, k = left * length(axes[k]), k + 1
            else:
                right, m = right * sizes[m], m + 1
        yield axes[i:k], sizes[j:m]
        i, j = k, m


def _words(axis: Axis) -> str:
    return " + ".join(" x ".join(str(dim.size) for dim in segment) or "1" for segment in axis)


def all_leaves(axes: Iterable[Axis]) -> dict[Dim, None]:
    """The leaf Dims of all `axes`, once each, in order of first appearance."""
    return dict.fromkeys(dim for axis in axes for dim in leaves(axis))


# Units ----------------------------------------------------------------------------------------------------------


def unit_positions(axis: Axis, dim: Dim) -> npt.NDArray[np.int64]:
    """For each position of `axis` the unit of leaf `dim` that it belongs to, -1 where it does not stand there."""
    return np.concatenate([_segment_units(segment, dim) for segment in axis]) if axis else np.zeros(0, np.int64)


def _segment_units(segment: Segment, dim: Dim) -> npt.NDArray[np.int64]:
    """For each position of a product of Dims the unit of `dim` that it belongs to, -1 where there is none."""
    units = np.full(1, -1, np.int64)
    for factor in segment:
        if factor is dim:
            inner = np.arange(dim.size)
        elif factor.definition is not None:
            inner = unit_positions(factor.definition, dim)
        else:
            inner = np.full(factor.size, -1, np.int64)
        units = np.maximum.outer(units, inner).ravel()
    return units
