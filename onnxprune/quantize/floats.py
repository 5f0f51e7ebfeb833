"""Which nodes stay in float because the outputs do not stand their rounding: found by leaving them out and measuring.

Where the outputs come out far off, more and more is left in float until they do not:

steps     what has no weights and stands beside operators without integer kernels (a norm or an activation written out
          node by node), and what comes after the last weights (scores and boxes joined, say)
alone     all that has no weights: layers alone are computed in integers
layers    those layers besides that make the largest part of the error

Layers are tried one at a time, all but one quantized. Tried first are the first and the last, depthwise convolutions
(few weights to a channel, so that little averages out), and then those of which rounding moves the weights, or what
they read, furthest: a few large numbers, as transformers have them, leave the others few steps of the grid. Time
bounds how many are tried alone.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.graph import sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.quantize import parts

SECONDS = 30.0
ENOUGH = 0.1  # how far off the outputs may be before anything is left in float
BETTER = 0.9  # share of it that must be left where more stays in float
WORTH = 0.1  # share of the squared error of the outputs that a layer must take away to stay in float
MOST = 4  # layers that stay where the outputs are near enough without
LAYERS = frozenset("Conv ConvTranspose Gemm MatMul".split())
TABLES = frozenset(("Gather", "Transpose"))  # of a stored table: rows that are looked up, a head that is tied
Form = Callable[[Sequence[str]], ir.Model]
Far = Callable[[ir.Model], float]


@dataclass(frozen=True)
class Choice:
    """A quantized model, the nodes that it leaves in float, and how far off its outputs are."""

    model: ir.Model
    left: tuple[str, ...]
    off: float


def plainly(form: Form, far: Far) -> Choice:
    """All of it in integers."""
    return _tried(form, far, ())


def standing(
    floats: ir.Model,
    best: Choice,
    form: Form,
    far: Far,
    op_types: Collection[str],
    layers: Callable[[ir.Model], Sequence[str]],
    *,
    seconds: float = SECONDS,
) -> Choice:
    """What leaves so much of `floats` in float that the outputs are near enough, or as near as they come.

    form: what quantizes `floats` less the nodes named, with nodes of `op_types`. far: how far off a model's outputs
    are: 0 where not at all, 1 where nothing is left. layers: those of a quantized model, in the order to try them in.
    """
    last = best
    for left in _steps(floats, op_types):
        if best.off <= ENOUGH:
            return best
        last = _tried(form, far, left)
        best = _better(best, last)
    if best.off <= ENOUGH:
        return best
    if last.off > best.off:
        last = best
    # What is rounded between layers hides what these cost: they are tried with all that is no layer in float.
    return _better(best, less_layers(layers(last.model), last, form, far, seconds=seconds))


def less_layers(
    names: Sequence[str], best: Choice, form: Form, far: Far, *, most: int | None = None, seconds: float = SECONDS
) -> Choice:
    """`best` without those layers of `names` that make the largest part of its error: `most`, or as many as needed."""
    gains = _gains(names, best, form, far, seconds)
    worth = [name for name in sorted(gains, key=lambda name: -gains[name]) if gains[name] > 0]

    def without(end: int) -> Choice:
        return _tried(form, far, [*best.left, *worth[:end]])

    if most is not None:
        end = min(most, sum(gains[name] > WORTH * best.off**2 for name in worth))
        return _better(best, without(end)) if end else best
    worth += [name for name in names if name not in gains]
    return _fewest(best, without, min(len(worth), len(names) - 1))


def _fewest(best: Choice, without: Callable[[int], Choice], most: int) -> Choice:
    """`best`, or what is near enough without as few layers as that takes: twice as many each time, then halfway back.

    Where nothing is near enough, the nearest.
    """
    low, high, found = 0, 1, best
    while high <= most:
        tried = without(high)
        found = _better(found, tried)
        if tried.off <= ENOUGH:
            break
        low, high = high, 2 * high
    else:
        return found
    while high - low > max(1, high // 8):
        middle = (low + high) // 2
        tried = without(middle)
        low, high = (low, middle) if tried.off <= ENOUGH else (middle, high)
        found = tried if tried.off <= ENOUGH else found
    return found


def _gains(names: Sequence[str], best: Choice, form: Form, far: Far, seconds: float) -> dict[str, float]:
    """By how much the squared error falls when a layer is left in float besides what is, as far as time lets them be
    tried."""
    start = perf_counter()
    gains: dict[str, float] = {}
    for name in names if len(names) > 1 else ():
        if gains and perf_counter() - start > seconds:
            break
        gains[name] = best.off**2 - _tried(form, far, [*best.left, name]).off ** 2
    return gains


def _tried(form: Form, far: Far, left: Sequence[str]) -> Choice:
    made = form(left)
    return Choice(made, tuple(left), far(made))


def _better(before: Choice, after: Choice) -> Choice:
    """`after` where it is clearly nearer: less is computed in integers."""
    return after if after.off < BETTER * before.off else before


def told(floats: ir.Model, before: float, chosen: Choice) -> str:
    """A note on which nodes were left in float, and what that gained."""
    ops = {node.name or "": node.op_type for node in floats.graph}
    names = ", ".join(f"'{name}'" for name in chosen.left)
    if len(chosen.left) > MOST:
        kinds = sorted({ops.get(name, "") for name in chosen.left})
        names = f"{len(chosen.left)} nodes ({', '.join(kinds)})"
    stay = "stays" if len(chosen.left) == 1 else "stay"
    return f"{names} {stay} in float: outputs are off by {100 * chosen.off:.2g} % instead of {100 * before:.2g} %"


def _steps(model: ir.Model, op_types: Collection[str]) -> Iterator[list[str]]:
    """Names of the nodes to leave in float, more and more of them."""
    plain = [node for node in model.graph if node.op_type in op_types and not weighted(node)]
    written_out = [node for node in plain if _beside_others(node, op_types)]
    last = _after_weights(model)
    first = [node.name or "" for node in plain if node in written_out or node in last]
    if first:
        yield first
    if len(first) < len(plain):
        yield [node.name or "" for node in plain]


def weighted(node: ir.Node) -> bool:
    """Whether a node has a stored matrix or table that integers make small."""
    places = (1,) if node.op_type in LAYERS else (0,) if node.op_type in TABLES else ()
    arrays = (graph.constant(node.inputs[k]) for k in places if k < len(node.inputs))
    return any(array is not None and array.ndim > 1 and array.dtype.kind == "f" for array in arrays)


def _beside_others(node: ir.Node, op_types: Collection[str]) -> bool:
    """Whether it reads from, or is read by, an operator that computes in floats."""
    makers = [value.producer() for value in node.inputs if value is not None]
    readers = [user for value in node.outputs for user, _ in value.uses()]
    others = (other for other in (*makers, *readers) if other is not None)
    return any(other.op_type not in op_types and _has_floats(other) for other in others)


def _has_floats(node: ir.Node) -> bool:
    return any(value.dtype is None or value.dtype.is_floating_point() for value in node.outputs)


def _after_weights(model: ir.Model) -> set[ir.Node]:
    """Nodes from which no stored matrix is reached."""
    before: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        readers = (user for value in node.outputs for user, _ in value.uses())
        if weighted(node) or any(user in before for user in readers):
            before.add(node)
    return {node for node in model.graph if node not in before}


def matrices(floats: ir.Model, made: ir.Model, kind: str) -> list[str]:
    """Names of the nodes whose matrix `made` stores as `kind` does, those first that rounding moves furthest."""
    own = {node.name: node for node in floats.graph}
    moved: dict[str, float] = {}
    for name, matrix in parts.matrices(made, kind).items():
        w = graph.constant(own[name].inputs[1]) if name in own else None
        if w is not None and w.shape == matrix.real.shape:
            moved[name] = float(np.linalg.norm(w - matrix.real)) / max(float(np.linalg.norm(w)), 1e-30)
    return sorted(moved, key=lambda name: -moved[name])


def candidates(floats: ir.Model, made: ir.Model, batches: Iterable[Feeds]) -> list[str]:
    """Names of the nodes with stored weights, those first that most often do not stand it."""
    own = {node.name: node for node in made.graph}
    moved: dict[str, float] = {}
    read: dict[str, parts.Grid] = {}
    depthwise: list[str] = []
    for node in floats.graph:
        twin = own.get(node.name)
        w = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        stored = parts.stored(twin.inputs[1]) if twin is not None and len(twin.inputs) > 1 else None
        if twin is None or w is None or stored is None or w.ndim < 2:
            continue
        size = float(np.linalg.norm(w))
        moved[node.name or ""] = float(np.linalg.norm(w - stored[1].rounded(w))) / size if size else 0.0
        if (rounded := parts.rounding(twin.inputs[0])) is not None:
            read[node.name or ""] = rounded[1]
        if node.op_type == "Conv" and node.attributes.get_int("group", 1) == w.shape[0] > 1:
            depthwise.append(node.name or "")
    ends = [*list(moved)[:1], *list(moved)[-1:]]
    for name, off in _values_moved(floats, read, batches).items():
        moved[name] = float(np.hypot(moved[name], off))
    rest = sorted(moved, key=lambda name: (name not in depthwise, -moved[name]))
    return list(dict.fromkeys([*ends, *rest]))


def _values_moved(floats: ir.Model, grids: Mapping[str, parts.Grid], batches: Iterable[Feeds]) -> Mapping[str, float]:
    """|Q(x) - x| / |x| of what nodes read, by node; grids: to which it is rounded."""
    model = graph.copy(floats)
    names: dict[str, str] = {}
    for node in model.graph:
        value = node.inputs[0] if node.name in grids else None
        if value is None or value.name is None:
            continue
        names[node.name or ""] = value.name
        if value.producer() is not None and value not in model.graph.outputs:
            model.graph.outputs.append(value)
    session = sessions.open_session(model, threads=sessions.few_threads())
    sums = {name: np.zeros(2) for name in names}
    for batch in batches:
        found = {**batch, **sessions.run(session, batch)}
        for name, value in names.items():
            x = np.asarray(found[value], np.float32)
            sums[name] += [np.square(part, dtype=np.float64).sum() for part in (grids[name].rounded(x) - x, x)]
    return {name: float(np.sqrt(off / size)) if size else 0.0 for name, (off, size) in sums.items()}
