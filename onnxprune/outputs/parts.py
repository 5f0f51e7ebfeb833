"""Losses of parts of outputs: each in its own units, as their kinds ask for. See kinds.py for what a part is.

Letters: N samples, P places, C classes or features; y a model's numbers, t the original's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.outputs import kinds
from onnxprune.outputs.kinds import Part

Values = Mapping[str, Tensor]
TINY = 1e-12
SMALL = 1e-6
IGNORED = -100  # what torch leaves out of a cross-entropy


def usable(parts: Sequence[Part], values: Values) -> tuple[Part, ...]:
    """The parts whose values are there as floats."""
    found = (part for part in parts if isinstance(values.get(part.value), Tensor))
    return tuple(part for part in found if values[part.value].is_floating_point() and values[part.value].ndim > 0)


def rows(part: Part, values: Values) -> Tensor:
    """The part's numbers with its axis of classes last: (..., C)."""
    y = part.of(values[part.value])
    y = y if part.axis is None or y.ndim < 2 else y.movedim(part.axis, -1)
    return y.float()


def log_probabilities(part: Part, y: Tensor) -> Tensor:
    """log p (..., C) of class scores y, whether they are logits, probabilities or logarithms of them."""
    if part.form == "log":
        return y
    return y.clamp_min(TINY).log() if part.form == "probabilities" or _sum_to_one(y) else F.log_softmax(y, -1)


@torch.no_grad()
def _sum_to_one(y: Tensor) -> bool:
    return bool((y >= 0).all() and (y.sum(-1) - 1).abs().max() < 1e-3)


def labels_of(part: Part, y: Tensor, labels: Tensor | None) -> Tensor | None:
    """The labels as classes of y (..., C), where they are answers of this part; None otherwise."""
    if labels is None or part.kind not in kinds.CHOSEN or labels.is_floating_point():
        return None
    if labels.numel() != y[..., 0].numel():
        return None
    wanted = labels.reshape(y.shape[:-1]).long()
    return torch.where((wanted < 0) | (wanted >= y.shape[-1]), IGNORED, wanted)  # as masks name what is not judged


def weights(part: Part, parts: Sequence[Part], values: Values) -> Tensor | None:
    """How sure scores at the places of boxes are (..., 1), sum 1; None for other kinds and boxes without scores."""
    if part.kind != kinds.BOXES:
        return None
    places = rows(part, values).shape[:-1]
    for other in parts:
        if other.kind == kinds.SCORES and (s := rows(other, values)).shape[:-1].numel() == places.numel():
            w = s.detach().amax(-1).reshape(places)
            w = w.sigmoid() if w.min() < 0 or w.max() > 1 else w
            return (w / w.sum().clamp_min(TINY)).unsqueeze(-1)
    return None


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


def sampled_loss(part: Part, values: Values, generator: torch.Generator) -> Tensor:
    """A loss of which squared gradients average to the Gauss-Newton diagonal, mean over samples.

    Classes: cross-entropy with labels drawn from the model's own distribution (the Fisher information). Others: the
    numbers times unit normal noise, in units of their size: E[(J'e)^2] = diag(J'J).
    """
    y = rows(part, values)
    if part.kind in kinds.CHOSEN:
        log_p = log_probabilities(part, y)
        flat = log_p.reshape(-1, log_p.shape[-1])
        drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator)[:, 0]
        return F.nll_loss(flat, drawn.to(y.device))
    scale = (y * y).mean().detach().clamp_min(TINY).sqrt() * (y.numel() / len(y)) ** 0.5
    return (y * torch.randn(y.shape, generator=generator).to(y)).sum() / scale / len(y)


def distance(
    part: Part, parts: Sequence[Part], values: Values, targets: Values, *, temperature: float = 1.0, scale: float = 0.0
) -> Tensor:
    """How far a part is from the original's, 0 where they are equal.

    classes: T^2 KL(softmax(t / T) || softmax(y / T)) (Hinton et al. 2015, section 2). scores: their binary divergence
    in units of the original's sum. Others: squared error in units of the variance, by `scale` where that is given;
    boxes weighted by the original's scores.
    """
    y, t = rows(part, values), rows(part, targets)
    if part.kind in kinds.CHOSEN:
        log_y, log_t = (F.log_softmax(log_probabilities(part, x) / temperature, -1) for x in (y, t))
        flat_y, flat_t = (x.reshape(-1, x.shape[-1]) for x in (log_y, log_t))
        return temperature**2 * F.kl_div(flat_y, flat_t, reduction="batchmean", log_target=True)
    if part.kind == kinds.SCORES and _shares(t):
        return _binary(y.clamp(SMALL, 1 - SMALL), t.clamp(SMALL, 1 - SMALL)) / t.sum().clamp_min(1.0)
    w = weights(part, parts, targets)
    error = (y - t).square()
    if w is None:
        return error.mean() / (scale or max(float(t.var(correction=0)), SMALL))
    center = (w * t).sum(tuple(range(t.ndim - 1)), keepdim=True)
    return (w * error).sum() / (scale or max(float((w * (t - center).square()).sum()), SMALL))


@torch.no_grad()
def _shares(t: Tensor) -> bool:
    return bool(t.min() >= 0 and t.max() <= 1)


def _binary(y: Tensor, t: Tensor) -> Tensor:
    """sum of t log(t / y) + (1 - t) log((1 - t) / (1 - y)), over everything."""
    return (t * (t / y).log() + (1 - t) * ((1 - t) / (1 - y)).log()).sum()


def scale_of(part: Part, parts: Sequence[Part], values: Values) -> float:
    """The variance by which squared errors of a part are divided, never zero."""
    t, w = rows(part, values), weights(part, parts, values)
    if w is None:
        return max(float(t.var(correction=0)), SMALL)
    center = (w * t).sum(tuple(range(t.ndim - 1)), keepdim=True)
    return max(float((w * (t - center).square()).sum()), SMALL)


def mean(losses: Sequence[Tensor]) -> Tensor:
    """The mean over parts, each in its own units."""
    return torch.stack(list(losses)).mean() if losses else torch.zeros(())
