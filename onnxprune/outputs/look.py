"""What can be seen of a value: its sizes, its numbers on samples, and what stands between it and an earlier value."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples, fixed_batch
from onnxprune.graph import sessions
from onnxprune.outputs.decisions import SAME_NUMBERS, SAME_VALUES, behind, through
from onnxprune.outputs.kinds import CLASSES, SEGMENTATION, SEQUENCE, Part

LOOKED_AT = 32  # samples that kinds are decided on


@dataclass(frozen=True)
class Seen:
    """Inputs and values of some samples: name -> one array per run of `size` samples."""

    size: int
    inputs: Mapping[str, Sequence[np.ndarray]]
    values: Mapping[str, Sequence[np.ndarray]]


def seen_on(model: ir.Model, samples: Samples | None) -> Seen | None:
    """What the model says on some samples, at its outputs and behind its decisions."""
    if samples is None or not len(samples):
        return None
    size = fixed_batch(model) or (2 if len(samples) > 1 else 1)
    runs = max(1, min(LOOKED_AT, len(samples)) // size)
    extra = [name for name in behind(model) if name not in {value.name for value in model.graph.outputs}]
    session = sessions.open_session(model, extra_outputs=extra, threads=sessions.few_threads())
    spread = np.linspace(0, len(samples) - 1, runs * size).astype(int)
    feeds = [samples.batch(spread[k * size : (k + 1) * size]) for k in range(runs)]
    said = [sessions.run(session, feed) for feed in feeds]
    return Seen(
        size,
        {name: [feed[name] for feed in feeds] for name in feeds[0]},
        {name: [run[name] for run in said] for name in said[0]},
    )


@dataclass(frozen=True)
class Look:
    """The model, sizes of its values, and what was seen on samples."""

    model: ir.Model
    sizes: Mapping[str, Sequence[int]]
    seen: Seen | None
    labelled: bool = False

    def arrays(self, name: str) -> list[np.ndarray]:
        """What was seen of a value."""
        return [np.asarray(y) for y in self.seen.values.get(name, ())] if self.seen is not None else []

    def rows(self, name: str) -> bool:
        """Whether a value has a row per sample on axis 0, as far as was seen."""
        arrays = self.arrays(name)
        assert self.seen is not None or not arrays
        return all(y.ndim > 0 and y.shape[0] == self.seen.size for y in arrays)  # type: ignore[union-attr]

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
        size = self.sizes.get(name, ())
        first = 1 if self.rows(name) else 0
        places = [n for k, n in enumerate(size) if k >= first and k != axis and n != 1]
        kind = CLASSES if not places else SEQUENCE if len(places) == 1 else SEGMENTATION
        return Part(name, kind, axis, form=self.form(name, axis), rows=self.rows(name))

    def form(self, name: str, axis: int | None) -> str:
        """What class scores are: by what ends them, and by what was seen."""
        if axis is None:
            return ""
        value = next((v for v in self._values() if v.name == name), None)
        node = None if value is None else through(value, SAME_VALUES | SAME_NUMBERS | {"Transpose"}).producer()
        ended = {"Softmax": "probabilities", "LogSoftmax": "log"}.get(node.op_type if node else "")
        summed = self.sums_to_one(name)
        return ended or ("probabilities" if summed == axis else "logits")

    def _values(self) -> Iterator[ir.Value]:
        return (value for node in self.model.graph for value in node.outputs)

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

    def mapped(self, value: ir.Value, source: ir.Value, axis: int) -> int | None:
        """The axis of `value` on which axis `axis` of `source` stands; None where it is merged with others."""
        chain: list[ir.Node] = []
        at = value
        while at is not source:
            node = at.producer()
            if node is None or node.inputs[0] is None:
                return None
            chain.append(node)
            at = node.inputs[0]
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
