"""The constant that removed units emitted, pushed into the biases of their consumers.

A removed channel was not zero: on samples it emits its mean, and without samples what emission.py knows of it.
For each consumer

    b[o] += sum over removed c, taps k of  W[o, c, k] * E[x_c at tap k]

which is exact for matrix products of constants. E runs over samples and output positions, so that what zero padding
takes away at the borders is counted (methods.md 6.0, point 2).

A block that went as a whole added its mean: a constant for each channel, which can be added in its place.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.coupling import Coupling
from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.graph import sessions
from onnxprune.plan.select import Selection
from onnxprune.recover import emission
from onnxprune.recover.biases import add_to_bias, output_of
from onnxprune.recover.linear import Linear, linears, read_weights
from onnxprune.recover.patches import mean_taps, window_of
from onnxprune.surgery.blocks import Block
from onnxprune.system.memory import VALUES_BYTES, at_most, batch_for

BATCH = 32


@dataclass(frozen=True)
class Consumer:
    """A node that loses inputs: `removed` positions of its x, `kept` positions of its y."""

    linear: Linear
    removed: np.ndarray
    kept: np.ndarray

    @property
    def x(self) -> str:
        """The name of the input that loses units."""
        return self.linear.x.name or ""


def push(selection: Selection, cut_model: ir.Model, samples: Samples | None = None, *, limit: int = 256) -> int:
    """Adds what removed units emit to the biases of their consumers in `cut_model`, in place; how many changed.

    With samples it is their mean over the first `limit` in the dense model, without what is known of a unit's emission.
    """
    found, coupling = list(consumers(selection)), selection.coupling
    if not found:
        return 0
    if samples is None:
        dense = emission.silenced(selection)
        feeds: Iterable[Mapping[str, np.ndarray]] = list(emission.noise_feeds(coupling.model, coupling))
    else:
        dense, names = coupling.model, [consumer.x for consumer in found]
        feeds = first_batches(dense, samples, limit, batch_within(coupling, names))
    means = _mean_inputs(dense, found, feeds)
    nodes = linears(cut_model)
    return sum(_push_one(cut_model, nodes.get(c.linear.name), c, means.get(c.linear.name)) for c in found)


def consumers(selection: Selection) -> Iterator[Consumer]:
    """The linear nodes of the dense model that lose some of their inputs."""
    coupling = selection.coupling
    for linear in linears(coupling.model).values():
        x, y = coupling.axes.get(linear.x.name or ""), coupling.axes.get(output_of(linear).name or "")
        if not x or not y:
            continue
        removed = ~selection.mask_of(x[linear.x_axis])
        if removed.any():
            yield Consumer(linear, removed, selection.mask_of(y[linear.y_axis]))


def first_batches(model: ir.Model, samples: Samples, limit: int, size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Feeds of the first `limit` samples."""
    some = samples.subset(np.arange(min(limit, len(samples))))
    for block in batches(some, at_most(size), fixed=fixed_batch(model)):
        yield some.batch(block)


def batch_within(coupling: Coupling, names: Iterable[str]) -> int:
    """How many samples at a time keep the named values within what a step may hold, 1 to 32."""
    return batch_for(coupling.shapes.sample_bytes(names), VALUES_BYTES, BATCH)


def _mean_inputs(
    dense: ir.Model, found: list[Consumer], feeds: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The mean input of each tap of each consumer, node name -> (C, K); sums are kept, not samples."""
    extra = sorted({name for c in found for name in (c.x, *((c.linear.y.name or "",) if c.linear.spatial else ()))})
    session = sessions.open_session(dense, extra_outputs=extra)
    totals: dict[str, np.ndarray] = {}
    count = 0
    for batch in feeds:
        values = sessions.run(session, batch)
        count += 1
        for consumer in found:
            mean = _mean_of(consumer.linear, values)
            totals[consumer.linear.name] = totals.get(consumer.linear.name, 0.0) + mean
    return {name: total / max(1, count) for name, total in totals.items()}


def _mean_of(linear: Linear, values: Mapping[str, np.ndarray]) -> np.ndarray:
    x = values[linear.x.name or ""]
    if linear.spatial:
        return mean_taps(x, window_of(linear, x.shape[2:], values[linear.y.name or ""].shape[2:]))
    axis = linear.x_axis % x.ndim
    return x.mean(axis=tuple(k for k in range(x.ndim) if k != axis), dtype=np.float64)[:, None]


def _push_one(cut_model: ir.Model, target: Linear | None, consumer: Consumer, mean: np.ndarray | None) -> bool:
    if target is None or mean is None:
        return False
    w = read_weights(consumer.linear)
    groups, _, inputs, taps = w.shape
    removed = np.where(consumer.removed[:, None], mean, 0.0).reshape(groups, inputs, taps)
    delta = np.einsum("goik,gik->go", w, removed).reshape(-1)[consumer.kept]
    # A depthwise convolution keeps no output of a removed input: nothing to push.
    return bool(np.any(delta)) and np.isfinite(delta).all() and add_to_bias(cut_model, target, delta)


def of_blocks(
    coupling: Coupling, blocks: Sequence[Block], samples: Samples, *, limit: int = 256
) -> dict[str, np.ndarray]:
    """The mean (C,) of what each block adds, by block, over samples and over all positions of a channel."""
    named = {block.branch: block for block in blocks if block.axis is not None}
    if not named:
        return {}
    session = sessions.open_session(coupling.model, extra_outputs=sorted(named))
    totals: dict[str, np.ndarray] = {}
    count = 0
    for batch in first_batches(coupling.model, samples, limit, batch_within(coupling, named)):
        values = sessions.run(session, batch)
        count += 1
        for value, block in named.items():
            x = np.moveaxis(values[value], block.axis or 0, -1)
            mean = x.reshape(-1, x.shape[-1]).mean(axis=0, dtype=np.float64)
            totals[block.name] = totals.get(block.name, 0.0) + mean
    return {name: total / max(1, count) for name, total in totals.items()}
