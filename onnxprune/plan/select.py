"""From scores and a budget to kept positions. Pure, and the only place that knows budgets.

Units are removed in one global order until every target holds. Costs are exact: they are polynomials in the kept
sizes, so what a removal saves includes its consumers' slices and shrinks as the neighbors shrink.

    blocks     the units of each Dim, worst first, in groups that leave a multiple of the alignment
    order      all blocks by score, or by score for what a removal saves where scores mean the same everywhere
    prefix     the shortest one that meets all targets, found by halving: costs only fall along the order
    return     blocks at its end that were not needed, for they are large
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from onnxprune.coupling import Dim, Keep
from onnxprune.errors import BudgetError, UsageError
from onnxprune.plan.cost import Cost, Kind

# A removal that leaves a width between full multiples saves work on paper only: it must be worth this much less.
BETWEEN = 2.0
OPTION_NAMES: dict[Kind, str] = {"bytes": "size"}  # where the option's word is another
Scores = Mapping[Dim, np.ndarray]


@dataclass(frozen=True)
class Selection:
    """What is to be removed: selection makes it, or a plan file has it; cut, recovery and report follow it.

    keep: kept positions (size,) by Dim; Dims that are absent keep all. method: whose scores chose. zeros: positions
    that a sparse method left at zero beside that, by initializer. notes: for the report.
    """

    keep: Keep
    method: str = ""
    zeros: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    notes: tuple[str, ...] = ()

    def noted(self, *notes: str) -> "Selection":
        """The same with these notes behind its own."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Budget:
    """What may remain.

    targets: kind -> fraction of the original. floor: smallest share of a Dim that stays. align: kept sizes are
    multiples of it (1: any); strict: without exception, so that Dims too small for it stay whole, else the multiple
    is halved for these. limits: largest share that may be removed, by Dim. whole: what the fractions are of, where
    it is not what the polynomials count; fixed: what stays whatever is removed, and no polynomial counts.
    """

    targets: Mapping[Kind, float]
    floor: float = 0.05
    align: int = 1
    strict: bool = False
    limits: Mapping[Dim, float] = field(default_factory=dict[Dim, float])
    whole: Mapping[Kind, float] = field(default_factory=dict[Kind, float])
    fixed: Mapping[Kind, float] = field(default_factory=dict[Kind, float])

    def limit(self, kind: Kind, cost: Cost) -> float:
        """What `cost.total(kind)` may be at most."""
        return self.targets[kind] * self.whole.get(kind, cost.total(kind)) - self.fixed.get(kind, 0.0)


@dataclass(frozen=True)
class Block:
    """Units of one Dim that are removed together: as many as keep its size aligned."""

    dim: Dim
    units: np.ndarray
    score: float  # mean over its units


def select(
    scores: Scores, cost: Cost, budget: Budget, *, comparable: bool = False, prices: Mapping[Dim, float] | None = None
) -> dict[Dim, np.ndarray]:
    """Kept positions (size,) by Dim, so that every target holds with as little score removed as possible.

    comparable: scores mean the same in every Dim, so they are weighed against what each removal saves; otherwise
    they are compared in units of their Dim's mean. prices: what the scores of a whole Dim are then multiplied with.
    Raises: BudgetError when a target cannot be met, with the nearest that can.
    """
    check_targets(budget.targets)
    blocks = [block for dim, values in scores.items() for block in _blocks(dim, values, budget, comparable)]
    if prices:
        blocks = [replace(block, score=block.score * prices.get(block.dim, 1.0)) for block in blocks]
    limits: dict[Kind, float] = {kind: budget.limit(kind, cost) for kind in budget.targets}
    _check_reachable(blocks, cost, budget)
    sizes: dict[Dim, int] = {}
    removed: list[Block] = []
    # What a removal saves depends on what else is removed: the order is refined at the sizes it leads to. Rounds
    # are limited, for two orders may lead to each other.
    for _ in range(6 if comparable else 1):
        order = _ordered(blocks, cost, tuple(budget.targets) or ("macs",), sizes, comparable)
        removed = order[: _fewest(order, cost, limits)]
        new = _sizes(scores, removed)
        if new == sizes:
            break
        sizes = new
    removed = _give_back(removed, scores, cost, limits)
    keep = {dim: np.ones(dim.size, bool) for dim in scores}
    for block in removed:
        keep[block.dim][block.units] = False
    return keep


def check_targets(targets: Mapping[Kind, float]) -> None:
    """Checks that every target is a share of the original, above 0 and at most 1. Raises: UsageError otherwise."""
    for kind, fraction in targets.items():
        if not 0 < fraction <= 1:
            name = OPTION_NAMES.get(kind, kind)
            raise UsageError(f"--target {name}={fraction:g}: give the fraction that may remain, above 0 and up to 1")


def alignment(size: int, align: int, strict: bool = False) -> int:
    """The multiple that a Dim of `size` is held to: `align`, unless strict halved until at least four of them fit."""
    while align > 1 and size < 4 * align and not strict:
        align //= 2
    return max(1, align)


def aligned(keep: np.ndarray, scores: np.ndarray, align: int, strict: bool = False) -> np.ndarray:
    """`keep` (size,) with the nearest number of kept units that is a multiple, gaining or losing by score."""
    step = alignment(len(keep), align, strict)
    count = min(len(keep), max(step, round(int(keep.sum()) / step) * step))
    order = np.lexsort((scores, keep))[::-1]  # kept units first, then by score
    result = np.zeros(len(keep), bool)
    result[order[:count]] = True
    return result


def topped_up(keep: np.ndarray, align: int, strict: bool = False) -> np.ndarray:
    """`keep` (size,) with as many of the removed units given back as make a multiple; none of those kept is lost."""
    step = align if len(keep) >= align else alignment(len(keep), align, strict)
    missing = min(len(keep), ceil(int(keep.sum()) / step) * step) - int(keep.sum())
    result = keep.copy()
    result[np.flatnonzero(~keep)[:missing]] = True  # any of them: all are dead
    return result


def _blocks(dim: Dim, values: np.ndarray, budget: Budget, comparable: bool) -> list[Block]:
    """The units of `dim` in order of removal, in aligned blocks; those that must stay are left out."""
    step = alignment(dim.size, budget.align, budget.strict)
    full = budget.align if dim.size >= budget.align else step
    least = max(1, step, ceil(budget.floor * dim.size), ceil(dim.size * (1 - budget.limits.get(dim, 1.0)) - 1e-9))
    values = np.asarray(values, np.float64)
    if not comparable:
        mean = np.abs(values).mean()  # layers differ in scale by orders of magnitude: the smallest would go whole
        values = values / mean if mean > 0 else values
    order = np.argsort(values, kind="stable")
    blocks: list[Block] = []
    kept = dim.size
    while (smaller := (kept - 1) // step * step) >= least:  # the first block leaves a multiple
        units = order[dim.size - kept : dim.size - smaller]
        price = BETWEEN if smaller % full else 1.0
        score = _priced(values[units], price)
        # Blocks of a Dim leave in order, worst units first: one that is dearer than the next, for it leaves no full
        # multiple, leaves together with it.
        while blocks and blocks[-1].score > score:
            units = np.concatenate([blocks.pop().units, units])
            score = _priced(values[units], price)
        blocks.append(Block(dim, units, score))
        kept = smaller
    return blocks


def _priced(values: np.ndarray, price: float) -> float:
    """The mean of some scores times a price; scores below zero are no loss, and stay as they are."""
    mean = float(values[0] if len(values) == 1 else values.mean())  # one by one, as most are: numpy takes its time
    return mean * price if mean > 0 else mean


def _ordered(
    blocks: Sequence[Block], cost: Cost, kinds: Sequence[Kind], sizes: Mapping[Dim, int], comparable: bool
) -> list[Block]:
    """The blocks in order of removal; sizes: the kept ones at which savings are counted."""
    if not comparable:
        return sorted(blocks, key=lambda block: block.score)
    wholes = {kind: max(cost.total(kind), 1.0) for kind in kinds}

    def saves(dim: Dim) -> float:  # shares of what the targets are about
        return max(sum(cost.marginal(kind, dim, sizes) / wholes[kind] for kind in kinds), 1e-12)

    per_dim = {dim: saves(dim) for dim in {block.dim for block in blocks}}
    return sorted(blocks, key=lambda block: block.score / per_dim[block.dim])


def _sizes(scores: Scores, removed: Sequence[Block]) -> dict[Dim, int]:
    """How many units each Dim keeps without the removed blocks."""
    sizes = {dim: dim.size for dim in scores}
    for block in removed:
        sizes[block.dim] -= len(block.units)
    return sizes


def _holds(cost: Cost, sizes: Mapping[Dim, int], limits: Mapping[Kind, float]) -> bool:
    return all(cost.total(kind, sizes) <= limit for kind, limit in limits.items())


def _fewest(order: Sequence[Block], cost: Cost, limits: Mapping[Kind, float]) -> int:
    """Length of the shortest prefix of `order` that meets all limits: costs only fall along it."""
    low, high = 0, len(order)
    dims = {block.dim: block.dim.size for block in order}
    while low < high:
        middle = (low + high) // 2
        sizes = dict(dims)
        for block in order[:middle]:
            sizes[block.dim] -= len(block.units)
        if _holds(cost, sizes, limits):
            high = middle
        else:
            low = middle + 1
    return low


def _give_back(removed: list[Block], scores: Scores, cost: Cost, limits: Mapping[Kind, float]) -> list[Block]:
    """Without those blocks that the budget did not need, of which the most valuable return first."""
    sizes = _sizes(scores, removed)
    stays_out: set[Dim] = set()
    still: list[Block] = []
    for block in reversed(removed):
        grown = {**sizes, block.dim: sizes[block.dim] + len(block.units)}
        if block.dim not in stays_out and _holds(cost, grown, limits):
            sizes = grown
        else:
            stays_out.add(block.dim)  # a Dim's blocks return in order
            still.append(block)
    return still[::-1]


def _check_reachable(blocks: Sequence[Block], cost: Cost, budget: Budget) -> None:
    """Checks that all targets hold once every block is removed; raises BudgetError with the nearest otherwise."""
    smallest: dict[Dim, int] = {}
    for block in blocks:
        smallest[block.dim] = smallest.get(block.dim, block.dim.size) - len(block.units)
    missed: list[str] = []
    for kind, fraction in budget.targets.items():
        whole, name = budget.whole.get(kind, cost.total(kind)), OPTION_NAMES.get(kind, kind)
        least = cost.total(kind, smallest) + budget.fixed.get(kind, 0.0)
        if least > fraction * whole and least > 0.9995 * whole:  # the nearest would be rounded to 1: no target at all
            missed.append(
                f"--target {name}={fraction:g} cannot be met: what may be removed makes no difference to {name} "
                f"({whole:.4g}); 'onnxprune inspect' shows what is frozen and why. Choose another target"
            )
        elif least > fraction * whole:
            missed.append(
                f"--target {name}={fraction:g} cannot be met: with all removed that may be, {name} is "
                f"{least / whole:.3g} of the original ({least:.4g} of {whole:.4g}); "
                f"the nearest is {name}={_up(least / whole):g}"
            )
    if missed:
        advice = "; ask for that, or lower --floor or --align" if "nearest" in missed[-1] else ""
        raise BudgetError("; ".join(missed) + advice)


def _up(fraction: float) -> float:
    """`fraction` with three digits after the point, rounded up, so that it can be reached."""
    return ceil(fraction * 1000) / 1000
