"""Which weights sparse tensor cores can make use of: of every four neighbors along the inputs two are zero."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling.layers import Layer, layers, stored_behind

GROUP, MOST = 4, 2  # of four neighbors two may differ from zero


def two_of_four(model: ir.Model) -> tuple[int, int]:
    """(weights with two zeros in every four neighbors along the input channels, all weights of layers)."""
    found = [_is_two_of_four(layer) for layer in layers(model) if stored_behind(layer.weight) is not None]
    return sum(found), len(found)


def told(name: str, path: Path) -> str:
    """A note on what TensorRT can make of the zeros of a file."""
    count, total = two_of_four(graph.load(path))
    if not count:
        return (
            f"{name}: none of its {total} weights has two zeros in every four input channels, so sparse tensor cores "
            "are of no use to it; --method cci with axis=input makes such"
        )
    return f"{name}: {count} of {total} weights have two zeros in every four input channels; TensorRT may use that"


def _is_two_of_four(layer: Layer) -> bool:
    value = stored_behind(layer.weight)
    assert value is not None
    w = graph.array_of(value)
    w = np.moveaxis(w, layer.inputs(w.ndim), -1)
    if layer.groups != 1 or w.shape[-1] % GROUP or not w.size:
        return False
    return bool((np.count_nonzero(w.reshape(-1, GROUP), axis=1) <= MOST).all())
