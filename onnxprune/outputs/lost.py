"""How much of the original's answers a model has lost, sample by sample: what candidates for a cut are compared by.

Each part is compared as fine-tuning compares it (see parts.py), in its own units; the mean over the parts counts. So
places where a detector finds nothing weigh nothing, and pixels do not drown class scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxprune.outputs import parts
from onnxprune.outputs.answers import Values
from onnxprune.outputs.kinds import Outputs, Part


@dataclass(frozen=True)
class Originals:
    """The original's answers `said` (N, ...) on samples, their parts and the unit of each part."""

    said: Values
    parts: tuple[Part, ...]
    units: Mapping[str, float]


def originals(said: Values, outputs: Outputs) -> Originals | None:
    """The original's answers, with which models are compared; None where no part holds floats."""
    found = tuple(p for p in outputs.by_sample.parts if p.value in said and said[p.value].dtype.kind == "f")
    if not found:
        return None
    count = len(next(iter(said.values())))
    each = [_sample(said, found, k) for k in range(count)]
    known = parts.with_forms(found, _together(each, found))
    units = {part.name: float(np.mean([parts.scale_of(part, known, one) for one in each])) for part in known}
    return Originals(said, known, units)


def lost(said: Values, original: Originals) -> np.ndarray:
    """The mean distance (N,) over the parts, each in its unit."""
    count = len(next(iter(original.said.values())))
    return np.array([_lost_of(said, original, k) for k in range(count)])


@torch.no_grad()
def average(said: Values, original: Originals) -> float:
    """The mean of `lost` over the samples, in one pass where values have a row for each."""
    if not all(part.rows for part in original.parts):
        return float(lost(said, original).mean())
    y, t = (
        {part.value: torch.from_numpy(values[part.value]) for part in original.parts}
        for values in (said, original.said)
    )
    return _mean_distance(original, y, t)


@torch.no_grad()
def _lost_of(said: Values, original: Originals, k: int) -> float:
    return _mean_distance(original, _sample(said, original.parts, k), _sample(original.said, original.parts, k))


def _mean_distance(original: Originals, y: Mapping[str, Tensor], t: Mapping[str, Tensor]) -> float:
    found = [parts.distance(p, original.parts, y, t, scale=original.units[p.name]) for p in original.parts]
    return float(parts.mean(found))


def _sample(said: Values, found: Sequence[Part], k: int) -> dict[str, Tensor]:
    """The values of sample `k` as a model gives them for it alone."""
    rows = {part.value: part.rows for part in found}
    return {
        name: torch.from_numpy(np.asarray(said[name][k : k + 1] if has else said[name][k]))
        for name, has in rows.items()
    }


def _together(each: Sequence[Mapping[str, Tensor]], found: Sequence[Part]) -> dict[str, Tensor]:
    return {part.value: torch.cat([one[part.value] for one in each]) for part in found}
