"""Facts that a model in memory carries beside its graph, and the one copy of a model that takes them along.

onnx_ir gives a model a store `meta` for anything; here it holds one record. Nothing else in the package reads `meta`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.graph.zipmaps import Map

KEY = "onnxprune"  # in a model's `meta`
# For every value that loses positions, weights too: axis -> kept positions at a length of that axis.
Kept = Mapping[str, Mapping[int, Callable[[int], np.ndarray]]]


@dataclass(frozen=True)
class Extras:
    """The record of one model; a model that was made in memory has the defaults."""

    maps: tuple[Map, ...] = ()  # outputs that were set aside, see zipmaps.py
    defaults: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)  # of inputs, see defaults.py
    described: frozenset[str] | None = None  # values of which the file gave type and shape; None: there was no file
    external: bool = False  # some weights came in files beside the model, and are written so again
    written_out: int = 0  # quantized operators that the normal form shows as QDQ, see qoperator.py
    notes: tuple[str, ...] = ()  # what was done in a lesser way than it should be, for the report
    only_batch: int | None = None  # the one size that the symbolic batch can have
    states: tuple[tuple[str, str, str], ...] = ()  # (input, output that is handed back as it, why), see states.py
    # Sizes that were inferred when this normal form was made: of this model, and of no copy, which may be changed.
    inferred: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)
    kept: Kept = field(default_factory=dict)  # of a masked model: the positions that the cut model has
    forced: tuple[Mapping[str, bool], ...] = ()  # and choices of Ifs, by name, with which it runs as well


def of(model: ir.Model) -> Extras:
    """The record of `model`, the default one where it carries none."""
    held = model.meta.get(KEY)
    return held if isinstance(held, Extras) else Extras()


def put(model: ir.Model, extras: Extras) -> None:
    """Makes `model` carry `extras`, in place of what it carried."""
    model.meta[KEY] = extras


def note(model: ir.Model, *texts: str) -> None:
    """Adds notes for the report to what `model` carries, each text once."""
    held = of(model)
    put(model, replace(held, notes=tuple(dict.fromkeys((*held.notes, *texts)))))


def copy(model: ir.Model) -> ir.Model:
    """A copy of `model` with all that it carries; the tensors are shared."""
    made = model.clone()
    put(made, replace(of(model), inferred={}))
    return made
