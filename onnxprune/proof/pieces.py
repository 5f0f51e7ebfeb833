"""Both models in pieces, each on random numbers of its own.

What is wrong in front may hide behind what follows: a unit that is zero on all inputs, a maximum that is positive
anyway, a sigmoid at its end. So both models are cut into pieces at every value that a node with weights reads or gives,
and at every value that is decided on; each piece is given the same random numbers in both models, and what it gives is
compared. One run of each model does so for all pieces at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import onnx_ir as ir

from onnxprune.graph import bodies, extras, sessions
from onnxprune.graph.extras import Kept
from onnxprune.graph.inputs import Feeds
from onnxprune.graph.tensors import constant
from onnxprune.proof import decisions, inside, noise
from onnxprune.proof.decisions import at_kept
from onnxprune.proof.differences import FLOOR, Arrays, Tally
from onnxprune.proof.inside import Looked

SHIFTS = np.array([-3, 0, 0, 3], np.float32)  # of whole channels, in units of their size
LEAST, MOST = 1e-3, 1e3  # sizes of random numbers: where a value is larger, products of it would overflow
SMALL_CONSTANT_BYTES = 1024  # sizes, axes and the like, which exporters write once for each node
PATTERN = np.random.default_rng(1).standard_normal(65_537).astype(np.float32)  # repeated; a prime, as in noise.py


@dataclass(frozen=True)
class _Cuts:
    """The values at which both models are cut, by name, with what is fed there: to the masked model, to the cut one."""

    full: Mapping[str, np.ndarray]
    few: Mapping[str, np.ndarray]


def compared(
    cut: ir.Model, masked: ir.Model, batch: Feeds, looked: Looked, *, floor: float = FLOOR, seed: int = 0
) -> dict[str, Tally]:
    """The results of every piece of both models on random numbers.

    Left out are pieces in which something is decided on numbers that could not be fed: rounding errors change these.
    Raises: GraphError where a model does not run on such numbers.
    """
    cuts = _cuts(masked, looked, seed, _merged(cut, masked))
    values = list(_ends(cut, masked, cuts))
    if not cuts.full or not values:
        return {}
    ours = _run(_in_pieces(cut, cuts), values, batch, cuts.few)
    fed = _in_pieces(masked, cuts)
    theirs = _run(fed, values, batch, cuts.full)
    kept = extras.of(masked).kept
    found = _tallied(values, ours, theirs, (), kept, floor)
    if all(tally.worst().share <= 1 for tally in found.values()):
        return found
    noisy = [
        _run(noise.moved(fed, seed), values, noise.moved_feeds(batch, seed), noise.moved_feeds(cuts.full, seed))
        for seed in range(2)
    ]
    return _tallied(values, ours, theirs, noisy, kept, floor)


def _cuts(masked: ir.Model, looked: Looked, seed: int, merged: Collection[str]) -> _Cuts:
    """Random numbers for the values at which both models are cut into pieces; none for those that are `merged`."""
    kept = extras.of(masked).kept
    full: dict[str, np.ndarray] = {}
    few: dict[str, np.ndarray] = {}
    for name in looked.alike:
        like = looked.twins.get(name)
        if like is None or like.dtype.kind != "f" or not like.ndim or name in merged:
            continue
        given = _random(like, name, kept, looked.sizes.get(name, 1.0), seed)
        chosen = at_kept(given, name, kept, np.shape(looked.owns[name]))
        if chosen is not None:
            full[name], few[name] = given, chosen
    return _Cuts(full, few)


def _merged(cut: ir.Model, masked: ir.Model) -> set[str]:
    """Values of which the cut model has one where the masked one has several: onnxsim merges nodes that do the same.

    What reads them reads one value on one side only, so that no numbers can be fed in its place.
    """
    left = {value.name for node in cut.graph for value in node.outputs}
    groups: dict[object, list[ir.Node]] = {}
    first: dict[ir.Value | None, ir.Value] = {}
    for node in masked.graph:
        told = sorted(str(each) for each in node.attributes.values())
        read = [_content(first.get(value) or value) for value in node.inputs]
        group = groups.setdefault((node.domain, node.op_type, *told, *read), [])
        group.append(node)
        first.update(zip(node.outputs, group[0].outputs, strict=False))
    found: set[str] = set()
    for group in groups.values():
        names = {node.outputs[0].name or "" for node in group}
        found |= names & left if not names <= left else set()
    return found


def _content(value: ir.Value | None) -> object:
    """What stands for an input of a node: a small constant by its contents, all else by itself."""
    array = constant(value)
    return (
        value
        if array is None or array.nbytes > SMALL_CONSTANT_BYTES
        else (array.dtype.str, array.shape, array.tobytes())
    )


def _random(like: np.ndarray, name: str, kept: Kept, size: float, seed: int) -> np.ndarray:
    """Random numbers in the shape of a value of the masked model; zero where positions are gone.

    Whole channels are shifted, sample by sample, so that some are all positive and some all negative.
    """
    rng = np.random.default_rng([seed, crc32(name.encode())])
    numbers = noise.from_pattern(PATTERN, like.shape, rng)
    for row in range(like.shape[0]) if like.ndim > 1 else ():
        # Channels stand on an axis of which positions are gone, else on the second or on the last, by turns.
        axes = [axis for axis in kept.get(name, {}) if axis] or [1, like.ndim - 1]
        shape = [1] * (like.ndim - 1)
        axis = axes[row % len(axes)]
        shape[axis - 1] = like.shape[axis]
        numbers[row] += rng.choice(SHIFTS, shape)
    numbers *= np.float32(np.clip(size, LEAST, MOST))
    for axis, positions in kept.get(name, {}).items():
        chosen = positions(like.shape[axis])
        if 0 < len(chosen) < like.shape[axis] and chosen[-1] < like.shape[axis]:
            gone = np.ones(like.shape[axis], bool)
            gone[chosen] = False
            numbers[(*[slice(None)] * axis, gone)] = 0
    return numbers.astype(like.dtype)


def _ends(cut: ir.Model, masked: ir.Model, cuts: _Cuts) -> Iterator[str]:
    """The values that are compared between pieces: those at which the models are cut, and the outputs."""
    made = {value.name or "": value for node in masked.graph for value in node.outputs}
    outputs = {value.name for value in cut.graph.outputs}
    shown = [name for value in masked.graph.outputs if (name := value.name or "") in outputs]
    for name in dict.fromkeys([*cuts.full, *shown]):
        if name in made and _is_repeatable(made[name], cuts):
            yield name


def _is_repeatable(value: ir.Value, cuts: _Cuts) -> bool:
    """Whether all decisions of the piece that gives `value` are made on numbers that are fed, or on stored ones."""
    left: list[ir.Node | None] = [value.producer()]
    seen: set[ir.Node] = set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if bodies.of(node):
            return False  # bodies may decide
        read = [v for v in node.inputs if v is not None and v.name not in cuts.full]
        computed = [v for v in read if decisions.is_computed_float(v) and not inside.is_weight(v)]
        if computed and decisions.decides(node):
            return False
        left += [v.producer() for v in read]
    return True


def _in_pieces(model: ir.Model, cuts: _Cuts) -> ir.Model:
    """A copy of `model` in which what reads a cut value reads an input instead."""
    model = extras.copy(model)
    made = {value.name: value for node in model.graph for value in node.outputs}
    for name, array in cuts.full.items():
        given = ir.Value(name=_feed(name), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        model.graph.inputs.append(given)
        for node, index in list(made[name].uses()):
            node.replace_input_with(index, given)
    return model


def _feed(name: str) -> str:
    return f"piece:{name}"


def _run(model: ir.Model, names: Sequence[str], batch: Feeds, fed: Mapping[str, np.ndarray]) -> Arrays:
    given = {_feed(name): array for name, array in fed.items()}
    return sessions.run(inside.open_inside(model, names), {**batch, **given})


def _tallied(
    names: Sequence[str], ours: Arrays, theirs: Arrays, noisy: Sequence[Arrays], kept: Kept, floor: float
) -> dict[str, Tally]:
    found = {name: Tally(floor) for name in names}
    for name, tally in found.items():
        inside.add_to(tally, ours[name], theirs[name], [other[name] for other in noisy], name, kept)
    return found
