"""The twin: on random and real inputs the cut model equals the masked model, in numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import runtime, shapes
from onnxprune.errors import VerificationError
from onnxprune.surgery import KEPT

TOLERANCE = 1e-4  # of the largest masked output, as |cut - mask| <= TOLERANCE * max|mask|

# Operators that turn a rounding error into another decision: they are judged by their inputs.
DECIDING = frozenset(
    "ArgMax ArgMin TopK NonMaxSuppression NonZero Greater GreaterOrEqual Less LessOrEqual Equal Round Floor Ceil Sign "
    "Unique Compress OneHot QuantizeLinear DynamicQuantizeLinear Hardmax".split()
)
# Operators with results between 0 and 1 that lose the relative precision of small ones: judged by their inputs as well.
SATURATING = frozenset("Sigmoid HardSigmoid Softmax Tanh Erf".split())
ROUNDING = 1e-6  # absolute error of a saturating operator


@dataclass(frozen=True)
class Verification:
    """How far the cut model is from the masked one."""

    max_abs: float
    scale: float  # largest absolute masked output
    samples: int  # number of rows compared, summed over the inputs
    ok: bool
    worst: str = ""  # the output that differs most
    note: str = ""


def random_feeds(model: ir.Model, observed: shapes.Shapes, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random inputs at both probe sizes."""
    inputs = list(model.graph.inputs)
    probes = (
        [observed.probe]
        if observed.probe == observed.second or not observed.second
        else [observed.probe, observed.second]
    )
    return [shapes.feeds(inputs, probe, seed + k) for k, probe in enumerate(probes)]


def compare(cut: ir.Model | str, masked: ir.Model, feeds: Iterable[Mapping[str, np.ndarray]]) -> Verification:
    """Runs both models on all `feeds` in onnxruntime and compares every output.

    Where an output differs, the values inside are compared: rounding errors in front of an operator that decides
    (TopK, QuantizeLinear) are no difference, and neither is what follows from the decision.
    """
    batches = list(feeds)
    one, two = (runtime.open_session(model, threads=2) for model in (cut, masked))
    result, rows = _Worst(), 0
    for batch in batches:
        rows += next((int(array.shape[0]) for array in batch.values() if array.ndim), 1)
        a, b = runtime.run(one, batch), runtime.run(two, batch)
        for value in masked.graph.outputs:
            result.add(value.name or "", a[value.name or ""], b[value.name or ""])
    ok, note = result.ok, ""
    if not ok and isinstance(cut, ir.Model) and _only_decisions_differ(cut, masked, batches):
        ok, note = True, f"'{result.name}' differs only by decisions on values that are equal within the tolerance"
    return Verification(result.max_abs, result.scale, rows, ok, result.name, note)


def _only_decisions_differ(cut: ir.Model, masked: ir.Model, batches: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether every difference comes from an operator that decides, or saturates, on inputs that are the same."""
    names = {value.name for node in cut.graph for value in node.outputs}
    judged = [node for node in masked.graph if node.op_type in DECIDING or node.op_type in SATURATING]
    points = [v.name for n in judged for v in (*n.inputs, *n.outputs) if v is not None and v.name in names]
    if not points:
        return False
    extra = list(dict.fromkeys(name for name in points if name))
    one, two = (runtime.open_session(model, extra_outputs=extra, threads=2, optimize=False) for model in (cut, masked))
    for batch in batches:
        a, b = runtime.run(one, batch), runtime.run(two, batch)
        inside = {name: (a[name], _chosen(b[name], masked.meta.get(KEPT, {}).get(name, {}))) for name in extra}
        excused = _excused(masked, inside)
        if excused is None:
            return False
        outputs = _Worst()
        for value in masked.graph.outputs:
            if value not in excused:
                outputs.add(value.name or "", a[value.name or ""], b[value.name or ""])
        if not outputs.ok:
            return False
    return True


def _excused(masked: ir.Model, inside: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> set[ir.Value] | None:
    """Values that differ because a decision did; None where something differs without such an excuse."""
    excused: set[ir.Value] = set()
    for node in masked.graph:
        if any(value in excused for value in node.inputs if value is not None):
            excused.update(node.outputs)
        elif node.op_type in DECIDING or node.op_type in SATURATING:
            if not all(_same(*pair) for pair in _pairs(node.inputs, inside)):
                return None
            pairs = _pairs(node.outputs, inside)
            if node.op_type in SATURATING and any(_difference(*pair)[0] > ROUNDING for pair in pairs):
                return None
            if not all(_same(*pair) for pair in pairs):
                excused.update(node.outputs)
    return excused


Pair = tuple[np.ndarray, np.ndarray]


def _pairs(values: Iterable[ir.Value | None], inside: Mapping[str, Pair]) -> list[Pair]:
    return [inside[value.name] for value in values if value is not None and value.name and value.name in inside]


def _same(cut: np.ndarray, masked: np.ndarray) -> bool:
    difference, scale = _difference(cut, masked)
    return difference <= TOLERANCE * scale


def _chosen(array: np.ndarray, kept: Mapping[int, np.ndarray]) -> np.ndarray:
    """`array` at the kept positions of its axes."""
    for axis, positions in kept.items():
        array = np.take(array, positions, axis=axis)
    return array


def require(verification: Verification) -> Verification:
    """`verification`, when it holds. Raises: VerificationError otherwise."""
    if verification.ok:
        return verification
    raise VerificationError(
        f"the cut model differs from the masked model at output '{verification.worst}' by "
        f"{verification.max_abs:.3g} where {TOLERANCE:g} x {verification.scale:.3g} is allowed; "
        "nothing was written. Please report this model"
    )


class _Worst:
    """The largest difference seen, relative to the largest number of its output."""

    def __init__(self) -> None:
        self.max_abs, self.scale, self.ratio, self.name, self.ok = 0.0, 0.0, -1.0, "", True

    def add(self, name: str, cut: object, masked: object) -> None:
        difference, scale = _difference(cut, masked)
        ratio = difference / scale if scale else (np.inf if difference else 0.0)
        if ratio > self.ratio:
            self.max_abs, self.scale, self.ratio, self.name = difference, scale, ratio, name
        self.ok = self.ok and ratio <= TOLERANCE


def _difference(a: object, b: object) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value of b); not-a-number equals itself."""
    if isinstance(b, (list, tuple, dict)) or isinstance(a, (list, tuple, dict)):
        return _difference_of_parts(a, b)
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return float("inf"), 1.0
    if x.size == 0:
        return 0.0, 1.0
    if y.dtype.kind not in "fiub":
        return (0.0 if np.array_equal(x, y) else float("inf")), 1.0
    x, y = x.astype(np.float64), y.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(x - y))
    difference = np.where(np.isnan(difference), np.inf, difference)
    finite = np.abs(y[np.isfinite(y)])
    return float(difference.max()), float(finite.max()) if finite.size else 1.0


def _difference_of_parts(a: object, b: object) -> tuple[float, float]:
    def parts(x: object) -> Sequence[object]:
        if isinstance(x, dict):
            return list(x.values())
        return list(x) if isinstance(x, (list, tuple)) else [x]

    left, right = parts(a), parts(b)
    if len(left) != len(right):
        return float("inf"), 1.0
    pairs = [_difference(x, y) for x, y in zip(left, right, strict=True)]
    return max((d for d, _ in pairs), default=0.0), max((s for _, s in pairs), default=1.0)
