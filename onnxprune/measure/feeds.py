"""Random inputs at a given batch, and the sizes of the free axes found by trying until the model runs."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import onnxruntime as ort

from onnxprune.errors import GraphError, OnnxPruneError, OutOfMemoryError, UsageError
from onnxprune.graph.inputs import Feeds, InputInfo, batch_axes, batch_size_of, random_feeds
from onnxprune.graph.sessions import run, session_inputs

# Tried in this order where free axes have no size: the feeds' own default, then what networks were trained at.
TYPICAL_SIZES = (None, 224, 32, 128, 256, 299, 16, 512, 640, 4, 1)


def bench_feeds(
    session: ort.InferenceSession, batch: int, *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> Feeds:
    """One random array per input of `session` with `batch` samples, on which it runs.

    `sizes` gives the size of symbolic axes by name; the others are tried at typical sizes.
    Raises: UsageError when the model is fixed to another batch, GraphError when no size runs.
    """
    inputs = session_inputs(session)
    fixed = batch_size_of(inputs)
    if fixed is not None and fixed != batch:
        raise UsageError(f"the model is fixed to batch {fixed}, so batch {batch} cannot be timed; use --batch {fixed}")
    failure: OnnxPruneError | None = None
    typical = TYPICAL_SIZES if _free_axes(inputs, sizes or {}) else (None,)
    # Indices of zero are the last resort: they lie inside everything that has a position at all.
    for zeros, size in product((False, True), typical):
        guess = dict.fromkeys(_free_axes(inputs, sizes or {}), size) if size else {}
        feeds = random_feeds(inputs, batch, seed, {**guess, **(sizes or {})})
        if zeros:
            feeds = {name: np.zeros_like(a) if a.dtype.kind in "iu" else a for name, a in feeds.items()}
        try:
            run(session, feeds)
        except (GraphError, OutOfMemoryError) as error:
            failure = failure or error
        else:
            return feeds
    raise GraphError(f"{failure}; no typical size of the free axes runs, so give their sizes")


def _free_axes(inputs: Sequence[InputInfo], sizes: Mapping[str, int]) -> list[str]:
    """Names of the symbolic axes without a size; "" stands for those without a name."""
    axes = batch_axes(inputs)
    names = [
        axis or ""
        for info in inputs
        for k, axis in enumerate(info.shape or ())
        if not isinstance(axis, int) and k != axes[info.name]
    ]
    return [name for name in dict.fromkeys(names) if name not in sizes]
