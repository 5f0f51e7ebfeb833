"""Sequences for streaming models: single steps, each with the state that the original has come to there.

A model with states, inputs that it hands back as outputs, takes samples with one more axis, of steps, behind the axis
of samples: (N, T, 576) for an input (batch, 576). The original runs along each sequence and hands its state on. What
comes of it are N x T samples of one step, in the order of the sequences: what scores, least squares and measures see.

Letters: N sequences, T steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.data.fit import Target, check_dtype
from onnxprune.data.samples import ArraySamples
from onnxprune.errors import DataError
from onnxprune.graph import extras, sessions, states
from onnxprune.graph.inputs import InputInfo, batch_axes, batch_size_of

LABELS = "y"
AT_ONCE = 64  # sequences


def handed_back(model: ir.Model) -> dict[str, str]:
    """Input -> the output that is handed back as it."""
    known = extras.of(model).states
    if known:
        return {entry[0]: entry[1] for entry in known}
    return {pair.input.name or "": pair.output.name or "" for pair in states.find(model)}


@dataclass(frozen=True, eq=False)
class Unroller:
    """Makes steps of sequences for a model; `pairs` are its states: input -> output."""

    model: ir.Model
    inputs: Sequence[InputInfo]
    pairs: Mapping[str, str]

    def samples(self, made: Any, target: Target) -> ArraySamples | None:
        """The steps of what a file or a function gives; None where these are no sequences."""
        arrays, labels = self._parts(made)
        if not self.pairs or arrays is None:
            return None
        infos = [info for info in self.inputs if info.name in arrays and info.name not in self.pairs]
        rolled = [info.name for info in infos if info.shape and arrays[info.name].ndim == len(info.shape) + 1]
        if not rolled:
            return None
        axes = batch_axes(self.inputs)
        found = self._checked(arrays, rolled, axes, target.where)
        return self._steps(arrays, labels, found, rolled, target)

    def _parts(self, made: Any) -> tuple[dict[str, np.ndarray] | None, np.ndarray | None]:
        labels = None
        if isinstance(made, tuple) and len(made) == 2:
            made, labels = made[0], np.asarray(made[1])
        if not isinstance(made, Mapping):
            own = [info for info in self.inputs if info.name not in self.pairs]
            if len(own) != 1 or not hasattr(made, "__array__"):
                return None, None
            made = {own[0].name: np.asarray(made)}
        arrays = {str(name): np.asarray(array) for name, array in made.items()}
        if labels is None and LABELS not in {info.name for info in self.inputs}:
            labels = arrays.pop(LABELS, None)
        return arrays, labels

    def _checked(
        self, arrays: Mapping[str, np.ndarray], rolled: Sequence[str], axes: Mapping[str, int | None], where: str
    ) -> tuple[int, int]:
        """(N, T). Raises: DataError for sequences that differ in number or length, and inputs that are missing."""
        for info in self.inputs:
            if info.name not in arrays and info.name not in self.pairs:
                raise DataError(f"{where}: no array named '{info.name}'; give one for each input that is no state")
            if info.name in arrays:
                check_dtype(arrays[info.name], info, where)
        if any(axes[name] != 0 for name in rolled):
            raise DataError(f"{where}: sequences need the batch on axis 0 of '{rolled[0]}'; give single steps instead")
        sizes = {arrays[name].shape[:2] for name in rolled}
        if len(sizes) > 1 or 0 in next(iter(sizes)):
            told = ", ".join(f"'{name}' {arrays[name].shape[:2]}" for name in rolled)
            raise DataError(
                f"{where}: sequences and steps of the inputs are {told}; give each as many, and at least one"
            )
        if (batch_size_of(self.inputs) or 1) > 1:
            raise DataError(f"{where}: a model of a fixed batch above 1 takes no sequences; give single steps instead")
        return next(iter(sizes))

    def _steps(
        self,
        arrays: Mapping[str, np.ndarray],
        labels: np.ndarray | None,
        size: tuple[int, int],
        rolled: Sequence[str],
        target: Target,
    ) -> ArraySamples:
        count, steps = size
        at_once = batch_size_of(self.inputs) or AT_ONCE
        blocks = [np.arange(k, min(k + at_once, count)) for k in range(0, count, at_once)]
        axes = {name: self._state_axis(name) for name in self.pairs}
        session = sessions.open_session(self.model, threads=sessions.few_threads())
        runs = [self._run(session, arrays, block, steps, rolled, axes, target.where) for block in blocks]
        first = _settled(runs[0], target.where)
        flat = {name: arrays[name][:, first:].reshape(-1, *arrays[name].shape[2:]) for name in rolled}
        rest = [info for info in self.inputs if info.name not in self.pairs]
        flat |= {info.name: arrays[info.name] for info in rest if info.name not in rolled}
        found = replace(target, inputs=rest).fit(flat, _labels_of(labels, count, steps, first))
        held = {name: _joined([run[name][first:] for run in runs], axis) for name, axis in axes.items()}
        dtypes = {info.name: info.dtype for info in self.inputs if info.name in held}
        return replace(
            found,
            arrays={**found.arrays, **held},
            axes={**found.axes, **axes},
            dtypes={**found.dtypes, **dtypes},
            steps=steps - first,
        )

    def _state_axis(self, name: str) -> int:
        """Along which axis the states of samples are stacked: the batch, or the first of its size where it is fixed."""
        axis = batch_axes(self.inputs)[name]
        if axis is not None:
            return axis
        shape = next(info.shape for info in self.inputs if info.name == name) or ()
        if 1 not in shape:
            raise DataError(f"state '{name}' has no axis for samples; give single steps instead of sequences")
        return shape.index(1)

    def _run(
        self,
        session: ort.InferenceSession,
        arrays: Mapping[str, np.ndarray],
        block: np.ndarray,
        steps: int,
        rolled: Sequence[str],
        axes: Mapping[str, int],
        where: str,
    ) -> dict[str, list[np.ndarray]]:
        """The states before each step of some sequences."""
        state = {name: self._start(name, arrays, block, axis, where) for name, axis in axes.items()}
        infos = {info.name: info for info in self.inputs}
        shared = {k: a.astype(infos[k].dtype) for k, a in arrays.items() if k in infos and k not in (*rolled, *axes)}
        held: dict[str, list[np.ndarray]] = {name: [] for name in axes}
        for t in range(steps):
            for name, array in state.items():
                held[name].append(array)
            now = {name: arrays[name][block, t].astype(infos[name].dtype) for name in rolled}
            said = sessions.run(session, {**now, **shared, **state})
            state = {name: np.asarray(said[output]) for name, output in self.pairs.items()}
        return held

    def _start(
        self, name: str, arrays: Mapping[str, np.ndarray], block: np.ndarray, axis: int, where: str
    ) -> np.ndarray:
        """The state before the first step: as given for each sequence or for all, else zeros."""
        info = next(info for info in self.inputs if info.name == name)
        if name in arrays:
            given = arrays[name].astype(info.dtype)
            several = given.shape[axis] > block.max()
            return np.ascontiguousarray(given.take(block, axis) if several else given)
        sizes = [len(block) if k == axis else size for k, size in enumerate(info.shape or ())]
        if info.shape is None or not all(isinstance(size, int) for size in sizes):
            raise DataError(
                f"{where}: the size of state '{name}' is open, so that no zeros of it can be made; "
                f"give an array '{name}', the state before the first step"
            )
        return np.zeros(sizes, info.dtype)  # type: ignore[arg-type]


def _settled(run: Mapping[str, list[np.ndarray]], where: str) -> int:
    """The first step from which on states keep their sizes. Raises: DataError where they never do."""
    first = max(
        next(t for t in range(len(held)) if all(later.shape == held[t].shape for later in held[t:]))
        for held in run.values()
    )
    if first > 1:
        raise DataError(f"{where}: states grow from step to step; give single steps with their states instead")
    return first


def _joined(runs: Sequence[Sequence[np.ndarray]], axis: int) -> np.ndarray:
    """States of all steps along `axis`, sequence by sequence."""
    stacked = np.concatenate([np.stack(held, axis + 1) for held in runs], axis)
    return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])


def _labels_of(labels: np.ndarray | None, count: int, steps: int, first: int) -> np.ndarray | None:
    """Labels of single steps: given for each of them (N, T, ...), or for a whole sequence (N,)."""
    if labels is None or labels.ndim == 0 or len(labels) != count:
        return labels
    if labels.ndim > 1 and labels.shape[1] == steps:
        return labels[:, first:].reshape(-1, *labels.shape[2:])
    return np.repeat(labels, steps - first, axis=0)
