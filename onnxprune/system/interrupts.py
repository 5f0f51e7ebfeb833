"""Ctrl-C and SIGTERM end a run even where a library takes the exception that Python raises for them as its own.

An import that catches everything (`try: import numba` / `except:`) swallows it, and so does Python where it calls a
destructor or a callback of a fork. So it is remembered, and raised again at the next step.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_asked = threading.Event()


def heed() -> None:
    """Raises KeyboardInterrupt in the main thread of a run that was asked to end."""
    if _asked.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C alike raise KeyboardInterrupt in the main thread and are remembered for `heed`."""
    if threading.current_thread() is not threading.main_thread():  # signals reach no other
        yield
        return

    def stop(number: int, _: object) -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: cleaning up is under way
        _asked.set()
        raise KeyboardInterrupt

    def unraisable(told: "sys.UnraisableHookArgs") -> None:
        if not (_asked.is_set() and isinstance(told.exc_value, KeyboardInterrupt)):  # that one is not lost: see heed
            told_before(told)

    told_before, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored in a job in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except BaseException as error:
        if _asked.is_set() and not isinstance(error, KeyboardInterrupt):  # what a library made of it
            raise KeyboardInterrupt from error
        raise
    finally:
        _asked.clear()
        sys.unraisablehook = told_before
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
