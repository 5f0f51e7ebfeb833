"""The objective of gradient methods: a loss of the model's outputs by their kinds, with labels or without."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.bridge.network import Network
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.errors import BridgeError
from onnxprune.methods.base import Context
from onnxprune.outputs import parts
from onnxprune.outputs.kinds import Part
from onnxprune.system.memory import ALL_BYTES, at_most, batch_for


def said(context: Context, network: Network, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of `network`, at its outputs and at the inner values that its decisions are made of."""
    return network(feeds, capture=[name for name in context.outputs.inner if name not in network.output_names])


def loss(context: Context, values: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
    """Mean loss over the parts of the outputs: with `labels` where they are answers, else one of the model's own."""
    learned = _parts(context, values)
    return parts.mean([parts.own_loss(part, learned, values, labels) for part in learned])


def _parts(context: Context, values: Mapping[str, Tensor]) -> tuple[Part, ...]:
    """Raises: BridgeError where the outputs hold no floats, and nothing that they decide on does."""
    found = parts.usable(context.outputs.parts, values)
    if not found:
        kinds = ", ".join(str(entry) for entry in context.outputs.entries)
        raise BridgeError(
            f"no output holds floats that a loss can be made of ({kinds}); choose a method that looks at weights, such "
            "as --method l1, or say with --output what an output is"
        )
    return found


def walk(
    context: Context, count: int, batch_size: int, *, seed: int | None = None
) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
    """(feeds, labels or None) batch by batch over up to `count` samples, the same ones for the same seed."""
    samples = context.samples
    assert samples is not None
    chosen = samples.subset(picked(samples, count, context.seed))
    fixed = fixed_batch(context.model)
    for block in batches(chosen, at_most(batch_size), fixed=fixed, shuffle=seed is not None, seed=seed or 0):
        yield tensors(chosen, block, context.device)


def at_once(context: Context, most: int) -> int:
    """How many samples may go through the model where all of its values are held, as for a gradient."""
    names = (value.name or "" for node in context.model.graph for value in node.outputs)
    return batch_for(context.coupling.shapes.sample_bytes(names), ALL_BYTES, most)


def picked(samples: Samples, count: int, seed: int) -> np.ndarray:
    """Up to `count` sample numbers, drawn without replacement, in rising order."""
    total = len(samples)
    if total <= count:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def tensors(samples: Samples, block: np.ndarray, device: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """The samples numbered in `block` on `device`, with their labels where there are any."""
    feeds = tensors_of(samples.batch(block), torch.device(device))
    labels = None if samples.labels is None else torch.from_numpy(np.asarray(samples.labels)[block]).to(device)
    return feeds, labels


def sampled_loss(context: Context, values: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Mean over samples of a loss of which squared gradients average to the Gauss-Newton diagonal, of all parts."""
    learned = parts.with_forms(_parts(context, values), values)
    return torch.stack([parts.sampled_loss(part, learned, values, generator) for part in learned]).sum()


def distance(
    context: Context,
    values: Mapping[str, Tensor],
    answers: Mapping[str, Tensor],
    labels: Tensor | None,
    label_weight: float,
    temperature: float,
) -> Tensor:
    """How far what a network says is from the `answers` of the original, and with a weight from `labels`."""
    learned = parts.usable(_parts(context, values), answers)
    total = parts.mean([parts.distance(p, learned, values, answers, temperature=temperature) for p in learned])
    for part in learned if label_weight else ():
        y = parts.rows(part, values)
        if (wanted := parts.labels_of(part, y, labels)) is not None:
            log_p = parts.log_probabilities(part, y)
            return total + label_weight * F.nll_loss(log_p.reshape(-1, log_p.shape[-1]), wanted.reshape(-1))
    return total


def with_gradient(loss: Tensor) -> Tensor:
    """`loss`. Raises: BridgeError where no gradient flows back from it, as in models that compute with integers."""
    if loss.requires_grad:
        return loss
    raise BridgeError(
        "no gradient flows from the outputs back to what may be removed: integers or decisions stand between; choose "
        "a method that needs none, such as --method l1"
    )
