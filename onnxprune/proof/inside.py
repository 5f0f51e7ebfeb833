"""Both models run side by side with values inside them as outputs, and with decisions replayed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import numpy as np
import onnx_ir as ir

from onnxprune.graph import extras, sessions
from onnxprune.graph.extras import Kept
from onnxprune.graph.inputs import Feeds
from onnxprune.graph.tensors import constant
from onnxprune.proof import decisions, noise
from onnxprune.proof.decisions import Point, at_kept, first_output
from onnxprune.proof.differences import FLOOR, Tally, telling

NUMBERS = 1 << 25  # of all values inside that are held at a time, of one row
UNKNOWN = 16  # taken for the size of an axis that is not known
DEPTH = 3  # nodes between a stored weight and the node that reckons with it
NEXT = 3  # nodes behind a value that the simplifier may have taken into the node in front of it
SOFT = 0.1  # share of how far optimizations move the twin that counts as noise
MOST_SOFT = 1e-2  # of the largest number: where they move it further they are wrong, which is no noise

Value = tuple[str, str]  # (name in the cut model, name in the masked one)


@dataclass
class Looked:
    """What a look inside both models found."""

    values: dict[Value, Tally]
    decisions: dict[Value, Tally]
    outputs: dict[str, Tally]
    points: list[Point]  # that were replayed
    lost: list[str] = field(default_factory=list)  # decisions that could not be
    silent: set[str] = field(default_factory=set)  # of the twin's values: those that never vary, as a whole
    dead: set[str] = field(default_factory=set)  # those with a position that is always zero, though it is kept
    twins: dict[str, np.ndarray] = field(default_factory=dict)  # what stands for an array: its shape and type, twin's
    owns: dict[str, np.ndarray] = field(default_factory=dict)  # and those of the cut model, at the first batch

    def holds(self) -> bool:
        """Whether nothing inside differs, nor what decisions are made on."""
        return all(t.worst().share <= 1 for t in (*self.values.values(), *self.decisions.values()))


def weighted(masked: ir.Model, cut: ir.Model) -> list[Value]:
    """The values that nodes with weights give, in both models."""
    own = {value.name for node in cut.graph for value in node.outputs}
    return [
        (value.name or "", value.name or "")
        for node in masked.graph
        if any(_is_weight(v) for v in node.inputs)
        for value in node.outputs
        if value.name and value.name in own and (value.uses() or value.is_graph_output())
    ]


def _is_weight(value: ir.Value | None, depth: int = DEPTH) -> bool:
    """Whether a value is a stored weight, or computed from nothing but stored numbers, as quantized ones are."""
    if value is None:
        return False
    if value.is_initializer():
        tensor = value.const_value
        kind = None if tensor is None else tensor.dtype
        return tensor is not None and tensor.size > 1 and kind is not None and _holds_weights(kind)
    node = value.producer()
    if node is None or depth == 0:
        return False
    read = [v for v in node.inputs if v is not None]
    stored = all(v.is_initializer() or _is_weight(v, depth - 1) for v in read)
    return bool(read) and stored and any(_is_weight(v, depth - 1) for v in read)


def _holds_weights(kind: ir.DataType) -> bool:
    return kind.is_floating_point() or (kind.is_integer() and kind.bitwidth <= 8)


def affordable(masked: ir.Model, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """(the values that can be held, those that are too many); the smaller first, so that few are left out."""
    sizes = {value.name or "": _size(value) for node in masked.graph for value in node.outputs}
    held, total = set(), 0
    for value in sorted(values, key=lambda pair: sizes.get(pair[1], 0)):
        total += sizes.get(value[1], 0)
        if total > NUMBERS:
            break
        held.add(value)
    return [v for v in values if v in held], [v for v in values if v not in held]


def _size(value: ir.Value) -> int:
    shape = [] if value.shape is None else list(value.shape)
    return int(np.prod([n if isinstance(n, int) else UNKNOWN for n in shape[1:]], dtype=np.int64))


def behind(masked: ir.Model, name: str) -> list[str]:
    """The values that follow from a value alone: what a node may give into which those behind it were folded."""
    values = {value.name: value for node in masked.graph for value in node.outputs}
    value, found = values.get(name), []
    while value is not None and len(found) < NEXT:
        users = {user for user, _ in value.uses()}
        if len(users) != 1:
            break
        value = next((v for v in next(iter(users)).outputs if v.name), None)
        found += [value.name or ""] if value is not None else []
    return found


def look(
    cut: ir.Model,
    masked: ir.Model,
    batches: Iterable[Feeds],
    values: Sequence[Value],
    points: Sequence[Point],
    *,
    floor: float = FLOOR,
    noise_runs: int = 2,
    optimized: Sequence[Mapping[str, object]] = (),
) -> Looked:
    """Runs both models on `batches`, with what the twin decided on fed to both.

    optimized: what the masked model gave on each batch as onnxruntime optimizes it.
    """
    batches = list(batches)
    twins = list(dict.fromkeys([*(twin for _, twin in values), *(p.twin for p in points)]))
    owns = list(dict.fromkeys([*(own for own, _ in values), *(p.own for p in points)]))
    weighing = read_by_weighted(cut, masked) if values else []
    reads = {p.twin for p in weighing}
    stacked = _read_by_stacked(masked, weighing)
    base = _session(masked, list(dict.fromkeys([*twins, *reads])))
    first = sessions.run(base, batches[0])
    points, lost, shapes_at = _usable(cut, masked, batches, points, first)
    names = [value.name or "" for value in masked.graph.outputs]
    found = Looked(
        {value: Tally(floor) for value in values},
        {(p.own, p.twin): Tally(floor) for p in points},
        {name: Tally(floor) for name in names},
        points,
        lost,
    )
    fed_cut = decisions.fed(cut, points, attrgetter("ours"), first)
    ours = _session(fed_cut, list(dict.fromkeys([*owns, *(p.own for p in weighing)])))
    fed = decisions.fed(masked, points, attrgetter("theirs"), first)
    noisy = [_session(noise.moved(fed, seed), twins) for seed in range(noise_runs)]
    kept = extras.of(masked).kept
    told: dict[str, bool] = {}
    alive: dict[str, bool] = {}
    for number, batch in enumerate(batches):
        theirs = first if number == 0 else sessions.run(base, batch)
        full = {p.feed: theirs[p.twin] for p in points}
        others = [
            sessions.run(session, {**noise.moved_feeds(batch, seed), **full}) for seed, session in enumerate(noisy)
        ]
        own = sessions.run(ours, {**batch, **_fed_to_cut(theirs, points, kept, shapes_at(batch))})
        for tallies in (found.values, found.decisions):
            for (a, b), tally in tallies.items():
                _tally(tally, own[a], theirs[b], [o[b] for o in others], b, kept)
        soft = [_softened(theirs, optimized[number], names)] if optimized else []
        for name, tally in found.outputs.items():
            tally.add(own[name], theirs[name], [o[name] for o in (*others, *soft) if name in o])
        for twin in {*twins, *reads}:
            told[twin] = told.get(twin, False) or _varies(theirs[twin])
        if number == 0:
            found.twins = {name: _hollow(array) for name, array in theirs.items()}
            found.owns = {name: _hollow(array) for name, array in own.items()}
        for twin in reads:
            alive[twin] = alive.get(twin, False) or _is_alive(theirs[twin], twin, kept, twin in stacked)
    found.silent = {twin for twin, varies in told.items() if not varies}
    found.dead = {twin for twin, lives in alive.items() if not lives or twin in found.silent}
    return found


def _hollow(array: object) -> np.ndarray:
    """An array of the same shape and type that takes no memory."""
    like = np.asarray(array) if isinstance(array, np.ndarray) else np.zeros(())
    return np.broadcast_to(np.zeros((), like.dtype), like.shape)


def _session(model: ir.Model, extra: Sequence[str]):
    return sessions.open_session(model, extra_outputs=extra, threads=sessions.few_threads(), optimize=False, lean=True)


def _usable(
    cut: ir.Model, masked: ir.Model, batches: Sequence[Feeds], points: Sequence[Point], first: Mapping[str, np.ndarray]
) -> tuple[list[Point], list[str], Callable[[Feeds], Mapping[str, tuple[int, ...]]]]:
    """(the points that can be fed, nodes of those that cannot, shapes of the cut model's values on a batch)."""
    if not points:
        return [], [], lambda _: {}
    session = _session(cut, list(dict.fromkeys(p.own for p in points)))

    def shapes_at(batch: Feeds) -> dict[str, tuple[int, ...]]:
        return {name: np.shape(array) for name, array in sessions.run(session, batch).items()}

    kept, shapes = extras.of(masked).kept, shapes_at(batches[0])
    fits = [p for p in points if _is_float(first[p.twin]) and _given(first, p, kept, shapes) is not None]
    lost = list(dict.fromkeys(p.node for p in points if p not in fits and _is_float(first[p.twin])))
    return fits, lost, shapes_at


def _is_float(array: object) -> bool:
    return isinstance(array, np.ndarray) and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _given(
    theirs: Mapping[str, np.ndarray], point: Point, kept: Kept, shapes: Mapping[str, tuple[int, ...]]
) -> np.ndarray | None:
    return at_kept(theirs[point.twin], point.twin, kept, shapes[point.own])


def _fed_to_cut(
    theirs: Mapping[str, np.ndarray], points: Sequence[Point], kept: Kept, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """What the twin decides on, at the positions that the cut model has.

    Lengths that follow from other decisions (boxes that were found) may differ: then the whole array is what it reads.
    """
    found = {p.feed: _given(theirs, p, kept, shapes) for p in points}
    plain = {p.feed: _at_kept_of_any_length(theirs[p.twin], p.twin, kept) for p in points if found[p.feed] is None}
    return {name: array if array is not None else plain[name] for name, array in found.items()}


def _at_kept_of_any_length(array: np.ndarray, name: str, kept: Kept) -> np.ndarray:
    for axis, positions in kept.get(name, {}).items():
        array = np.take(array, positions(array.shape[axis]), axis=axis)
    return array


def _tally(tally: Tally, own: object, theirs: object, others: Sequence[object], name: str, kept: Kept) -> None:
    if not isinstance(own, np.ndarray) or not isinstance(theirs, np.ndarray):
        tally.add(own, theirs, others)
        return
    for axis in kept.get(name, {}):
        own, theirs, others = _where_it_counts(own, theirs, others, axis, kept[name][axis])
    choose = partial(at_kept, name=name, kept=kept, shape=own.shape)
    twin = choose(theirs)
    chosen = [choose(other) for other in others if isinstance(other, np.ndarray)]
    tally.add(own, theirs if twin is None else twin, [other for other in chosen if other is not None])


def _where_it_counts(
    own: np.ndarray, theirs: np.ndarray, others: Sequence[object], axis: int, positions: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, Sequence[object]]:
    """All of them at the kept positions of an axis on which the cut model too has those that go behind it."""
    size = theirs.shape[axis]
    if own.ndim != theirs.ndim or own.shape[axis] != size:
        return own, theirs, others
    chosen = positions(size)
    if not 0 < len(chosen) < size or chosen[-1] >= size:
        return own, theirs, others
    alike = [other for other in others if isinstance(other, np.ndarray) and other.shape == theirs.shape]
    return np.take(own, chosen, axis), np.take(theirs, chosen, axis), [np.take(other, chosen, axis) for other in alike]


def _softened(
    theirs: Mapping[str, np.ndarray], optimized: Mapping[str, object], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """The outputs moved by a share of how far onnxruntime's optimizations move them."""
    return {
        name: theirs[name] + np.float32(SOFT) * (np.asarray(optimized[name], np.float32) - theirs[name])
        for name in names
        if _comparable(theirs[name], optimized.get(name))
    }


def _comparable(a: object, b: object) -> bool:
    """Whether both are finite floats of one shape, and close."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype.kind != "f" or b.dtype.kind != "f":
        return False
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
    return bool(difference <= MOST_SOFT * np.abs(a).max(initial=0.0))


def _varies(array: object) -> bool:
    return not isinstance(array, np.ndarray) or array.dtype.kind != "f" or telling([array])


def _read_by_stacked(masked: ir.Model, weighing: Sequence[Point]) -> set[str]:
    """Of the values that nodes with weights read, those of which each matrix of a stack reads its own: experts."""
    nodes = list(masked.graph)
    return {
        p.twin
        for p in weighing
        for value in nodes[p.theirs].inputs
        if value is not None and _is_weight(value) and value.shape is not None
        if nodes[p.theirs].op_type == "MatMul" and len(value.shape) > 2 and value.shape[0] != 1
    }


def _is_alive(array: object, name: str, kept: Kept, stacked: bool) -> bool:
    """Whether no kept position of an axis is zero throughout; weights that are multiplied with it show nothing then.

    stacked: each matrix of a stack of weights has its own part of the array.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim < 2:
        return True
    chosen = kept.get(name, {})
    fits = all(positions(array.shape[k]).max(initial=0) < array.shape[k] for k, positions in chosen.items())
    array = _at_kept_of_any_length(array, name, kept) if fits else array
    if stacked and not np.any(array, axis=-2).all():
        return False
    channels = {1, array.ndim - 1}
    return all(np.any(array, axis=tuple(k for k in range(array.ndim) if k != axis)).all() for axis in channels)


# Behind zeros -------------------------------------------------------------------------------------------------------


def behind_silence(
    cut: ir.Model, masked: ir.Model, batch: Feeds, looked: Looked, *, floor: float = FLOOR, seed: int = 0
) -> dict[Value, Tally]:
    """What nodes with weights give on random numbers, where what they read never varies: else nothing tests them.

    What they would read without these is compared as well, for an activation that stands between two such nodes.
    """
    reads = [p for p in read_by_weighted(cut, masked) if p.twin in looked.dead]
    if not reads:
        return {}
    kept = extras.of(masked).kept
    base, own = looked.twins, looked.owns
    rng = np.random.default_rng(seed)
    full, few, used = {}, {}, []
    for point in reads:
        random = _random_at_kept(base[point.twin], point.twin, kept, np.shape(own[point.own]), rng)
        if random is not None:
            full[point.feed], few[point.feed] = random
            used.append(point)
    nodes, others = list(masked.graph), list(cut.graph)
    values = [(first_output(others[p.ours]), first_output(nodes[p.theirs])) for p in used]
    if not values:
        return {}
    values += [(p.own, p.twin) for p in used if _follows_smoothly(nodes[p.theirs].inputs[p.index])]
    ours = _session(decisions.fed(cut, used, attrgetter("ours"), base), [a for a, _ in values])
    fed = decisions.fed(masked, used, attrgetter("theirs"), base)
    names = [b for _, b in values]
    a, b = sessions.run(ours, {**batch, **few}), sessions.run(_session(fed, names), {**batch, **full})
    found = _tallied(values, a, b, (), kept, floor)
    if all(tally.worst().share <= 1 for tally in found.values()):
        return found
    moved = sessions.run(_session(noise.moved(fed, seed), names), {**batch, **full})
    return _tallied(values, a, b, [moved], kept, floor)


def _follows_smoothly(value: ir.Value | None) -> bool:
    """Whether no decision stands between `value` and the nodes with weights in front of it: see decisions.py."""
    left, seen = [value], set()
    while left:
        value = left.pop()
        node = None if value is None else value.producer()
        if node is None or node in seen or any(_is_weight(v) for v in node.inputs):
            continue
        if decisions.decides(node):
            return False
        seen.add(node)
        left.extend(node.inputs)
    return True


def _tallied(
    values: Sequence[Value], ours: Mapping, theirs: Mapping, noisy: Sequence[Mapping], kept: Kept, floor: float
) -> dict[Value, Tally]:
    found = {}
    for a, b in dict.fromkeys(values):
        found[a, b] = Tally(floor)
        _tally(found[a, b], ours[a], theirs[b], [other[b] for other in noisy], b, kept)
    return found


def read_by_weighted(cut: ir.Model, masked: ir.Model) -> list[Point]:
    """The computed floats that nodes with weights read, in both models."""
    own = {first_output(node): (number, node) for number, node in enumerate(cut.graph)}
    found: list[Point] = []
    for number, node in enumerate(masked.graph):
        other = own.get(first_output(node))
        if other is None or other[1].op_type != node.op_type or not any(_is_weight(v) for v in node.inputs):
            continue
        found += decisions.points_of(*other, number, node)
    return found


def _random_at_kept(
    like: np.ndarray, name: str, kept: Kept, shape: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """(random numbers in the shape of the twin's value, zero where positions are gone; those of the cut model)."""
    random = rng.standard_normal(like.shape, np.float32).astype(like.dtype)
    if like.shape != tuple(shape):
        for axis, positions in kept.get(name, {}).items():
            gone = np.ones(like.shape[axis], bool)
            gone[positions(like.shape[axis])] = False
            random[(*[slice(None)] * axis, gone)] = 0
    few = at_kept(random, name, kept, shape)
    return None if few is None else (random, few)


# Tables -------------------------------------------------------------------------------------------------------------


def tables(cut: ir.Model, masked: ir.Model, *, floor: float = FLOOR) -> Iterator[tuple[str, Tally]]:
    """Every row of the tables that Gather reads, in both models: no inputs reach all of them."""
    kept = extras.of(masked).kept
    own = {node.outputs[0].name: node for node in cut.graph if node.op_type == "Gather"}
    for node in masked.graph:
        other = own.get(node.outputs[0].name)
        if node.op_type != "Gather" or other is None or _axis(node) != 0 or _axis(other) != 0:
            continue
        a, b = constant(other.inputs[0]), constant(node.inputs[0])
        computed = all(n.inputs[1] is not None and n.inputs[1].const_value is None for n in (node, other))
        if a is None or b is None or a.ndim < 2 or not computed:
            continue
        rank = _rank(node.inputs[1])
        if a.shape != b.shape and rank is not None:
            # Axis 0 of the table becomes the axes of the indices; the others follow.
            lost = {axis - rank + 1: p for axis, p in kept.get(node.outputs[0].name or "", {}).items()}
            table = at_kept(b, "table", {"table": {k: p for k, p in lost.items() if k > 0}}, a.shape)
            b = b if table is None else table
        if a.shape == b.shape:
            tally = Tally(floor)
            tally.add(a.astype(np.float32), b.astype(np.float32))
            yield node.outputs[0].name or "", tally


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 0)


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
