"""Whether bare numbers, which no Softmax or Sigmoid ends, are class scores or measured quantities.

A map of five channels may be scores of five classes, five heat maps, or five bands of a spectrum. What the output is
called, what shape it has and what its numbers look like on samples tell them apart.
"""

import re

import numpy as np
import onnx_ir as ir

from onnxprune.outputs.answers import numbers_of
from onnxprune.outputs.kinds import Part
from onnxprune.outputs.look import Look

QUANTITIES = frozenset(
    "depth disparity disp flow normals mel spec spectrogram audio wav waveform heatmap heatmaps noise landmark"
    " landmarks keypoint keypoints kps coord coords pose age angle angles".split()
)  # words in names of outputs
FEWEST = 16  # samples that all having one answer says something
BANDS = 8  # channels from which on their order can be seen
TOGETHER = 0.6  # correlation of neighbors along an axis; classes stand in no order
SURE = 0.5  # probability of the likeliest class at half of the places
PEAK, FLAT = 0.2, 0.6  # share of the largest number below which a place is flat, and the share of flat places
MOST_PLACES = 4000  # that are looked at


def words_in(name: str) -> set[str]:
    """The words of a name, in lower case."""
    return set(re.findall("[a-z]+", name.lower()))


def quantity_called(name: str) -> str | None:
    """Why a value of this name is a quantity; None where the name does not tell."""
    called = QUANTITIES & words_in(name)
    return f"it is called {min(called)}" if called else None


def quantity(look: Look, value: ir.Value) -> str | None:
    """Why a value is a quantity by its name or its shape; None where these do not tell."""
    name = value.name or ""
    if (called := quantity_called(name)) is not None:
        return called
    size = tuple(look.sizes.get(name, ()))
    for given in look.model.graph.inputs:
        if len(size) > 2 and size == tuple(look.sizes.get(given.name or "", ())) and given.dtype == ir.DataType.FLOAT:
            return f"it has the shape of the input '{given.name}'"
    return None


def no_choice(look: Look, part: Part) -> str | None:
    """Why the numbers of `part` are no class scores, as seen on samples; None where they may be."""
    arrays = [y if part.rows else y[None] for y in look.arrays(part.value)]
    if not arrays or sum(map(len, arrays)) < FEWEST or len({y.shape[1:] for y in arrays}) != 1:
        return None
    y = np.concatenate([numbers_of(part, y) for y in arrays]).astype(np.float64)  # (N, P, C)
    if not np.isfinite(y).all():
        return None
    if _flat_but_for_peaks(y) and len(look.sizes.get(part.value, ())) == 4:
        return "its maps are flat but for a few peaks"
    if y.shape[-1] >= BANDS and _in_order(y) and not _sure(y):
        return "neighbors along its channels go together, as in a spectrum"
    return None


def _flat_but_for_peaks(y: np.ndarray) -> bool:
    """Whether at most places no channel comes near the largest number: scores have a winner everywhere."""
    highest = np.abs(y).max(-1)  # (N, P)
    return bool((highest < PEAK * np.median(highest.max(1))).mean() > FLAT)


def _in_order(y: np.ndarray) -> bool:
    """Whether channels differ from their means as their neighbors do."""
    flat = y.reshape(-1, y.shape[-1])
    flat = flat[:: max(1, len(flat) // MOST_PLACES)]
    flat = flat - flat.mean(0)
    flat = flat - flat.mean(1, keepdims=True)  # louder or softer as a whole is no order
    norms = np.sqrt((flat**2).sum(0))
    near = (flat[:, 1:] * flat[:, :-1]).sum(0) / np.maximum(norms[1:] * norms[:-1], 1e-30)
    return bool(np.median(near) > TOGETHER)


def _sure(y: np.ndarray) -> bool:
    """Whether as logits they would be sure of one class at half of the places."""
    likeliest = 1 / np.exp(y - y.max(-1, keepdims=True)).sum(-1)
    return bool(np.median(likeliest) > SURE)
