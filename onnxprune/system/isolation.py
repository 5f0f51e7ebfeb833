"""Calls into native libraries that may end the whole process: made in a copy of it, which they end alone."""

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of Linux


class CrashedError(Exception):
    """A library ended the process that called it; the message names the signal."""


def isolated(function: Callable[[], T]) -> T:
    """What `function` returns or raises, computed in a copy of this process where one can safely be made.

    Raises: CrashedError when the copy was ended by a signal.
    """
    if not _can_copy():
        return function()
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read)
        die_with(parent)
        _answer(function, write)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as stream:
            answer = stream.read()
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code or not answer:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise CrashedError(f"{name}{', as when memory runs out' if code == -signal.SIGKILL else ''}")
    returned, value = pickle.loads(answer)
    if returned:
        return value
    raise value


def _can_copy() -> bool:
    """A copy has one thread: locks that others hold at that moment stay locked in it. torch and users have others.

    Where frameworks of the system refuse to go on in a copy (macOS) none is made.
    """
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


def die_with(parent: int) -> None:
    """Makes the kernel, or where it will not a thread, end this copy when its parent is gone, as after kill -9."""
    asked = -1
    with suppress(OSError, AttributeError):
        asked = ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we could ask
        os._exit(1)
    if asked != 0:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _answer(function: Callable[[], Any], write: int) -> None:
    """Writes what became of `function` and ends this copy."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a library shouts when it dies is not for users
        try:
            answer = True, function()
        except Exception as error:
            answer = False, error
        with os.fdopen(write, "wb") as stream:
            stream.write(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
        code = 0
    finally:
        os._exit(code)
