"""The curve of quality against cost from one scoring, and the searches that read it.

`--front` shows it: a dozen sizes, recovered quickly and measured, a few of them recovered in full, and a plan of each.
`--max-drop` reads it: where the curve meets what may be lost a full recovery is tried, which bends the curve, and so
on, until the smallest size is known that holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune import graph, surgery
from onnxprune.errors import BudgetError, UsageError
from onnxprune.measure import measure_file, measure_settled
from onnxprune.measure.records import ORIGINAL, FrontPoint
from onnxprune.outputs.metrics import Accuracy
from onnxprune.plan import cost
from onnxprune.plan.plan import Plan, save
from onnxprune.run import measuring, search
from onnxprune.run.curve import knee
from onnxprune.run.subject import FEWEST_PROMISED
from onnxprune.run.targets import drop, within
from onnxprune.run.trials import MOST_FULL, Recovered, Trial, Trials, key_of
from onnxprune.system.atomic_files import beside

if TYPE_CHECKING:
    from onnxprune.methods.base import Outcome
    from onnxprune.plan.select import Selection
    from onnxprune.run.settings import Settings
    from onnxprune.run.subject import Subject
    from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")
T = TypeVar("T")
SIZES, FEWEST = 12, 10  # of a front; where plans coincide, sizes between are tried until there are so many
FULL_OF_FRONT = (0.25, 0.5, 0.75)  # of the sizes from small to large, those that are recovered in full
SEARCHED = 8  # sizes that a search for an accuracy tries quickly
BEYOND, MARGIN = 3.0, 2.0  # times what may be lost, and points: smaller sizes are not tried where more was lost
SAFE, LEAST_AIM = 0.84, 0.4  # standard errors of the promise below what may be lost, so that it holds in 8 of 10 runs
NEAR = 0.02  # of the MACs: sizes that differ by less are as good as one
ENOUGH = 0.05  # of the MACs, between the largest size that misses and the smallest that holds: then the search ends
LARGER = (0.3, 0.6)  # where a result misses: how far to go from its size towards the largest


@dataclass(frozen=True)
class Front:
    """Trials from large to small, and what the rest is predicted by.

    latencies, sizes: times of the results and bytes of quantized files, as shares of the original's, by plan.
    """

    trials: Trials
    points: tuple[Trial, ...]
    latencies: Mapping[bytes, float]
    sizes: Mapping[bytes, float]

    def lost(self, point: Trial) -> tuple[float, bool]:
        """(points lost after the full recovery, whether they were measured rather than predicted)."""
        full = self.trials.known(point.keep)
        return (self.trials.curve().lost(point.macs), False) if full is None else (full.lost, True)

    def records(self, chosen: Selection) -> tuple[FrontPoint, ...]:
        """The points for the report; chosen: what the result is made of."""
        return tuple(self._record(number, point, chosen) for number, point in enumerate(self.points, 1))

    def _record(self, number: int, point: Trial, chosen: Selection) -> FrontPoint:
        lost, measured = self.lost(point)
        costs, sizes = self.trials.subject.cost, cost.keep_sizes(point.keep)
        full = self.trials.known(point.keep)
        final, rounded = (full.accuracy, full.rounded) if full is not None else (None, None)
        return FrontPoint(
            macs=point.macs,
            params=costs.total("params", sizes) / max(costs.total("params"), 1.0),
            latency=self.latencies.get(key_of(point.keep)),
            metric=point.accuracy.metric,
            quick=point.accuracy.value,
            value=final.value if final is not None else value_at(point.accuracy, lost),
            lost=lost,
            measured=measured,
            quantized=None if (found := rounded or point.rounded) is None else found.value,
            bytes=self.sizes.get(key_of(point.keep)),
            plan=name_of(number, point),
            chosen=key_of(point.keep) == key_of(chosen.keep),
        )


@dataclass(frozen=True)
class Choice:
    """The selection that a result is made of, with what is known of it.

    recovered: what a full trial made of it already. front: that it was chosen from.
    """

    selection: Selection
    recovered: Recovered | None = None
    front: Front | None = None


def name_of(number: int, point: Trial) -> str:
    """The name of the file of a point's plan, in the folder of the front."""
    return f"{number:02d}-macs-{point.macs:.3f}.json"


def folder_of(out: Path) -> Path:
    """The folder of the plans beside the result."""
    return beside(out, ".front")


def check(out: Path, *, has_samples: bool) -> None:
    """Checks that there are samples, and that plans can be written beside the result; raises UsageError otherwise."""
    if not has_samples:
        raise UsageError("--front needs samples to measure on; give --data or --val")
    folder = folder_of(out)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: --front writes plans into that folder, and it is a file; choose another output")


def write_plans(plans: Mapping[str, Plan], out: Path) -> None:
    """Writes the plans by the names of their files; those of an earlier front of the same output are removed."""
    folder = folder_of(out)
    folder.mkdir(exist_ok=True)
    for file in folder.glob("[0-9][0-9]-macs-*.json"):
        if file.name not in plans:
            file.unlink()
    for name, made in plans.items():
        save(made, folder / name)


def value_at(quick: Accuracy, lost: float) -> float:
    """The metric where so many of 100 points between a null model and the original are lost."""
    if quick.share is not None and quick.null is not None and quick.original is not None:
        return quick.original - lost / 100 * (quick.original - quick.null)
    return quick.value


def choices(subject: Subject, outcome: Outcome, settings: Settings, clock: Clock) -> Iterator[Choice]:
    """Choices of what to produce, the best first; the next is tried when the finished result missed a gate.

    Raises: BudgetError when the budget cannot be met, with the nearest that can.
    """
    if settings.goal.max_drop is None and not settings.goal.front:
        yield from map(Choice, search.selections(subject, outcome, settings))
        return
    trials = trials_of(subject, outcome, settings, clock)
    found = made(trials) if settings.goal.front else None
    for selection in _chosen(trials, found):
        full = trials.known(selection.keep)
        yield Choice(selection, None if full is None else full.recovered, found)


def first_that_holds(found: Iterator[Choice], make: Callable[[Choice], T], clock: Clock) -> T:
    """The first result of which the gates hold. Raises: BudgetError of the last one when none does."""
    missed: list[BudgetError] = []
    while True:
        with clock("select"):
            choice = next(found, None)
        if choice is None:
            raise missed[-1]
        try:
            tries = (f"{len(missed)} other results were tried before and missed what was asked",) if missed else ()
            return make(replace(choice, selection=choice.selection.noted(*tries)))
        except BudgetError as error:
            LOG.info("%s; looking further", error)
            missed.append(error)


def trials_of(subject: Subject, outcome: Outcome, settings: Settings, clock: Clock) -> Trials:
    """Trials on the samples that are there to choose on. Raises: UsageError where there are none."""
    goal = settings.goal
    option = "--front" if goal.max_drop is None else "--max-drop"
    held = subject.held if subject.searched is None else subject.searched
    if held is None:
        raise UsageError(f"{option}: no samples are left to measure on; give more samples or --val")
    if goal.front and outcome.zeros:
        raise UsageError(
            f"--front: --method {settings.method.name} sets weights to zero for one size; choose a method that scores "
            "units"
        )
    judge = measuring.yardstick(subject, held, settings.metric)
    drop(judge.accuracy, judge.of(subject.path))  # a metric that tells nothing is refused before the work
    return Trials(subject, outcome, settings, search.targets_of(subject, outcome, settings), held, clock, judge)


def _chosen(trials: Trials, found: Front | None) -> Iterator[Selection]:
    """The results in question: what the gates ask for, else the knee of the front."""
    goal = trials.settings.goal
    if goal.max_drop is not None:
        yield from _by_accuracy(trials, goal.max_drop)
    elif goal.target:
        yield from search.selections(trials.subject, trials.outcome, trials.settings)
    else:
        assert found is not None
        at = knee([(1.0, 0.0), *((point.macs, found.lost(point)[0]) for point in found.points)])
        point = found.points[max(0, at - 1)]
        note = f"the result is the knee of the front, macs={point.macs:.3f}: beyond it more is lost for what is saved"
        yield point.selection.noted(note)


# The front --------------------------------------------------------------------------------------------------------


def made(trials: Trials) -> Front:
    """The front: quick trials at a dozen sizes, full ones at three, latencies of all against each other."""
    whole = replace(trials, targets={})  # a target says what the result is, not how far the front reaches
    points = _spread(whole)
    if trials.settings.recovery.level not in ("none", "constants"):
        for part in FULL_OF_FRONT:
            trials.try_full(points[round((1 - part) * (len(points) - 1))].selection)
    stored = _stored(trials, points)
    return Front(trials, tuple(points), _latencies(trials, stored), _sizes(trials, stored))


def _spread(trials: Trials) -> list[Trial]:
    """Quick trials of different plans, from large to small, spread over all sizes that can be reached."""
    low, found = trials.lowest(), dict[bytes, Trial]()
    count = SIZES
    while True:
        for share in np.linspace(low, 1.0, count + 1)[:-1][::-1]:
            selection = trials.at(float(share))
            if trials.share_of(selection.keep) < 1:
                found.setdefault(key_of(selection.keep), trials.try_cheap(selection))
        if len(found) >= min(FEWEST, SIZES) or count > 2 * SIZES:
            break
        count *= 2
    if not found:
        raise BudgetError("--front: no size below the original's can be reached; lower --floor or --align")
    return sorted(found.values(), key=lambda trial: -trial.macs)


def _stored(trials: Trials, points: Sequence[Trial]) -> dict[bytes, ir.Model]:
    """Each plan's model as its result is stored, for its time and its bytes; none where neither is asked for."""
    if trials.settings.form.quantize is not None:
        return {key_of(point.keep): point.stored for point in points if point.stored is not None}
    if not trials.settings.timing.wanted:
        return {}
    return {key_of(point.keep): surgery.cut(point.selection) for point in points}


def _latencies(trials: Trials, stored: Mapping[bytes, ir.Model]) -> dict[bytes, float]:
    """Each plan's time as a share of the original's, all measured in turns; none where that fails or is not wanted."""
    settings, subject = trials.settings, trials.subject
    if not settings.timing.wanted:
        return {}
    batch, feeds = measuring.latency_feeds(subject)
    keys = list(stored)
    models: dict[str, Path | ir.Model] = {ORIGINAL: subject.path}
    models |= {str(number): stored[key] for number, key in enumerate(keys)}
    table = measure_settled(models, feeds, **settings.timing.at(batch))
    return {keys[int(ratio.model)]: ratio.median for ratio in table.ratios}


def _sizes(trials: Trials, stored: Mapping[bytes, ir.Model]) -> dict[bytes, float]:
    """The bytes of each plan's file as a share of the original's, where it is quantized."""
    if trials.settings.form.quantize is None:
        return {}
    subject = trials.subject
    whole = measure_file(ORIGINAL, subject.path, subject.cost.totals()).bytes or 1
    return {key: graph.message_bytes(model) / whole for key, model in stored.items()}


# Accuracy ---------------------------------------------------------------------------------------------------------


def _by_accuracy(trials: Trials, allowed: float) -> Iterator[Selection]:
    """The smallest plan that loses at most --max-drop points after the full recovery, then larger ones."""
    low, high = trials.lowest(), trials.largest
    _coarsely(trials, allowed, low, high)
    best = _finely(trials, allowed, low, high)
    told = _told(trials, allowed)
    if best is None:
        nearest = min((trial.lost for trial in _all(trials)), default=float("nan"))
        raise BudgetError(
            f"--max-drop {allowed:g} cannot be met: the nearest is {nearest:.2f} points ({told}); "
            "allow more, give more samples, or a larger --target"
        )
    top = high if trials.targets else 1.0
    for share in (best.macs, *(best.macs + part * (top - best.macs) for part in LARGER if top - best.macs > 0.005)):
        tried = best if share == best.macs else trials.try_full(trials.at(share))
        yield tried.selection.noted(told, promise(trials.subject, len(trials.samples)))


def promise(subject: Subject, count: int) -> str:
    """On which samples --max-drop chose, and on which it promises."""
    if subject.searched is not None and subject.held is not None:
        return f"--max-drop chose on {count} samples, and promises on {len(subject.held)} others"
    return (
        f"--max-drop chose and promises on the same {count} samples, which flatters; "
        f"give {2 * FEWEST_PROMISED} or more to measure on"
    )


def _coarsely(trials: Trials, allowed: float, low: float, high: float) -> None:
    """Quick trials from large to small, until clearly more is lost than may be."""
    shares = np.linspace(low, high, SEARCHED + 1)[::-1]
    for share in shares if trials.targets else shares[1:]:  # without a target the largest is the original
        if trials.try_cheap(trials.at(float(share))).lost > BEYOND * allowed + MARGIN:
            break


def _finely(trials: Trials, allowed: float, low: float, high: float) -> Trial | None:
    """The smallest of a few full trials that holds: each is where the curve, bent by those before, meets the aim."""
    best: Trial | None = None
    aim = aim_of(allowed, len(trials.subject.held or trials.samples))
    # Each full trial bends the curve, and the next is where the bent curve meets the aim: few are needed, where halving
    # would spend one on every bit.
    for _ in range(MOST_FULL):
        share = trials.curve().smallest(aim, low, high)
        if share is None:
            share = high if trials.targets else (low + high) / 2
        tried = trials.try_full(trials.at(share))
        if within(tried.lost, allowed):
            best = tried if best is None or tried.macs < best.macs else best
            high = min(high, best.macs)
        else:
            low = max(low, tried.macs + NEAR)
        ahead = trials.curve().smallest(aim, low, high)
        if low >= high or (best is not None and (ahead is None or best.macs - ahead < NEAR or high - low < ENOUGH)):
            break
    return best


def aim_of(allowed: float, count: int) -> float:
    """Points that the search aims at, so that no more than `allowed` are lost on `count` samples that it never saw.

    Where a share p of the answers is lost, what a sample of n tells of it has a standard error of sqrt(p (1 - p) / n).
    """
    share = min(allowed / 100, 0.5)
    error = 100 * (share * (1 - share) / max(1, count)) ** 0.5
    return max(LEAST_AIM * allowed, allowed - SAFE * error)


def _all(trials: Trials) -> list[Trial]:
    return [*trials.full.values(), *trials.cheap.values()]


def _told(trials: Trials, allowed: float) -> str:
    cheap = "; ".join(map(str, trials.cheap.values()))
    full = "; ".join(map(str, trials.full.values()))
    found = f"searched for at most {allowed:g} points lost; after a quick recovery {cheap or 'nothing'}"
    return f"{found}; after the full one {full}" if full else found
