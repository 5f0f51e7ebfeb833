"""Records: what quantization takes, and what it gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.data import Samples
from onnxprune.graph.inputs import Feeds
from onnxprune.quantize import proof, rounding
from onnxprune.quantize.asked import Asked


@dataclass(frozen=True)
class Quantized:
    """A quantized model, the float model that it is the rounding of, and what is to be recorded of how it was made.

    pruned is the float model before its biases were corrected for the rounding.
    """

    model: ir.Model
    float_model: ir.Model
    pruned: ir.Model
    record: Mapping[str, Any]
    simulation: proof.Simulation
    notes: tuple[str, ...] = ()
    trained: bool = False  # so that the weights of float_model are others than those of pruned


@dataclass(frozen=True)
class Context:
    """What quantization is made with; known: the record of a plan that is replayed. teacher: the model before it was
    pruned, for training. lost: the share of the float model's answers that a model loses, where anything tells."""

    asked: Asked
    samples: Samples | None
    feeds: Sequence[Feeds]  # on which the proof runs
    provider: str = "cpu"
    seed: int = 0
    known: Mapping[str, Any] = field(default_factory=dict)
    teacher: ir.Model | None = None
    lost: Callable[[ir.Model], float] | None = None

    def far(self, floats: ir.Model, feeds: Sequence[Feeds]) -> Callable[[ir.Model], float]:
        """What tells how far off a model is from `floats` on its outputs: 0 not at all, 1 where nothing is left."""

        def off(model: ir.Model) -> float:
            found = rounding.worst_error(model, floats, feeds)
            return found if self.lost is None else max(found, self.lost(model))

        return off


def proof_feeds(feeds: Sequence[Feeds]) -> list[Feeds]:
    """A few of the feeds of the proof: every value of the model is held twice on each."""
    return list(feeds[:1]) + list(feeds[-1:]) if len(feeds) > 1 else list(feeds)
