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
    """Says what begins, how long it took, and what is left of the time that the whole run may take."""

    def __init__(self, limit: float | None = None) -> None:
        self.steps: list[Step] = []
        self.started, self.limit = perf_counter(), limit
        self.reserved = 0.0  # seconds that what follows fine-tuning will take

    def left(self) -> float | None:
        """Seconds that are left for fine-tuning, None where no time was given."""
        if self.limit is None:
            return None
        return max(0.0, self.limit - self.reserved - (perf_counter() - self.started))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        LOG.info("%s ...", name)
        start = perf_counter()
        yield
        self.steps.append(Step(name, perf_counter() - start))
