"""The twin: on random and real inputs the cut model equals the masked model, in numbers."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.data import batch_axes, batch_size_of, input_infos
from onnxprune.errors import GraphError
from onnxprune.graph import bodies, branches, extras, half, sessions
from onnxprune.graph.apart import CrashedError, apart
from onnxprune.graph.inputs import Feeds
from onnxprune.graph.tensors import draws, size_bytes
from onnxprune.proof import bodies_apart, decisions, inside, pieces, unreached
from onnxprune.proof.differences import FLOOR, HALF_FLOOR, Arrays, Tally, telling
from onnxprune.proof.evidence import Evidence, Verification, conclude, item, require
from onnxprune.proof.feeds import random_feeds
from onnxprune.proof.inside import Looked, Value
from onnxprune.proof.noise import grain_of
from onnxprune.system.memory import LARGE_MODEL_BYTES, halving

__all__ = [
    "Verification",
    "compare",
    "compare_apart",
    "compare_file",
    "compare_or_tell",
    "random_feeds",
    "require",
    "seeded",
]

LOOKED_AT = 160_000  # numbers of all inputs of a batch that is looked at inside: one image, or many small rows
MOST_ROWS, MOST_BATCHES = 8, 4
NOTHING_SHOWS = "and so does what stands in front of it: real samples may show more"
UNSTABLE = 0.5  # share of its size that is allowed where a value is its own noise


def compare(
    cut: ir.Model, masked: ir.Model, feeds: Iterable[Feeds], *, look_inside: bool = True, file: Path | None = None
) -> Verification:
    """Runs both models on all `feeds` in onnxruntime and compares every output, and what nodes with weights give.

    Each position of an axis is judged by its own size and noise, see differences.py. Operators that decide are fed with
    what the masked model decides on, see decisions.py, where outputs differ, and wherever values inside are compared.
    Half precision rounds by more than is allowed: inside, such models are compared in single precision.
    Branches that are taken on none of the feeds are compared as well, where they run: each as if it were always taken.
    look_inside: whether the nodes of both are the same ones, but for rewritings. file: where `cut` lies as it will run.
    """
    batches = list(feeds)
    found = _compare(cut, masked, batches, look_inside=look_inside, file=file)
    if not found.ok:
        return found
    forced = extras.of(masked).forced
    others = [_forced(cut, masked, batches, choices, look_inside) for choices in forced]
    ran = [choices for choices, other in zip(forced, others, strict=True) if other.samples]
    in_bodies, fed = bodies_apart.compared(_compare, cut, masked, batches, ran) if look_inside else ([], [])
    if not others and not in_bodies:
        return found
    evidence = [*found.evidence, *(each for other in others for each in other.evidence), *in_bodies]
    replayed = dict.fromkeys([*(name for each in (found, *others) for name in each.replayed), *fed])
    return conclude(evidence, found.samples, [found.note] if found.note else [], tuple(replayed))


def _forced(
    cut: ir.Model, masked: ir.Model, batches: list[Feeds], choices: Mapping[str, bool], look_inside: bool
) -> Verification:
    """Compares both models with the branches in `choices` always taken, which inputs alone might never reach."""
    *_, (name, choice) = choices.items()
    where = f"{name}, {'then' if choice else 'else'} branch"
    ours = {node.name for node in cut.graph.all_nodes() if node.op_type == "If"}
    if not choices.keys() <= ours:
        return conclude([Evidence("branch", where, untested="the cut model has no such operator")], 0)
    try:
        return _compare(
            branches.decide(cut, choices), branches.decide(masked, choices), batches, look_inside=look_inside
        )
    except GraphError as error:
        return conclude([Evidence("branch", where, untested=f"it does not run on these inputs: {error}")], 0)


def _compare(
    cut: ir.Model, masked: ir.Model, feeds: Iterable[Feeds], *, look_inside: bool = True, file: Path | None = None
) -> Verification:
    """Compares both models along the branches that they take by themselves."""
    if extras.of(cut).maps or _unseeded(cut):
        file = None  # the file's outputs are maps, which are set aside in `cut`, or it draws other numbers in every run
    cut, masked = seeded(cut), seeded(masked)
    floor = HALF_FLOOR if half.has_halves(masked) or half.has_halves(cut) else FLOOR
    batches = list(feeds)
    few = _few(masked, batches)
    rows = sum(next((int(array.shape[0]) for array in batch.values() if array.ndim), 1) for batch in batches)
    batches, ours, theirs = _outputs_of_both(file or cut, masked, batches)
    kinds = sessions.kinds_in_single(masked) or sessions.kinds_in_single(cut)
    one, two = (half.single(model, kinds) if kinds else model for model in (cut, masked))
    given = half.single_feeds(few, kinds)
    sides = _Sides(cut, masked, one, two, floor, kinds)
    points, missing = decisions.pairs(one, two)
    values, left = inside.affordable(two, inside.weighted(two, one)) if look_inside else ([], [])
    looked = inside.look(one, two, given, values, points, floor=floor, noise_runs=0) if look_inside else None
    if looked is None or not looked.holds() or not _hold(_tallied(sides, ours, theirs)):
        if looked is None and _hold(quick := _tallied(sides, ours, theirs)):
            return conclude([item("output", name, tally.worst(), tally.rows) for name, tally in quick.items()], rows)
        optimized = _outputs(masked, few)
        looked = inside.look(one, two, given, values, points, floor=floor, optimized=optimized)
    outputs, notes = _outputs_judged(sides, batches, ours, theirs, looked)
    evidence = [*_output_evidence(two, outputs, looked, theirs)]
    evidence += _inside_evidence(one, two, given, looked, floor)
    if look_inside:
        evidence += _piece_evidence(one, two, given, looked, theirs, floor)
    notes += [f"'{name}' varies too little to show an error by itself" for name in blind_outputs(two, theirs)[:3]]
    evidence += [Evidence("inside", twin, untested="too many numbers to hold") for _, twin in left]
    lost = [*missing, *looked.lost] if not all(found.ok for found in evidence) else []
    evidence += [Evidence("decision", name, untested="the cut model has no such operator") for name in lost]
    replayed = tuple(dict.fromkeys(p.node for p in looked.points))
    return conclude(evidence, rows, notes, replayed)


@dataclass(frozen=True)
class _Sides:
    """Both models as they are, and as they are compared inside: with `kinds` of numbers written as single precision."""

    cut: ir.Model
    masked: ir.Model
    one: ir.Model
    two: ir.Model
    floor: float
    kinds: frozenset[ir.DataType]


def compare_apart(
    cut: ir.Model, masked: ir.Model, feeds: Iterable[Feeds], *, look_inside: bool = True, file: Path | None = None
) -> Verification:
    """`compare` in another process: a native library may end that, but not this one.

    Raises: CrashedError where it did.
    """
    # The other process may have been started in another folder.
    return apart(_compare_sent, [cut, masked], list(feeds), look_inside, file and file.resolve())


def _compare_sent(
    cut: ir.Model, masked: ir.Model, batches: list[Feeds], look_inside: bool, file: Path | None
) -> Verification:
    return compare(cut, masked, batches, look_inside=look_inside, file=file)


def compare_or_tell(
    cut: ir.Model,
    masked: ir.Model,
    feeds: Iterable[Feeds],
    where: str,
    *,
    look_inside: bool = True,
    file: Path | None = None,
) -> Verification:
    """As `compare_apart`; where: what the message begins with.

    Raises: GraphError when a native library ended the other process.
    """
    try:
        return compare_apart(cut, masked, feeds, look_inside=look_inside, file=file)
    except CrashedError as crash:
        raise GraphError(
            f"{where}: onnxruntime ends with {crash} on the cut or on the masked model, so that these cannot be "
            "compared; nothing was written. Please report this model"
        ) from crash


def compare_file(file: Path, masked: ir.Model, feeds: Iterable[Feeds]) -> Verification:
    """`compare` of the model in `file`, read from there; a native library may end that, but not this process.

    Raises: CrashedError where it did.
    """
    return apart(_compare_read, [masked], file.resolve(), list(feeds))


def _compare_read(masked: ir.Model, file: Path, batches: list[Feeds]) -> Verification:
    return compare(graph.load(file), masked, batches, file=file)


# Outputs ------------------------------------------------------------------------------------------------------------


def _outputs_judged(
    sides: _Sides, batches: list[Feeds], ours: Sequence[Arrays], theirs: Sequence[Arrays], looked: Looked
) -> tuple[dict[str, Tally], list[str]]:
    """(tallies of the outputs, what a reader should know): as both models run, else as they run unoptimized, else with
    decisions replayed on all batches."""
    plain = _tallied(sides, ours, theirs, looked)
    if _hold(plain):
        return plain, []
    name, place = max(((n, t.worst()) for n, t in plain.items()), key=lambda pair: pair[1].share)
    half_way = sides.one is not sides.cut
    if not looked.points and not half_way:
        again = _tallied(sides, ours, _outputs(sides.masked, batches, optimize=False), looked)
        if not _hold(again):
            _see_noise_where_they_fail(plain, sides, batches, ours, theirs, looked)
            return plain, []
        moved = f"onnxruntime's optimizations move '{name}' of the masked model by {place.difference:.2g}"
        return again, [moved]
    given = half.single_feeds(batches, sides.kinds)
    parts = [part for batch in given for part in _parts_of(sides.two, batch)]
    found = inside.look(sides.one, sides.two, parts, (), looked.points, floor=sides.floor, noise_runs=1)
    for output, tally in found.outputs.items():
        tally.noise_as(looked.outputs[output])
    looked.decisions.update(found.decisions)
    notes: list[str] = []
    if half_way:
        notes.append(f"compared in single precision: half moves '{name}' by {place.difference:.2g}")
    if looked.points:
        notes.append(
            f"as it runs, '{name}' is up to {place.difference:.2g} away, for rounding errors become other decisions; "
            "with the same decisions it is not"
            if _hold(found.outputs)
            else "decisions do not explain it"
        )
    return found.outputs, notes


def _see_noise_where_they_fail(
    tallies: Mapping[str, Tally],
    sides: _Sides,
    batches: list[Feeds],
    ours: Sequence[Arrays],
    theirs: Sequence[Arrays],
    looked: Looked,
) -> None:
    """Gives the tallies the noise that the masked model has on those batches on which the outputs are too far apart.

    It was seen on a few batches only, and what is nearly zero in these, such as a row of a map without any text, may
    be large, and so move more, in another.
    """
    failing = [
        batch for batch, a, b in zip(batches, ours, theirs, strict=True) if not _hold(_tallied(sides, [a], [b], looked))
    ]
    if failing:
        found = inside.look(sides.one, sides.two, failing, (), (), floor=sides.floor)
        for name, tally in tallies.items():
            tally.noise_as(found.outputs[name])


def _tallied(
    sides: _Sides, ours: Sequence[Arrays], theirs: Sequence[Arrays], looked: Looked | None = None
) -> dict[str, Tally]:
    """The differences of each output of both models over all batches, by name; `looked` tells their noise."""
    tallies = {value.name or "": Tally(sides.floor, grain_of(value)) for value in sides.masked.graph.outputs}
    for a, b in zip(ours, theirs, strict=True):
        for name, tally in tallies.items():
            tally.add(a[name], b[name])
    if looked is not None:
        for name, tally in tallies.items():
            tally.noise_as(looked.outputs[name])
    return tallies


def _hold(tallies: Mapping[str, Tally]) -> bool:
    return all(tally.worst().share <= 1 for tally in tallies.values())


def _output_evidence(
    masked: ir.Model, outputs: Mapping[str, Tally], looked: Looked, theirs: Sequence[Arrays]
) -> Iterator[Evidence]:
    """One item for each output as a whole, for the position that differs most, and for each part of a joint one."""
    for value in masked.graph.outputs:
        name = value.name or ""
        tally = outputs[name]
        worst = tally.worst()
        yield item("output", name, tally.of_whole(), tally.rows, _unstable(tally))
        if worst.place:
            yield item("part", name, worst, tally.rows)
        for axis, start, stop, part in joined(value):
            found = tally.part(axis, start, stop, grain_of(part))
            if found is not None:
                yield item("part", f"{name}: {part.name}", found, tally.rows)


def joined(value: ir.Value) -> Iterator[tuple[int, int, int, ir.Value]]:
    """(axis, start, stop, value) of each part of an output that a Concat joins at the end."""
    node = value.producer()
    moves: list[list[int]] = []
    while node is not None and node.op_type in ("Identity", "Cast", "Transpose"):
        if node.op_type == "Transpose" and "perm" in node.attributes:
            moves.append(list(node.attributes["perm"].as_ints()))
        elif node.op_type == "Transpose":
            return
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Concat" or len(node.inputs) < 2:
        return
    known = [None if v is None else v.shape for v in node.inputs]
    if any(shape is None for shape in known):
        return
    axis = node.attributes.get_int("axis", 0) % len(known[0] or (1,))
    sizes = [shape[axis] for shape in known if shape is not None]
    if not all(isinstance(size, int) for size in sizes):
        return
    start = 0
    for move in reversed(moves):
        axis = move.index(axis)
    for part, size in zip(node.inputs, sizes, strict=True):
        assert isinstance(size, int)
        if axis > 0 and size and part is not None:
            yield axis, start, start + size, part
        start += size


def _unstable(tally: Tally) -> str:
    size, _, noise = (float(x[0]) for x in tally.whole)
    if size and 30 * noise >= UNSTABLE * size:
        return f"unstable: rounding errors alone move it by {noise:.2g} of {size:.2g}"
    return ""


# Inside -------------------------------------------------------------------------------------------------------------


def _inside_evidence(
    cut: ir.Model, masked: ir.Model, few: Sequence[Feeds], looked: Looked, floor: float
) -> Iterator[Evidence]:
    """Compares the results of nodes with weights, and the values that decisions are made on.

    The simplifier folds what follows a node into it, which keeps its name: then a value is compared with those behind.
    """
    wrong = [value for value, tally in looked.values.items() if tally.worst().share > 1]
    further: dict[Value, list[Value]] = {
        value: [(value[0], b) for b in inside.behind(masked, value[1])] for value in wrong
    }
    asked = list(dict.fromkeys(pair for found in further.values() for pair in found))
    again = inside.look(cut, masked, few, asked, looked.points, floor=floor).values if asked else {}
    for value, tally in looked.values.items():
        fits = next((pair for pair in further.get(value, ()) if again[pair].worst().share <= 1), None)
        taken = tally if fits is None else again[fits]
        yield item("inside", (fits or value)[1], taken.worst(), taken.rows, _unstable(taken))
    for (_, twin), tally in looked.decisions.items():
        yield item("decision", twin, tally.worst(), tally.rows, _unstable(tally))


def _piece_evidence(
    cut: ir.Model,
    masked: ir.Model,
    few: Sequence[Feeds],
    looked: Looked,
    theirs: Sequence[Arrays],
    floor: float,
) -> Iterator[Evidence]:
    """Compares the stored numbers of nodes, and each piece of the models on random numbers of its own."""
    for kind, where, tally in unreached.compared(cut, masked, floor=floor):
        yield item(kind, where, tally.worst(), tally.rows)
    try:
        found = pieces.compared(cut, masked, few[0], looked, floor=floor) if few else {}
    except GraphError as error:
        yield Evidence("piece", "", untested=f"the model does not run on random numbers inside ({error})")
        return
    for name, tally in found.items():
        yield item("piece", name, tally.worst(), tally.rows)
    if not any(tally.of_whole().size for tally in found.values()) and all(b in looked.silent for _, b in looked.values):
        for name in blind_outputs(masked, theirs):
            yield Evidence("output", name, untested=f"it varies too little to show an error, {NOTHING_SHOWS}")


def blind_outputs(masked: ir.Model, theirs: Sequence[Arrays]) -> list[str]:
    """The outputs of which no number would change by a small error in front of them."""
    names = [value.name or "" for value in masked.graph.outputs]
    return [name for name in names if not telling([output[name] for output in theirs])]


# Running ------------------------------------------------------------------------------------------------------------


def _few(masked: ir.Model, batches: Sequence[Feeds]) -> list[Feeds]:
    """The first rows of the first batches, as many as are cheap to look at inside; of large ones each size once."""
    found: dict[object, Feeds] = {}
    for number, batch in enumerate(batches[:MOST_BATCHES]):
        few = next(iter(_parts_of(masked, batch)))
        large = sum(np.size(array) for array in few.values()) > LOOKED_AT // 2
        key = tuple((name, np.shape(array)) for name, array in few.items()) if large else number
        found.setdefault(key, few)
    return list(found.values())


def _parts_of(model: ir.Model, batch: Feeds) -> Iterator[Feeds]:
    """`batch` in parts that can be looked at inside."""
    inputs = input_infos(model)
    if batch_size_of(inputs) is not None:
        yield batch
        return
    stacked = {name: axis for name, axis in batch_axes(inputs).items() if axis is not None and name in batch}
    stacked = {name: axis for name, axis in stacked.items() if np.ndim(batch[name]) > axis}
    count = _count(batch, stacked)
    numbers = max(1, sum(np.size(array) for array in batch.values()) // max(1, count))
    most = min(max(1, LOOKED_AT // numbers), MOST_ROWS)
    even = all(batch[name].shape[axis] == count for name, axis in stacked.items())
    if not even or count <= most or not stacked:
        yield batch
        return
    yield from _parts(batch, stacked, most)


def _outputs_of_both(
    shown: ir.Model | Path, masked: ir.Model, batches: list[Feeds]
) -> tuple[list[Feeds], list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """(the batches, what both models give on each); batches are halved until memory does.

    shown: the cut model as it will run. Behind the batches comes one sample by itself, where the masked model takes it.
    """
    stacked = _stacked(masked)
    largest = max((_count(batch, stacked) for batch in batches), default=1)
    fixed = batch_size_of(input_infos(masked)) is not None
    single = alone(masked, *batches)

    def outputs(most: int) -> tuple[list[Feeds], list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
        whole = most >= largest
        parts = batches if whole else [part for batch in batches for part in _parts(batch, stacked, most)]
        theirs = _outputs(masked, parts, tried=single)
        parts = [*parts, *single[: len(theirs) - len(parts)]]
        return parts, _outputs(shown, parts), theirs

    return halving(outputs, largest, "the proof", fixed=fixed)


def _stacked(model: ir.Model) -> dict[str, int]:
    """The axes of inputs along which samples stand, by name."""
    return {name: axis for name, axis in batch_axes(input_infos(model)).items() if axis is not None}


def alone(model: ir.Model, *batches: Feeds) -> list[Feeds]:
    """One sample by itself, unless there is one among the batches or their number is fixed: an axis of one is easily
    lost."""
    stacked = _stacked(model)
    if (
        batch_size_of(input_infos(model)) is not None
        or not batches
        or any(_count(batch, stacked) < 2 for batch in batches)
    ):
        return []
    return list(islice(_parts(batches[0], stacked, 1), 1))


def _parts(batch: Feeds, stacked: Mapping[str, int], most: int) -> Iterator[Feeds]:
    """`batch` in parts of at most `most` samples."""
    count = _count(batch, stacked)
    for start in range(0, count, most):
        few = np.arange(start, min(start + most, count))
        yield {**batch, **{name: np.take(batch[name], few, axis) for name, axis in stacked.items()}}


def _count(batch: Feeds, stacked: Mapping[str, int]) -> int:
    """Number of samples; stacked: axes of the inputs along which they stand."""
    return min((batch[name].shape[axis] for name, axis in stacked.items()), default=1)


def _outputs(
    model: ir.Model | Path, batches: Sequence[Feeds], optimize: bool = True, tried: Sequence[Feeds] = ()
) -> list[dict[str, np.ndarray]]:
    """The outputs on each batch. The session ends here: two at a time would hold the weights of two models.

    tried: further batches, up to the first on which the model does not run.
    """
    large = isinstance(model, ir.Model) and size_bytes(model) > LARGE_MODEL_BYTES
    entries = {"session.disable_prepacking": "1"} if large else {}  # which would copy the weights once more
    session = sessions.open_session(
        model, threads=sessions.few_threads(), session_options=entries, optimize=optimize, lean=True
    )
    found = [sessions.run(session, batch) for batch in batches]
    with suppress(GraphError):
        found += (sessions.run(session, batch) for batch in tried)
    return found


def seeded(model: ir.Model) -> ir.Model:
    """`model` with a seed in every operator that draws random numbers: those of one name draw the same."""
    if not _unseeded(model):
        return model
    model = graph.copy(model)
    for node in _unseeded(model):
        seed = zlib.crc32((node.outputs[0].name or "").encode()) % 65521
        kind = ir.AttrInt64 if node.op_type == "Dropout" else ir.AttrFloat32
        node.attributes["seed"] = kind("seed", seed)
    return model


def _unseeded(model: ir.Model) -> list[ir.Node]:
    return [node for node in bodies.all_nodes(model.graph) if draws(node) and "seed" not in node.attributes]
