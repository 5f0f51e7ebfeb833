"""Both models run side by side with values inside them as outputs, and with decisions replayed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from onnxprune.graph import extras, sessions
from onnxprune.graph.extras import Kept
from onnxprune.graph.inputs import Feeds
from onnxprune.graph.stored import is_stored
from onnxprune.proof import decisions, noise
from onnxprune.proof.decisions import Point, at_kept, first_output
from onnxprune.proof.differences import FLOOR, Arrays, Tally, deviation, is_array, telling

NUMBERS = 1 << 25  # of all values inside that are held at a time, of one row
UNKNOWN = 16  # taken for the size of an axis that is not known
DEPTH = 3  # nodes between a stored weight and the node that reckons with it
NEXT = 3  # nodes behind a value that the simplifier may have taken into the node in front of it
SOFT = 0.1  # share of how far optimizations move the twin that counts as noise
SAMPLED = 20_000  # numbers of an array from which its size is taken
NEAR = 1e-2  # share of its size by which a value may differ and still be taken for the same one
MOST_SOFT = 1e-2  # of the largest number: where they move it further they are wrong, which is no noise

Value = tuple[str, str]  # (name in the cut model, name in the masked one)


@dataclass
class Looked:
    """The result of comparing inner values of both models."""

    values: dict[Value, Tally]
    decisions: dict[Value, Tally]
    outputs: dict[str, Tally]
    points: list[Point]  # that were replayed
    lost: list[str] = field(default_factory=list[str])  # decisions that could not be
    silent: set[str] = field(default_factory=set[str])  # of the twin's values: those that never vary, as a whole
    alike: list[str] = field(default_factory=list[str])  # where both models can be cut into pieces, see pieces.py
    # What stands for an array, its shape and type, at the first batch: the twin's and those of the cut model.
    twins: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    owns: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    sizes: dict[str, float] = field(default_factory=dict[str, float])  # how large the twin's numbers are there

    def holds(self) -> bool:
        """Whether nothing inside differs, nor what decisions are made on."""
        return all(_holds(t) for t in (*self.values.values(), *self.decisions.values()))


def weighted(masked: ir.Model, cut: ir.Model) -> list[Value]:
    """The values that nodes with weights give, in both models."""
    own = {value.name for node in cut.graph for value in node.outputs}
    return [
        (value.name or "", value.name or "")
        for node in masked.graph
        if any(is_weight(v) for v in node.inputs)
        for value in node.outputs
        if value.name and value.name in own and (value.uses() or value.is_graph_output())
    ]


def is_weight(value: ir.Value | None, depth: int = DEPTH) -> bool:
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
    stored = all(v.is_initializer() or is_weight(v, depth - 1) for v in read)
    return bool(read) and stored and any(is_weight(v, depth - 1) for v in read)


def _holds_weights(kind: ir.DataType) -> bool:
    return kind.is_floating_point() or (kind.is_integer() and kind.bitwidth <= 8)


def affordable(masked: ir.Model, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """(the values that can be held, those that are too many); the smaller first, so that few are left out."""
    sizes = {value.name or "": _size(value) for node in masked.graph for value in node.outputs}
    held: set[Value] = set()
    total = 0
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
    value: ir.Value | None = values.get(name)
    found: list[str] = []
    while value is not None and len(found) < NEXT:
        users: set[ir.Node] = {user for user, _ in value.uses()}
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
    base = open_inside(masked, list(dict.fromkeys([*twins, *reads])))
    first = sessions.run(base, batches[0])
    points, lost, shapes_at = _usable(cut, masked, batches, points, first)
    names = [value.name or "" for value in masked.graph.outputs]
    grains = [noise.grain_of(value) for value in masked.graph.outputs]
    found = Looked(
        {value: Tally(floor) for value in values},
        {(p.own, p.twin): Tally(floor) for p in points},
        {name: Tally(floor, grain) for name, grain in zip(names, grains, strict=True)},
        points,
        lost,
    )
    rest: Iterator[Arrays] = map(partial(sessions.run, base), batches[1:])
    if _stays_on_disk(masked):
        rest = iter(list(rest))  # before the other is opened: two sessions would hold two models
    del base
    fed_cut = decisions.fed(cut, points, attrgetter("ours"), first)
    ours = open_inside(fed_cut, list(dict.fromkeys([*owns, *(p.own for p in weighing)])))
    fed = decisions.fed(masked, points, attrgetter("theirs"), first)
    noisy = [open_inside(noise.moved(fed, seed), twins) for seed in range(noise_runs)]
    kept = extras.of(masked).kept
    told: dict[str, bool] = {}
    near: set[str] = set()
    compared = [*found.values.items(), *found.decisions.items()]
    for number, batch in enumerate(batches):
        theirs = first if number == 0 else next(rest)
        full = {p.feed: theirs[p.twin] for p in points}
        others = [
            sessions.run(session, {**noise.moved_feeds(batch, seed), **full}) for seed, session in enumerate(noisy)
        ]
        own = sessions.run(ours, {**batch, **_fed_to_cut(theirs, points, kept, shapes_at(batch))})
        for (a, b), tally in compared:
            add_to(tally, own[a], theirs[b], [o[b] for o in others], b, kept)
        soft = [_softened(theirs, optimized[number], names)] if optimized else []
        for name, tally in found.outputs.items():
            tally.add(own[name], theirs[name], [o[name] for o in (*others, *soft) if name in o])
        for twin in {*twins, *reads}:
            told[twin] = told.get(twin, False) or _varies(theirs[twin])
        if number == 0:
            found.twins = {name: _hollow(array) for name, array in theirs.items()}
            found.owns = {name: _hollow(array) for name, array in own.items()}
            found.sizes = {name: _size_of(array) for name, array in theirs.items()}
            near = {p.twin for p in weighing if p.own == p.twin and _near(own[p.own], theirs[p.twin], p.twin, kept)}
    found.silent = {twin for twin, varies in told.items() if not varies}
    equal = {b for tallies in (found.values, found.decisions) for (a, b), t in tallies.items() if a == b and _holds(t)}
    found.alike = sorted(equal | near)
    return found


def _holds(tally: Tally) -> bool:
    return tally.worst().share <= 1


def _size_of(array: object) -> float:
    """The root of the mean square of the finite numbers, 1 where all are zero."""
    if not is_array(array) or array.dtype.kind != "f":
        return 1.0
    some = array.ravel()[:: max(1, array.size // SAMPLED)].astype(np.float64)
    some = some[np.isfinite(some)]
    return float(np.sqrt(np.mean(some**2))) or 1.0 if some.size else 1.0


def _near(own: object, theirs: object, name: str, kept: Kept) -> bool:
    """Whether both are the same value: the simplifier may have given a name to what follows it."""
    if not is_array(own) or not _is_float(theirs):
        return False
    twin = at_kept(theirs, name, kept, own.shape)
    if twin is None or not twin.size:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.abs(np.where(np.isfinite(twin), twin, 0))
        return bool(deviation(own, twin).max() <= NEAR * finite.max())


def _stays_on_disk(model: ir.Model) -> bool:
    return any(map(is_stored, model.graph.initializers.values()))


def _hollow(array: object) -> np.ndarray:
    """An array of the same shape and type that takes no memory."""
    like = np.asarray(array) if is_array(array) else np.zeros(())
    return np.broadcast_to(np.zeros((), like.dtype), like.shape)


def open_inside(model: ir.Model, extra: Sequence[str]):
    """A session that gives the values `extra` beside the outputs; unoptimized, for fusions compute other values."""
    return sessions.open_session(model, extra_outputs=extra, threads=sessions.few_threads(), optimize=False, lean=True)


def _usable(
    cut: ir.Model, masked: ir.Model, batches: Sequence[Feeds], points: Sequence[Point], first: Mapping[str, np.ndarray]
) -> tuple[list[Point], list[str], Callable[[Feeds], Mapping[str, tuple[int, ...]]]]:
    """(the points that can be fed, nodes of those that cannot, shapes of the cut model's values on a batch)."""
    if not points:
        return [], [], lambda _: {}
    session = open_inside(cut, list(dict.fromkeys(p.own for p in points)))

    def shapes_at(batch: Feeds) -> dict[str, tuple[int, ...]]:
        return {name: np.shape(array) for name, array in sessions.run(session, batch).items()}

    kept, shapes = extras.of(masked).kept, shapes_at(batches[0])
    fits = [p for p in points if _is_float(first[p.twin]) and _given(first, p, kept, shapes) is not None]
    lost = list(dict.fromkeys(p.node for p in points if p not in fits and _is_float(first[p.twin])))
    return fits, lost, shapes_at


def _is_float(array: object) -> TypeGuard[np.ndarray]:
    return is_array(array) and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _given(
    theirs: Mapping[str, np.ndarray], point: Point, kept: Kept, shapes: Mapping[str, tuple[int, ...]]
) -> np.ndarray | None:
    return at_kept(theirs[point.twin], point.twin, kept, shapes[point.own])


def _fed_to_cut(
    theirs: Mapping[str, np.ndarray], points: Sequence[Point], kept: Kept, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The values that the twin decides on, at the positions that the cut model has.

    Lengths that follow from other decisions (boxes that were found) may differ: then the whole array is what it reads.
    """
    found = {p.feed: _given(theirs, p, kept, shapes) for p in points}
    plain = {p.feed: _at_kept_of_any_length(theirs[p.twin], p.twin, kept) for p in points if found[p.feed] is None}
    return {name: array if array is not None else plain[name] for name, array in found.items()}


def _at_kept_of_any_length(array: np.ndarray, name: str, kept: Kept) -> np.ndarray:
    found = decisions.taken(array, name, kept, kept.get(name, {}))
    return array if found is None else found


def add_to(found: Tally, own: object, theirs: object, others: Sequence[object], name: str, kept: Kept) -> None:
    """Adds one batch of a value to its tally; the twin is compared at the positions `kept` that the cut model has."""
    if not is_array(own) or not is_array(theirs):
        found.add(own, theirs, others)
        return
    own = decisions.at_counted(own, name, kept, theirs.shape)
    choose = partial(at_kept, name=name, kept=kept, shape=own.shape)
    twin = choose(theirs)
    chosen = [choose(other) for other in others if is_array(other)]
    found.add(own, theirs if twin is None else twin, [other for other in chosen if other is not None])


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
    if not is_array(a) or not is_array(b) or a.dtype.kind != "f" or b.dtype.kind != "f":
        return False
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)
    return bool(difference <= MOST_SOFT * np.abs(a).max(initial=0.0))


def _varies(array: object) -> bool:
    return not is_array(array) or array.dtype.kind != "f" or telling([array])


def read_by_weighted(cut: ir.Model, masked: ir.Model) -> list[Point]:
    """The computed floats that nodes with weights read, in both models."""
    own = {first_output(node): (number, node) for number, node in enumerate(cut.graph)}
    found: list[Point] = []
    for number, node in enumerate(masked.graph):
        other = own.get(first_output(node))
        if other is None or other[1].op_type != node.op_type or not any(is_weight(v) for v in node.inputs):
            continue
        found += decisions.points_of(*other, number, node)
    return found
