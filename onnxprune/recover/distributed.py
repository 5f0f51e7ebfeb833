"""More than one process, started by torchrun: who this one is, and what all of them have to agree on.

Everything is torch.distributed's own: gloo on CPU, nccl on CUDA, DistributedDataParallel, DistributedSampler.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from onnxprune.system.processes import launched

PATIENCE = timedelta(days=7)  # until the first process has scored, searched and cut


def world() -> tuple[int, int]:
    """(rank of this process, number of processes) inside `group`; (0, 1) outside, where each works for itself."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def device_of(device: str) -> torch.device:
    """The device of this process; under torchrun 'cuda' means the one of its local rank."""
    if device == "cuda" and launched()[1] > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device(device)


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[None]:
    """The process group, where there is more than one process and none was made yet."""
    mine = launched()[1] > 1 and not dist.is_initialized()
    if mine:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # messages between them go over the CPU
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        if mine:
            dist.destroy_process_group()


def wrap(network: nn.Module, device: torch.device, *, all_used: bool) -> nn.Module:
    """`network` under DistributedDataParallel, or as it is in a single process."""
    if world()[1] == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, find_unused_parameters=not all_used)


def order(count: int, epoch: int, seed: int) -> np.ndarray:
    """The sample numbers that this process visits in `epoch`, in order.

    Together the processes visit what one process would, in the same order.
    """
    rank, size = world()
    numbers: Any = range(count)  # DistributedSampler asks for nothing but a length
    sampler = DistributedSampler(numbers, num_replicas=size, rank=rank, shuffle=True, seed=seed, drop_last=True)
    sampler.set_epoch(epoch)
    return np.fromiter(sampler, np.int64)


def agreed(value: Any, device: torch.device) -> Any:
    """The first process's value, of plain JSON types, in all processes; the others wait for it."""
    if world()[1] == 1:
        return value
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, 0)
    if world()[0] != 0:
        data = torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(data, 0)
    return json.loads(bytes(data.cpu().tolist()))
