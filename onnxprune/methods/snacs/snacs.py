"""SNACS, arXiv 2006.12463: connections scored by adaptive conditional mutual information, pruned in a single shot.

    rho(j, g) = phi * I(child j; parents g | the other parents)          score of the connection g -> j
    limit     = largest share of a layer's connections that its children can lose (an SVM on their activations)
    protected = the filters on which the next layer leans most

As published, what is pruned are connections, that is kernel slices: `mode=connection` zeroes them and removes what
dies. Ours, and the default, is `mode=filter`: a filter's score is the mean of rho over all children that read it,
so that every zero is a removed unit. Limits, threshold and protection are those of the paper in both modes.
Without a target the method decides how much to remove: one global threshold, capped by each layer's limit, raised
until the network with all layers pruned together loses `tolerance` of its answers before any training.
With a target scores order the units of a layer, and layers are weighed against each other by what the loss loses,
to first order, when so many of their units go (`between=loss`); rho has no scale that layers share. Widths of
residual streams then stay whole, unless the target cannot be met otherwise: the inside of blocks recovers
best, and rho sees one layer at a time, where a stream has many readers. [ours]

Options: mode, samples (2000), groups (64), limits (auto, labels, pseudo, error), tolerance (0.5 when fine-tuning
follows, else 0.2), protect (0.05), between (loss, mean), streams (widths of residual streams like all others),
density (in connection mode: share of the connections that stays; 0 takes --target, else the method decides).
See docs/methods/snacs.md.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune import surgery
from onnxprune.coupling import Dim
from onnxprune.data import Samples
from onnxprune.errors import BridgeError
from onnxprune.methods import options, taylor
from onnxprune.methods.base import Context, Needs, Outcome, method, together
from onnxprune.methods.magnitude import l2
from onnxprune.methods.snacs import rules
from onnxprune.methods.snacs.acmi import connection_scores
from onnxprune.methods.snacs.layers import Layer, balanced, find, judged_on, mean_activations, protect
from onnxprune.methods.snacs.rules import disagreement, largest_share
from onnxprune.outputs import answers
from onnxprune.plan.select import Selection, aligned

LOG = logging.getLogger("onnxprune")
PAIRS = 8192  # connections of a layer that are scored: children are grouped so far


@dataclass(frozen=True)
class Settings:
    """The options of the method, see the head of this file."""

    mode: str = "filter"
    samples: int = 2000
    groups: int = 64
    limits: str = "auto"
    tolerance: float = 0.0  # 0: rules.TOLERANCE
    protect: float = 0.05
    density: float = 0.0
    between: str = "loss"
    streams: bool = False


@method(
    "snacs",
    options=Settings,
    needs=Needs(data=True),
    summary="conditional mutual information of connections, decides by itself how much",
)
def snacs(context: Context) -> Outcome:
    settings = options.read(Settings, context, "snacs")
    choices = (
        ("mode", ("filter", "connection")),
        ("limits", ("auto", "labels", "pseudo", "error")),
        ("between", ("loss", "mean")),
    )
    for name, allowed in choices:
        options.require(getattr(settings, name) in allowed, "snacs", f"{name} is one of {', '.join(allowed)}")
    options.require(0 <= settings.tolerance < 1, "snacs", "tolerance is a share of answers, between 0 and 1")
    options.require(0 <= settings.density <= 1, "snacs", "density is a share of the connections, between 0 and 1")
    options.require(not settings.density or settings.mode == "connection", "snacs", "density is for mode=connection")
    samples = context.samples
    assert samples is not None
    layers = find(context)
    indices = balanced(samples, settings.samples, context.seed)
    activations = mean_activations(context, layers, samples, indices)
    classes = _classes(context, samples, indices, settings)
    if settings.mode == "connection":
        from onnxprune.methods.snacs.slices import prune_connections

        return prune_connections(context, settings, layers, activations, classes)
    return _filters(context, settings, layers, activations, classes)


def _classes(context: Context, samples: Samples, indices: np.ndarray, settings: Settings) -> np.ndarray | None:
    """Labels of the samples by which limits are found: the user's, or the model's own answers.

    None where the model does not classify, or tells so many classes apart that each has a few of these samples only:
    a classifier of them learns nothing, and with a thousand classes takes minutes per layer.
    """
    judged = indices[rules.limit_rows(len(indices))]
    if samples.labels is not None and samples.labels.ndim == 1 and settings.limits in ("auto", "labels"):
        return _telling(samples.labels[judged], settings)
    options.require(settings.limits != "labels", "snacs", "limits=labels needs labelled samples")
    if settings.limits == "error":
        return None
    answered = answers.reference(context.model, samples.subset(judged), context.outputs)
    return None if answered is None or len(answered.samples) < len(judged) else _telling(answered.classes(), settings)


def _telling(classes: np.ndarray | None, settings: Settings) -> np.ndarray | None:
    """`classes` (N,), where a classifier can learn them or the user asked for them by name; else None."""
    few = classes is not None and len(classes) < rules.LEAST_PER_CLASS * len(np.unique(classes))
    return None if few and settings.limits == "auto" else classes


# Filters ----------------------------------------------------------------------------------------------------------


def _filters(
    context: Context,
    settings: Settings,
    layers: Sequence[Layer],
    activations: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
) -> Outcome:
    """Filter mode: scores of whole filters, with limits per layer."""
    sums: dict[Dim, np.ndarray] = {}
    counts: dict[Dim, int] = {}
    limits: dict[Dim, float] = {}
    for layer in layers:
        for dim, units in layer.units.items():
            scores = filter_scores(layer, units, dim.size, activations, settings, context)
            sums[dim] = sums.get(dim, 0) + scores
            counts[dim] = counts.get(dim, 0) + 1
            limit = filter_limit(layer, units, scores, activations, classes)
            limits[dim] = min(limits.get(dim, 1.0), limit)
    scores = {dim: sums[dim] / counts[dim] for dim in sums}
    missing = [dim for dim in context.dims if dim not in scores]
    notes: list[str] = []
    if missing:  # no constant weight reads them, such as the width of attention's keys
        magnitudes = l2(context)
        scale = np.mean([values.mean() for values in scores.values()]) if scores else 1.0
        for dim in missing:
            values = (magnitudes if isinstance(magnitudes, Mapping) else magnitudes.scores)[dim]
            scores[dim] = values / max(float(values.mean()), 1e-12) * scale
        notes.append(
            f"{len(missing)} dimensions that no stored weight reads were scored by the size of their own weights"
        )
    protected = {dim: protect(layers, dim, activations, settings.protect) for dim in scores}
    scores = {dim: scores[dim] for dim in context.dims}
    keep, told = None, "how many units"
    if context.decides:
        keep, fraction = decide(context, settings, scores, limits, protected)
        told = f"up to {fraction:.1%} of all units may go; how many"
    notes.append(f"snacs: {told} of one dimension may go depends on {_limits_from(context, settings, classes)}")
    raised = {dim: _raise(values, protected[dim]) for dim, values in scores.items()}
    if not settings.streams:
        limits.update(dict.fromkeys(context.coupling.residual & limits.keys(), 0.0))
    if settings.between == "loss":
        try:
            losses = taylor.losses(context)
            raised = {dim: priced(values, losses[dim]) for dim, values in raised.items()}
            return Outcome(raised, comparable=True, limits=limits, keep=keep, notes=tuple(notes))
        except BridgeError as error:
            notes.append(
                f"layers were compared by the mean of their scores, because no gradient could be computed: {error}"
            )
    return Outcome(raised, limits=limits, keep=keep, notes=tuple(notes))


def _limits_from(context: Context, settings: Settings, classes: np.ndarray | None) -> str:
    if classes is None:
        return "the error that its removal makes"
    labelled = (
        context.samples is not None and context.samples.labels is not None and settings.limits in ("auto", "labels")
    )
    return "how well the labels can still be told" if labelled else "how well the model's own answers can still be told"


def filter_scores(
    layer: Layer,
    units: np.ndarray,
    size: int,
    activations: Mapping[str, np.ndarray],
    settings: Settings,
    context: Context,
) -> np.ndarray:
    """Scores (size,) of the units by one layer that reads them: mean of rho over the groups of its children.

    Parents are grouped by unit, so that a channel that Flatten spread over many columns counts once.
    """
    parents = activations[layer.parent_value]
    inside = units >= 0
    # Positions of other Dims on the same axis are further parents: they belong to the rest, Z.
    ids = np.where(inside, units, size + np.arange(len(units)) % max(1, settings.groups))
    _, ids = np.unique(ids, return_inverse=True)
    children = _child_groups(layer.weights.shape[0], int(ids.max()) + 1, settings.groups)
    scores = connection_scores(
        parents,
        activations[layer.child_value],
        layer.weights,
        parent_groups=ids,
        child_groups=children,
        magnitude=layer.magnitude,
        device=context.device,
    )
    return scores.mean(0)[:size].astype(np.float64)


def _child_groups(children: int, parent_groups: int, groups: int) -> np.ndarray:
    """Contiguous groups of children (C,), as many as keep the number of pairs bounded."""
    count = max(1, min(children, groups, PAIRS // max(1, parent_groups)))
    return np.arange(children) * count // children


def filter_limit(
    layer: Layer,
    units: np.ndarray,
    scores: np.ndarray,
    activations: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
) -> float:
    """Largest share of the units that this layer's children can lose, lowest scores first (methods 5.7).

    classes: of the samples in `rules.limit_rows`, None to go by the error of the children.

    A layer is linear and averaging over space nearly commutes with it, so the pruned children are the unpruned
    ones less the contributions of what is pruned; no run of the network is needed. [ours]
    """
    parents, children = activations[layer.parent_value], activations[layer.child_value]
    rows = rules.limit_rows(len(parents))
    parents, children = parents[rows], children[rows]
    order = np.argsort(scores, kind="stable")
    means = parents.mean(0)

    def pruned(share: float) -> np.ndarray:
        gone = np.isin(units, order[: round(share * len(order))])
        # A removed unit leaves its mean behind, in the bias: the constants that every run pushes.
        return children - (parents[:, gone] - means[gone]) @ layer.weights[:, gone].T.astype(np.float32)

    return largest_share(pruned, children, classes)


def _raise(scores: np.ndarray, protected: np.ndarray) -> np.ndarray:
    """Scores in which protected units come last to be removed, in unchanged order among themselves."""
    return np.where(protected, scores + scores.max(), scores)


def priced(scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Scores (size,) that mean the same in every Dim, in the order of `scores`; losses (size,): of each unit alone.

    The k-th unit to go is priced like the k-th cheapest: the order is that of the scores, the width is the loss's.
    """
    prices = np.empty(len(scores))
    rising = np.sort(together(losses))
    ties = np.arange(len(scores)) * 1e-9 * max(float(rising[-1]), 1e-30)
    prices[np.argsort(scores, kind="stable")] = rising + ties
    return prices


# How much ---------------------------------------------------------------------------------------------------------


def decide(
    context: Context,
    settings: Settings,
    scores: Mapping[Dim, np.ndarray],
    limits: Mapping[Dim, float],
    protected: Mapping[Dim, np.ndarray],
) -> tuple[dict[Dim, np.ndarray], float]:
    """Kept units by Dim and the global fraction: the largest at which the whole network stays within the tolerance."""
    table = {dim.name: scores[dim][None] for dim in scores}
    shield = {dim.name: protected[dim] for dim in scores}
    caps = {dim.name: limits.get(dim, 0.5) for dim in scores}

    def keep_at(fraction: float) -> dict[Dim, np.ndarray]:
        masks = rules.select_connections(table, caps, fraction)
        kept = {dim: _at_least(masks[dim.name][0] | shield[dim.name], scores[dim]) for dim in scores}
        return {dim: aligned(kept[dim], _raise(scores[dim], protected[dim]), context.align) for dim in scores}

    few, reference = judged_on(context)

    def error(fraction: float) -> float:
        from onnxprune.recover import constants

        selection = Selection(context.coupling, keep_at(fraction))
        model = surgery.cut(selection)
        constants.push(selection, model, few)
        lost = disagreement(model, reference)
        LOG.debug("  snacs: fraction %.3f loses %.3f", fraction, lost)
        return lost

    fraction = rules.automatic_fraction(error, settings.tolerance or rules.untrained(context.recover))
    return keep_at(fraction), fraction


def _at_least(keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`keep` with the best units added until a twentieth of them, and one, stays."""
    least = max(1, len(keep) // 20)
    if keep.sum() < least:
        keep = keep.copy()
        keep[np.argsort(-scores, kind="stable")[:least]] = True
    return keep


__all__ = ["Settings", "balanced", "decide", "filter_limit", "filter_scores", "protect", "snacs"]
