"""What scores are, and which stand at the places of boxes or landmarks. Metrics (numpy) and losses (torch) ask here.

A value of shape (N, places, 4) with boxes and one of shape (N, places, C) with scores speak of the same places. What a
detector says of places where it finds nothing, nobody reads.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, TypeVar

from onnxprune.outputs.kinds import BOXES, SCORES, SIGNAL, Part

Shape = Sequence[int]
Array = TypeVar("Array", bound=Any)  # of numpy or torch


def scores_beside(part: Part, parts: Iterable[Part], shape_of: Callable[[Part], Shape]) -> tuple[Part, ...]:
    """The scores among `parts` at the places of `part`, if it holds boxes, or numbers at several places of a sample.

    shape_of: the shape of a part's value as the model gives it, with its batch axis where it has one.
    """
    if part.kind not in (BOXES, SIGNAL) or len(shape_of(part)) < 2:
        return ()
    count = places(part, shape_of(part))
    if part.kind == SIGNAL and (count == 1 or len(shape_of(part)) != 2 + part.rows):
        return ()
    scores = (other for other in parts if other.kind == SCORES and len(shape_of(other)) > 1)
    return tuple(other for other in scores if places(other, shape_of(other)) == count)


def places(part: Part, shape: Shape) -> int:
    """The places of one sample: all positions of a value of this shape, its batch axis and the part's axis left out."""
    axis = (len(shape) - 1 if part.axis is None else part.axis) % len(shape)
    return prod(n for k, n in enumerate(shape) if k != axis and not (part.rows and k == part.batch))


def as_scores(part: Part, y: Array, sigmoid: Callable[[Array], Array], softmax: Callable[[Array], Array]) -> Array:
    """Scores of 0 to 1 where `part` says that y (..., C) are logits, or a choice of classes; other numbers as they are.

    Of a choice the class that means "nothing here" (background) is left out.
    """
    if part.kind != SCORES or (part.background is None and part.form != "logits"):
        return y
    if part.background is None:
        return sigmoid(y)
    y = y if part.form == "probabilities" else softmax(y)
    return y[..., [k for k in range(y.shape[-1]) if k != part.background]]
