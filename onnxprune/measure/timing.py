"""When to start the clock and whose turn it is: warm-up until stable, then rounds in which every model runs once.

Nothing here knows onnxruntime: a model is a function without arguments, a clock gives nanoseconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np

Call = Callable[[], object]
Clock = Callable[[], int]
SETTLE_MS = 20.0


@dataclass(frozen=True)
class Rounds:
    """How long to measure: at least `runs` rounds and `min_seconds`, but no longer than `max_seconds`."""

    runs: int = 100
    min_seconds: float = 1.0
    max_seconds: float = 60.0
    # A round that no one waits for longer; more rounds than this only cost memory.
    most: int = 5000
    least: int = 5

    def enough(self, done: int, seconds: float) -> bool:
        """True when `done` rounds in `seconds` satisfy the plan."""
        if done >= self.most or (seconds >= self.max_seconds and done >= self.least):
            return True
        return done >= self.runs and seconds >= self.min_seconds


QUICK = Rounds(runs=50, min_seconds=0.5, max_seconds=4.0)  # after pruning; `bench` measures longer


@dataclass(frozen=True)
class WarmUp:
    """How many runs the warm-up took, and whether the times had settled when it ended."""

    runs: int
    stable: bool


def warm_up(
    call: Call,
    clock: Clock = perf_counter_ns,
    *,
    window: int = 10,
    tolerance: float = 0.05,
    max_runs: int = 300,
    max_seconds: float = 5.0,
) -> WarmUp:
    """Runs `call` until the median of the last `window` runs is within `tolerance` of the window's before it."""
    times: list[float] = []
    started = clock()
    while len(times) < max_runs:
        times.append(timed(call, clock))
        if len(times) >= 2 * window and _settled(times, window, tolerance):
            return WarmUp(len(times), True)
        if (clock() - started) / 1e9 > max_seconds and len(times) >= 3:
            break
    return WarmUp(len(times), False)


def _settled(times: list[float], window: int, tolerance: float) -> bool:
    last, before = np.median(times[-window:]), np.median(times[-2 * window : -window])
    return bool(abs(last - before) <= tolerance * before)


def timed(call: Call, clock: Clock = perf_counter_ns) -> float:
    """Milliseconds of one run."""
    start = clock()
    call()
    return (clock() - start) / 1e6


def interleave(
    calls: Mapping[str, Call], rounds: Rounds, rng: np.random.Generator, clock: Clock = perf_counter_ns
) -> dict[str, np.ndarray]:
    """Milliseconds by name, (R,): position r of every array belongs to round r, in which each model has one turn.

    The order within a round is random, so neither a drift of the clock rate nor a neighbor's rhythm favors one.
    A turn is one untimed run and one timed: the first brings the caches back from the model before. Where a run
    takes longer than SETTLE_MS, caches do not matter and the untimed one is saved.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    started = clock()
    while not rounds.enough(len(times[names[0]]), (clock() - started) / 1e9):
        for name in rng.permutation(names):
            if not times[name] or times[name][-1] < SETTLE_MS:
                calls[name]()
            times[name].append(timed(calls[name], clock))
    return {name: np.asarray(values) for name, values in times.items()}
