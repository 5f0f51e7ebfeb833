"""Losses of parts of outputs: each in its own units, as their kinds ask for. See kinds.py for what a part is.

Letters: N samples, P places, C classes or features; y a model's numbers, t the original's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.outputs import kinds
from onnxprune.outputs.beside import as_scores, scores_beside
from onnxprune.outputs.kinds import Part

Values = Mapping[str, Tensor]
TINY = 1e-12
SMALL = 1e-6
LEAST_SURE = 1 / 16  # of scores in a sample: where less is found, nothing is
FORMS = ("corners", "centers", "distances")  # of boxes
OFF = 0.1  # of a box's size: by which a side of a cut model is off that is of use
MOSTLY = 0.98  # of the places of boxes, by how sure they are
IGNORED = -100  # what torch leaves out of a cross-entropy


def usable(parts: Sequence[Part], values: Values) -> tuple[Part, ...]:
    """The parts whose values are there as floats."""
    found = (part for part in parts if isinstance(values.get(part.value), Tensor))
    return tuple(part for part in found if values[part.value].is_floating_point() and values[part.value].ndim > 0)


def rows(part: Part, values: Values) -> Tensor:
    """The part's numbers with its axis of classes last: (..., C); scores are 0 to 1."""
    y = values[part.value]
    if part.batch:
        part, y = part.by_sample, y.movedim(part.batch, 0)
    y = part.of(y)
    y = y if part.axis is None or y.ndim < 2 else y.movedim(part.axis, -1)
    return as_scores(part, y.float(), torch.sigmoid, partial(torch.softmax, dim=-1))


def log_probabilities(part: Part, y: Tensor) -> Tensor:
    """log p (..., C) of class scores y, whether they are logits, probabilities or logarithms of them.

    Of one score per sample (N, 2), that the answer is no, and that it is yes.
    """
    if part.kind == kinds.SCORES:
        yes = y.reshape(len(y), 1).clamp(SMALL, 1 - SMALL)
        return torch.cat([1 - yes, yes], 1).log()
    if part.form == "log":
        return y
    return y.clamp_min(TINY).log() if part.form == "probabilities" or _sum_to_one(y) else F.log_softmax(y, -1)


@torch.no_grad()
def _sum_to_one(y: Tensor) -> bool:
    return bool((y >= 0).all() and (y.sum(-1) - 1).abs().max() < 1e-3)


def labels_of(part: Part, y: Tensor, labels: Tensor | None) -> Tensor | None:
    """The labels as classes of y (..., C), where they are answers of this part; None otherwise.

    Of one score per sample the classes are no and yes, see `log_probabilities`.
    """
    if labels is None or labels.is_floating_point():
        return None
    if (
        kinds.says_yes_or_no(part)
        and y.numel() == len(y) == labels.numel()
        and bool(((labels == 0) | (labels == 1)).all())
    ):
        return labels.reshape(len(y)).long()
    if part.kind not in kinds.CHOSEN or labels.numel() != y[..., 0].numel():
        return None
    wanted = labels.reshape(y.shape[:-1]).long()
    return torch.where((wanted < 0) | (wanted >= y.shape[-1]), IGNORED, wanted)  # as masks name what is not judged


def beside(part: Part, parts: Sequence[Part], values: Values) -> Part | None:
    """The first of the scores that stand at the places of `part`, see beside.py; None where there are none."""
    return next(iter(scores_beside(part, parts, lambda p: values[p.value].shape)), None)


def certainty(scores: Part, values: Values) -> Tensor:
    """The largest score (...) at each place, 0 to 1."""
    s = rows(scores, values).detach().amax(-1)
    return s.sigmoid() if s.min() < 0 or s.max() > 1 else s


def weights(part: Part, parts: Sequence[Part], values: Values) -> Tensor | None:
    """How sure the scores at the places of a part are (..., 1), sum 1; None where no scores stand beside it."""
    scores = beside(part, parts, values)
    if scores is None:
        return None
    w = certainty(scores, values).reshape(rows(part, values).shape[:-1])
    return (w / w.sum().clamp_min(TINY)).unsqueeze(-1)


def things(scores: Part, parts: Sequence[Part], values: Values) -> float:
    """How much a sample has of what scores are sure of, mean over samples and over the heads of a detector.

    Heads are those for things of one size each: their sum is divided by their number, so that each thing counts alike,
    not each head, and losses of all heads stay comparable with those of other outputs.
    """
    sums: dict[int, float] = {}
    for other in parts:
        if other.kind == kinds.SCORES and values[other.value].ndim > 1:
            sure = certainty(other, values)
            sums[sure.numel()] = max(sums.get(sure.numel(), 0.0), float(sure.sum()))
    return max(sum(sums.values()) / max(1, len(sums)) / count_of(scores, values), LEAST_SURE)


def count_of(part: Part, values: Values) -> int:
    """The samples of which a part's numbers are."""
    return values[part.value].shape[part.batch] if part.rows else 1


def own_loss(part: Part, parts: Sequence[Part], values: Values, labels: Tensor | None = None) -> Tensor:
    """A loss that the part defines by itself: cross-entropy with its labels or own answers, else its mean square.

    The divergence from its own output would be zero with a zero gradient. Squares are in units of their mean; boxes
    count where scores are sure of them, and from their mean: that they lie far from the corner says nothing.
    """
    y = rows(part, values)
    if part.kind in kinds.CHOSEN:
        log_p = log_probabilities(part, y)
        known = labels_of(part, y, labels)
        answers = log_p.detach().argmax(-1) if known is None else known
        return F.nll_loss(log_p.reshape(-1, log_p.shape[-1]), answers.reshape(-1))
    w = weights(part, parts, values)
    if w is None:
        squares = (y * y).mean()
    else:
        center = (w * y).sum(tuple(range(y.ndim - 1)), keepdim=True).detach()
        squares = (w * (y - center).square()).sum()
    return squares / squares.detach().clamp_min(TINY) / 2


def sampled_loss(part: Part, parts: Sequence[Part], values: Values, generator: torch.Generator) -> Tensor:
    """A loss of which squared gradients average to the Gauss-Newton diagonal of `distance`, mean over samples.

    Classes: cross-entropy with labels drawn from the model's own distribution (the Fisher information). Others: the
    numbers times normal noise, of the variance h of `stiffness`: E[(J'e)^2] = diag(J' diag(h) J).
    """
    y, count = rows(part, values), count_of(part, values)
    if part.kind in kinds.CHOSEN:
        log_p = log_probabilities(part, y)
        flat = log_p.reshape(-1, log_p.shape[-1])
        drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator)[:, 0]
        return F.nll_loss(flat, drawn.to(y.device), reduction="sum") / (count * len(flat)) ** 0.5
    noise = torch.randn(y.shape, generator=generator).to(y) * stiffness(part, parts, values).sqrt()
    return (y * noise).sum() / count


@torch.no_grad()
def stiffness(part: Part, parts: Sequence[Part], values: Values) -> Tensor:
    """The second derivative (..., C) of a sample's `distance` by each number of a part that is no choice of classes.

    scores t: 1 / (t (1 - t)). Boxes of size s: 2 / (OFF s^2), for their overlap falls in proportion to what a side is
    off, not to its square; both are the same where that is OFF of s. Others: 2. In the units of `distance`.
    """
    t, scale = rows(part, values), scale_of(part, parts, values)
    if part.kind == kinds.SCORES and _shares(t):
        t = t.clamp(SMALL, 1 - SMALL)
        return 1 / (t * (1 - t)) / scale
    scores = beside(part, parts, values)
    if scores is None:
        return torch.full_like(t, 2 * count_of(part, values) / t.numel() / scale)
    w = certainty(scores, values).reshape(*t.shape[:-1], 1).expand_as(t)
    if not has_sizes(part):
        return 2 * w / scale
    low, high = corners(t, part.form)
    size = torch.cat([high - low, high - low], -1).abs()
    usual = (w * size).sum() / w.sum().clamp_min(TINY)
    return 2 * w / (OFF * size.clamp_min(usual / 100).square()) / scale


def distance(
    part: Part, parts: Sequence[Part], values: Values, targets: Values, *, temperature: float = 1.0, scale: float = 0.0
) -> Tensor:
    """How far a part is from the original's, 0 where they are equal; in units of `scale`, see `scale_of`.

    classes: T^2 KL(softmax(t / T) || softmax(y / T)) (Hinton et al. 2015, section 2). scores: their binary divergence.
    boxes: 1 - their generalized overlap, where the 4 numbers say a size. Others: the squared error. Boxes and other
    numbers at places that have scores count as much as the original is sure of something there.
    """
    y, t = rows(part, values), rows(part, targets)
    if part.kind in kinds.CHOSEN:
        log_y, log_t = (F.log_softmax(log_probabilities(part, x) / temperature, -1) for x in (y, t))
        flat_y, flat_t = (x.reshape(-1, x.shape[-1]) for x in (log_y, log_t))
        return temperature**2 * F.kl_div(flat_y, flat_t, reduction="batchmean", log_target=True)
    scale, count = scale or scale_of(part, parts, targets), count_of(part, targets)
    if part.kind == kinds.SCORES and _shares(t):
        return _binary(y.clamp(SMALL, 1 - SMALL), t.clamp(SMALL, 1 - SMALL)) / count / scale
    scores, error = beside(part, parts, targets), (y - t).square()
    if scores is None:
        return error.mean() / scale
    w = certainty(scores, targets).reshape(t.shape[:-1])
    if has_sizes(part):
        return (w * (1 - overlap(corners(y, part.form), corners(t, part.form)))).sum() / count / scale
    return (w[..., None] * error).sum() / count / scale


@torch.no_grad()
def scale_of(part: Part, parts: Sequence[Part], targets: Values) -> float:
    """The unit of `distance`, never zero: a variance, the sum of scores of a sample, or the product of both."""
    t = rows(part, targets)
    if part.kind == kinds.SCORES and _shares(t):
        return things(part, parts, targets) if t.ndim > 1 else max(float(t.mean()), LEAST_SURE)
    scores = beside(part, parts, targets)
    if scores is None:
        return max(float(t.var(correction=0)), SMALL)
    unit = things(scores, parts, targets)
    if has_sizes(part):
        return unit
    w = weights(part, parts, targets)
    assert w is not None, part.name
    center = (w * t).sum(tuple(range(t.ndim - 1)), keepdim=True)
    return unit * max(float((w * (t - center).square()).sum()), SMALL)


def has_sizes(part: Part) -> bool:
    """Whether it is known what the 4 numbers of boxes are, so that their overlap is."""
    return part.kind == kinds.BOXES and part.form in FORMS


@torch.no_grad()
def with_forms(parts: Sequence[Part], values: Values) -> tuple[Part, ...]:
    """The parts, boxes with what their 4 numbers are by what the original says at places that it is sure of.

    Corners, a center and a size, or the distances from a place to its four sides; unknown where they are offsets from
    anchors, which tell no size.
    """
    return tuple(
        replace(part, form=_box_form(part, parts, values)) if part.kind == kinds.BOXES else part for part in parts
    )


def _box_form(part: Part, parts: Sequence[Part], values: Values) -> str:
    t, scores = rows(part, values), beside(part, parts, values)
    if part.form or scores is None or t.shape[-1] != 4:
        return part.form
    w = certainty(scores, values).reshape(t.shape[:-1])

    def mostly(true: Tensor) -> bool:
        return float((true.all(-1) * w).sum()) > MOSTLY * float(w.sum())

    if part.along is None:  # a head of its own
        return "distances" if mostly(t > 0) else ""
    if mostly(t[..., 2:] > t[..., :2]):
        return "corners"
    return "centers" if mostly(t[..., 2:] > 0) else ""


def corners(y: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """The two corners (..., 2) of boxes (..., 4); those of distances are relative to their place."""
    one, two = y[..., :2], y[..., 2:]
    if form == "distances":
        return -one, two
    return (one - two / 2, one + two / 2) if form == "centers" else (one, two)


def overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Generalized intersection over union (...) of boxes by their corners (Rezatofighi et al. 2019, eq. 1).

    1 for equal boxes; below 0, and still with a gradient, for those that do not meet.
    """
    area_a, area_b = ((high - low).clamp_min(0).prod(-1) for low, high in (a, b))
    both = (torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0])).clamp_min(0).prod(-1)
    union = (area_a + area_b - both).clamp_min(SMALL)
    hull = (torch.maximum(a[1], b[1]) - torch.minimum(a[0], b[0])).prod(-1).clamp_min(SMALL)
    return both / union - (hull - union) / hull


@torch.no_grad()
def _shares(t: Tensor) -> bool:
    return bool(t.min() >= 0 and t.max() <= 1)


def _binary(y: Tensor, t: Tensor) -> Tensor:
    """sum of t log(t / y) + (1 - t) log((1 - t) / (1 - y)), over everything."""
    return (t * (t / y).log() + (1 - t) * ((1 - t) / (1 - y)).log()).sum()


def mean(losses: Sequence[Tensor]) -> Tensor:
    """The mean over parts, each in its own units."""
    return torch.stack(list(losses)).mean() if losses else torch.zeros(())
