"""Plans of one ranking at different sizes: recovered and measured, each at most once, and kept for the result.

A trial is cheap or full. Cheap: constants and least squares on few samples. Full: the recovery that the run itself
carries out; where its plan is then chosen, the result is made of what the trial recovered.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx_ir as ir

from onnxprune import surgery
from onnxprune.coupling import Keep
from onnxprune.errors import BudgetError, UsageError
from onnxprune.outputs.metrics import Accuracy
from onnxprune.plan import cost
from onnxprune.recover import levels
from onnxprune.recover.settings import SECONDS
from onnxprune.run import measuring, search
from onnxprune.run.curve import Curve
from onnxprune.run.finish import as_written
from onnxprune.run.targets import drop
from onnxprune.system.clock import Clock

if TYPE_CHECKING:
    from onnxprune.data import Samples
    from onnxprune.methods.base import Outcome
    from onnxprune.plan.select import Selection
    from onnxprune.recover.finetune import History
    from onnxprune.run.search import Targets
    from onnxprune.run.settings import Settings
    from onnxprune.run.subject import Subject

LOG = logging.getLogger("onnxprune")
LOWEST, REACHED = 0.1, 0.01  # share of the MACs below which nothing is tried, and to which the smallest is found
MOST_FULL = 4  # full recoveries of one run, among which its time is divided
UNREADABLE = "the samples do not tell right from wrong; give labelled ones with --val, or a --metric"


@dataclass(frozen=True)
class Recovered:
    """A cut and recovered model, and how its fine-tuning went."""

    model: ir.Model
    history: History | None


@dataclass(frozen=True)
class Trial:
    """One plan and what was measured of it: its share of the MACs, points lost, and the same in the metric's terms.

    rounded: the accuracy of the quantized file, where --quantize is given; `lost` is then that of the file.
    stored: that file as a model, for --front, which measures its time and its bytes.
    """

    selection: Selection
    macs: float
    lost: float
    accuracy: Accuracy
    rounded: Accuracy | None = None
    stored: ir.Model | None = None
    recovered: Recovered | None = None

    @property
    def keep(self) -> Keep:
        """The plan that was tried, as kept positions."""
        return self.selection.keep

    def __str__(self) -> str:
        return f"macs={self.macs:.3f}: {self.lost:.2f} points"


@dataclass(eq=False)
class Trials:
    """All trials of one run, by plan. samples: on which they are measured, by `judge`."""

    subject: Subject
    outcome: Outcome
    settings: Settings
    targets: Targets
    samples: Samples
    clock: Clock
    judge: measuring.Yardstick
    cheap: dict[bytes, Trial] = field(default_factory=dict)
    full: dict[bytes, Trial] = field(default_factory=dict)

    def at(self, share: float) -> Selection:
        """The plan at a share of the MACs. Raises: BudgetError where it cannot be reached."""
        targets = search.with_macs(self.targets, share)
        return search.near_the_target(self.subject, self.outcome, self.settings, targets)

    def share_of(self, keep: Keep) -> float:
        """The share of the MACs that a plan keeps."""
        costs = self.subject.cost
        return costs.total("macs", cost.keep_sizes(keep)) / max(costs.total("macs"), 1.0)

    def try_cheap(self, selection: Selection) -> Trial:
        """The plan after a quick recovery."""
        key = key_of(selection.keep)
        if key not in self.cheap:
            # Biases and least squares take seconds, and order the sizes as fine-tuning does, which takes minutes.
            how = self.settings.recovery
            how = replace(how, level="reconstruct") if how.level == "finetune" else how
            model = self._recovered(selection, how, Clock(), trial=True).model
            self.cheap[key] = self._measured(selection, model)
            LOG.info("  quick recovery, %s lost", self.cheap[key])
        return self.cheap[key]

    def try_full(self, selection: Selection) -> Trial:
        """The plan after the recovery that the run carries out; the model is kept with it."""
        key = key_of(selection.keep)
        if key not in self.full:
            how = replace(self.settings.recovery, resume=None)  # checkpoints are those of one plan alone
            made = self._recovered(selection, how, Clock(self._seconds()))
            self.full[key] = replace(self._measured(selection, made.model), recovered=made)
            LOG.info("  full recovery, %s lost", self.full[key])
        return self.full[key]

    def _seconds(self) -> float | None:
        """Seconds for the next full recovery; None where epochs were asked for, however long they take.

        All of them together take the time of one: what the search is given, or a fine-tuning at most.
        """
        left = self.clock.left()
        if left is None:
            return SECONDS / MOST_FULL if self.settings.recovery.tuning.epochs is None else None
        return left / (MOST_FULL + 1 - min(len(self.full), MOST_FULL))

    def known(self, keep: Keep) -> Trial | None:
        """The full trial of a plan, where there was one."""
        return self.full.get(key_of(keep))

    def curve(self) -> Curve:
        """The curve of what is lost at each size, as far as the trials tell."""
        cheap, full = ([(t.macs, t.lost) for t in found.values()] for found in (self.cheap, self.full))
        return Curve(cheap or full, full if cheap else ())

    @property
    def largest(self) -> float:
        """The share of the MACs that a target allows at most."""
        return self.targets.get("macs", 1.0)

    def lowest(self) -> float:
        """The smallest share of the MACs that can be reached, not below a tenth unless a target is.

        Raises: BudgetError where the targets cannot be met.
        """
        low, high = 0.0, self.largest
        self.at(high)
        while high - low > REACHED and high > LOWEST:
            middle = (low + high) / 2
            try:
                self.at(middle)
                high = middle
            except BudgetError:
                low = middle
        return min(max(high, LOWEST), self.largest)

    def _recovered(self, selection: Selection, how: levels.Recovery, clock: Clock, *, trial: bool = False) -> Recovered:
        model = surgery.cut(selection)
        return Recovered(model, levels.recover(self.subject.given, selection, model, how, clock, trial=trial))

    def _measured(self, selection: Selection, model: ir.Model) -> Trial:
        """A trial of `model`: its accuracy, that of its quantized form, and the points lost."""
        accuracy, rounded, stored = self.judge.of(model), None, None
        if self.settings.form.quantize is not None:
            stored = as_written(model, self.subject, self.settings)
            rounded = self.judge.of(stored)
        lost = drop(self.judge.accuracy, rounded or accuracy)
        if lost is None:
            raise UsageError(UNREADABLE if self.settings.goal.max_drop is None else f"--max-drop: {UNREADABLE}")
        share = self.share_of(selection.keep)
        kept = stored if self.settings.goal.front else None  # a search for an accuracy needs no models beside it
        return Trial(selection, share, lost, cast("Accuracy", accuracy), rounded, kept)


def key_of(keep: Keep) -> bytes:
    """A plan as a key: its kept positions, dimension by dimension."""
    return b"".join(np.packbits(keep[dim]).tobytes() for dim in sorted(keep, key=lambda dim: dim.name))
