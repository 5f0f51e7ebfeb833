"""Workers that each compute alone on one core: faster than torch's own threads where steps are many and small."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def workers(device: torch.device) -> Iterator[tuple[Executor, int]]:
    """A pool and its size: as many workers as torch has threads for a CPU, one for a GPU."""
    threads = torch.get_num_threads()
    number = threads if device.type == "cpu" else 1
    # The number is kept per thread (OpenMP) and per process (MKL), hence both settings and the way back.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, number
    finally:
        torch.set_num_threads(threads)
