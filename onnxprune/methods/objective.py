"""What a gradient is taken of: a loss of the model's outputs, with labels or without.

Legend: N samples, C classes. A classifier gives one row of C numbers per sample (or per position) as first output.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.errors import BridgeError
from onnxprune.methods.base import Context
from onnxprune.system.memory import at_most


def classes(outputs: Mapping[str, Tensor]) -> Tensor | None:
    """The first output as (N, C) or (N, C, *S), where it is a float tensor of more than one class; else None."""
    y = next(iter(outputs.values()))
    if not y.is_floating_point() or y.ndim < 2 or y.shape[1] < 2:
        return None
    return y.flatten(1) if all(size == 1 for size in y.shape[2:]) else y


def log_probabilities(y: Tensor) -> Tensor:
    """log p over axis 1 of y (N, C, *S), which holds logits, or probabilities where the model ends in Softmax."""
    with torch.no_grad():
        sums = y.sum(1)
        normalized = bool((y >= 0).all() and (sums - 1).abs().max() < 1e-3)
    return y.clamp_min(1e-12).log() if normalized else F.log_softmax(y, 1)


def loss(outputs: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
    """Mean loss over the samples: cross-entropy with `labels`, else one that the model itself defines.

    Without labels a classifier's answers (argmax) stand in for them: the divergence from its own output would be
    zero with a zero gradient. Where nothing is classified it is the mean square of all outputs.
    """
    y = classes(outputs)
    if y is None:
        return squares(outputs)
    if labels is None or labels.shape != y.shape[:1] + y.shape[2:]:
        labels = y.detach().argmax(1)
    return F.nll_loss(log_probabilities(y), labels)


def squares(outputs: Mapping[str, Tensor]) -> Tensor:
    """Half the mean square of all float outputs, each in units of its own mean square."""
    parts = [y for y in outputs.values() if y.is_floating_point()]
    return torch.stack([(y * y).mean() / (y * y).mean().detach().clamp_min(1e-12) for y in parts]).sum() / 2


def sampled_labels(outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor | None:
    """Labels drawn from the model's own distribution: (N, *S); None where nothing is classified."""
    y = classes(outputs)
    if y is None:
        return None
    p = log_probabilities(y.detach()).exp().movedim(1, -1)
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]).cpu(), 1, generator=generator)
    return drawn.reshape(p.shape[:-1]).to(y.device)


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


def picked(samples: Samples, count: int, seed: int) -> np.ndarray:
    """Up to `count` sample numbers, drawn without replacement, in rising order."""
    total = len(samples)
    if total <= count:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, count, replace=False))


def tensors(samples: Samples, block: np.ndarray, device: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """The samples numbered in `block` on `device`, with their labels where there are any."""
    feeds = {name: torch.from_numpy(array).to(device) for name, array in samples.batch(block).items()}
    labels = None if samples.labels is None else torch.from_numpy(np.asarray(samples.labels)[block]).to(device)
    return feeds, labels


def sampled_loss(outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Mean over samples of a loss of which squared gradients average to the Gauss-Newton diagonal.

    Classifiers: cross-entropy with labels drawn from the model's own distribution (the Fisher information). Others:
    the outputs times unit normal noise, in units of their size: E[(J'e)^2] = diag(J'J).
    """
    labels = sampled_labels(outputs, generator)
    if labels is not None:
        return loss(outputs, labels)
    total = torch.zeros(())
    for y in outputs.values():
        if y.is_floating_point():
            scale = (y * y).mean().detach().clamp_min(1e-12).sqrt() * (y.numel() / len(y)) ** 0.5
            noise = torch.randn(y.shape, generator=generator).to(y)
            total = total.to(y.device) + (y * noise).sum() / scale / len(y)
    return total


def with_gradient(loss: Tensor) -> Tensor:
    """`loss`. Raises: BridgeError where no gradient flows back from it, as in models that compute with integers."""
    if loss.requires_grad:
        return loss
    raise BridgeError(
        "no gradient flows from the outputs back to what may be removed: integers or decisions stand between; choose "
        "a method that needs none, such as --method l1"
    )
