"""Observations of a value: its sizes, its numbers on samples, and the nodes between it and an earlier value."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples, fixed_batch
from onnxprune.errors import GraphError
from onnxprune.graph import sessions
from onnxprune.outputs import decisions
from onnxprune.outputs.decisions import SAME_NUMBERS, SAME_VALUES, behind, through
from onnxprune.outputs.kinds import CLASSES, SEGMENTATION, SEQUENCE, Part

CHANNELS_FIRST = frozenset(
    "Conv ConvTranspose FusedConv ConvInteger QLinearConv Resize Upsample BatchNormalization InstanceNormalization"
    " GroupNormalization MaxPool AveragePool".split()
)
CHANNELS_LAST = frozenset(
    "Gemm MatMul FusedMatMul FusedGemm MatMulInteger LayerNormalization SkipLayerNormalization".split()
)
POINTWISE = (
    SAME_VALUES
    | SAME_NUMBERS
    | decisions.SCALES
    | {"Transpose", "QuantizeLinear", "DequantizeLinear"}
    | frozenset("Relu LeakyRelu PRelu Elu Tanh Softplus HardSwish Gelu Sqrt Exp".split())
)
LOOKED_AT = 32  # samples that kinds are decided on


@dataclass(frozen=True)
class Seen:
    """Inputs and values of some samples: name -> one array per run of `size` samples.

    alone: the shapes of the values where the first sample was run by itself; empty where the model has a fixed batch.
    """

    size: int
    inputs: Mapping[str, Sequence[np.ndarray]]
    values: Mapping[str, Sequence[np.ndarray]]
    alone: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def seen_on(model: ir.Model, samples: Samples | None) -> Seen | None:
    """The model's values on some samples, at its outputs and behind its decisions."""
    if samples is None or not len(samples):
        return None
    fixed = fixed_batch(model)
    size = fixed or (2 if len(samples) > 1 else 1)
    runs = max(1, min(LOOKED_AT, len(samples)) // size)
    extra = [name for name in behind(model) if name not in {value.name for value in model.graph.outputs}]
    session = sessions.open_session(model, extra_outputs=extra, threads=sessions.few_threads())
    spread = np.linspace(0, len(samples) - 1, runs * size).astype(int)
    feeds = [samples.batch(spread[k * size : (k + 1) * size]) for k in range(runs)]
    said = [sessions.run(session, feed) for feed in feeds]
    first: Mapping[str, np.ndarray] = {}
    if fixed is None and size > 1:
        with suppress(GraphError):  # some declare that any batch will do, and take one only
            first = sessions.run(session, samples.batch(spread[:1]))
    return Seen(
        size,
        {name: [feed[name] for feed in feeds] for name in feeds[0]},
        {name: [run[name] for run in said] for name in said[0]},
        {name: np.shape(y) for name, y in first.items() if isinstance(y, np.ndarray)},
    )


@dataclass(frozen=True)
class Look:
    """The model, sizes of its values, and what was seen on samples."""

    model: ir.Model
    sizes: Mapping[str, Sequence[int]]
    seen: Seen | None
    labels: np.ndarray | None = None

    def arrays(self, name: str) -> list[np.ndarray]:
        """The observations of one value."""
        return [np.asarray(y) for y in self.seen.values.get(name, ())] if self.seen is not None else []

    def rows(self, name: str) -> bool:
        """Whether a value has a row per sample on axis 0, as far as was seen."""
        if self.seen is None:
            fixed, size = fixed_batch(self.model), self.sizes.get(name, ())
            return self.batch_axes(name)[:1] in ((), (0,)) and not (fixed and size and size[0] != fixed)
        many = all(y.ndim > 0 and y.shape[0] == self.seen.size for y in self.arrays(name))
        return many and self.batch_axes(name)[:1] in ((), (0,))

    def batch_axes(self, name: str) -> tuple[int, ...]:
        """The axes of a value that are as long as there are samples in a batch, as far as that can be told.

        By what was seen of two samples and of one; else by the names of dims, which the axes of samples of inputs have.
        """
        alone, arrays = (self.seen.alone.get(name), self.arrays(name)) if self.seen is not None else (None, [])
        if alone is not None and self.seen is not None:
            many = self.seen.size
            same = [y for y in arrays if y.ndim == len(alone)]
            return tuple(k for k, n in enumerate(alone) if same and all(y.shape[k] == many * n for y in same))
        value = self._value(name)
        return decisions.batch_axes(value, self.model.graph.inputs) if value is not None else ()

    def inputs(self, run: int) -> list[np.ndarray]:
        """The inputs of the `run`-th run."""
        assert self.seen is not None
        return [np.asarray(arrays[run]) for arrays in self.seen.inputs.values()]

    def size(self, value: ir.Value, axis: int) -> int:
        """The length of an axis, 0 where the value has no such axis."""
        size = self.sizes.get(value.name or "", ())
        return int(size[axis]) if axis < len(size) else 0

    def choice(self, name: str, axis: int) -> Part:
        """Class scores along `axis` of a value: the kind follows from how many places have a choice of their own."""
        size, batch = self.sizes.get(name, ()), {0} if self.rows(name) else set(self.batch_axes(name))
        places = [n for k, n in enumerate(size) if k not in batch and k != axis and n != 1]
        kind = CLASSES if not places else SEQUENCE if len(places) == 1 else SEGMENTATION
        return Part(name, kind, axis, form=self.form(name, axis), rows=self.rows(name))

    def form(self, name: str, axis: int | None) -> str:
        """The form of class scores, logits or probabilities: by the node that ends them, and by their numbers."""
        if axis is None:
            return ""
        value = self._value(name)
        node = None if value is None else through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"}).producer()
        ended = {"Softmax": "probabilities", "LogSoftmax": "log"}.get(node.op_type if node else "")
        summed = self.sums_to_one(name)
        return ended or ("probabilities" if summed == axis else "logits")

    def _value(self, name: str) -> ir.Value | None:
        return next((value for node in self.model.graph for value in node.outputs if value.name == name), None)

    def sums_to_one(self, name: str) -> int | None:
        """The axis along which numbers of 0 to 1 sum to 1 on every sample; None where there is none."""
        arrays = self.arrays(name)
        if not arrays or any(y.ndim < 2 or y.dtype.kind != "f" or not y.size for y in arrays):
            return None
        if any(float(y.min()) < -1e-6 or float(y.max()) > 1 + 1e-3 for y in arrays):
            return None
        axes = range(1, arrays[0].ndim)
        fits = [k for k in axes if all(y.shape[k] > 1 and np.allclose(y.sum(k), 1, atol=2e-3) for y in arrays)]
        return fits[0] if fits else None

    def has_unit_vectors(self, name: str) -> bool:
        """Whether all vectors along the last axis have length 1."""
        arrays = self.arrays(name)
        return bool(arrays) and all(
            y.ndim > 1
            and y.dtype.kind == "f"
            and y.shape[-1] > 4
            and np.allclose(np.linalg.norm(y, axis=-1), 1, atol=1e-3)
            for y in arrays
        )

    def channels(self, value: ir.Value) -> tuple[int, int | None]:
        """How many numbers the last layer of a value makes at each place, and along which axis of it they stand.

        (0, None) where no layer is known to make it; None where its channels were merged with other axes.
        """
        source = value
        while (node := source.producer()) is not None and node.op_type in POINTWISE:
            before = decisions.main_input(node)
            if before is None:
                return 0, None
            source = before
        rank = len(self.sizes.get(source.name or "", ()))
        if node is None or node.op_type not in CHANNELS_FIRST | CHANNELS_LAST or rank < 2:
            return 0, None
        axis = 1 if node.op_type in CHANNELS_FIRST else rank - 1
        count = self.size(source, axis)
        return count, self.mapped(value, source, axis) if count > 1 else None

    def mapped(self, value: ir.Value, source: ir.Value, axis: int) -> int | None:
        """The axis of `value` on which axis `axis` of `source` stands; None where it is merged with others."""
        chain: list[ir.Node] = []
        at = value
        while at is not source:
            node = at.producer()
            before = None if node is None else decisions.main_input(node)
            if node is None or before is None:
                return None
            chain.append(node)
            at = before
        for node in reversed(chain):
            if node.op_type == "Transpose":
                order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
                rank = len(self.sizes.get(node.outputs[0].name or "", ()))
                axis = list(order).index(axis) if order is not None else rank - 1 - axis
            elif node.op_type in SAME_NUMBERS:
                found = self._reshaped(node, axis)
                if found is None:
                    return None
                axis = found
        return axis

    def _reshaped(self, node: ir.Node, axis: int) -> int | None:
        x, y = (tuple(self.sizes.get(v.name or "", ())) for v in (node.inputs[0], node.outputs[0]) if v is not None)
        before = prod(x[:axis])
        return next((k for k, n in enumerate(y) if n == x[axis] and prod(y[:k]) == before), None)
