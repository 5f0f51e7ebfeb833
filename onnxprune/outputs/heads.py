"""Outputs that explain each other: heads of a detector, and bare numbers beside finished scores."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.outputs.answers import numbers_of
from onnxprune.outputs.beside import places
from onnxprune.outputs.kinds import (
    BOXES,
    CLASSES,
    SCORES,
    SEGMENTATION,
    SEQUENCE,
    SIGNAL,
    Output,
    Part,
)  # fmt: skip
from onnxprune.outputs.look import Look
from onnxprune.outputs.plain import FEWEST, words_in

CORNERS = 0.98  # share of boxes that end behind where they begin
MOSTLY = 0.5


def seen_together(look: Look, entries: Sequence[Output]) -> list[Output]:
    """The outputs, each with what only the others show of it."""
    entries = [_as_boxes(look, entry, entries) for entry in entries]
    entries = [_as_scores_of_boxes(look, entry, entries) for entry in entries]
    return list(_beside_finished(look, entries))


def _as_boxes(look: Look, entry: Output, entries: Sequence[Output]) -> Output:
    """Boxes, where 4 numbers of 0 to 1 stand at the places of other scores, as DETR ends them in a Sigmoid."""
    part, size = _only(entry), _size(look, entry)
    if part is None or part.kind != SCORES or size[-1:] != (4,) or len(size) < 3 or places(part, size) < 2:
        return entry
    widths = [s[-1] for other in entries if other is not entry and (s := _size(look, other))[:-1] == size[:-1]]
    if not widths or not (_called_boxes(entry) or any(width != 4 for width in widths)):
        return entry
    part = replace(part, kind=BOXES, axis=len(size) - 1)
    part = replace(part, form=_form(look, part))
    return replace(
        entry, kind=BOXES, axis=part.axis, parts=(part,), reason="it holds 4 numbers at the places of other scores"
    )


def _form(look: Look, part: Part) -> str:
    """The form of boxes: 'corners' where their 4 numbers can be two of these, else 'centers', a center and a size."""
    arrays = look.arrays(part.value)
    ends = [(y[..., 2:] > y[..., :2]).all(-1).mean() for y in arrays]
    return "corners" if ends and float(np.mean(ends)) > CORNERS else "centers"


def _as_scores_of_boxes(look: Look, entry: Output, entries: Sequence[Output]) -> Output:
    """Scores, where a choice of classes stands at the places of boxes: one class may mean that nothing is there."""
    part, size = _only(entry), _size(look, entry)
    if part is None or part.kind not in (SEQUENCE, SEGMENTATION) or entry.given or entry.decides_on:
        return entry
    others = [other for other in entries if other is not entry and _may_be_boxes(look, other)]
    here = [other for other in others if places(other.parts[0], _size(look, other)) == places(part, size)]
    if _called_boxes(entry) or not here:
        return entry
    found = _scores(look, part, size)
    if found is None:
        return entry
    how = "which one class is none of" if found.background is not None else "each from 0 to 1 behind a Sigmoid"
    reason = f"{entry.reason}, at the places of boxes: scores, {how}"
    return replace(entry, kind=SCORES, axis=found.axis, parts=(found,), reason=reason)


def _called_boxes(entry: Output) -> bool:
    return any(word.startswith(("box", "bbox")) for word in words_in(entry.name))


def _may_be_boxes(look: Look, entry: Output) -> bool:
    """Boxes, or 4 bare numbers at each place: `_beside_finished` takes these for boxes."""
    part, bare = _only(entry), _size(look, entry)[-1:] == (4,) and len(_size(look, entry)) > 2
    return part is not None and (part.kind == BOXES or (bare and part.form == "logits"))


def _scores(look: Look, part: Part, size: Sequence[int]) -> Part | None:
    """`part` as scores; None where its numbers are neither a choice with a background nor scores of their own."""
    arrays, logits = look.arrays(part.value), part.form == "logits"
    classes = size[part.axis or 0]
    if not arrays:
        return replace(part, kind=SCORES, background=classes - 1 if logits else 0)
    y = np.concatenate([numbers_of(part, y if part.rows else y[None]).reshape(-1, classes) for y in arrays])
    if logits and (y.max(-1) < 0).mean() > MOSTLY:
        return replace(part, kind=SCORES)
    counts = np.bincount(y.argmax(-1), minlength=classes) / len(y)
    background = int(counts.argmax())
    if counts[background] <= MOSTLY or background not in (0, classes - 1):
        return None
    return replace(part, kind=SCORES, background=background)


def _beside_finished(look: Look, entries: Sequence[Output]) -> Iterator[Output]:
    """Bare numbers beside outputs that end in Softmax or Sigmoid are no classes, and neither are heads of a pyramid."""
    finished = [p for entry in entries for p in entry.parts if p.form == "probabilities" or p.kind == SCORES]
    maps = [entry for entry in entries if entry.kind == SEGMENTATION]
    for entry in entries:
        part = _only(entry)
        bare = part is not None and part.form == "logits" and not entry.decides_on and not entry.given
        plain = bool(finished) and not _chooses(look, entry, finished)
        if part is None or not bare or part.kind == SCORES or not (plain or (maps[1:] and entry in maps)):
            yield entry
            continue
        size = _size(look, entry)
        kind, axis = (BOXES, len(size) - 1) if size[-1:] == (4,) else (SIGNAL, None)
        why = "it is one of several maps"
        if finished:
            why = "it is a bare layer beside outputs that end in Softmax or Sigmoid"
        yield replace(entry, kind=kind, axis=axis, parts=(replace(part, kind=kind, axis=axis, form=""),), reason=why)


def _chooses(look: Look, entry: Output, finished: Sequence[Part]) -> bool:
    """Whether a row of numbers beside a Sigmoid was seen to have more than one answer: it is a classifier beside it."""
    seen = sum(map(len, look.arrays(entry.name)))
    return entry.kind == CLASSES and seen >= FEWEST and all(part.kind == SCORES for part in finished)


def _only(entry: Output) -> Part | None:
    return entry.parts[0] if len(entry.parts) == 1 else None


def _size(look: Look, entry: Output) -> tuple[int, ...]:
    return tuple(look.sizes.get(entry.name, ()))
