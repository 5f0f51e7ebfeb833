"""The twin: on random and real inputs the cut model equals the masked model, in numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import runtime, shapes
from onnxprune.errors import VerificationError

TOLERANCE = 1e-4  # of the largest masked output, as |cut - mask| <= TOLERANCE * max|mask|

# Operators that turn a rounding error into another decision: their inputs are compared as well.
DECIDING = frozenset(
    "ArgMax ArgMin TopK NonMaxSuppression NonZero Greater GreaterOrEqual Less LessOrEqual Equal Round Floor Ceil Sign "
    "Unique Compress OneHot QuantizeLinear DynamicQuantizeLinear Hardmax".split()
)


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
    """Runs both models on all `feeds` in onnxruntime and compares every output."""
    points = _decision_points(masked) if isinstance(cut, ir.Model) else []
    one = runtime.open_session(cut, extra_outputs=points, threads=2)
    two = runtime.open_session(masked, extra_outputs=points, threads=2)
    outputs = [value.name or "" for value in masked.graph.outputs]
    result = _Worst()
    before_decisions = _Worst()
    rows = 0
    for batch in feeds:
        rows += next((int(array.shape[0]) for array in batch.values() if array.ndim), 1)
        a, b = runtime.run(one, batch), runtime.run(two, batch)
        for name in outputs:
            result.add(name, a[name], b[name])
        for name in points:
            before_decisions.add(name, a[name], b[name])
    note = ""
    ok = result.ok
    if not ok and points and before_decisions.ok:
        ok, note = True, f"'{result.name}' differs only by decisions on values that are equal within the tolerance"
    return Verification(result.max_abs, result.scale, rows, ok, result.name, note)


def require(verification: Verification) -> Verification:
    """`verification`, when it holds. Raises: VerificationError otherwise."""
    if verification.ok:
        return verification
    raise VerificationError(
        f"the cut model differs from the masked model at output '{verification.worst}' by {verification.max_abs:.3g} where "
        f"{TOLERANCE:g} x {verification.scale:.3g} is allowed; nothing was written. Please report this model"
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


def _decision_points(model: ir.Model) -> list[str]:
    """Computed values that operators decide on, where both twins give them the same shape."""
    names: dict[str, None] = {}
    for node in model.graph:
        if node.op_type in DECIDING:
            for value in node.inputs:
                if value is not None and value.producer() is not None and value.name:
                    names[value.name] = None
    return list(names)
