"""Wall times of the steps of a run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter

from onnxprune.system.interrupts import heed

LOG = logging.getLogger("onnxprune")


# What users are told of a step; reports have its name.
TOLD = {
    "load": "reading the model",
    "normalize": "simplifying the model",
    "data": "reading samples",
    "observe": "running the model to see its shapes",
    "verify the normal form": "comparing the simplified model with yours",
    "analyze": "finding what can be removed",
    "outputs": "finding what the outputs are",
    "check the original": "checking your model as it is",
    "score": "scoring what can be removed",
    "allocate": "trying how much each layer can lose",
    "choose blocks": "trying which blocks can go as a whole",
    "select": "choosing what to remove",
    "cut": "removing it",
    "verify": "proving the smaller model",
    "push constants": "correcting biases for what was removed",
    "reconstruct": "refitting weights by least squares",
    "finetune": "fine-tuning",
    "finish": "tidying the smaller model",
    "verify the result": "proving the file that is written",
    "quantize": "quantizing",
    "measure cost": "counting operations and bytes",
    "measure accuracy": "measuring accuracy",
    "measure latency": "measuring latency",
    "sensitivity": "removing from one dimension at a time",
}


@dataclass(frozen=True)
class Step:
    """One step of the run and its wall time."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Event:
    """A step that begins, or has ended after so many seconds."""

    name: str
    seconds: float | None = None


# Who is told of steps, in this thread: the function that a user gave to `onnxprune.prune(on_step=...)`.
LISTENER: ContextVar[Callable[[Event], object] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[Event], object] | None) -> Iterator[None]:
    """Inside, `listener` is called with an Event at the begin and at the end of every step."""
    token = LISTENER.set(listener)
    try:
        yield
    finally:
        LISTENER.reset(token)


def _tell(event: Event) -> None:
    listener = LISTENER.get()
    if listener is not None:
        listener(event)


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
        heed()
        LOG.info("%s ...", TOLD.get(name, name), extra={"step": name})
        _tell(Event(name))
        start = perf_counter()
        yield
        seconds = perf_counter() - start
        self.steps.append(Step(name, seconds))
        _tell(Event(name, seconds))
