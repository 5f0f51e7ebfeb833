"""stdout, which belongs to results: what libraries and users' functions print is kept off it.

In the command line results go to `results()`, and whatever else is printed lands on stderr. From Python nothing is
moved, for the process belongs to the user; only what a library prints in one thread is swallowed, in that thread.
"""

import codecs
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any, TextIO, cast

_RESULTS: list[IO[str]] = []  # of the commands that are running, the innermost last
_REPLACED: list[IO[str]] = []  # streams that would close their descriptor, which goes on being used, when forgotten
PLAIN = {"–": "-", "—": "-", "×": "x", "µ": "u", "±": "+-", "≤": "<=", "≥": ">=", "…": "..."}


def results() -> IO[str]:
    """Where results are printed: what was stdout when the command began."""
    return _RESULTS[-1] if _RESULTS else sys.stdout


@contextlib.contextmanager
def results_apart() -> Iterator[None]:
    """Inside, what is printed goes to stderr, unless it is printed to `results()`."""
    stream = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - None where stdout was closed
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="onnxprune")  # a dash that an old code page lacks must not end a run
    _RESULTS.append(stream)
    try:
        with contextlib.redirect_stdout(_Lent(sys.stderr)):
            yield
    finally:
        _RESULTS.pop()


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Letters that an encoding has for those that it lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") for letter in lacking), error.end


codecs.register_error("onnxprune", _plain)


def own_descriptors() -> None:
    """Gives this process, which must be ours alone, a stdout that native code and child processes do not know.

    File descriptor 1 leads to stderr then. Descriptors that were closed are opened, or files would get their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - None where it was closed
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    with contextlib.suppress(OSError, ValueError):  # nothing real behind it
        raw = _Unfailing(sys.stderr.fileno(), "w", closefd=False)
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        _REPLACED.append(sys.stderr)
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True)
    with contextlib.suppress(OSError, ValueError):  # nothing real behind them
        sys.stdout.flush()
        kept = os.dup(sys.stdout.fileno())
        encoding, at_once = sys.stdout.encoding, bool(sys.stdout.line_buffering)
        os.dup2(sys.stderr.fileno(), 1)
        sys.stdout = os.fdopen(kept, "w", encoding=encoding, errors="onnxprune")
        cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=at_once)


class _Unfailing(io.FileIO):
    """A stderr on a full disk or without a reader: what nobody can be told must not end the work."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


class PrintError(Exception):
    """Results could not be printed, as on a full disk."""


@contextlib.contextmanager
def printing() -> Iterator[IO[str]]:
    """`results()`, to print to. Raises: PrintError where that does not take them, BrokenPipeError without a reader."""
    stream = results()
    try:
        yield stream
        stream.flush()
    except BrokenPipeError:
        silence(stream)
        raise
    except OSError as error:
        silence(stream)
        raise PrintError(f"the results could not be printed ({error.strerror or error})") from error


def say(text: str) -> None:
    """Prints a line of results."""
    with printing() as stream:
        print(text, file=stream)


def silence(stream: IO[str]) -> None:
    """Sends what is left in the buffer of `stream` nowhere, or the interpreter would complain when it exits."""
    with contextlib.suppress(OSError, ValueError):  # no real file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# What one thread prints -------------------------------------------------------------------------------------------


class _Routed(io.TextIOBase):
    """A stdout that keeps what threads inside `swallowed` write, and passes on all else."""

    def __init__(self, outer: TextIO) -> None:
        self.outer = outer
        self.kept: dict[int, io.StringIO] = {}

    def write(self, text: str, /) -> int:
        return self._stream().write(text)

    def flush(self) -> None:
        self._stream().flush()

    def _stream(self) -> Any:
        return self.kept.get(threading.get_ident(), self.outer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outer, name)


class _Lent(_Routed):
    """A stream that others may write to but not close: `sys.stdout.close()` in a user's function must not end ours."""

    def close(self) -> None:
        self.flush()


_LOCK = threading.Lock()


@contextlib.contextmanager
def swallowed() -> Iterator[io.StringIO]:
    """Collects what this thread prints; other threads go on printing, and stdout is as before when all have left."""
    me, said = threading.get_ident(), io.StringIO()
    with _LOCK:
        routed = sys.stdout if type(sys.stdout) is _Routed else _Routed(sys.stdout)
        sys.stdout = routed
        before = routed.kept.get(me)
        routed.kept[me] = said
    try:
        yield said
    finally:
        with _LOCK:
            if before is None:
                del routed.kept[me]
            else:
                routed.kept[me] = before
            if not routed.kept and sys.stdout is routed:
                sys.stdout = routed.outer
