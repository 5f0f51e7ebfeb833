"""onnxprune on one file from the loaded model to the cut one, timed step by step, in one thread.

What a whole command does beyond this (the proofs, finishing, measuring, writing) is not part of `work`, as it is not
part of the other tools' work; whether the cut model equals the masked one and runs is found here outside of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CORE_STEPS = ("observe", "analyze", "score", "select", "cut")


class Times:
    """Seconds of wall and CPU time by step; CPU time is what other processes on a busy machine do not change."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time() + _of_children()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() + _of_children() - cpu


def _of_children() -> float:
    """CPU seconds of the copies of this process in which onnxprune calls native libraries."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def preload() -> None:
    """The imports of a run, and the operators of onnx, which it registers when it is first asked for one."""
    import onnx.defs

    from onnxprune.graph import simplify
    from onnxprune.methods import base

    simplify._import_onnxsim()
    base.get("random")
    onnx.defs.has("Conv")


def main(file: str) -> dict[str, Any]:
    """ok, kept_params, right, difference and seconds. Raises what onnxprune raises."""
    preload()
    from onnxprune import graph, surgery
    from onnxprune.coupling import analyze
    from onnxprune.errors import BudgetError
    from onnxprune.graph import shapes
    from onnxprune.options import Options
    from onnxprune.plan import cost
    from onnxprune.plan.select import Selection
    from onnxprune.proof import comparison, normal_form
    from onnxprune.report import build
    from onnxprune.run import schedule, search, settings
    from onnxprune.run.subject import Subject
    from onnxprune.studies import inspection

    clock = Times()
    with clock("load"):
        loaded = graph.load(file)
    with clock("normalize"):
        model = graph.normalize(loaded)
    with clock("observe"):
        observed = shapes.observe(model)
    with clock("prove the normal form"):
        model, observed = normal_form.proven(loaded, model, observed)
    with clock("analyze"):
        coupling = analyze(model, observed)
        costs = cost.of(coupling)
    feeds: list[Any] = comparison.random_feeds(model, observed)
    subject = Subject(Path(file), model, "", coupling, costs, None, None, feeds)
    found = settings.resolved(Options(method="random", target={"params": 0.5}, recover="none", align=1))
    subject, outcome = schedule.scored(subject, found, clock)  # type: ignore[arg-type]
    with clock("select"):
        try:
            selection = next(search.selections(subject, outcome, found))
        except BudgetError:  # the structure does not allow half: as much as it does
            selection = Selection(coupling, {dim: _first(dim.size) for dim in coupling.free})
    with clock("cut"):
        cut = surgery.cut(selection)
    found = comparison.compare(cut, surgery.mask(selection), feeds)
    before, after = costs.totals()["params"], costs.totals(cost.keep_sizes(selection.keep))["params"]
    reasons = Counter(str(dim.frozen).split(" (")[0] for dim in coupling.dims if dim.frozen)
    return {
        "free_dims": len(coupling.free),
        "fallbacks": build.fallbacks(coupling),
        "frozen_reasons": [f"{reason} ({count})" for reason, count in reasons.most_common(3)],
        "shrinkable": inspection.shrinkable(coupling, costs)["params"],
        "ok": found.ok and after < before,
        "changed": after < before,
        "right": found.ok,
        "runs": True,
        "kept_params": after / before,
        "difference": found.max_abs / (found.scale or 1.0),
        **_sums("work", clock.wall, clock.cpu, ("normalize", *CORE_STEPS)),
        **_sums("core", clock.wall, clock.cpu, CORE_STEPS),
        "steps": clock.wall,
        "cpu_steps": clock.cpu,
    }


def _first(size: int):
    """Booleans (size,) that keep the first position only."""
    import numpy as np

    return np.arange(size) == 0


def _sums(name: str, wall: dict[str, float], cpu: dict[str, float], steps: tuple[str, ...]) -> dict[str, float]:
    return {
        f"{name}_s": sum(wall.get(step, 0.0) for step in steps),
        f"{name}_cpu_s": sum(cpu.get(step, 0.0) for step in steps),
    }
