"""How many units of each dimension go: a step of its own between scores and selection, for every method.

A method orders the units of a dimension, and its global order says how many of each go. That may be measured
instead: what counts is what the whole model loses at the size that was asked for, after a cheap recovery.

    method     the method's own global order
    uniform    every dimension keeps the same share
    refit      what a dimension loses alone once its readers are refitted (widths.py); so is the order of units
    measured   the best of several priors, then dimensions made dearer or cheaper, group by group, where that helps

Each candidate is cut, its constants are pushed, it is refitted on a few samples, and its answers are compared with the
original's on mixtures of samples to which nothing is fitted (see recover/fair.py).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from time import perf_counter

import numpy as np

from onnxprune.coupling import Dim
from onnxprune.data import batch_axes, input_infos
from onnxprune.errors import BridgeError, BudgetError, GraphError, UsageError
from onnxprune.graph import stored
from onnxprune.methods import base
from onnxprune.methods.base import Outcome
from onnxprune.methods.rankings import between, priced, reordered, uniform, without
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.recover import fair, levels
from onnxprune.run import leftover, schedule, search, widths
from onnxprune.run.compared import FITTED, Tried, compared, first, has_torch, learned_and_judged, refitted
from onnxprune.run.settings import Settings, kinds_of
from onnxprune.run.subject import Subject
from onnxprune.run.trials import key_of
from onnxprune.system.clock import Clock
from onnxprune.system.packages import missing

LOG = logging.getLogger("onnxprune")
COMPARED = 1024  # mixtures that a candidate is compared on
SECONDS, TIME_SHARE = 300.0, 0.15  # that candidates may take, of the time of the run where one was given
COUNTS = (6, 12, 24, 48)  # candidates; coarse, so that how long one takes decides alike in two runs
FACTORS = (2.0, 1.4)  # by which a group is made dearer or cheaper, coarse to fine
SEARCHED = (0.75, 0.5)  # of the MACs, where widths are compared while nobody knows how small the result will be
LEAST_INSIDE = 0.25  # of every dimension inside blocks: where less would stay, streams are cut as well
INSIDE = "because what is inside blocks can be repaired best"
LAST = 10.0  # by which streams are dearer where nobody knows yet how small the result will be
FEWEST_COMPARED = 32  # samples from which on widths by refit are tried without being asked for
PASSES, MOST_MACS = 3000, 5_000_000_000_000  # samples that go through the model for it, and what they may cost
LEAST_PART = 1 / 8  # of these samples: what a larger model is tried on; where not even they can be paid, nothing is
LOOKED_AT = 256  # samples that second order is taken of
MOST_WORK = 1e11  # multiplications to put units in order, about two minutes
BY_REFIT = "which units go and how many of each dimension: by what is lost once what reads them is refitted"
BY_ORDER = "units go in the order of what is lost once what reads them is refitted"
BY_LOSS = f"how many units of each dimension go: by what the loss loses, without the method's limits; {BY_ORDER}"
BETWEEN = (
    f"how many units of each dimension go: halfway between what the loss loses and what the refit leaves; {BY_ORDER}"
)
SHORT = {
    BY_ORDER: "its widths in the order of the refit",
    BY_LOSS: "widths by the loss in that order",
    BY_REFIT: "the widths and the order of the refit",
    BETWEEN: "widths between these two",
}
GROUPS = 6  # of the dimensions inside blocks; the width of each residual stream is one of its own


Evaluate = Callable[[Selection], np.ndarray]  # the losses (N,) of a cut


@dataclass(frozen=True)
class Candidate(Tried):
    """A ranking, what it selects, and what that loses on each sample (N,)."""

    name: str
    outcome: Outcome
    selection: Selection
    losses: np.ndarray

    @property
    def short(self) -> str:
        """Its name where several stand in one line."""
        return SHORT.get(self.name, self.name)


def allocated(subject: Subject, outcome: Outcome, settings: Settings, clock: Clock) -> Outcome:
    """`outcome` with the ranking that the allocation asked for makes of it."""
    if outcome.zeros or _keeps_all(settings):
        return outcome
    if outcome.keep is not None:
        if not settings.goal.target:
            return _decided(subject, outcome, settings, clock)
        outcome = replace(outcome, keep=None)  # the target says how much goes
    if settings.widths.allocate == "uniform":
        return uniform(outcome)
    asked = settings.widths.allocate
    if asked in ("measured", "refit") and (subject.tune is None or len(subject.tune) < levels.FEWEST_TRAINED):
        raise UsageError(f"--allocate {asked} needs samples; give --data, or choose method or uniform")
    if asked == "refit":
        with clock("allocate"):
            return _refit(subject, outcome, settings)
    if asked == "measured":
        with clock("allocate"):
            return _measured(subject, outcome, settings)
    if asked is None and subject.tune is None:
        return _streams_whole(subject, outcome, settings, "because nothing can be repaired without samples")
    if asked is None and settings.recovery.level in ("reconstruct", "finetune"):
        with clock("allocate"):
            plain = _repairable(subject, outcome, settings)
            evaluator = cache(lambda: _evaluator(subject, settings))  # what both compare with, and with its losses
            found = _better_by_refit(subject, outcome, plain, settings, evaluator)
            return _better_by_hessian(subject, found, settings, evaluator)
    return outcome


def _keeps_all(settings: Settings) -> bool:
    """Whether the targets leave everything, as where one only quantizes: then no widths are compared."""
    return bool(settings.goal.target) and not settings.goal.searched and min(settings.goal.target.values()) >= 1


def _decided(subject: Subject, outcome: Outcome, settings: Settings, clock: Clock) -> Outcome:
    """What the method decided without a target, or as many MACs in other units or widths that lose less."""
    assert outcome.keep is not None
    if settings.widths.allocate is not None or settings.recovery.level not in ("reconstruct", "finetune"):
        return outcome
    costs = subject.cost
    share = costs.total("macs", cost.keep_sizes(outcome.keep)) / max(costs.total("macs"), 1.0)
    as_small = replace(settings, goal=replace(settings.goal, target={"macs": share}))
    with clock("allocate"):
        evaluator = cache(lambda: _evaluator(subject, as_small))
        found = _better_by_refit(subject, outcome, outcome, as_small, evaluator)
        found = _better_by_hessian(subject, found, as_small, evaluator)
        return found if found.keep is not None else replace(found, keep=_selected(subject, found, as_small).keep)


def _repairable(subject: Subject, outcome: Outcome, settings: Settings) -> Outcome:
    """Widths from which recovery on samples brings back most.

    Magnitudes of different layers have no common scale: they order units well enough, and say little of widths, which
    the loss then says. Methods that set limits or learn widths keep theirs.
    """
    needs = settings.method.needs
    if needs.training or outcome.limits:
        return outcome
    if needs == base.Needs() and not outcome.comparable:
        return _by_taylor(subject, outcome, settings)
    return _streams_whole(subject, outcome, settings, INSIDE, least=LEAST_INSIDE)


def _refit(subject: Subject, outcome: Outcome, settings: Settings, orders: widths.Orders | None = None) -> Outcome:
    """Order and widths by what is lost after the refit of what reads the units (widths.py), streams whole."""
    spared = _streams_whole(subject, outcome, settings, INSIDE, least=LEAST_INSIDE)
    found = widths.by_refit(subject, spared, settings.seed, reorder=True, orders=orders)
    return replace(found, notes=(*spared.notes, BY_REFIT))


def _may_choose(subject: Subject, settings: Settings) -> bool:
    """Whether another order or method may be taken: nobody asked for one, and there are samples to compare on."""
    enough = subject.tune is not None and len(subject.tune) >= FEWEST_COMPARED
    return settings.method_found and enough and not stored.beyond_memory(subject.model)


def _affordable(subject: Subject) -> float:
    """The part of the samples of a trial that may go through a model as large as this."""
    return min(1.0, MOST_MACS / (PASSES * max(1, subject.cost.totals()["macs"])))


def _better_by_refit(
    subject: Subject, outcome: Outcome, plain: Outcome, settings: Settings, evaluator: Callable[[], Evaluate]
) -> Outcome:
    """`plain` with its units in the order of what the refit leaves, or `_refit`, where nobody asked for a method.

    The order is taken unless it is worse at the size asked for (at SEARCHED where a search finds the size), other
    widths where they lose less. What would take longer than some minutes is not tried.
    """
    try:
        if (orders := _orders(subject, outcome, settings)) is None:
            return plain
        sizes = _compared_at(subject, plain, settings)
        rankings = _rankings(subject, outcome, plain, settings, orders)
        tried = [c for item in rankings for c in _tried(*item, subject, settings, evaluator(), sizes)]
    except (GraphError, UsageError) as error:  # nobody asked for it: what cannot be measured is not tried
        LOG.info("  nothing by refit: %s", error)
        return plain
    if (best := _best(tried, settings.method.name)) is None or best.outcome is plain:
        return plain
    told = "; ".join(f"{c.loss:.4f} by {c.short}" for c in tried)
    note = f"{best.name} (lost in a trial: {told})"
    LOG.info("  %s", note)
    return replace(best.outcome, notes=(*(n for n in best.outcome.notes if n != BY_REFIT), note))


def _orders(subject: Subject, outcome: Outcome, settings: Settings) -> widths.Orders | None:
    """Units in the order of the refit, where the order is ours to choose and this takes no more than some minutes."""
    if not _may_choose(subject, settings):
        return None
    readers = leftover.readers(subject.coupling, outcome.scores)
    if _affordable(subject) < LEAST_PART or widths.work(readers) > MOST_WORK:
        return None
    return widths.Orders(subject, readers, settings.seed)


def contenders(subject: Subject, outcome: Outcome, settings: Settings) -> list[Candidate]:
    """What is compared where nobody asked for a method, with what each loses: for those who want to look at all."""
    orders = widths.Orders(subject, leftover.readers(subject.coupling, outcome.scores), settings.seed)
    rankings = _rankings(subject, outcome, _repairable(subject, outcome, settings), settings, orders)
    evaluate = _evaluator(subject, settings)
    return [candidate for item in rankings for candidate in _tried(*item, subject, settings, evaluate)]


def _rankings(
    subject: Subject, outcome: Outcome, plain: Outcome, settings: Settings, orders: widths.Orders
) -> Iterator[tuple[str, Outcome]]:
    """What is compared where nobody asked for a method, each with its name."""
    yield settings.method.name, plain
    yield BY_ORDER, widths.in_order(plain, orders)
    free = spared = _streams_whole(subject, outcome, settings, INSIDE, least=LEAST_INSIDE)
    if outcome.limits and outcome.comparable:
        free = _streams_whole(subject, replace(outcome, limits={}, keep=None), settings, INSIDE, least=LEAST_INSIDE)
        yield BY_LOSS, widths.in_order(free, orders)
    # More is asked for than the inside of blocks has. Where the size is searched for streams are dear instead.
    squeezed = subject.coupling.residual & spared.scores.keys() and not settings.goal.searched
    if squeezed or not widths.affordable(subject, spared):
        return
    refit = _refit(subject, outcome, settings, orders)
    yield BY_REFIT, refit
    if outcome.comparable and free.scores.keys() == refit.scores.keys():
        yield BETWEEN, between(free, refit)


def _best(tried: Sequence[Candidate], own: str) -> Candidate | None:
    """Which of the results is taken: the method's own, its widths in another order, other widths; None without it.

    The order of the refit unless it is worse, then what loses least, by more than chance explains.
    """
    found = {candidate.name: candidate for candidate in tried}
    best = found.get(own)
    if best is None:
        return None
    if BY_ORDER in found and not best.beats(found[BY_ORDER]):
        best = found[BY_ORDER]
    least = min(tried, key=lambda candidate: candidate.loss)
    return least if least.beats(best) else best


def _better_by_hessian(
    subject: Subject, plain: Outcome, settings: Settings, evaluator: Callable[[], Evaluate]
) -> Outcome:
    """The order and widths of hessian where nobody asked for a method and they lose less of what is no class.

    Methods made for classifiers look at the answer; boxes and maps are numbers, of which second order tells the loss.
    """
    if not _may_choose(subject, settings) or settings.goal.searched:
        return plain
    if subject.outputs.classified or not has_torch():
        return plain
    if 3 * LOOKED_AT * subject.cost.totals()["macs"] > MOST_MACS:  # a gradient costs about three runs
        return plain
    try:
        outcome = schedule.score(subject, base.get("hessian"), settings, Clock(), method_options={"samples": LOOKED_AT})
    except (UsageError, BridgeError) as error:
        LOG.info("  not tried by hessian: %s", error)
        return plain
    found = _streams_whole(subject, outcome, settings, INSIDE, least=LEAST_INSIDE)
    tried = [
        _tried(name, each, subject, settings, evaluator())
        for name, each in ((settings.method.name, plain), ("hessian", found))
    ]
    if not all(tried) or not tried[1][0].beats(tried[0][0]):
        return plain
    note = (
        "which units go and how many of each dimension: by the second order of what the outputs lose (hessian), "
        f"{tried[1][0].loss:.4f} instead of {tried[0][0].loss:.4f}"
    )
    LOG.info("  %s", note)
    return replace(found, notes=(*found.notes, note))


def _by_taylor(subject: Subject, outcome: Outcome, settings: Settings) -> Outcome:
    """The method's order in the widths that taylor would choose, residual streams whole where the target allows."""
    by_loss = _taylor(subject, outcome, settings)
    if isinstance(by_loss, str):
        note = f"how many units of each dimension go is as {settings.method.name} says, not as the loss does: {by_loss}"
        outcome = replace(outcome, notes=(*outcome.notes, note))
        return _streams_whole(subject, outcome, settings, INSIDE, least=LEAST_INSIDE)
    note = (
        f"{settings.method.name} says which units go, and how much the loss grows (taylor) how many of each dimension; "
        f"--allocate method leaves both to {settings.method.name}"
    )
    by_loss = replace(by_loss, notes=(*outcome.notes, note))
    return _streams_whole(subject, by_loss, settings, INSIDE, least=LEAST_INSIDE)


def _taylor(subject: Subject, outcome: Outcome, settings: Settings) -> Outcome | str:
    """The method's order in taylor's widths, or why there are none: no gradient reaches the weights, or no torch."""
    if stored.beyond_memory(subject.model):
        return "gradients need all weights in memory, and those of a model as large as this stay in its files"
    try:
        scored = schedule.score(subject, base.get("taylor"), settings, Clock(), method_options={})
    except (UsageError, BridgeError, ModuleNotFoundError) as error:
        told = missing(error) if isinstance(error, ModuleNotFoundError) else error
        if told is None:
            raise
        LOG.info("  no widths by taylor: %s", told)
        return str(told)
    return reordered(scored, outcome)


def _streams_whole(subject: Subject, outcome: Outcome, settings: Settings, why: str, least: float = 0.0) -> Outcome:
    """Without the widths of residual streams, where targets can be met so: what they lose is lost to all readers.

    Where a search decides how small the result is, they are made so dear that they go last.

    least: the share of every other dimension that has to be able to stay.
    """
    spared = without(outcome, subject.coupling.residual)
    if not spared.scores or len(spared.scores) == len(outcome.scores):
        return outcome
    if settings.goal.searched:
        last = priced(outcome, [dim for dim in outcome.scores if dim not in spared.scores], LAST)
        note = f"the widths that shortcuts (residual connections) add into are cut last (ten times as dear), {why}"
        return replace(last, notes=(*outcome.notes, note))
    try:
        search.one_shot(subject, spared, settings, _targets(settings), floor=max(settings.widths.floor, least))
    except BudgetError:
        return outcome
    what = "the widths that shortcuts (residual connections) add into stay whole"
    note = f"{what}, {why}; --allocate method cuts them as well"
    return replace(spared, notes=(*spared.notes, note))


def _targets(settings: Settings) -> search.Targets:
    return kinds_of(settings.goal.target) or search.HALF


# Measuring --------------------------------------------------------------------------------------------------------


def _measured(subject: Subject, outcome: Outcome, settings: Settings) -> Outcome:
    """The best of several priors, then dimensions made dearer or cheaper, group by group, where the loss falls.

    Less than the first of them, the method's own, by more than chance explains: else that is taken.
    """
    start = perf_counter()
    evaluate = _evaluator(subject, settings)
    tried: list[Candidate] = []
    for name, ranking in _priors(subject, outcome, settings):
        tried += _tried(name, ranking, subject, settings, evaluate)
    if not tried:
        return outcome  # the selection proper says what cannot be met
    each = (perf_counter() - start) / len(tried)
    seconds = SECONDS if settings.seconds is None else TIME_SHARE * settings.seconds
    count = max(n for n in COUNTS if n <= max(COUNTS[0], seconds / max(each, 1e-9)))
    own = tried[0]
    best, moves = min(tried, key=lambda candidate: candidate.loss), 0
    prior = best
    for factor in FACTORS:
        for dims in _groups(subject, best.outcome):
            for by in (factor, 1 / factor):
                if len(tried) >= count:
                    break
                found = _tried(best.name, priced(best.outcome, dims, by), subject, settings, evaluate)
                tried += found
                if found and found[0].beats(best):
                    best, moves = found[0], moves + 1
                    break  # not back again
    better = best.beats(own)
    note = (
        f"widths: measured, {len(tried)} candidates, best prior '{prior.short}' "
        f"({prior.loss:.4f}), {moves} moves to {best.loss:.4f}; '{own.name}' loses {own.loss:.4f}"
        f"{'' if better else f', and is kept: {best.loss:.4f} is not clearly less'}"
    )
    best = best if better else own
    LOG.info("  %s", note)
    return replace(best.outcome, notes=(*outcome.notes, note))


def _tried(
    name: str,
    ranking: Outcome,
    subject: Subject,
    settings: Settings,
    evaluate: Evaluate,
    sizes: Sequence[search.Targets | None] = (None,),
) -> list[Candidate]:
    """The candidate, with what it loses at all `sizes`, or none where one of these budgets cannot be met by it."""
    try:
        selections = [_selected(subject, ranking, settings, size) for size in sizes]
    except BudgetError:
        return []
    found = Candidate(name, ranking, selections[-1], np.concatenate([evaluate(each) for each in selections]))
    LOG.info("  tried: %s, which loses %.4f", found.short, found.loss)
    return [found]


def _compared_at(subject: Subject, plain: Outcome, settings: Settings) -> list[search.Targets | None]:
    """The sizes that widths are compared at: that which is asked for (None), or where one is searched for several."""
    if not settings.goal.searched or kinds_of(settings.goal.target):
        return [None]
    found: list[search.Targets | None] = []
    for share in SEARCHED:
        with suppress(BudgetError):
            _selected(subject, plain, settings, size := {"macs": share})
            found.append(size)
    return found or [None]


def _selected(subject: Subject, ranking: Outcome, settings: Settings, size: search.Targets | None = None) -> Selection:
    """What goes by a ranking at `size`, else at that which was asked for, or as it was decided. Raises: BudgetError."""
    if ranking.keep is not None:
        return search.decided_by_method(subject, ranking, settings)
    return search.near_the_target(subject, ranking, settings, size or _targets(settings))


def _priors(subject: Subject, outcome: Outcome, settings: Settings) -> Iterator[tuple[str, Outcome]]:
    """Rankings to begin with, by name, the method's own first.

    Even shares, taylor's, by refit, each also with streams whole; where nobody asked for a method, also what the plain
    command compares.
    """
    streams = subject.coupling.residual & outcome.scores.keys()
    found = {settings.method.name: outcome, "uniform": uniform(outcome)}
    if settings.method.name != "taylor" and not isinstance(by_loss := _taylor(subject, outcome, settings), str):
        found["taylor"] = by_loss
    for name, ranking in found.items():
        yield name, ranking
        if streams and len(streams) < len(outcome.scores):
            yield f"{name}, streams whole", without(ranking, frozenset(streams))
    if (orders := _orders(subject, outcome, settings)) is not None:
        yield from _rankings(subject, outcome, _repairable(subject, outcome, settings), settings, orders)
    elif (inside := without(outcome, frozenset(streams))).scores:
        yield "refit, streams whole", widths.by_refit(subject, inside, settings.seed, reorder=False)


def _groups(subject: Subject, outcome: Outcome) -> list[list[Dim]]:
    """Dims that are made dearer or cheaper together: neighbors inside blocks, and each stream by itself."""
    streams = [[dim] for dim in outcome.scores if dim in subject.coupling.residual]
    inner = [dim for dim in outcome.scores if dim not in subject.coupling.residual]
    parts = np.array_split(np.arange(len(inner)), min(GROUPS, max(1, len(inner))))
    return [*streams, *([inner[k] for k in part] for part in parts if len(part))]


def _evaluator(subject: Subject, settings: Settings) -> Evaluate:
    """A function that gives the losses (N,) of the whole model, cut by a choice and cheaply recovered."""
    assert subject.tune is not None
    learned, judged = learned_and_judged(subject.tune, settings.seed)
    part = max(_affordable(subject), LEAST_PART)
    learned, judged = first(learned, ceil(part * FITTED)), first(judged, round(part * COMPARED))
    held = fair.mixed(judged, batch_axes(input_infos(subject.model)), round(part * COMPARED), settings.seed)
    original = compared(subject, held)
    known: dict[bytes, np.ndarray] = {}  # rankings that differ may select the same

    def losses(selection: Selection) -> np.ndarray:
        key = key_of(selection.keep)
        if key not in known:
            known[key] = original.losses(refitted(selection, learned, settings.seed))
        return known[key]

    return losses
