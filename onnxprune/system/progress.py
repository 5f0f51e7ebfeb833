"""Progress of long work: a bar on a terminal, elsewhere a line now and then, so that a log shows that it goes on."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from tqdm import tqdm

from onnxprune.system.words import duration

LOG = logging.getLogger("onnxprune")
FIRST = 60.0  # seconds before the first line
SHARE = 0.1  # of the time so far that passes before the next one


class Progress:
    """Counts the parts of some work, and says now and then how far it is and how long the rest will take."""

    def __init__(self, bar: tqdm, what: str, unit: str, total: float, done: int) -> None:
        self.bar, self.what, self.unit, self.total = bar, what, unit, total
        self.done, self.first, self.note = done, done, ""
        self.began = perf_counter()
        self.due = self.began + FIRST

    def update(self, count: int = 1) -> None:
        """So many parts more are done."""
        self.done += count
        self.bar.update(count)
        if self.bar.disable and perf_counter() >= self.due:
            self._say(perf_counter() - self.began)

    def _say(self, seconds: float) -> None:
        self.due = self.began + seconds + max(FIRST, SHARE * seconds)
        left = (self.total - self.done) * seconds / (self.done - self.first)
        parts = f"{self.what}: {self.unit} {self.done} of {self.total:.0f}{self.note and f', {self.note}'}"
        LOG.info("  %s; about %s left", parts, duration(left))

    def expect(self, total: float) -> None:
        """Takes `total` for the number of parts, as far as one knows by now."""
        self.total = self.bar.total = total

    def tell(self, note: str) -> None:
        """Shows `note` beside the number of parts."""
        self.note = note
        self.bar.set_postfix_str(note, refresh=False)


@contextmanager
def progress(what: str, unit: str, total: float, *, bar: bool, done: int = 0) -> Iterator[Progress]:
    """Of `what`, of which `done` of `total` parts are done: a bar on stderr, or with `bar` False lines in the log."""
    with tqdm(total=total, initial=done, unit=unit, desc=what, file=sys.stderr, disable=not bar) as shown:
        yield Progress(shown, what, unit, total, done)
