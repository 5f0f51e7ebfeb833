"""From scores to kept positions under the options' budget: one shot, a search for a latency, or for an accuracy.

A trial of the search is a cut with the cheap recoveries; what it measures decides where to look next.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import metrics, pipeline, surgery
from onnxprune.bench import QUICK, measure_latency
from onnxprune.cost import Kind
from onnxprune.coupling import Dim
from onnxprune.errors import BudgetError
from onnxprune.methods.base import Outcome
from onnxprune.options import TARGETS, Options, alignment_for
from onnxprune.select import Budget, select

LOG = logging.getLogger("onnxprune")
Keep = Mapping[Dim, np.ndarray]
TRIALS = 6


@dataclass(frozen=True)
class Trial:
    """One point that a search looked at: the share of MACs kept, and what was measured there."""

    macs: float
    value: float
    held: bool

    def __str__(self) -> str:
        return f"macs={self.macs:.3f}: {self.value:.3f} {'holds' if self.held else 'misses'}"


def choose(subject: "pipeline.Subject", outcome: Outcome, options: Options) -> tuple[Keep, tuple[str, ...]]:
    """Kept positions and notes for the report.

    Raises: BudgetError when the budget cannot be met, with the nearest that can.
    """
    targets: dict[Kind, float] = {TARGETS[k]: f for k, f in options.target.items() if k != "latency"}  # type: ignore[misc]
    if options.max_drop is not None:
        return _search_accuracy(subject, outcome, options, targets)
    if "latency" in options.target:
        return _search_latency(subject, outcome, options, targets)
    if not targets and outcome.keep is not None:
        return outcome.keep, ("the method decided how much to remove",)
    return one_shot(subject, outcome, options, targets or {"macs": 0.5})


def one_shot(
    subject: "pipeline.Subject", outcome: Outcome, options: Options, targets: Mapping[Kind, float]
) -> tuple[Keep, tuple[str, ...]]:
    """Selection to the targets; the method's own limits give way when the targets cannot be met within them."""
    align = alignment_for(options.align, pipeline.provider(options))
    budget = Budget(targets, options.floor, align, outcome.limits)
    arguments = (outcome.scores, subject.cost)
    try:
        return select(*arguments, budget, comparable=outcome.comparable), ()
    except BudgetError:
        if not outcome.limits and align == 1:
            raise
    try:
        keep = select(*arguments, replace(budget, limits={}), comparable=outcome.comparable)
        return keep, ("the target is beyond the limits that the method found per dimension; they were exceeded",)
    except BudgetError:
        if align == 1:
            raise
    keep = select(*arguments, replace(budget, limits={}, align=1), comparable=outcome.comparable)
    return keep, (f"the target cannot be met in multiples of {align}; sizes are not aligned",)


def _bisect(trial: Callable[[float], tuple[float, bool]], low: float, high: float) -> tuple[float | None, list[Trial]]:
    """The smallest share of MACs in (low, high] at which `trial` holds, as far as TRIALS steps tell, and all trials."""
    tried: list[Trial] = []
    best: float | None = None
    share = (low + high) / 2
    for _ in range(TRIALS):
        try:
            value, held = trial(share)
        except BudgetError:
            low, share = share, (share + high) / 2
            continue
        tried.append(Trial(share, value, held))
        LOG.info("  tried %s", tried[-1])
        if held:
            best, high = share, share
        else:
            low = share
        share = (low + high) / 2
    return best, tried


def _notes(tried: list[Trial], what: str) -> tuple[str, ...]:
    return (f"searched for {what}; " + "; ".join(map(str, tried)),)


def _with_macs(targets: Mapping[Kind, float], share: float) -> dict[Kind, float]:
    return {**targets, "macs": min(share, targets.get("macs", 1.0))}


def _search_latency(
    subject: "pipeline.Subject", outcome: Outcome, options: Options, targets: Mapping[Kind, float]
) -> tuple[Keep, tuple[str, ...]]:
    """The largest plan that is fast enough: latency is measured on each trial's cut model."""
    wanted = options.target["latency"]
    batch = pipeline.batch_size_of(pipeline.input_infos(subject.model)) or 1
    feeds = pipeline.latency_feeds(subject, batch)

    def measured(share: float) -> float:
        keep, _ = one_shot(subject, outcome, options, _with_macs(targets, share))
        table = measure_latency(
            {"original": subject.path, "trial": surgery.cut(subject.coupling, keep)},
            feeds,
            provider=pipeline.provider(options),
            threads=options.threads,
            batch=batch,
            rounds=QUICK,
            memory=False,
            sessions=1,
        )
        return table.ratios[0].median

    tried: list[Trial] = []
    low, high, best = 0.0, 1.0, None
    share = wanted
    for _ in range(TRIALS):
        try:
            ratio = measured(share)
        except BudgetError:
            low, share = share, (share + high) / 2
            continue
        tried.append(Trial(share, ratio, ratio <= wanted * 0.98))  # what is written must hold when measured again
        LOG.info("  tried %s", tried[-1])
        if tried[-1].held:
            best, low = share, share
        else:
            high = share
        share = (low + high) / 2
    if best is None:
        nearest = min((t.value for t in tried), default=float("nan"))
        raise BudgetError(
            f"--target latency={wanted:g} cannot be met; the nearest that was measured is latency={nearest:.3f}"
        )
    keep, notes = one_shot(subject, outcome, options, _with_macs(targets, best))
    return keep, (*notes, *_notes(tried, f"latency={wanted:g}"))


def _search_accuracy(
    subject: "pipeline.Subject", outcome: Outcome, options: Options, targets: Mapping[Kind, float]
) -> tuple[Keep, tuple[str, ...]]:
    """The smallest plan that loses at most --max-drop points after a cheap recovery, or after a short fine-tuning."""
    assert options.max_drop is not None
    held = subject.held
    if held is None:
        raise BudgetError("--max-drop: no samples are left to measure on; give more samples or --val")
    quick = replace(options, recover=_cheaper(options), epochs=1, resume=None, progress=False)

    def trial(share: float) -> tuple[float, bool]:
        keep, _ = one_shot(subject, outcome, options, _with_macs(targets, share))
        model = surgery.cut(subject.coupling, keep)
        pipeline.recover(subject, keep, model, quick, pipeline.Clock(), {})
        lost = pipeline.drop(*pipeline.accuracies(subject.path, model, held))
        assert lost is not None
        return lost, lost <= options.max_drop  # type: ignore[operator]

    best, tried = _bisect(trial, 0.0, targets.get("macs", 1.0))
    if best is None:
        nearest = min((t.value for t in tried), default=float("nan"))
        raise BudgetError(
            f"--max-drop {options.max_drop:g} cannot be met: the least that was lost is {nearest:.2f} points "
            f"({'; '.join(map(str, tried)) or 'no plan could be made'}); allow more, or give more samples and --epochs"
        )
    keep, notes = one_shot(subject, outcome, options, _with_macs(targets, best))
    return keep, (*notes, *_notes(tried, f"at most {options.max_drop:g} points lost"))


def _cheaper(options: Options) -> str:
    """Trials stop at least squares, or tune for one epoch where the run itself will tune."""
    return options.level


__all__ = ["Trial", "choose", "metrics", "one_shot"]
