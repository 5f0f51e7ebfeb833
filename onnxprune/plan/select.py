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

from onnxprune.coupling import Coupling, Dim, Keep, dims
from onnxprune.coupling.dims import Axis
from onnxprune.errors import BudgetError, UsageError
from onnxprune.plan.cost import Cost, Kind

# A removal that leaves a width between full multiples saves work on paper only: it must be worth this much less.
BETWEEN = 2.0
WORTH = 0.02  # share of a cost that the removal of experts, of which as many as before are at work, has to save at most
OPTION_NAMES: dict[Kind, str] = {"bytes": "size"}  # where the option's word is another
Scores = Mapping[Dim, np.ndarray]


@dataclass(frozen=True)
class Selection:
    """The choice of what is removed: selection or a plan file makes it; cut, recovery and report follow it.

    coupling: of the model that is cut. keep: kept positions (size,) by Dim; Dims that are absent keep all. method:
    whose scores chose. zeros: positions that a sparse method left at zero beside that, by initializer. notes: for the
    report.
    """

    coupling: Coupling
    keep: Keep
    method: str = ""
    zeros: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    notes: tuple[str, ...] = ()

    def mask_of(self, axis: Axis) -> np.ndarray:
        """True at the positions (length,) of `axis` that stay."""
        return dims.keep_mask(axis, self.keep)

    def of(self, coupling: Coupling) -> "Selection":
        """The same positions of the same graph with other weights."""
        return replace(self, coupling=coupling)

    def noted(self, *notes: str) -> "Selection":
        """The same with these notes behind its own."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class Budget:
    """The limits that a selection has to meet.

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
        """The largest value that `cost.total(kind)` may have."""
        return self.targets[kind] * self.whole.get(kind, cost.total(kind)) - self.fixed.get(kind, 0.0)


@dataclass(frozen=True)
class Blocks:
    """The units that may go, in blocks: units of one Dim that are removed together, as many as keep its size aligned.

    Blocks of a Dim leave in order, so that what is removed of it is always the first part of `leaving`.
    leaving: by Dim its units, in the order of their removal. Of each block: the number of its Dim (B,), of how many
    units it is (B,), and their mean score (B,).
    """

    leaving: Mapping[Dim, np.ndarray]
    dim: np.ndarray
    length: np.ndarray
    score: np.ndarray

    def sizes(self, removed: np.ndarray) -> dict[Dim, int]:
        """The number of kept positions of each Dim without the blocks of these numbers."""
        lost = np.bincount(self.dim[removed], self.length[removed], len(self.leaving))
        return {dim: dim.size - int(gone) for dim, gone in zip(self.leaving, lost, strict=True)}


def select(
    scores: Scores, cost: Cost, budget: Budget, *, comparable: bool = False, prices: Mapping[Dim, float] | None = None
) -> dict[Dim, np.ndarray]:
    """Kept positions (size,) by Dim, so that every target holds with as little score removed as possible.

    comparable: scores mean the same in every Dim, so they are weighed against what each removal saves; otherwise
    they are compared in units of their Dim's mean. prices: what the scores of a whole Dim are then multiplied with.
    Raises: BudgetError when a target cannot be met, with the nearest that can.
    """
    check_targets(budget.targets)
    worthwhile = {dim: values for dim, values in scores.items() if not dim.picks or _saves(dim, cost, budget)}
    blocks = _all_blocks(worthwhile, budget, comparable, prices or {})
    limits: dict[Kind, float] = {kind: budget.limit(kind, cost) for kind in budget.targets}
    _check_reachable(blocks, cost, budget)
    sizes: dict[Dim, int] = {}
    removed = np.zeros(0, np.int64)
    # What a removal saves depends on what else is removed: the order is refined at the sizes it leads to. Rounds
    # are limited, for two orders may lead to each other.
    for _ in range(6 if comparable else 1):
        order = _ordered(blocks, cost, tuple(budget.targets) or ("macs",), sizes, comparable)
        removed = order[: _fewest(blocks, order, cost, limits)]
        new = blocks.sizes(removed)
        if new == sizes:
            break
        sizes = new
    sizes = _given_back(blocks, removed, cost, limits)
    keep = {dim: np.ones(dim.size, bool) for dim in scores}
    for dim, leaving in blocks.leaving.items():
        keep[dim][leaving[: dim.size - sizes[dim]]] = False
    return keep


def _saves(dim: Dim, cost: Cost, budget: Budget) -> bool:
    """Whether removing units of `dim` saves what some target is about: fewer experts are no less work for a token."""
    kinds = tuple(budget.targets) or ("macs",)
    return any(
        cost.total(kind, {}) - cost.total(kind, {dim: dim.least}) > WORTH * cost.total(kind, {}) for kind in kinds
    )


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


def with_least(keep: np.ndarray, scores: np.ndarray, least: int) -> np.ndarray:
    """`keep` (size,) with the best of what was removed given back until at least so many stay."""
    result = keep.copy()
    order = np.argsort(scores, kind="stable")[::-1]
    result[[k for k in order if not keep[k]][: max(0, least - int(keep.sum()))]] = True
    return result


def topped_up(keep: np.ndarray, align: int, strict: bool = False) -> np.ndarray:
    """`keep` (size,) with as many of the removed units given back as make a multiple; none of those kept is lost."""
    step = align if len(keep) >= align else alignment(len(keep), align, strict)
    missing = min(len(keep), ceil(int(keep.sum()) / step) * step) - int(keep.sum())
    result = keep.copy()
    result[np.flatnonzero(~keep)[:missing]] = True  # any of them: all are dead
    return result


def _all_blocks(scores: Scores, budget: Budget, comparable: bool, prices: Mapping[Dim, float]) -> Blocks:
    found = {dim: _blocks(dim, values, budget, comparable) for dim, values in scores.items()}
    counts = [len(lengths) for _, lengths, _ in found.values()]
    return Blocks(
        {dim: units for dim, (units, _, _) in found.items()},
        np.repeat(np.arange(len(found)), counts),
        np.concatenate([np.zeros(0, np.int64), *(lengths for _, lengths, _ in found.values())]),
        np.concatenate([np.zeros(0), *(values * prices.get(dim, 1.0) for dim, (_, _, values) in found.items())]),
    )


def _blocks(
    dim: Dim, values: np.ndarray, budget: Budget, comparable: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the units of `dim` in order of removal, lengths, scores of blocks); units that must stay are left out."""
    step = alignment(dim.size, budget.align, budget.strict)
    full = budget.align if dim.size >= budget.align else step
    least = max(
        dim.least, step, ceil(budget.floor * dim.size), ceil(dim.size * (1 - budget.limits.get(dim, 1.0)) - 1e-9)
    )
    values = np.asarray(values, np.float64)
    if not comparable:
        mean = np.abs(values).mean()  # layers differ in scale by orders of magnitude: the smallest would go whole
        values = values / mean if mean > 0 else values
    order = np.argsort(values, kind="stable")
    if full == 1:  # each unit is a block; sorted scores stay in order
        leaving = order[: dim.size - least]
        return leaving, np.ones(len(leaving), np.int64), values[leaving]
    blocks: list[tuple[np.ndarray, float]] = []
    kept = dim.size
    while (smaller := (kept - 1) // step * step) >= least:  # the first block leaves a multiple
        units = order[dim.size - kept : dim.size - smaller]
        price = BETWEEN if smaller % full else 1.0
        score = _priced(values[units], price)
        # Blocks of a Dim leave in order, worst units first: one that is dearer than the next, for it leaves no full
        # multiple, leaves together with it.
        while blocks and blocks[-1][1] > score:
            units = np.concatenate([blocks.pop()[0], units])
            score = _priced(values[units], price)
        blocks.append((units, score))
        kept = smaller
    lengths = np.array([len(units) for units, _ in blocks], np.int64)
    return order[: dim.size - kept], lengths, np.array([score for _, score in blocks], np.float64)


def _priced(values: np.ndarray, price: float) -> float:
    """The mean of some scores times a price; scores below zero are no loss, and stay as they are."""
    mean = float(values[0] if len(values) == 1 else values.mean())  # one by one, as most are: numpy takes its time
    return mean * price if mean > 0 else mean


def _ordered(
    blocks: Blocks, cost: Cost, kinds: Sequence[Kind], sizes: Mapping[Dim, int], comparable: bool
) -> np.ndarray:
    """Numbers of all blocks in order of removal; sizes: the kept ones at which savings are counted."""
    if not comparable:
        return np.argsort(blocks.score, kind="stable")
    wholes = {kind: max(cost.total(kind), 1.0) for kind in kinds}

    def saves(dim: Dim) -> float:  # shares of what the targets are about
        return max(sum(cost.marginal(kind, dim, sizes) / wholes[kind] for kind in kinds), 1e-12)

    per_dim = np.array([saves(dim) for dim in blocks.leaving])
    return np.argsort(blocks.score / per_dim[blocks.dim], kind="stable")


def _holds(cost: Cost, sizes: Mapping[Dim, int], limits: Mapping[Kind, float]) -> bool:
    return all(cost.total(kind, sizes) <= limit for kind, limit in limits.items())


def _fewest(blocks: Blocks, order: np.ndarray, cost: Cost, limits: Mapping[Kind, float]) -> int:
    """Length of the shortest prefix of `order` that meets all limits: costs only fall along it."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if _holds(cost, blocks.sizes(order[:middle]), limits):
            high = middle
        else:
            low = middle + 1
    return low


def _given_back(blocks: Blocks, removed: np.ndarray, cost: Cost, limits: Mapping[Kind, float]) -> dict[Dim, int]:
    """Sizes without the blocks `removed` but for those that the budget did not need: the most valuable return first."""
    sizes, by_number = blocks.sizes(removed), list(blocks.leaving)
    stays_out: set[int] = set()
    for block in removed[::-1]:
        number, length = int(blocks.dim[block]), int(blocks.length[block])
        if number in stays_out:
            continue
        dim = by_number[number]
        grown = {**sizes, dim: sizes[dim] + length}
        if _holds(cost, grown, limits):
            sizes = grown
        else:
            stays_out.add(number)  # a Dim's blocks return in order
    return sizes


def _check_reachable(blocks: Blocks, cost: Cost, budget: Budget) -> None:
    """Checks that the targets can be met with all removed that may be. Raises: BudgetError with the nearest."""
    smallest = {dim: dim.size - len(units) for dim, units in blocks.leaving.items()}
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
