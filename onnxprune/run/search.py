"""From scores to kept positions under the budget of the goal: one shot, or a search for a latency.

A trial of a search is a cut that is measured, which decides where to look next. What is produced in the end is
measured again, and where it misses, a few neighbors follow. Searches for an accuracy are in front.py.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxprune import graph, quantize, surgery
from onnxprune.coupling import Keep
from onnxprune.errors import BudgetError
from onnxprune.measure import measure_file, measure_settled, profile
from onnxprune.measure.predict import NodeTable, node_table, share_for
from onnxprune.methods.base import Outcome
from onnxprune.plan import cost
from onnxprune.plan.cost import Kind
from onnxprune.plan.select import Budget, Selection, aligned, select, topped_up, with_least
from onnxprune.recover import biases
from onnxprune.run import measuring
from onnxprune.run.finish import as_written, finish
from onnxprune.run.settings import Settings, kinds_of
from onnxprune.run.subject import Subject
from onnxprune.surgery import packing

LOG = logging.getLogger("onnxprune")
Targets = Mapping[Kind, float]
HALF: Targets = {"macs": 0.5}  # where neither a target nor the method says how much goes
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


@dataclass(frozen=True)
class Trial:
    """One point that a search looked at: the share of MACs kept, and what was measured there."""

    macs: float
    value: float
    held: bool

    def __str__(self) -> str:
        return f"macs={self.macs:.3f}: {self.value:.3f} {'holds' if self.held else 'misses'}"


def selections(
    subject: Subject, outcome: Outcome, settings: Settings, target: Mapping[str, float] | None = None
) -> Iterator[Selection]:
    """Selections for the targets, the best first; the next is tried when the finished result missed a gate.

    target: what is asked for on the way to the goal. --max-drop and --front are the business of front.py.
    Raises: BudgetError when the budget cannot be met, with the nearest that can.
    """
    target = settings.goal.target if target is None else target
    targets = targets_of(subject, outcome, settings, target)
    if "latency" in target:
        yield from _by_latency(subject, outcome, settings, targets)
    elif outcome.keep is not None and (not targets or _by_zeros(outcome, settings)):
        yield decided_by_method(subject, outcome, settings)
    # Zeros first: whole channels cost accuracy that zeros stored small do not.
    elif settings.form.pack and set(targets) == {"bytes"} and _fits_packed(subject, outcome, targets["bytes"]):
        yield decided_by_method(subject, outcome, settings)
        note = "zeros alone did not make the file small enough, so whole channels were removed as well"
        yield near_the_target(subject, outcome, settings, targets).noted(note)
    else:
        yield near_the_target(subject, outcome, settings, targets or HALF)


def targets_of(
    subject: Subject, outcome: Outcome, settings: Settings, target: Mapping[str, float] | None = None
) -> Targets:
    """Shares of costs that may remain, of a model in floats; target: see `selections`.

    Raises: BudgetError where a size cannot be met.
    """
    targets = kinds_of(settings.goal.target if target is None else target)
    if "bytes" in targets and settings.form.quantize is not None:
        return _in_floats(subject, outcome, settings, targets, settings.form.quantize)
    return targets


def _by_zeros(outcome: Outcome, settings: Settings) -> bool:
    """Whether the targets count what is not zero: a sparse method meets them by zeros alone."""
    return bool(outcome.zeros) and settings.goal.counts_zeros


def one_shot(
    subject: Subject,
    outcome: Outcome,
    settings: Settings,
    targets: Targets,
    *,
    align: int | None = None,
    floor: float | None = None,
) -> Selection:
    """Selection to the targets; the method's limits, and an automatic alignment, give way to a target.

    align: the multiple to try instead of that of the settings; it has exceptions, as an automatic one has.
    floor: the smallest share of a dimension that stays, instead of theirs. Raises: BudgetError.
    """
    # From what is wished for to what must be: each try gives up one wish that nobody stated as a number.
    budget = _budget(subject, outcome, settings, targets)
    budget = budget if align is None else replace(budget, align=align, strict=False)
    budget = budget if floor is None else replace(budget, floor=floor)
    tries: list[tuple[Budget, tuple[str, ...]]] = [(budget, ())]
    if budget.limits:
        note = "this size asks for more than the method thinks harmless; it was removed all the same"
        tries.append((replace(budget, limits={}), (note,)))
    if budget.align > 1 and not budget.strict:
        note = (
            f"sizes that stay are no multiples of {budget.align}, the fastest here: this size cannot be met with these"
        )
        tries.append((replace(budget, limits={}, align=1), (note,)))
    for tried, notes in tries[:-1]:
        try:
            return _made(subject, _selected(subject, outcome, tried), outcome, settings, notes)
        except BudgetError:
            continue
    tried, notes = tries[-1]
    return _made(subject, _selected(subject, outcome, tried), outcome, settings, notes)


def _selected(subject: Subject, outcome: Outcome, budget: Budget) -> Keep:
    ranking, prices = outcome.ranking, outcome.prices
    return select(ranking, subject.cost, budget, comparable=outcome.comparable, prices=prices)


def _made(subject: Subject, keep: Keep, outcome: Outcome, settings: Settings, notes: tuple[str, ...]) -> Selection:
    """The selection of these positions beside the zeros that the method made."""
    return Selection(subject.coupling, keep, settings.method.name, outcome.zeros, notes)


def near_the_target(subject: Subject, outcome: Outcome, settings: Settings, targets: Targets) -> Selection:
    """`one_shot`, in finer multiples where those of an automatic alignment remove much more than was asked.

    Where few dimensions give all that is removed, one block of them can be a tenth of the model.
    """
    first = one_shot(subject, outcome, settings, targets)
    if settings.widths.strict:
        return first
    budget = _budget(subject, outcome, settings, targets)
    # Coarse to fine, and only as far as it helps: wide multiples run faster for the same MACs.
    best, used, align = first, _used(subject, first, budget), budget.align // 2
    while used < 1 - WASTE and align >= LEAST_MULTIPLE:
        finer = one_shot(subject, outcome, settings, targets, align=align)
        if (reached := _used(subject, finer, budget)) > used:
            note = (
                f"sizes that stay are multiples of {align}; those of {budget.align} would remove much more than asked"
            )
            best, used = finer.noted(note), reached
        align //= 2
    return best


def _used(subject: Subject, selection: Selection, budget: Budget) -> float:
    """The largest share of a limit that is used up."""
    sizes = cost.keep_sizes(selection.keep)
    return max(subject.cost.total(kind, sizes) / budget.limit(kind, subject.cost) for kind in budget.targets)


def _budget(subject: Subject, outcome: Outcome, settings: Settings, targets: Targets) -> Budget:
    """The targets as limits on what the polynomials count; biases that recovery may make are paid for in advance."""
    widths = settings.widths
    count, numbers = biases.most_made(subject.base) if settings.recovery.level != "none" else (0, 0)
    made: dict[Kind, float] = {"params": numbers, "bytes": numbers * 4 + count * NODE_BYTES}
    budget = Budget(targets, widths.floor, widths.align, widths.strict, outcome.limits, fixed=made)
    if "bytes" not in targets:
        return budget
    # The promise is about the file: nodes and names weigh what they weigh.
    around = float(graph.skeleton(subject.base, 0)[0].ByteSize())
    file = measure_file("original", subject.path, subject.cost.totals())
    return replace(budget, whole={"bytes": float(file.bytes or 0)}, fixed={**made, "bytes": around + made["bytes"]})


def _in_floats(
    subject: Subject, outcome: Outcome, settings: Settings, targets: Targets, asked: quantize.Asked
) -> dict[Kind, float]:
    """`targets` with the size that a model in floats may have for its quantized file to have the size asked for.

    How many bytes a plan has when it is quantized depends on no sample: it is tried, a few times.
    Raises: BudgetError when not even the smallest plan is small enough.
    """
    whole = float(measure_file("original", subject.path, subject.cost.totals()).bytes or 0)
    count, numbers = biases.most_made(subject.base) if settings.recovery.level != "none" else (0, 0)
    made = numbers * ROUNDED_BIAS_BYTES + count * 3 * NODE_BYTES
    limit = targets["bytes"] * whole * (1 - ROOM) - made
    share, low, high = 1.0, 0.0, 1.0

    def with_size(share: float) -> dict[Kind, float]:
        """The targets with that share of the size; without one, where all of it may stay."""
        rest: dict[Kind, float] = {kind: value for kind, value in targets.items() if kind != "bytes"}
        return {**rest, "bytes": share} if share < 1 else with_macs(rest, 1.0)

    best: float | None = None
    nearest = float("inf")
    for _ in range(SIZE_TRIALS):
        try:
            selection = one_shot(subject, outcome, settings, with_size(share))
        except BudgetError:  # too small to be reached: back towards what is too large
            low, share = share, (share + high) / 2
            continue
        model = finish(surgery.cut(selection))
        size = quantize.file_bytes(model, asked, settings.timing.provider)
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
    packed = packing.pack(surgery.cut(Selection(subject.coupling, outcome.keep)))
    whole = measure_file("original", subject.path, subject.cost.totals()).bytes or 0
    return packing.file_bytes(packed) <= share * whole


def decided_by_method(subject: Subject, outcome: Outcome, settings: Settings) -> Selection:
    """The selection that the method itself made, in widths that the provider runs well."""
    assert outcome.keep is not None
    keep, align, strict = outcome.keep, settings.widths.align, settings.widths.strict
    if outcome.zeros:  # what is not dead stays; widths that the provider dislikes cost more than dead units do
        keep = {dim: topped_up(mask, align, strict) for dim, mask in keep.items()}
    elif strict:
        keep = {dim: aligned(mask, outcome.scores[dim], align, strict=True) for dim, mask in keep.items()}
    keep = {dim: with_least(mask, outcome.scores[dim], dim.least) for dim, mask in keep.items()}
    if _by_zeros(outcome, settings):
        note = "the target counts what is not zero; only units that are dead were removed"
    else:
        note = "the method decided how much to remove"
    return _made(subject, keep, outcome, settings, (note,))


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
    """The targets with at most that share of the MACs."""
    return {**targets, "macs": min(share, targets.get("macs", 1.0))}


def table_of(subject: Subject, settings: Settings) -> NodeTable:
    """The times of the nodes of the original, and what becomes of them without blocks and units."""
    batch, feeds = measuring.latency_feeds(subject)
    times = profile(subject.model, feeds, **settings.timing.at(batch))
    if subject.short is None:
        return node_table(subject.coupling, subject.cost, times)
    whole = node_table(subject.short.coupling.of(subject.model), subject.short.cost, times)
    return replace(whole, coupling=subject.coupling, cost=subject.cost)


def _by_latency(subject: Subject, outcome: Outcome, settings: Settings, targets: Targets) -> Iterator[Selection]:
    """The largest plan that is fast enough: a table of measured nodes says where to look, trials are measured."""
    wanted = settings.goal.target["latency"]
    batch, feeds = measuring.latency_feeds(subject)
    setting = settings.timing.at(batch)

    def measured(share: float) -> float:
        """The time of a trial as a share of the original's, both measured in turns."""
        selection = one_shot(subject, outcome, settings, with_macs(targets, share))
        models = {"original": subject.path, "trial": as_written(surgery.cut(selection), subject, settings)}
        found = measure_settled(models, feeds, **setting).ratios[0].median
        if abs(found / wanted - 1) < UNSURE:  # as near as this, the noise of one measurement decides: two share it
            found = (found + measure_settled(models, feeds, **setting).ratios[0].median) / 2
        return found

    def plan(share: float) -> Keep | None:
        """The kept positions at a share of the MACs, None where that cannot be reached."""
        try:
            return one_shot(subject, outcome, settings, with_macs(targets, share)).keep
        except BudgetError:
            return None

    def guess(last: Trial) -> float:
        """Where the table, corrected by what was measured there, sees the target."""
        keep = plan(last.macs)
        aim = FASTER * wanted / last.value
        return share_for(table, aim * table.ratio(keep), plan) if keep is not None else last.macs

    table = table_of(subject, settings)
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
        yield one_shot(subject, outcome, settings, with_macs(targets, share)).noted(_told(tried, f"latency={wanted:g}"))
