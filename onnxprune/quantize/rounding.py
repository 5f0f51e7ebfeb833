"""How far rounding moves what a model says: a cost, and no proof."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxprune.graph import sessions
from onnxprune.graph.apart import apart
from onnxprune.graph.inputs import Feeds


def error(quantized: ir.Model, float_model: ir.Model, feeds: Iterable[Feeds]) -> float:
    """|quantized - float| / |float| over all outputs of floats, as onnxruntime runs both: what rounding costs.

    Raises: CrashedError when a native library ended the process in which they were run.
    """
    squares = apart(_squares, [quantized, float_model], list(feeds)).values()
    return _relative(sum(off for off, _ in squares), sum(size for _, size in squares))


def worst_error(quantized: ir.Model, float_model: ir.Model, feeds: Iterable[Feeds]) -> float:
    """The same of the output that comes off worst: large numbers of one output do not hide that another is ruined.

    Raises: CrashedError when a native library ended the process in which they were run.
    """
    squares = apart(_squares, [quantized, float_model], list(feeds)).values()
    return max((_relative(off, size) for off, size in squares), default=0.0)


def _relative(off: float, size: float) -> float:
    return float(np.sqrt(off / size)) if size else 0.0


def _squares(quantized: ir.Model, float_model: ir.Model, feeds: Iterable[Feeds]) -> dict[str, tuple[float, float]]:
    """By output of floats: sums of the squared differences and of the squared numbers.

    Numbers that are infinite, or none, in floats count where the other's is something else: infinitely much.
    """
    found: dict[str, tuple[float, float]] = {}
    two = [sessions.open_session(model, threads=sessions.few_threads()) for model in (quantized, float_model)]
    for batch in feeds:
        ours, theirs = (sessions.run(session, batch) for session in two)
        for name, array in theirs.items():
            if np.asarray(array).dtype.kind != "f":
                continue
            a, b = (np.asarray(x, np.float64) for x in (ours[name], array))
            if a.shape != b.shape:  # of as many rows as were found, say: no number has a partner
                continue
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore"):
                off = np.where(same, 0.0, a - b)
            off = np.where(np.isfinite(off), off, np.inf)
            before = found.get(name, (0.0, 0.0))
            found[name] = before[0] + float((off**2).sum()), before[1] + float((b[np.isfinite(b)] ** 2).sum())
    return found
