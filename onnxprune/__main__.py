"""`python -m onnxprune` and the console script."""

import gc
import logging
import signal

CTRL_C = signal.getsignal(signal.SIGINT)  # ignored in a job in the background
if CTRL_C is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while we still import: an end without a trace

from onnxprune.cli import main as run  # noqa: E402
from onnxprune.system import late, processes, streams  # noqa: E402


def main() -> None:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGINT, CTRL_C)
    # Building a graph makes ten thousands of objects that stay; Python would look through all that was ever imported
    # again and again, which takes longer than the work.
    gc.set_threshold(50_000, 10, 20)
    late.load_late()
    streams.own_descriptors()
    processes.own_exit()
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is not for users
    processes.leave(run())


if __name__ == "__main__":
    main()
