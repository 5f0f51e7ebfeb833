"""--blocks: whole blocks go before units do, and the same target is then met with fewer units gone.

A block is a branch that is added to a stream which it reads (surgery/blocks.py). Named ones go as asked. Measured ones
are found in two steps, by what the answers of the whole model lose on inputs that nothing is fitted to:

    alone      what each block costs when it alone goes, per share of the MACs that it has: that orders them
    together   the first one, two, three, ... of that order, each with units removed until the target is met, and
               refitted; what loses least is taken, where that is clearly less than without

With a latency as target, all are compared at the share of MACs at which they are predicted to be as fast.
"""

import fnmatch
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, analyze, dims
from onnxprune.data import batch_axes, input_infos
from onnxprune.errors import BudgetError, CouplingError, UsageError
from onnxprune.measure.predict import NodeTable, share_for
from onnxprune.methods.base import Outcome
from onnxprune.plan import cost
from onnxprune.plan.plan import BlockPlan, Plan, SlicePlan
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover import constants, fair, levels
from onnxprune.run import search
from onnxprune.run.compared import FITTED, Tried, compared, first, learned_and_judged, refitted
from onnxprune.run.settings import Settings, kinds_of
from onnxprune.run.subject import Shortened, Subject
from onnxprune.surgery import blocks
from onnxprune.surgery.blocks import Block
from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")
MEASURED = "measured"  # the word of --blocks
COMPARED = 256  # mixtures that a candidate is compared on
ALONE = 64  # mixtures that a block is measured on alone: there are many of them, and they are only ordered
MOST_ALONE = 48  # blocks that are measured alone: those with most MACs
TOGETHER = (1, 2, 4, 6, 8, 12, 16, 24)  # blocks that go together, in the order of what they cost alone
WORSE = 2  # candidates in a row that lose more than the best, after which no more blocks are tried
T = TypeVar("T")


# A model without some of its blocks --------------------------------------------------------------------------------


def shortened(subject: Subject, gone: Sequence[Block], *, constant: bool) -> Subject:
    """`subject` without these blocks; constant: whether the mean of what each added is added in its place."""
    shapes = _shapes(subject.coupling, gone) if constant else {}
    full = subject.coupling.model
    left = blocks.without(full, gone, shapes)
    if shapes and subject.tune is not None:
        blocks.set_constants(left, constants.of_blocks(subject.coupling, gone, subject.tune))
    model = left if full is subject.model else blocks.without(subject.model, gone, shapes)
    coupling = analyze(left, subject.coupling.shapes)
    _name_alike(coupling, subject.coupling)
    costs = replace(cost.of(coupling), whole=dict(subject.cost.totals()))  # shares are of the whole original
    entries = tuple(BlockPlan(block.name, block.name in shapes) for block in gone)
    places = dict.fromkeys(place for block in gone for place in block.places)
    silenced = tuple(SlicePlan(p.initializer, p.node, p.input, p.axis, ()) for p in places)
    short = Shortened(entries, silenced, model, full, subject.coupling, subject.cost)
    return replace(subject, coupling=coupling, cost=costs, short=short)


def _shapes(coupling: Coupling, gone: Iterable[Block]) -> dict[str, tuple[int, ...]]:
    """The shape of a constant for each block of which the channels are known: (C, 1, 1) for images."""
    found = {}
    for block in gone:
        sizes = coupling.shapes.sizes.get(block.branch)
        if block.axis is not None and sizes:
            found[block.name] = (sizes[block.axis], *[1] * (len(sizes) - 1 - block.axis))
    return found


def prove(subject: Subject, gone: Sequence[Block]) -> None:
    """Compares the model without the blocks with the whole model in which they add zero.

    Raises: VerificationError when they differ.
    """
    assert subject.short is not None
    full = subject.short.full
    left = with_constants(subject, subject.coupling.model, 0.0)
    where = f"the model without {_listed(block.name for block in gone)}"
    comparison.require(comparison.compare_or_tell(left, blocks.silenced(full, gone), subject.feeds, where), where)


def with_constants(subject: Subject, model: ir.Model, number: float) -> ir.Model:
    """A copy of `model` in which all that is added in place of blocks is `number`."""
    model = graph.copy(model)
    entries = () if subject.short is None else subject.short.blocks
    blocks.set_constants(model, {entry.name: number for entry in entries if entry.constant})
    return model


def again(subject: Subject, loaded: Plan) -> Subject:
    """`subject` without the blocks of a plan, proven.

    Raises: UsageError where the model does not have them, or what makes them zero is not what the plan says.
    """
    if not loaded.blocks:
        return subject
    try:
        gone = blocks.named(blocks.find(subject.coupling), [entry.name for entry in loaded.blocks])
    except CouplingError as error:
        raise UsageError(f"the plan removes a whole block, but {error}: it was made for another model") from error
    constant = {entry.name for entry in loaded.blocks if entry.constant}
    made = shortened(subject, gone, constant=bool(constant))
    assert made.short is not None
    if set(made.short.silenced) != set(loaded.silenced) or set(made.short.blocks) != set(loaded.blocks):
        raise UsageError(
            "the plan's empty slices are not those that make its blocks zero: it was edited, or made for a model that "
            "was exported in another way; prune this one anew"
        )
    prove(made, gone)
    return made


def _name_alike(short: Coupling, full: Coupling) -> None:
    """Gives the Dims of what is left the names that they have in the whole model, as far as they stay unique."""
    taken: set[str] = set()
    known = _same_dims(short, full)
    for dim in short.dims:
        other = known.get(dim)
        name = other.name if other is not None else dim.name
        while name in taken:
            name += "#"
        dim.name = name
        taken.add(name)


def _same_dims(short: Coupling, full: Coupling) -> dict[Dim, Dim]:
    """The Dim of the whole model for each of what is left, by the places where they stand."""
    found: dict[Dim, Dim] = {}
    for name, axes in short.axes.items():
        for axis, other in zip(axes, full.axes.get(name, ()), strict=False):
            ours, theirs = dims.leaves(axis), dims.leaves(other)
            if [dim.size for dim in ours] == [dim.size for dim in theirs]:
                for dim, same in zip(ours, theirs, strict=True):
                    found.setdefault(dim, same)
    return found


def carried(outcome: Outcome, full: Coupling, short: Coupling) -> Outcome:
    """`outcome`, which is about the whole model, for what is left of it."""
    known = {dim: same for dim, same in _same_dims(short, full).items() if dim.frozen is None}

    def of(values: Mapping[Dim, T]) -> dict[Dim, T]:
        return {dim: values[same] for dim, same in known.items() if same in values}

    zeros = {name: mask for name, mask in outcome.zeros.items() if name in short.model.graph.initializers}
    keep = None if outcome.keep is None else of(outcome.keep)
    return replace(
        outcome, scores=of(outcome.scores), limits=of(outcome.limits), prices=of(outcome.prices), keep=keep, zeros=zeros
    )


# Which blocks go ---------------------------------------------------------------------------------------------------


def chosen(subject: Subject, outcome: Outcome, settings: Settings, clock: Clock) -> tuple[Subject, Outcome]:
    """(`subject` without the blocks that --blocks asks for, `outcome` for what is left): as they are without it."""
    asked = settings.widths.blocks
    if not asked:
        return subject, outcome
    found = [block for block in blocks.find(subject.coupling) if not block.reason]
    with clock("choose blocks"):
        if asked == (MEASURED,):
            gone, note = _measured(subject, outcome, settings, found)
        else:
            gone = _matching(subject, found, asked)
            note = f"whole blocks, as asked: {_listed(block.name for block in gone)}"
        LOG.info("  %s", note)
        outcome = replace(outcome, notes=(*outcome.notes, note))
        if not gone:
            return subject, outcome
        made = shortened(subject, gone, constant=_with_constants(settings))
        prove(made, gone)
    return made, carried(outcome, subject.coupling, made.coupling)


def _with_constants(settings: Settings) -> bool:
    """Whether the mean of what a block added is added in its place: it brings nothing that least squares would not."""
    return settings.recovery.level == "constants" and settings.papers.data is not None


def _matching(subject: Subject, found: Sequence[Block], asked: Sequence[str]) -> list[Block]:
    """The blocks that names or globs match. Raises: UsageError where one matches none, with the reason if there is."""
    gone: set[str] = set()
    for pattern in asked:
        matched = {block.name for block in found if block.name == pattern or fnmatch.fnmatchcase(block.name, pattern)}
        if not matched:
            every = {block.name: block.reason for block in blocks.find(subject.coupling)}
            why = f": {every[pattern]}" if pattern in every else ", which no block is called"
            raise UsageError(f"--blocks '{pattern}'{why}; 'onnxprune inspect' lists the blocks that can go")
        gone |= matched
    return [block for block in found if block.name in gone]


@dataclass(frozen=True)
class _Candidate(Tried):
    """Some blocks that go, and what is then lost on each sample (N,)."""

    gone: tuple[Block, ...]
    losses: np.ndarray


def _measured(
    subject: Subject, outcome: Outcome, settings: Settings, found: Sequence[Block]
) -> tuple[list[Block], str]:
    """(the blocks whose going loses least at the target, a note of what was measured)."""
    if subject.tune is None or len(subject.tune) < levels.FEWEST_TRAINED:
        raise UsageError("--blocks measured needs samples; give --data, or name the blocks that go")
    trial = _Trial(subject, outcome, settings)
    none = trial.candidate(())
    if none is None:  # selection proper says what cannot be met
        size = "the target" if settings.goal.target else "half of the MACs"
        return [], f"whole blocks: none was tried, for {size} cannot be met"
    order = trial.ordered(found)
    best, tried, worse = none, 1, 0
    for count in (count for count in TOGETHER if count <= len(order)):
        candidate = trial.candidate(order[:count])
        if candidate is None:
            continue
        tried += 1
        LOG.info("  %d blocks less: loss %.4f (%.4f with all)", count, candidate.loss, none.loss)
        worse = 0 if candidate.loss < best.loss else worse + 1
        best = candidate if candidate.loss < best.loss else best
        if worse >= WORSE:
            break
    if not best.gone or not best.beats(none):
        return [], f"whole blocks: measured, {tried} candidates, none of which loses clearly less than {none.loss:.4f}"
    note = (
        f"whole blocks: measured, {len(best.gone)} of {len(found)} go, which loses {best.loss:.4f} instead of "
        f"{none.loss:.4f} ({tried} candidates): {_listed(block.name for block in best.gone)}"
    )
    return list(best.gone), note


class _Trial:
    """The loss of the whole model without some of its blocks, with units cut to the target or with all of them."""

    def __init__(self, subject: Subject, outcome: Outcome, settings: Settings) -> None:
        assert subject.tune is not None
        learned, judged = learned_and_judged(subject.tune, settings.seed)
        self.learned = first(learned, FITTED)
        axes = batch_axes(input_infos(subject.model))
        self.original = compared(subject, fair.mixed(first(judged, COMPARED), axes, COMPARED, settings.seed))
        self.sketch = compared(subject, fair.mixed(first(judged, ALONE), axes, ALONE, settings.seed))
        self.subject, self.outcome, self.settings = replace(subject, tune=self.learned), outcome, settings
        self.table = search.table_of(subject, settings) if "latency" in settings.goal.target else None

    def ordered(self, found: Sequence[Block]) -> tuple[Block, ...]:
        """Blocks by what each loses alone, as a share of the work that it is."""
        work = {block: self._work(block) for block in found}
        largest = sorted((block for block in found if work[block] > 0), key=lambda block: -work[block])[:MOST_ALONE]
        costs = {block: self._alone(block) / work[block] for block in largest}
        return tuple(sorted(largest, key=lambda block: costs[block]))

    def _work(self, block: Block) -> float:
        """MACs of a block, or its share of the time where a latency is asked for."""
        spent = self.subject.cost.by_node() if self.table is None else self.table.microseconds
        return float(sum(spent.get(name, 0.0) for name in block.nodes))

    def _alone(self, block: Block) -> float:
        left = shortened(self.subject, [block], constant=True)
        return float(self.sketch.losses(left.coupling.model).mean())

    def candidate(self, gone: Sequence[Block]) -> _Candidate | None:
        """The loss without these blocks at the target, None where it cannot be met."""
        left = shortened(self.subject, gone, constant=_with_constants(self.settings)) if gone else self.subject
        outcome = carried(self.outcome, self.subject.coupling, left.coupling) if gone else self.outcome
        try:
            selection = self._selected(left, outcome)
        except BudgetError:
            return None
        given = left.given
        model = refitted(selection, self.learned, self.settings.seed, given.dense, given.gone)
        return _Candidate(tuple(gone), self.original.losses(model))

    def _selected(self, left: Subject, outcome: Outcome) -> Selection:
        """The selection of units beside the blocks: for the target, or for what is as fast."""
        targets = kinds_of(self.settings.goal.target)
        if self.table is None:
            return search.near_the_target(left, outcome, self.settings, targets or search.HALF)

        def plan(share: float) -> Mapping[Dim, np.ndarray] | None:
            try:
                return search.one_shot(left, outcome, self.settings, search.with_macs(targets, share)).keep
            except BudgetError:
                return None

        table = NodeTable(self.table.microseconds, self.table.fixed, left.coupling, left.cost)
        share = share_for(table, self.settings.goal.target["latency"], plan)
        return search.one_shot(left, outcome, self.settings, search.with_macs(targets, share))


def _listed(names: Iterable[str], most: int = 12) -> str:
    """Names with commas, of many the first."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
