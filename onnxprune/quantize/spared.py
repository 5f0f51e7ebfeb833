"""Nodes that stay in float by rule: what they compute with has no place on a grid of 256 numbers, or among halves.

masks       numbers that stand for minus infinity (-inf, -3.4e38, -1e9, -1e4) are added to scores, or put in their
            place, before Softmax. A grid that reaches down to them has steps larger than all scores; one that was
            calibrated where nothing was masked does not reach them, and lets through what is masked later
infinities  a value that was infinite, or no number, on the samples has no range
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune import graph

HALF_OF_MOST = 32752.0  # half of the largest number of half precision
MASKED = 1e4  # numbers so far from zero are taken for infinite; BERT's masks add -10000
# Operators that hand on a masked number, each with the inputs that it hands on (None: all).
CARRIERS: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys("Add Sub Mul Neg Sum Concat".split()),
    **dict.fromkeys(
        "Cast Expand Unsqueeze Squeeze Reshape Transpose Flatten Slice Gather GatherND GatherElements Trilu Tile "
        "Identity Split Div".split(),
        (0,),
    ),
    "Where": (1, 2),
    "Pad": (0, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}


def masking(model: ir.Model) -> list[str]:
    """Names of the nodes that read a number which stands for infinity, or what was made of one.

    What reads a masked value and is no carrier, as Softmax, brings it back to usual numbers.
    """
    masked: set[ir.Value] = {value for value in model.graph.initializers.values() if _holds_one(value.const_value)}
    found: list[str] = []
    for node in model.graph:
        if node.op_type == "ConstantOfShape" and _holds_one(_tensor(node)):
            masked.update(node.outputs)
        places = CARRIERS.get(node.op_type, ())
        read = [k for k, value in enumerate(node.inputs) if value in masked]
        handed_on = any(places is None or k in places for k in read)
        if handed_on:
            masked.update(node.outputs)
        # A constant that is no carrier's own is a bound, an exponent or a weight, and masks nothing.
        if handed_on or any(graph.constant(node.inputs[k]) is None for k in read):
            found.append(node.name or "")
    return found


def endless(model: ir.Model, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the nodes that make or read a value whose range has an end that is no finite number."""
    return _touching(model, {name for name, pair in ranges.items() if not all(map(math.isfinite, pair))})


def beyond_halves(model: ir.Model, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the nodes that make or read a value which halves do not reach, or nearly not; infinities they have."""
    return _touching(model, {name for name, pair in ranges.items() if any(map(_is_beyond, pair))})


def _is_beyond(x: float) -> bool:
    return math.isfinite(x) and abs(x) >= HALF_OF_MOST


def counted(names: Sequence[str]) -> str:
    """How many nodes stay as they are."""
    return f"'{names[0]}' stays" if len(names) == 1 else f"{len(names)} nodes stay"


def _touching(model: ir.Model, names: Collection[str]) -> list[str]:
    return [node.name or "" for node in model.graph if _touches(node, names)]


def _touches(node: ir.Node, names: Collection[str]) -> bool:
    return any(value is not None and value.name in names for value in (*node.inputs, *node.outputs))


def finite(ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The ranges whose ends are both finite."""
    return {name: pair for name, pair in ranges.items() if all(map(math.isfinite, pair))}


def _holds_one(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or not tensor.dtype.is_floating_point():
        return False
    array = tensor.numpy()
    return bool(array.size) and bool((np.abs(array) >= MASKED).any())


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    value = node.attributes.get("value")
    return None if value is None else value.as_tensor()
