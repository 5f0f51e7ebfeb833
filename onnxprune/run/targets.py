"""Whether a finished result keeps what was promised: targets, speed, accuracy."""

from collections.abc import Iterator, Sequence

from onnxprune.errors import BudgetError, UsageError
from onnxprune.measure import unsettled
from onnxprune.measure.records import ratio
from onnxprune.options import TARGETS
from onnxprune.outputs import metrics
from onnxprune.report import LatencyRatio, Measurement
from onnxprune.run.settings import NONZEROS, Goal

ROUNDING = 1e-6  # points
NOISE = 0.005  # by which a measured speed may fall short: the noise between two runs


def check(
    before: Measurement,
    after: Measurement,
    ratios: Sequence[LatencyRatio],
    goal: Goal,
    *,
    has_zeros: bool = False,
) -> tuple[str, ...]:
    """Notes on the gates that held. Raises: BudgetError for one that did not, with what was reached.

    has_zeros: whether a sparse method left positions at zero.
    """
    _check_costs(before, after, goal, has_zeros and goal.counts_zeros)
    return (*_check_drop(before, after, goal), *_check_speed((before, after), ratios, goal))


def _check_costs(before: Measurement, after: Measurement, goal: Goal, nonzeros: bool) -> None:
    for key, fraction in goal.target.items():
        counted = NONZEROS[key] if nonzeros else TARGETS[key]
        reached = None if key == "latency" else ratio(getattr(before, TARGETS[key]), getattr(after, counted))
        if reached is not None and reached > fraction + 1e-9:
            raise BudgetError(
                f"--target {key}={fraction:g} was missed: the nearest is {key}={reached + 5e-4:.3f}; "
                "nothing was written. Ask for that"
            )


def _check_drop(before: Measurement, after: Measurement, goal: Goal) -> Iterator[str]:
    """Checks --max-drop. Raises: BudgetError where more was lost."""
    if goal.max_drop is None:
        return
    lost = drop(before.accuracy, after.accuracy)
    if lost is None:
        raise BudgetError(
            "--max-drop: the accuracy could not be measured; give labelled samples with --val, or a --metric"
        )
    if not within(lost, goal.max_drop):
        macs = ratio(before.macs, after.macs) or 1.0
        raise BudgetError(
            f"--max-drop {goal.max_drop:g} was missed: the nearest loses {lost:.2f} points, at macs={macs:.3f}; "
            "nothing was written. Allow more, raise --epochs, or give more samples"
        )
    yield (
        f"lost {lost:.2f} points of {goal.max_drop:g} allowed, where 100 points lie between a model that answers "
        "all samples alike and the original"
    )


def within(lost: float, allowed: float) -> bool:
    """Whether so many points may be lost: 100 * (1 - 0.99) is a little more than 1, and yet 1 is allowed."""
    return lost <= allowed + ROUNDING


def drop(before: metrics.Accuracy | None, after: metrics.Accuracy | None) -> float | None:
    """Points lost of the share that is kept between a null model and the original.

    Raises: UsageError where the metric cannot tell the null model from the original.
    """
    if after is None:
        return None
    if after.share is not None:
        return 100 * (1 - after.share)
    if after.null is not None and after.original is not None:
        raise UsageError(
            f"what is lost cannot be told: a model that answers all {after.samples} samples alike has {after.metric} "
            f"{after.null:.4g}, the original {after.original:.4g}: that tells nothing; give more and other samples, "
            "or a --metric"
        )
    if before is not None:
        return after.drop_from(before)
    return 100 * (after.value if after.metric in metrics.LOWER_IS_BETTER else 1 - after.value)


def _check_speed(models: Sequence[Measurement], ratios: Sequence[LatencyRatio], goal: Goal) -> Iterator[str]:
    """Checks --min-speedup and --target latency. Raises: BudgetError where the result is too slow."""
    latencies = [entry for model in models for entry in model.latency[:1]]
    share = goal.target.get("latency")
    wanted = [("--target latency", share, 1 / share)] if share else []
    if goal.min_speedup is not None:
        wanted.append(("--min-speedup", goal.min_speedup, goal.min_speedup))
    for option, asked, least in wanted:
        if not ratios:
            raise BudgetError(f"{option} {asked:g}: latency could not be measured; nothing was written. Leave it out")
        floor = least * (1 - NOISE)
        # What even the best times miss is missed, however uncertain they are.
        if unsettled(latencies, ratios[:1]) and 1 / ratios[0].q1 >= floor:
            raise BudgetError(
                f"{option} {asked:g}: the times are too uncertain to tell, the ratio's quartiles are "
                f"{ratios[0].q1:.3f} and {ratios[0].q3:.3f}; nothing was written. Measure on a quiet machine, or with "
                "--threads 1"
            )
        speedup = 1 / ratios[0].median
        if speedup < floor:
            raise BudgetError(
                f"{option} {asked:g} was missed: the nearest is {speedup:.3f} times as fast "
                f"(latency={1 / speedup:.3f}) where {least:.3f} was asked; nothing was written. "
                "Ask for less, or give a smaller --target macs"
            )
        yield f"{speedup:.2f} times as fast, {least:.2f} was asked"
