"""Calls into native libraries that may end the whole process: made in another process, which they end alone.

That is a copy of this process where one can safely be made, else a copy of a helper that is started once: a fresh
interpreter, to which what is called has to be sent.
"""

import atexit
import ctypes
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")
LOG = logging.getLogger("onnxprune")
Told = tuple[int, str]  # level and text of what was logged
PR_SET_PDEATHSIG = 1  # of Linux


class CrashedError(Exception):
    """A library ended the process that called it; the message names the signal."""


def isolated(function: Callable[[], T], *, fresh: bool = False) -> T:
    """Calls `function` in another process, and returns or raises what it does.

    Where this process cannot be copied, or with `fresh`, a function that can be pickled (a partial of a module's) goes
    to the helper; others are called here. Raises: CrashedError when the other process was ended by a signal.
    """
    if can_copy() and not fresh:
        return _in_a_copy(function)
    try:
        job = pickle.dumps(function, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        return function()
    return _HELPER.call(job)


def _in_a_copy(function: Callable[[], T]) -> T:
    returned, value, told = _answer_of_a_copy(function)
    _tell(told)
    if returned:
        return value
    raise value


def _answer_of_a_copy(function: Callable[[], Any]) -> tuple[bool, Any, list[Told]]:
    """(whether `function` returned, what it returned or raised, what it logged), of a copy of this process."""
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read)
        gc.freeze()  # a search for garbage among what the parent holds would copy all of its memory
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
        raise CrashedError(f"{name}{' (as when memory runs out)' if code == -signal.SIGKILL else ''}")
    return pickle.loads(answer)


def _tell(told: list[Told]) -> None:
    """Logs here what was logged in another process, where nobody sees it."""
    for level, text in told:
        LOG.log(level, "%s", text)


def can_copy() -> bool:
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


class _Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Told] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.levelno, record.getMessage()))


def _answer(function: Callable[[], Any], write: int) -> None:
    """Writes what became of `function` and ends this copy."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a library shouts when it dies is not for users
        heard = _Heard()
        LOG.addHandler(heard)
        try:
            answer = True, function(), heard.told
        except Exception as error:
            answer = False, error, heard.told
        with os.fdopen(write, "wb") as stream:
            stream.write(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
        code = 0
    finally:
        os._exit(code)


# The helper ---------------------------------------------------------------------------------------------------------

SERVE = "import sys; sys.path.insert(0, {root!r}); from onnxprune.system.isolation import serve; serve()"


class _Helper:
    """A fresh interpreter that makes a copy of itself for each call; started when it is first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def call(self, job: bytes) -> Any:
        with self.lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                # The helper may be older than what this process imports from by now.
                _send(process.stdin, pickle.dumps((sys.path, job)))
                answer = _receive(process.stdout)
            except BrokenPipeError:
                answer = None
            except BaseException:  # interrupted midway: what it answers later is no answer to the next call
                self.end()
                raise
            if answer is None:
                self.end()
                raise CrashedError("the end of the helper process")
        kind, value, told = pickle.loads(answer)
        _tell(told)
        if kind == "returned":
            return value
        raise CrashedError(value) if kind == "crashed" else value

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.process is None or self.process.poll() is not None:
            root = str(Path(__file__).parents[2])
            words = [sys.executable, "-c", SERVE.format(root=root)]
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            atexit.register(self.end)
        return self.process

    def end(self) -> None:
        """Ends the helper, where one runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


_HELPER = _Helper()


def serve() -> None:
    """Answers calls on the standard streams until they end; in the helper."""
    answers = os.fdopen(os.dup(1), "wb")
    run = _answer_of_a_copy if hasattr(os, "fork") else lambda function: (True, function(), [])
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    while (job := _receive(sys.stdin.buffer)) is not None:
        try:
            sys.path[:], function = pickle.loads(job)
            returned, value, told = run(pickle.loads(function))
            answer = "returned" if returned else "raised", value, told
        except CrashedError as crash:
            answer = "crashed", str(crash), []
        except Exception as error:
            answer = "raised", error, []
        _send(answers, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little"))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """The next message, None where the stream ends."""
    head = stream.read(8)
    return stream.read(int.from_bytes(head, "little")) if len(head) == 8 else None
