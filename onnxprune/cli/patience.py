"""Steps of a run on stderr where that is no terminal: shown as soon as the input was accepted, or has taken long."""

import logging
import threading
import time

ACCEPTED = "cut"  # the step that begins when the model and the samples were read and scored
SECONDS = 10.0  # after which steps are shown, whatever they are
SCORING_SECONDS = 5.0  # after which a run that scores has been accepted


class Patient(logging.StreamHandler):
    """Holds what is said of steps until a run has got to work; warnings and errors are shown at once."""

    def __init__(self, stream) -> None:
        super().__init__(stream)
        self.began = time.monotonic()
        self.held: list[logging.LogRecord] | None = []
        self.timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._rest()
        step = getattr(record, "step", "")
        if self.held is None or record.levelno > logging.INFO:
            super().emit(record)
        elif step == ACCEPTED or time.monotonic() - self.began > SECONDS:
            self.show()
            super().emit(record)
        else:
            self.held.append(record)
            self._wait(step)

    def _wait(self, step: str) -> None:
        """Scoring may be all that happens for long: then a thread shows what was held. It is gone with the next step,
        for copies of this process are made only while it has one thread."""
        if step == "score":
            self.timer = threading.Timer(SCORING_SECONDS, self.show)
            self.timer.daemon = True
            self.timer.start()

    def _rest(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def show(self) -> None:
        """Shows what was held; from then on everything is shown at once."""
        held, self.held = self.held or [], None
        for record in held:
            super().emit(record)

    def close(self) -> None:
        """Forgets what was held: the command ended before it began to work."""
        self._rest()
        super().close()
