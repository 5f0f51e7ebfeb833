"""Batches of samples as tensors, the next one made while this one is used."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.bridge.tensors import to_torch
from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.graph.inputs import Feeds


def tensors_of(feeds: Feeds, device: torch.device, *, channels_last: bool = False) -> dict[str, Tensor]:
    """Feeds as tensors on `device`; images lie channels last where asked for."""
    tensors = {name: to_torch(array).to(device, non_blocking=True) for name, array in feeds.items()}
    if channels_last:
        tensors = {
            name: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for name, x in tensors.items()
        }
    return tensors


def walk(samples: Samples, model: ir.Model, batch_size: int) -> Iterator[tuple[Feeds, np.ndarray]]:
    """(feeds, sample numbers) of all samples in order; a model of fixed batch gets its last one filled up."""
    fixed = fixed_batch(model)
    return ahead(samples, list(batches(samples, batch_size, fixed=fixed)))


def ahead(samples: Samples, blocks: Sequence[np.ndarray]) -> Iterator[tuple[Feeds, np.ndarray]]:
    """(feeds, sample numbers) of each block; one thread reads a block ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(samples.batch, block) for block in blocks[:1]]
        for k, block in enumerate(blocks):
            feeds = coming.pop().result()
            if k + 1 < len(blocks):
                coming.append(pool.submit(samples.batch, blocks[k + 1]))
            yield feeds, block
