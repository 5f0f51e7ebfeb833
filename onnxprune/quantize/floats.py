"""Which nodes stay in float because the outputs do not stand their rounding: found by leaving them out, one at a time.

A node is a candidate when it has a stored weight. Tried first are the first and the last, depthwise convolutions (few
weights to a channel, so that little averages out), and then those whose weights rounding moves furthest; each trial
quantizes all but that node, and time bounds how many there are.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.graph.inputs import Feeds
from onnxprune.quantize import parts, proof

SECONDS = 30.0
WORTH = 0.1  # share of the squared error of the outputs that a node must take away to stay in float
MOST = 4  # nodes that stay; where more would have to, another kind fits the model better
Form = Callable[[Sequence[str]], ir.Model]


def chosen(
    floats: ir.Model, made: ir.Model, form: Form, batches: Sequence[Feeds], seconds: float = SECONDS
) -> tuple[list[str], tuple[str, ...]]:
    """(names of the nodes that stay in float, notes); form: what quantizes `floats` less the nodes named."""
    start = perf_counter()
    before = proof.error(made, floats, batches)
    gains: dict[str, float] = {}
    names = candidates(floats, made)
    for name in names:
        if gains and perf_counter() - start > seconds:
            break
        gains[name] = before**2 - proof.error(form([name]), floats, batches) ** 2
    worth = [name for name, gain in gains.items() if gain > WORTH * before**2]
    best = sorted(worth, key=lambda name: -gains[name])[:MOST]
    if not best:
        return [], ()
    after = proof.error(form(best), floats, batches)
    if after >= before:
        return [], ()
    listed = ", ".join(f"'{name}'" for name in best)
    note = (
        f"{listed} {'stay' if len(best) > 1 else 'stays'} in float: outputs are off by {100 * after:.2g} % instead of "
        f"{100 * before:.2g} % ({len(gains)} of {len(names)} nodes were tried)"
    )
    return best, (note,)


def candidates(floats: ir.Model, made: ir.Model) -> list[str]:
    """Names of the nodes with stored weights, those first that most often do not stand it."""
    own = {node.name: node for node in made.graph}
    moved: dict[str, float] = {}
    depthwise: list[str] = []
    for node in floats.graph:
        twin = own.get(node.name)
        w = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        stored = parts.stored(twin.inputs[1]) if twin is not None and len(twin.inputs) > 1 else None
        if w is None or stored is None or w.ndim < 2:
            continue
        size = float(np.linalg.norm(w))
        moved[node.name or ""] = float(np.linalg.norm(w - stored[1].rounded(w))) / size if size else 0.0
        if node.op_type == "Conv" and node.attributes.get_int("group", 1) == w.shape[0] > 1:
            depthwise.append(node.name or "")
    ends = [*list(moved)[:1], *list(moved)[-1:]]
    rest = sorted(moved, key=lambda name: (name not in depthwise, -moved[name]))
    return list(dict.fromkeys([*ends, *rest]))
