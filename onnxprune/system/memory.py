"""The one policy for memory: how much a step may hold, and what is done when it does not do.

What may be held is decided before: `may_hold` gives the bytes for observed values, answers and samples, and the sizes
of weights and models below which another copy is of no account stand beside it.

When memory runs out all the same, the work is done again in smaller batches, and in the end one clear line is given.
torch, onnxruntime and numpy each say it in their own way; `out_of_memory` knows them all. `halving` repeats work that
is given its batch; `retrying` repeats a whole step, in which every batch is chosen through `at_most`.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from onnxprune.errors import OutOfMemoryError, first_line

LOG = logging.getLogger("onnxprune")
T = TypeVar("T")
# A larger model is never copied for convenience: its weights stay in their file, and go to native code by reference.
LARGE_MODEL_BYTES = 256_000_000
# A larger weight is left out of what is copied, or read from its file when it is needed.
SMALL_WEIGHT_BYTES = 4096
# What a step may keep at most, see `may_hold`: values that it observed on the way, what the original says on samples,
# samples that could be read again.
VALUES_BYTES, ANSWERS_BYTES, SAMPLES_BYTES = 256_000_000, 1_000_000_000, 512_000_000
# All values of a network, as for a gradient; inputs of one batch, beside which a network holds many as large.
ALL_BYTES, INPUTS_BYTES = 1_000_000_000, 8_000_000
SHARE = 0.2  # of the machine's memory that any of these may take
# RuntimeError of torch on the CPU and of CUDA, onnxruntime's arenas, C++ below both. numpy raises MemoryError.
WORDS = (
    *("out of memory", "can't allocate memory", "failed to allocate memory", "bad_alloc", "bad allocation"),
    *("not enough memory", "cudnn_status_alloc_failed", "cublas_status_alloc_failed"),
)


def may_hold(most_bytes: int) -> int:
    """Bytes that a step may keep in memory: `most_bytes`, or a share of what the machine has where that is less."""
    return int(min(most_bytes, SHARE * machine_bytes()))


def batch_for(sample_bytes: int, most_bytes: int, most: int) -> int:
    """How many samples of that size stay within `most_bytes`, 1 to `most`."""
    return max(1, min(most, may_hold(most_bytes) // max(1, sample_bytes)))


def machine_bytes() -> int:
    """Bytes of memory that this machine has; 4 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemoryError):
            return True
        if isinstance(error, Exception) and any(word in str(error).lower() for word in WORDS):
            return True
        error = error.__cause__
    return False


def halving(action: Callable[[int], T], batch: int, where: str, *, fixed: bool = False) -> T:
    """action(batch); when memory runs out, again with half the batch, down to 1. fixed: the model takes no other.

    Raises: OutOfMemoryError when memory does not even do for the smallest batch.
    """
    while True:
        try:
            return action(batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if batch <= 1 or fixed:
                raise give_up(error, where, batch, fixed=fixed) from error
        batch = smaller(batch, where)


@dataclass
class _Cap:
    """The largest batch that is allowed now, and the largest that was used."""

    allowed: int | None
    used: int = 0


_CAP: ContextVar[_Cap | None] = ContextVar("batch cap", default=None)


def at_most(batch: int) -> int:
    """`batch`, or less where a step is being repeated because memory did not do."""
    cap = _CAP.get()
    if cap is None:
        return batch
    batch = batch if cap.allowed is None else min(batch, cap.allowed)
    cap.used = max(cap.used, batch)
    return batch


def retrying(action: Callable[[], T], where: str, *, fixed: bool = False) -> T:
    """action(); when memory runs out, again with `at_most` half of the largest batch that it used, down to 1.

    Raises: OutOfMemoryError when memory does not even do for the smallest batch.
    """
    cap = _Cap(None)
    while True:
        token = _CAP.set(cap)
        try:
            return action()
        except Exception as error:
            if not out_of_memory(error):
                raise
            if cap.used <= 1 or fixed:
                raise give_up(error, where, max(1, cap.used), fixed=fixed) from error
        finally:
            _CAP.reset(token)
        cap = _Cap(smaller(cap.used, where))


def smaller(batch: int, where: str) -> int:
    """Half of `batch`, with a note; what the failed attempt left is freed."""
    half = max(1, batch // 2)
    LOG.warning("%s: out of memory with a batch of %d; goes on with %d", where, batch, half)
    free()
    return half


def give_up(error: BaseException, where: str, batch: int, *, fixed: bool = False) -> OutOfMemoryError:
    """The error to raise when there is no smaller batch."""
    while isinstance(error, OutOfMemoryError) and error.__cause__ is not None:
        error = error.__cause__
    which = "which the model is fixed to" if fixed else "which cannot be split here" if batch > 1 else "the smallest"
    return OutOfMemoryError(
        f"{where}: out of memory with a batch of {batch}, {which} ({first_line(error)}); nothing was written. "
        "Give smaller samples, free memory, or use a machine with more"
    )


def free() -> None:
    """Gives back what nobody uses any more, on the GPU as well."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Lets this process take `more_bytes` more memory and no further, where the system knows of such limits."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + more_bytes
    limit = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
