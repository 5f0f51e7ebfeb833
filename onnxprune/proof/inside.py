"""Values inside both twins: where outputs differ only by a decision, and where outputs show too little."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph import sessions
from onnxprune.proof.differences import Worst, difference_of, same, telling
from onnxprune.surgery import KEPT

# Operators that turn a rounding error into another decision: they are judged by their inputs.
DECIDING = frozenset(
    "ArgMax ArgMin TopK NonMaxSuppression NonZero Greater GreaterOrEqual Less LessOrEqual Equal Round Floor Ceil Sign "
    "Unique Compress OneHot QuantizeLinear DynamicQuantizeLinear Hardmax".split()
)
# Operators with results between 0 and 1 that lose the relative precision of small ones: judged by their inputs as well.
SATURATING = frozenset("Sigmoid HardSigmoid Softmax Tanh Erf".split())
ROUNDING = 1e-6  # absolute error of a saturating operator
STEEPEST = 1.2  # Erf: 2 / sqrt(pi)
DEPTH, ROUNDS = 4, 12  # nodes that one look behind outputs goes back, and looks
Feeds = Mapping[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]


def behind(
    cut: ir.Model, masked: ir.Model, batches: Sequence[Feeds], outputs: Sequence[Mapping[str, object]]
) -> tuple[list[str], list[Worst]]:
    """(the outputs that show too little, how far the values in front of them that show enough differ).

    From each such output back to the nearest values that vary, through those that do not. What stands in front of an
    output that shows enough is left out: an error there would be seen.
    outputs: what the masked model gave on each batch, by name.
    """
    blind = [value for value in masked.graph.outputs if not telling(found[value.name or ""] for found in outputs)]
    if not blind:
        return [], []
    clear = [value for value in masked.graph.outputs if value not in blind]
    seen = {*clear, *_back(clear)[0]}
    names = {value.name for node in cut.graph for value in node.outputs}
    border, compared = list(blind), []
    for _ in range(ROUNDS):
        near = _back(border, seen, DEPTH)[0]
        worst = {value: Worst() for value in near if value.name and value.name in names}
        told = set()
        for ours, theirs in _values(cut, masked, batches, [value.name or "" for value in worst]):
            for value, differs in worst.items():
                name = value.name or ""
                differs.add(name, ours[name], theirs[name])
                if telling([theirs[name]]):
                    told.add(value)
        passed, further = _back(border, seen | told, DEPTH)
        compared += [worst[v] for v in dict.fromkeys(u for p in (*border, *passed) for u in _sources(p)) if v in told]
        seen.update(passed, told)
        border = further
        if not border:
            break
    return [value.name or "" for value in blind], compared


def _back(
    border: Sequence[ir.Value], stop: Container[ir.Value] = (), depth: int | None = None
) -> tuple[list[ir.Value], list[ir.Value]]:
    """(the values up to `depth` nodes in front of `border`, the farthest of them), not into or through `stop`."""
    found: dict[ir.Value, None] = {}
    while border and depth != 0:
        sources = dict.fromkeys(source for value in border for source in _sources(value))
        border = [source for source in sources if source not in found and source not in stop]
        found.update(dict.fromkeys(border))
        depth = None if depth is None else depth - 1
    return list(found), list(border)


def _sources(value: ir.Value) -> list[ir.Value]:
    """The computed values that the node of `value` reads."""
    node = value.producer()
    return [] if node is None else [v for v in node.inputs if v is not None and v.producer() is not None]


def only_decisions_differ(cut: ir.Model, masked: ir.Model, batches: Sequence[Feeds]) -> bool:
    """Whether every difference comes from an operator that decides, or saturates, on inputs that are the same."""
    names = {value.name for node in cut.graph for value in node.outputs}
    judged = [node for node in masked.graph if node.op_type in DECIDING or node.op_type in SATURATING]
    found = [v.name for n in judged for v in (*n.inputs, *n.outputs) if v is not None and v.name in names]
    points = list(dict.fromkeys(name for name in found if name))
    if not points:
        return False
    for ours, theirs in _values(cut, masked, batches, points):
        excused = _excused(masked, {name: (ours[name], theirs[name]) for name in points})
        if excused is None:
            return False
        outputs = Worst()
        for value in masked.graph.outputs:
            if value not in excused:
                outputs.add(value.name or "", ours[value.name or ""], theirs[value.name or ""])
        if not outputs.ok:
            return False
    return True


def _values(
    cut: ir.Model, masked: ir.Model, batches: Sequence[Feeds], names: Sequence[str]
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """For each batch (outputs and values `names` of `cut`, those of `masked` at the positions that `cut` has)."""
    if not names:
        return
    one, two = (
        sessions.open_session(model, extra_outputs=names, threads=sessions.few_threads(), optimize=False)
        for model in (cut, masked)
    )
    kept = masked.meta.get(KEPT, {})
    for batch in batches:
        ours, theirs = sessions.run(one, batch), sessions.run(two, batch)
        for name in set(theirs) & set(kept):
            if np.shape(theirs[name]) != np.shape(ours[name]):  # the twin may compute over kept positions itself
                theirs[name] = _chosen(theirs[name], kept[name])
        yield ours, theirs


def _excused(masked: ir.Model, inside: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> set[ir.Value] | None:
    """Values that differ because a decision did; None where something differs without such an excuse."""
    excused: set[ir.Value] = set()
    for node in masked.graph:
        if any(value in excused for value in node.inputs if value is not None):
            excused.update(node.outputs)
        elif node.op_type in DECIDING or node.op_type in SATURATING:
            if not all(same(*pair) for pair in _pairs(node.inputs, inside)):
                return None
            changed = [pair for pair in _pairs(node.outputs, inside) if not same(*pair)]
            if node.op_type in SATURATING:
                # None of these functions is steeper than STEEPEST, so its output moves no further than that.
                moved = max((difference_of(*pair)[0] for pair in _pairs(node.inputs, inside)), default=0.0)
                if any(difference_of(*pair)[0] > ROUNDING + STEEPEST * moved for pair in changed):
                    return None
            if changed:
                if any(v is not None and v.producer() and v.name not in inside for v in node.inputs):
                    return None  # the other model does not have what it read: nothing says that it was the same
                excused.update(node.outputs)
    return excused


def _pairs(values: Iterable[ir.Value | None], inside: Mapping[str, Pair]) -> list[Pair]:
    return [inside[value.name] for value in values if value is not None and value.name and value.name in inside]


def _chosen(array: np.ndarray, kept: Mapping[int, Callable[[int], np.ndarray]]) -> np.ndarray:
    """`array` at the kept positions of its axes."""
    for axis, positions in kept.items():
        array = np.take(array, positions(array.shape[axis]), axis=axis)
    return array
