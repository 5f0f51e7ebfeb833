"""`python -m onnxprune` and the console script."""

import gc
import logging

from onnxprune.cli import main as run
from onnxprune.system import late, processes, streams


def main() -> None:
    """Runs the command line and exits with its code."""
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
