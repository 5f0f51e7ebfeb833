"""The algebra: unify is an equivalence, lengths are invariant, the order of rules does not matter."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.coupling import dims
from onnxprune.coupling.dims import Axis, Dim, Reason

KEEP_SOME = st.integers(0, 2**32 - 1)


def leaf(size: int, name: str = "") -> Axis:
    return ((Dim(size, name),),)


def random_keep(axes: list[Axis], seed: int) -> dict[Dim, np.ndarray]:
    """A random half of every free leaf."""
    rng = np.random.default_rng(seed)
    free = [dim for dim in dims.all_leaves(axes) if dim.frozen is None]
    return {dim: rng.random(dim.size) < 0.5 for dim in free}


@st.composite
def axes_of_length(draw: st.DrawFn, total: int) -> Axis:
    """Sums of products of leaves with `total` positions; sizes are powers of two, so most of them align."""
    segments, left = [], total
    while left:
        size = draw(st.sampled_from([s for s in (1, 2, 4, 8, 16, 32) if s <= left]))
        factors, rest = [], size
        while rest > 1:
            factor = draw(st.sampled_from([f for f in (2, 4, 8, 16, 32) if rest % f == 0]))
            factors.append(Dim(factor))
            rest //= factor
        segments.append(tuple(factors))
        left -= size
    return tuple(segments)


@st.composite
def systems(draw: st.DrawFn) -> tuple[list[Axis], list[tuple[int, int]]]:
    total = draw(st.sampled_from([4, 8, 12, 16, 32]))
    axes = [draw(axes_of_length(total)) for _ in range(draw(st.integers(2, 4)))]
    pairs = st.tuples(st.integers(0, len(axes) - 1), st.integers(0, len(axes) - 1))
    return axes, draw(st.lists(pairs, min_size=1, max_size=4))


def units(axes: list[Axis]) -> set[frozenset[tuple[int, int]]]:
    """What each removable unit removes: (axis, position) pairs, whatever the leaves are called."""
    found = set()
    for dim in dims.all_leaves(axes):
        for position in range(dim.size) if dim.frozen is None else ():
            keep = {dim: np.arange(dim.size) != position}
            gone = ((i, int(p)) for i, axis in enumerate(axes) for p in np.flatnonzero(~dims.keep_mask(axis, keep)))
            found.add(frozenset(gone))
    return found


@given(systems(), KEEP_SOME)
@settings(max_examples=150, deadline=None)
def test_unified_axes_lose_the_same_positions(system, seed):
    axes, pairs = system
    lengths = [dims.length(axis) for axis in axes]
    for a, b in pairs:
        dims.unify(axes[a], axes[b])
    keep = random_keep(axes, seed)
    for a, b in pairs:
        assert np.array_equal(dims.keep_mask(axes[a], keep), dims.keep_mask(axes[b], keep))
    assert [dims.length(dims.resolve(axis)) for axis in axes] == lengths
    for axis in axes:
        assert int(dims.keep_mask(axis, keep).sum()) == dims.kept_length(
            axis, {d: int(k.sum()) for d, k in keep.items()}
        )


@given(systems())
@settings(max_examples=150, deadline=None)
def test_unifying_again_changes_nothing(system):
    axes, pairs = system
    for a, b in pairs:
        dims.unify(axes[a], axes[b])
    before, free = units(axes), {dim for dim in dims.all_leaves(axes) if dim.frozen is None}
    for a, b in pairs:
        dims.unify(axes[b], axes[a])
    assert units(axes) == before
    assert {dim for dim in dims.all_leaves(axes) if dim.frozen is None} == free


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_unifications_does_not_matter(data):
    total = data.draw(st.sampled_from([8, 16]))
    shapes = [
        [[dim.size for dim in segment] for segment in data.draw(axes_of_length(total))]
        for _ in range(data.draw(st.integers(2, 3)))
    ]
    results, frozen = [], False
    for order in permutations([(i, j) for i in range(len(shapes)) for j in range(i)]):
        axes = [tuple(tuple(Dim(size) for size in segment) for segment in shape) for shape in shapes]
        for a, b in order:
            dims.unify(axes[a], axes[b])
        frozen = frozen or any(dim.frozen for dim in dims.all_leaves(axes))
        results.append(units(axes))
    if not frozen:  # where nothing aligns, what is frozen may depend on what was refined before
        assert all(result == results[0] for result in results)


@given(systems(), st.data())
@settings(max_examples=100, deadline=None)
def test_frozen_only_grows(system, data):
    axes, pairs = system
    chosen = data.draw(st.sampled_from(list(dims.all_leaves(axes)) or [Dim(2)]))
    why = Reason("because", "node")
    dims.freeze(((chosen,),), why)
    for a, b in pairs:
        before = units(axes)
        dims.unify(axes[a], axes[b])
        assert all(any(old <= new for old in before) for new in units(axes))  # a new unit holds whole old ones
    assert all(dim.frozen for dim in dims.leaves(((chosen,),)))


@given(axes_of_length(24), st.integers(0, 24), st.integers(0, 24), KEEP_SOME)
@settings(max_examples=150, deadline=None)
def test_a_cut_holds_the_positions_between(axis, one, other, seed):
    start, stop = sorted((one, other))
    part = dims.cut(axis, start, stop)
    assert dims.length(part) == stop - start
    keep = random_keep([axis], seed)
    assert np.array_equal(dims.keep_mask(part, keep), dims.keep_mask(axis, keep)[start:stop])


@given(axes_of_length(16), axes_of_length(4), KEEP_SOME)
@settings(max_examples=100, deadline=None)
def test_a_merged_axis_is_the_outer_product(a, b, seed):
    merged = dims.merge([a, b])
    keep = random_keep([a, b], seed)
    expected = np.logical_and.outer(dims.keep_mask(a, keep), dims.keep_mask(b, keep)).ravel()
    assert np.array_equal(dims.keep_mask(merged, keep), expected)


@given(axes_of_length(32), st.sampled_from([[4, 8], [2, 16], [2, 4, 4], [32, 1], [1, 32]]), KEEP_SOME)
@settings(max_examples=150, deadline=None)
def test_split_and_merge_are_inverse(axis, sizes, seed):
    parts = dims.split(axis, sizes)
    assert [dims.length(part) for part in parts] == sizes
    keep = random_keep([axis, *parts], seed)
    if not all(dims.is_frozen(part) for part in parts):
        assert np.array_equal(dims.keep_mask(dims.merge(parts), keep), dims.keep_mask(axis, keep))


@given(
    st.permutations([2, 3, 4]), st.sampled_from([[6, 4], [24], [2, 12], [4, 6], [3, 8], [8, 3], [2, 3, 4]]), KEEP_SOME
)
@settings(max_examples=100, deadline=None)
def test_reshape_keeps_the_flat_order(source, target, seed):
    axes = [leaf(size) for size in source]
    result = dims.reshape(axes, target)
    keep = random_keep([*axes, *result], seed)
    assert np.array_equal(dims.keep_mask(dims.merge(axes), keep), dims.keep_mask(dims.merge(result), keep))


def test_products_that_do_not_align_are_frozen_with_a_reason():
    a, b = dims.merge([leaf(6), leaf(4)]), dims.merge([leaf(8), leaf(3)])
    dims.unify(a, b, lambda text: Reason(text, "Add_7"))
    assert dims.is_frozen(a)
    assert dims.is_frozen(b)
    reason = dims.leaves(a)[0].frozen
    assert reason is not None
    assert str(reason) == "6 x 4 does not align with 8 x 3 (Add_7)"


def test_axes_of_different_length_are_frozen():
    a, b = leaf(6), leaf(4)
    dims.unify(a, b)
    assert dims.is_frozen(a)
    assert dims.is_frozen(b)


def test_a_concatenation_refines_what_it_meets():
    a, b, whole = leaf(3), leaf(5), leaf(8)
    dims.unify((*a, *b), whole)
    assert [dim.size for dim in dims.leaves(whole)] == [3, 5]


def test_channel_shuffle_is_a_transpose_of_two_factors():
    x = leaf(12)
    outer, inner = dims.split(x, [3, 4])
    shuffled = dims.merge([inner, outer])
    keep = {dims.leaves(outer)[0]: np.array([True, False, True])}
    assert dims.keep_mask(x, keep).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert dims.keep_mask(shuffled, keep).tolist() == [True, False, True] * 4


def test_a_sum_inside_a_product_keeps_its_boundary():
    x = dims.merge([leaf(2), (*leaf(3), *leaf(5))])
    y = dims.merge([leaf(2), (*leaf(3), *leaf(5))])
    dims.unify(x, y)
    assert not dims.is_frozen(x)
    assert [dim.size for dim in dims.leaves(x)] == [2, 3, 5]


def test_a_part_of_length_one_in_front_of_a_sum():
    """A size-one part of the outer factor once left a sum unexpanded at the front of a segment."""
    inner = (*leaf(2), *leaf(2))
    x = dims.merge([(*dims.ONE, *leaf(3)), inner])
    dims.unify(x, leaf(16))
    assert dims.length(dims.resolve(x)) == 16


def test_marks_survive_refinement():
    x = leaf(8, "x")
    dims.reduce(x, Reason("normalizes over it"))
    left, right = dims.cut(x, 0, 3), dims.cut(x, 3, 8)
    assert all(dim.reduced for axis in (left, right) for dim in dims.leaves(axis))


@pytest.mark.parametrize(("parts", "size"), [([2, 3], 4), ([1, 1, 1], 3)])
def test_a_sum_is_split_into_rows_only_where_it_can_be(parts, size):
    axis = tuple(segment for part in parts for segment in (leaf(part) if part > 1 else dims.ONE))
    total = sum(parts)
    if total % size:
        with pytest.raises(AssertionError):
            dims.split(axis, [total // size, size])
    else:
        assert [dims.length(part) for part in dims.split(axis, [total // size, size])] == [total // size, size]


def test_overlapping_windows_of_a_frozen_axis_are_not_refined():
    """A signal is cut into two overlapping windows, both seen as 900 rows: each row is the next one of the other."""
    why = Reason("graph input 'x'")
    x = dims.fixed(144160, why)
    one, two = dims.cut(x, 0, 144000), dims.cut(x, 160, 144160)
    rows, others = dims.split(one, (900, 160)), dims.split(two, (900, 160))
    dims.unify(rows[0], others[0])
    assert [dims.length(axis) for axis in (*rows, *others)] == [900, 160, 900, 160]
    assert all(leaf.frozen == why for axis in (*rows, *others) for leaf in dims.leaves(axis))


def test_a_window_of_a_frozen_axis_stays_dynamic():
    x = dims.fixed(10, Reason("graph input 'x'"), dynamic=True)
    assert dims.is_dynamic(dims.cut(x, 2, 6))


def test_a_frozen_axis_freezes_a_free_one():
    free = leaf(8)
    dims.unify(dims.fixed(8, Reason("here")), free)
    assert dims.is_frozen(free)
