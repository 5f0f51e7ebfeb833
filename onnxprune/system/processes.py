"""Several processes, started by torchrun: the first does the run, the others fine-tune with it and do nothing else."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from onnxprune.errors import UsageError
from onnxprune.system.atomic_files import scratch

T = TypeVar("T")
LOG = logging.getLogger("onnxprune")
_EXIT = os._exit
_TUNING = [False]  # whether the others are in the middle of a fine-tuning, and listen to nothing else


def launched() -> tuple[int, int]:
    """(rank of this process, number of processes), as torchrun set them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def require_one(what: str) -> None:
    """Checks that this is the only process of the run. Raises: UsageError under torchrun."""
    if launched()[1] > 1:
        raise UsageError(f"{what} runs in one process: start it without torchrun")


class Leave(SystemExit):
    """Ends the process with a code of ours; every other SystemExit comes from a function of the user's."""


def own_exit() -> None:
    """Makes os._exit an exception in this process, which must be ours alone: what it returns is a promise of ours."""
    us = os.getpid()

    def exit_by_exception(code: int) -> NoReturn:
        if os.getpid() != us:
            _EXIT(code)
        raise SystemExit(code)

    os._exit = exit_by_exception


def leave(code: int) -> NoReturn:
    """Ends this process with `code`; of several processes without taking the interpreter apart.

    DistributedDataParallel keeps threads of gloo alive beyond the process group. One that lets go of a tensor while
    the interpreter is being taken apart is ended by it, and takes the process along: "terminate called without an
    active exception", after all work was done.
    """
    if launched()[1] == 1:
        sys.exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    _EXIT(code)


def lead(work: Callable[[], T]) -> T:
    """work(), in the first process; the others, which wait in `follow`, get its result or fail as it does.

    What goes wrong inside a fine-tuning is not told, for the others are in the middle of it: torchrun ends them.
    """
    try:
        result = work()
    except Exception as error:
        if not _TUNING[0]:
            with contextlib.suppress(RuntimeError):  # one of them is gone
                _send("failed", getattr(error, "exit_code", 2))
        raise
    _send("done", result)
    return result


def together(tune: Callable[..., T], model: Any, *rest: Any, save: Callable[[Any, Path], object]) -> T:
    """tune(model, *rest) in all processes at once; in the others on a copy of `model`, which is then forgotten.

    save: writes a model to a file, from which `follow` loads it.
    """
    if launched()[1] == 1:
        return tune(model, *rest)
    with scratch() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        _send("tune", (str(path), rest))
        _TUNING[0] = True
        result = tune(model, *rest)
        _TUNING[0] = False
    return result


def follow(tune: Callable[..., object], load: Callable[[Path], Any]) -> Any:
    """tune(model, ...) for each that the first process shares in `together`, until it is done: its result.

    Raises: Leave where the first process failed; it has said why.
    """
    LOG.setLevel(logging.ERROR)
    while True:
        kind, content = _receive()
        if kind == "tune":
            path, rest = content
            tune(load(Path(path)), *rest)
        elif kind == "failed":
            raise Leave(content)
        else:
            return content


def _send(kind: str, content: object) -> None:
    import torch.distributed as dist

    dist.broadcast_object_list([(kind, content)], src=0)


def _receive() -> tuple[str, Any]:
    import torch.distributed as dist

    message: list[Any] = [None]
    dist.broadcast_object_list(message, src=0)
    return message[0]
