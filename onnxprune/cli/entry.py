"""`main`: finds the command, runs it, and turns whatever goes wrong into one line and an exit code."""

import contextlib
import difflib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxprune.cli.commands import COMMANDS, prune
from onnxprune.errors import OnnxPruneError, UsageError, first_line
from onnxprune.system import streams
from onnxprune.system.interrupts import interruptible
from onnxprune.system.memory import out_of_memory
from onnxprune.system.packages import missing
from onnxprune.system.plugins import import_here
from onnxprune.system.processes import Leave, require_one

EXIT_BAD_USAGE, EXIT_INTERRUPTED = 2, 130
LOG = logging.getLogger("onnxprune")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = any(a in ("-v", "--verbose") for a in given)
    with warnings.catch_warnings():
        if not verbose:  # those of libraries, which no user can act on
            warnings.simplefilter("ignore")
        try:
            with interruptible(), streams.results_apart(), own_logging():
                return dispatch(prepared(given))
        except Leave as stop:  # argparse after --help
            return int(stop.code or 0)
        except BrokenPipeError:  # the reader of our output left: 'onnxprune ops | head'
            return 0
        except BaseException as error:  # a user's function may raise one of its own
            if verbose and not isinstance(error, KeyboardInterrupt):
                traceback.print_exc()
            message, code = explain(error, given)
            with contextlib.suppress(OSError, ValueError):  # nobody can be told
                print(f"onnxprune: {' '.join(message.split())}", file=sys.stderr)
            return code


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """Puts our logger back when a command ends: the process may be the user's."""
    before = LOG.handlers[:], LOG.level, LOG.propagate
    try:
        yield
    finally:
        for handler in LOG.handlers:
            if handler not in before[0]:
                handler.close()
        LOG.handlers[:], LOG.propagate = before[0], before[2]
        LOG.setLevel(before[1])


def prepared(given: list[str]) -> list[str]:
    """The arguments less each `--plugin MODULE` and `--custom-ops LIB`, which may stand with any command.

    A module is imported, and registers the user's operators and methods; a library tells onnxruntime of operators.
    """
    modules, rest = _taken(given, "--plugin", "the module that registers your operators or methods, such as my_ops")
    for name in modules:
        try:
            import_here(name)
        except (ImportError, SystemExit) as error:
            raise UsageError(f"--plugin {name}: cannot be imported ({error}); run where the module lies") from error
    libraries, rest = _taken(rest, "--custom-ops", "the library of operators that onnxruntime loads, such as my_ops.so")
    for library in libraries:
        from onnxprune.graph import custom_ops

        custom_ops.register(library)
    return rest


def _taken(given: list[str], flag: str, wanted: str) -> tuple[list[str], list[str]]:
    """(the words behind each `flag`, the other words). Raises: UsageError that names what is `wanted` behind one."""
    found, rest = [], list(given)
    while flag in rest:
        at = rest.index(flag)
        if at + 1 == len(rest):
            raise UsageError(f"{flag}: give {wanted}")
        found.append(rest[at + 1])
        del rest[at : at + 2]
    return found, rest


def dispatch(given: list[str]) -> int:
    """Runs the command that `given` names: its exit code. A file wins over a command of the same name."""
    first = given[0] if given else ""
    if first in COMMANDS and not Path(first).is_file():
        if first != "apply":
            require_one(f"'onnxprune {first}'")
        return COMMANDS[first](given[1:])
    if first in ("help", "prune") and not Path(first).is_file():
        return dispatch([*given[1:], "--help"] if first == "help" or not given[1:] else given[1:])
    if first == "--version":
        from onnxprune.plan import tool_version

        streams.say(tool_version())
        return 0
    if first.replace("-", "").isalpha() and not first.startswith("-") and not Path(first).exists():
        near = difflib.get_close_matches(first, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"commands are {', '.join(COMMANDS)}"
        raise UsageError(f"'{first}' is neither a file nor a command; {hint}")
    return prune(given)


def explain(error: BaseException, given: Sequence[str]) -> tuple[str, int]:
    """(what to tell the user, exit code) for whatever a command raised."""
    if _interrupted(error):
        if given[:1] == ["compare"]:
            return "interrupted; the same command goes on after the runs that are finished", EXIT_INTERRUPTED
        goes_on = "; the same command goes on from its checkpoints" if "--resume" in given else ""
        return f"interrupted; nothing was written{goes_on}", EXIT_INTERRUPTED
    if isinstance(error, ImportError) and (absent := missing(error)) is not None:
        return str(absent), EXIT_BAD_USAGE
    if isinstance(error, SystemExit):
        return f"a function of yours ended the run with exit code {error.code}; nothing was written. Mend that", 2
    if not isinstance(error, Exception):
        told = f"{type(error).__name__}: {first_line(error)}"
        return f"a function of yours raised {told}; nothing was written. Mend that", EXIT_BAD_USAGE
    if isinstance(error, streams.PrintError):
        return f"{error}; print them to another place", EXIT_BAD_USAGE
    if isinstance(error, OnnxPruneError):
        return str(error), error.exit_code
    if out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}); nothing was written. Lower --batch-size, or give fewer samples",
            2,
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; nothing was written. Mend that, or choose another place", EXIT_BAD_USAGE
    # A mistake of ours: still one line, and the way to tell us.
    told = f"internal error: {type(error).__name__}: {first_line(error)}"
    return f"{told}; nothing was written. Run it again with -v and report that", EXIT_BAD_USAGE


def _interrupted(error: BaseException | None) -> bool:
    """Whether `error` is, or comes from, an interruption: one that meets an import in C ends it as an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None
