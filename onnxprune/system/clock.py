"""Wall times of the steps of a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

LOG = logging.getLogger("onnxprune")


@dataclass(frozen=True)
class Step:
    """One step of the run and its wall time."""

    name: str
    seconds: float


class Clock:
    """Says what begins, and how long it took."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        LOG.info("%s ...", name)
        start = perf_counter()
        yield
        self.steps.append(Step(name, perf_counter() - start))
