"""From scores to kept positions under the options' budget: one shot, or a search for a latency.

A trial of a search is a cut that is measured, which decides where to look next. What is produced in the end is
measured again, and where it misses, a few neighbors follow. Searches for an accuracy are in front.py.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

import onnx_ir as ir

from onnxprune import graph, quantize, surgery
from onnxprune.coupling import Keep
from onnxprune.errors import BudgetError
from onnxprune.measure import measure_file, measure_settled, profile
from onnxprune.measure.calibrations import alignment_for
from onnxprune.measure.predict import node_table, share_for
from onnxprune.methods.base import Outcome
from onnxprune.options import TARGETS, Options, is_number, provider_for
from onnxprune.plan import cost
from onnxprune.plan.cost import Kind
from onnxprune.plan.select import Budget, aligned, select, topped_up
from onnxprune.recover import biases
from onnxprune.run import measuring
from onnxprune.run.finish import as_written, finish
from onnxprune.run.subject import FEWEST_PROMISED, Subject
from onnxprune.run.targets import by_nonzeros
from onnxprune.surgery import packing
from onnxprune.system.clock import Clock

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History
    from onnxprune.run.front import Front

LOG = logging.getLogger("onnxprune")
Targets = Mapping[Kind, float]
TRIALS = 8
# A search for a latency, in parts of what is wanted: it aims at FASTER, ends between CLOSE and the room that noise
# needs, and measures twice where it is UNSURE.
FASTER, CLOSE, ROOM_FOR_NOISE, UNSURE = 0.985, 0.97, 0.995, 0.04
SIZE_TRIALS = 10  # which measure nothing
# After a miss of the finished result: what part of the share of MACs that was found is tried next.
SMALLER = (0.985, 0.96, 0.9)
LEAST_MULTIPLE = 4  # the width of the narrowest vector unit; nothing is aligned below it
WASTE = 0.06  # share of a target by which blocks of an automatic alignment may remove more than was asked
ROUNDED_BIAS_BYTES = 12  # of a number of a bias that is quantized: itself, its scale and its zero point
ROOM = 0.01  # share of a size that is left free, for what is written is counted again
NODE_BYTES = 200  # of a node that adds a bias, with its names
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """Kept positions that promise to hold the budget, and notes for the report.

    recovered: what a trial made of it, where its recovery was the whole one. front: that it was chosen from.
    """

    keep: Keep
    notes: tuple[str, ...] = ()
    recovered: "Recovered | None" = None
    front: "Front | None" = None


@dataclass(frozen=True)
class Recovered:
    """A cut and recovered model, and how its fine-tuning went."""

    model: ir.Model
    history: "History | None"


@dataclass(frozen=True)
class Trial:
    """One point that a search looked at: the share of MACs kept, and what was measured there."""

    macs: float
    value: float
    held: bool

    def __str__(self) -> str:
        return f"macs={self.macs:.3f}: {self.value:.3f} {'holds' if self.held else 'misses'}"


def choices(
    subject: Subject, outcome: Outcome, options: Options, target: Mapping[str, float] | None = None
) -> Iterator[Choice]:
    """What to produce for the targets, the best first; the next is for when the finished result missed a gate.

    target: what is asked for on the way to the options' own. --max-drop and --front are the business of front.py.
    Raises: BudgetError when the budget cannot be met, with the nearest that can.
    """
    target = options.target if target is None else target
    targets = targets_of(subject, outcome, options, target)
    if "latency" in target:
        yield from _by_latency(subject, outcome, options, targets)
    elif outcome.keep is not None and (not targets or by_nonzeros(options, outcome.zeros)):
        yield _decided_by_method(outcome, options)
    elif options.pack and set(targets) == {"bytes"} and _fits_packed(subject, outcome, targets["bytes"]):
        yield _decided_by_method(outcome, options)
        choice = near_the_target(subject, outcome, options, targets)
        yield replace(
            choice,
            notes=(
                *choice.notes,
                "zeros alone did not make the file small enough, so whole channels were removed as well",
            ),
        )
    else:
        yield near_the_target(subject, outcome, options, targets or {"macs": 0.5})


def targets_of(
    subject: Subject, outcome: Outcome, options: Options, target: Mapping[str, float] | None = None
) -> Targets:
    """Shares of costs that may remain, of a model in floats. Raises: BudgetError where a size cannot be met."""
    asked = options.target if target is None else target
    targets = cast("Targets", {TARGETS[key]: f for key, f in asked.items() if key != "latency"})
    return _in_floats(subject, outcome, options, targets) if "bytes" in targets and options.quantize else targets


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
            return make(replace(choice, notes=(*choice.notes, *tries)))
        except BudgetError as error:
            LOG.info("%s; looking further", error)
            missed.append(error)


def one_shot(
    subject: Subject,
    outcome: Outcome,
    options: Options,
    targets: Targets,
    *,
    align: int | None = None,
    floor: float | None = None,
) -> Choice:
    """Selection to the targets; the method's limits, and an automatic alignment, give way to a target.

    align: the multiple to try instead of that of the options; it has exceptions, as an automatic one has.
    floor: the smallest share of a dimension that stays, instead of theirs. Raises: BudgetError.
    """
    budget = _budget(subject, outcome, options, targets)
    budget = budget if align is None else replace(budget, align=align, strict=False)
    budget = budget if floor is None else replace(budget, floor=floor)
    tries: list[tuple[Budget, tuple[str, ...]]] = [(budget, ())]
    if budget.limits:
        note = "the target asks for more than the method thinks harmless; it was removed all the same"
        tries.append((replace(budget, limits={}), (note,)))
    if budget.align > 1 and not budget.strict:
        note = (
            f"sizes that stay are no multiples of {budget.align}, the fastest here: the target cannot be met with these"
        )
        tries.append((replace(budget, limits={}, align=1), (note,)))
    for tried, notes in tries[:-1]:
        try:
            return Choice(_selected(subject, outcome, tried), notes)
        except BudgetError:
            continue
    tried, notes = tries[-1]
    return Choice(_selected(subject, outcome, tried), notes)


def _selected(subject: Subject, outcome: Outcome, budget: Budget) -> Keep:
    ranking, prices = outcome.ranking, outcome.prices
    return select(ranking, subject.cost, budget, comparable=outcome.comparable, prices=prices)


def near_the_target(subject: Subject, outcome: Outcome, options: Options, targets: Targets) -> Choice:
    """`one_shot`, in finer multiples where those of an automatic alignment remove much more than was asked.

    Where few dimensions give all that is removed, one block of them can be a tenth of the model.
    """
    choice = one_shot(subject, outcome, options, targets)
    if is_number(options.align):
        return choice
    budget = _budget(subject, outcome, options, targets)
    best, used, align = choice, _used(subject, choice, budget), budget.align // 2
    while used < 1 - WASTE and align >= LEAST_MULTIPLE:
        finer = one_shot(subject, outcome, options, targets, align=align)
        if (reached := _used(subject, finer, budget)) > used:
            note = (
                f"sizes that stay are multiples of {align}; those of {budget.align} would remove much more than asked"
            )
            best, used = replace(finer, notes=(*finer.notes, note)), reached
        align //= 2
    return best


def _used(subject: Subject, choice: Choice, budget: Budget) -> float:
    """The largest share of a limit that is used up."""
    sizes = cost.keep_sizes(choice.keep)
    return max(subject.cost.total(kind, sizes) / budget.limit(kind, subject.cost) for kind in budget.targets)


def _budget(subject: Subject, outcome: Outcome, options: Options, targets: Targets) -> Budget:
    align = alignment_for(options.align, provider_for(options))
    count, numbers = biases.most_made(subject.model) if options.level != "none" else (0, 0)
    made: dict[Kind, float] = {"params": numbers, "bytes": numbers * 4 + count * NODE_BYTES}
    budget = Budget(targets, options.floor, align, is_number(options.align), outcome.limits, fixed=made)
    if "bytes" not in targets:
        return budget
    # The promise is about the file: nodes and names weigh what they weigh.
    around = float(graph.skeleton(subject.model, 0)[0].ByteSize())
    file = measure_file("original", subject.path, subject.cost.totals())
    return replace(budget, whole={"bytes": float(file.bytes or 0)}, fixed={**made, "bytes": around + made["bytes"]})


def _in_floats(subject: Subject, outcome: Outcome, options: Options, targets: Targets) -> dict[Kind, float]:
    """`targets` with the size that a model in floats may have for its quantized file to have the size asked for.

    How many bytes a plan has when it is quantized depends on no sample: it is tried, a few times.
    Raises: BudgetError when not even the smallest plan is small enough.
    """
    asked = quantize.parse(options.quantize)
    if asked is None:
        return dict(targets)
    whole = float(measure_file("original", subject.path, subject.cost.totals()).bytes or 0)
    count, numbers = biases.most_made(subject.model) if options.level != "none" else (0, 0)
    made = numbers * ROUNDED_BIAS_BYTES + count * 3 * NODE_BYTES
    limit = targets["bytes"] * whole * (1 - ROOM) - made
    share, low, high = 1.0, 0.0, 1.0

    def with_size(share: float) -> dict[Kind, float]:
        rest: dict[Kind, float] = {kind: value for kind, value in targets.items() if kind != "bytes"}
        return {**rest, "bytes": share} if share < 1 else with_macs(rest, 1.0)

    best: float | None = None
    nearest = float("inf")
    for _ in range(SIZE_TRIALS):
        try:
            keep = one_shot(subject, outcome, options, with_size(share)).keep
        except BudgetError:
            low, share = share, (share + high) / 2
            continue
        model = finish(surgery.cut(subject.coupling, keep))
        size = quantize.file_bytes(model, asked, provider_for(options))
        nearest = min(nearest, (size + made) / whole)
        LOG.info("  in floats %.3f of the size, quantized %.3f", share, size / whole)
        if size <= limit:
            best, low = share, share
        else:
            high = share
        if best is not None and (best == 1.0 or high - best < 3 * ROOM):
            break
        # Sizes come in blocks: a step that is too small makes the same plan again.
        share = min(share * limit / size, 0.92 * share) if best is None else (best + high) / 2
        share = share if share > low else (low + high) / 2
    if best is None:
        raise BudgetError(
            f"--target size={targets['bytes']:g} with --quantize {asked} cannot be met: the nearest that was tried is "
            f"size={nearest:.3f}; ask for that, or lower --floor"
        )
    return with_size(best)


def _fits_packed(subject: Subject, outcome: Outcome, share: float) -> bool:
    """Whether the zeros of a sparse method alone, stored small, bring the file to `share` of the original."""
    if not outcome.zeros or outcome.keep is None:
        return False
    packed = packing.pack(surgery.cut(subject.coupling, outcome.keep))
    whole = measure_file("original", subject.path, subject.cost.totals()).bytes or 0
    return packing.file_bytes(packed) <= share * whole


def _decided_by_method(outcome: Outcome, options: Options) -> Choice:
    assert outcome.keep is not None
    keep, strict = outcome.keep, is_number(options.align)
    align = alignment_for(options.align, provider_for(options))
    if outcome.zeros:  # what is not dead stays; widths that the provider dislikes cost more than dead units do
        keep = {dim: topped_up(mask, align, strict) for dim, mask in keep.items()}
    elif strict:
        keep = {dim: aligned(mask, outcome.scores[dim], align, strict=True) for dim, mask in keep.items()}
    if by_nonzeros(options, outcome.zeros):
        return Choice(keep, ("the target counts what is not zero; only units that are dead were removed",))
    return Choice(keep, ("the method decided how much to remove",))


# Searching --------------------------------------------------------------------------------------------------------


def _bisect(
    trial: Callable[[float], float],
    holds: Callable[[float], bool],
    low: float,
    high: float,
    start: float,
    guess: Callable[[Trial], float] | None = None,
    close: Callable[[float], bool] = lambda value: False,
) -> tuple[float | None, list[Trial]]:
    """(the share of MACs nearest to `low` at which `trial` holds, all trials), as far as TRIALS steps tell.

    `low` is the side that is wished for, `high` the side that holds; low may be the larger number. guess: where to
    look next after a trial; without it, halfway between what holds and what misses. close: whether what a trial that
    holds measured is as near to the limit as is wanted.
    Raises: BudgetError when no trial could be made.
    """
    tried: list[Trial] = []
    best: float | None = None
    unreachable: BudgetError | None = None
    share = start
    for _ in range(TRIALS):
        try:
            value = trial(share)
        except BudgetError as error:  # smaller than what can be reached
            unreachable = error
            low, high = (share, high) if low < high else (low, share)
            share = (low + high) / 2
            continue
        tried.append(Trial(share, value, holds(value)))
        LOG.info("  tried %s", tried[-1])
        if tried[-1].held:
            best, high = share, share
        else:
            low = share
        if abs(high - low) < 0.005 or (tried[-1].held and close(value)):
            break
        share = _inside(guess(tried[-1]) if guess else (low + high) / 2, low, high)
    if unreachable is not None and not tried:
        raise unreachable
    return best, tried


def _inside(share: float, low: float, high: float) -> float:
    """`share`, at least a tenth away from the ends: a guess that is always off the same way must not stall."""
    margin = 0.1 * abs(high - low)
    return min(max(share, min(low, high) + margin), max(low, high) - margin)


def _told(tried: Sequence[Trial], what: str) -> str:
    return f"searched for {what}; tried " + ("; ".join(map(str, tried)) or "nothing that can be made")


def with_macs(targets: Targets, share: float) -> dict[Kind, float]:
    return {**targets, "macs": min(share, targets.get("macs", 1.0))}


def _by_latency(subject: Subject, outcome: Outcome, options: Options, targets: Targets) -> Iterator[Choice]:
    """The largest plan that is fast enough: a table of measured nodes says where to look, trials are measured."""
    wanted = options.target["latency"]
    batch, feeds = measuring.latency_feeds(subject)
    setting = {"provider": provider_for(options), "threads": options.threads, "batch": batch}

    def trial(keep: Keep) -> ir.Model:
        return as_written(surgery.cut(subject.coupling, keep), subject, options)

    def measured(share: float) -> float:
        choice = one_shot(subject, outcome, options, with_macs(targets, share))
        models = {"original": subject.path, "trial": trial(choice.keep)}
        found = measure_settled(models, feeds, **setting).ratios[0].median
        if abs(found / wanted - 1) < UNSURE:  # as near as this, the noise of one measurement decides: two share it
            found = (found + measure_settled(models, feeds, **setting).ratios[0].median) / 2
        return found

    def plan(share: float) -> Keep | None:
        try:
            return one_shot(subject, outcome, options, with_macs(targets, share)).keep
        except BudgetError:
            return None

    def guess(last: Trial) -> float:
        """Where the table, corrected by what was measured there, sees the target."""
        keep = plan(last.macs)
        aim = FASTER * wanted / last.value
        return share_for(table, aim * table.ratio(keep), plan) if keep is not None else last.macs

    table = node_table(subject.coupling, subject.cost, profile(subject.model, feeds, **setting))
    start = share_for(table, wanted, plan)
    # What is written is measured again, so it needs some room.
    best, tried = _bisect(
        measured,
        lambda ratio: ratio <= wanted * ROOM_FOR_NOISE,
        1.0,
        0.0,
        start,
        guess,
        lambda ratio: ratio >= wanted * CLOSE,
    )
    if best is None:
        nearest = min((t.value for t in tried), default=float("nan"))
        raise BudgetError(
            f"--target latency={wanted:g} cannot be met: the nearest that was measured is latency={nearest:.3f} "
            f"({_told(tried, 'it')}); ask for that, or lower --floor"
        )
    for share in (best, *(best * less for less in SMALLER)):
        choice = one_shot(subject, outcome, options, with_macs(targets, share))
        yield replace(choice, notes=(*choice.notes, _told(tried, f"latency={wanted:g}")))


def promise(subject: Subject, count: int) -> str:
    """On which samples --max-drop chose, and on which it promises."""
    if subject.searched is not None and subject.held is not None:
        return f"--max-drop chose on {count} samples, and promises on {len(subject.held)} others"
    return (
        f"--max-drop chose and promises on the same {count} samples, which flatters; "
        f"give {2 * FEWEST_PROMISED} or more to measure on"
    )
