"""Cut and mask: the same plan carried out twice, by removing positions and by silencing them.

`cut` deletes slices of initializers and repairs the numbers that are lengths of axes. `mask` keeps all shapes and
zeroes the same slices; nodes that compute statistics over removed positions compute them over the kept ones.
The two are each other's proof, see proof/.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling.dims import Axis
from onnxprune.graph import bodies, extras, half, quantized, states
from onnxprune.graph.tensors import tensor_of
from onnxprune.plan.select import Selection
from onnxprune.surgery import dynamic_positions
from onnxprune.surgery.repair import Surgeon


def cut(selection: Selection) -> ir.Model:
    """A new model without the positions that were not selected; initializers that lose nothing are shared."""
    surgeon = Surgeon(selection)
    if not surgeon.keep:
        return surgeon.model
    for value in list(surgeon.model.graph.initializers.values()):
        _cut_initializer(surgeon, value)
    for node in bodies.all_nodes(surgeon.model.graph):
        if states.side(node):
            surgeon.cut_gate(node)
        else:
            surgeon.repair(node)
    _set_shapes(surgeon)
    return surgeon.model


def mask(selection: Selection) -> ir.Model:
    """A new model of the original shapes in which the left-out positions are silent."""
    surgeon = Surgeon(selection)
    for value in list(surgeon.model.graph.initializers.values()):
        _silence_initializer(surgeon, value)
    for node in bodies.all_nodes(surgeon.model.graph):
        if node.name not in surgeon.coupling.local or not surgeon.loses_reduced(node):
            continue
        if node.name in surgeon.lifts:
            surgeon.silence_lifted(node)
        else:
            surgeon.compute_over_kept(node)
    extras.put(
        surgeon.model,
        replace(extras.of(surgeon.model), kept=_kept_positions(surgeon), forced=surgeon.coupling.shapes.forced),
    )
    return surgeon.model


def kept_positions(selection: Selection) -> dict[str, dict[int, np.ndarray]]:
    """Kept positions of every computed value that loses some: value name -> axis -> positions (kept,).

    Left out are values whose kept positions depend on a length that is known only when the model runs.
    """
    surgeon = Surgeon(selection)
    return {
        name: {k: np.flatnonzero(surgeon.mask_of(axis)) for k, axis in axes.items()}
        for name, axes in _axes_that_lose(surgeon, _computed(surgeon))
        if not any(dynamic_positions.parts_of(axis, surgeon.keep) for axis in axes.values())
    }


def _kept_positions(surgeon: Surgeon) -> dict[str, dict[int, Callable[[int], np.ndarray]]]:
    """Kept positions of all that loses some, weights too: value -> axis -> function of the length at run time."""

    def at(axis: Axis) -> Callable[[int], np.ndarray]:
        kept, parts = np.flatnonzero(surgeon.mask_of(axis)), dynamic_positions.parts_of(axis, surgeon.keep)
        return partial(dynamic_positions.kept_at, parts) if parts else partial(_always, kept)

    values = (*surgeon.model.graph.initializers.values(), *_computed(surgeon))
    return {name: {k: at(axis) for k, axis in axes.items()} for name, axes in _axes_that_lose(surgeon, values)}


def _always(kept: np.ndarray, _length: int) -> np.ndarray:
    return kept


def _computed(surgeon: Surgeon) -> Iterator[ir.Value]:
    return (value for node in bodies.all_nodes(surgeon.coupling.model.graph) for value in node.outputs)


def _axes_that_lose(surgeon: Surgeon, values: Iterable[ir.Value]) -> Iterator[tuple[str, dict[int, Axis]]]:
    """(name, {position: axis}) of each of `values` that loses positions."""
    for value in values:
        axes = surgeon.coupling.axes.get(value.name or "", ())
        if lost := {k: axis for k, axis in enumerate(axes) if surgeon.loses(axis)}:
            yield value.name or "", lost


def uncut(selection: Selection, cut_model: ir.Model) -> ir.Model:
    """The masked model with the arrays of `cut_model` at the kept positions: the twin of a tuned model."""
    coupling = selection.coupling
    model = graph.copy(coupling.model)
    for name, value in model.graph.initializers.items():
        tuned = cut_model.graph.initializers.get(name)
        axes = coupling.axes.get(name)
        if tuned is None or axes is None or tuned.const_value is None:
            continue
        masks = [selection.mask_of(axis) for axis in axes]
        full, part = (tuple(tensor_of(each).shape.numpy()) for each in (value, tuned))
        floats = half.is_floating(tensor_of(tuned).dtype.numpy())
        if part == tuple(int(m.sum()) for m in masks) and (part != full or floats):
            graph.change(value, full, partial(_put_back, tensor_of(tuned), masks))
    return mask(selection.of(coupling.of(model)))


def _put_back(part: ir.TensorProtocol, masks: Sequence[np.ndarray], full: np.ndarray) -> np.ndarray:
    """`full` with the numbers of `part` at the kept positions."""
    full = full.copy()
    full[np.ix_(*masks)] = part.numpy()
    return full


def _cut_initializer(surgeon: Surgeon, value: ir.Value) -> None:
    if surgeon.lost_axes(value):
        axes = surgeon.axes(value)
        graph.change(value, [surgeon.kept(axis) for axis in axes], lambda array: surgeon.cut_array(array, axes))


def _silence_initializer(surgeon: Surgeon, value: ir.Value) -> None:
    """Sets the removed positions of an initializer to what means zero there."""
    lost = surgeon.lost_axes(value)
    if not lost or (quantized.is_scale(value) and not quantized.only_multiplies(value)):
        return

    def silenced(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        silent = _silent_numbers(value, array)
        for position in lost:
            index = (*[slice(None)] * position, ~surgeon.mask_of(surgeon.axes(value)[position]))
            array[index] = silent[index]
        return array

    graph.change(value, tuple(tensor_of(value).shape.numpy()), silenced)


def _silent_numbers(value: ir.Value, array: np.ndarray) -> np.ndarray:
    """The number that means zero at each position of `array`, a broadcast view: zero points where it is quantized."""
    for node, index in quantized.readers(value):
        source = quantized.ZERO_POINTS.get((node.op_type, index))
        points = graph.constant(node.inputs[source]) if source is not None and source < len(node.inputs) else None
        if points is not None and (node.inputs[index] is value or points.size == 1):
            return np.broadcast_to(quantized.along(node, points, array), array.shape)
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _set_shapes(surgeon: Surgeon) -> None:
    """Known sizes of values follow the cut; symbolic ones, such as 2*batch for batch x heads, are forgotten.

    onnxruntime shares memory between values whose sizes have the same name.
    """
    computed = [value for node in bodies.all_nodes(surgeon.model.graph) for value in node.outputs]
    for value in computed:
        if isinstance(value.type, ir.SequenceType) and not value.is_graph_output():
            value.shape = None  # that of its tensors
    given = (value for body in bodies.all_bodies(surgeon.model.graph) for value in body.inputs)
    for value in (*computed, *given):
        lost = surgeon.lost_axes(value)
        if not lost or value.shape is None:
            continue
        sizes = list(value.shape)
        for position in lost:
            known = isinstance(sizes[position], int)
            sizes[position] = surgeon.kept(surgeon.axes(value)[position]) if known else ir.SymbolicDim(None)
        value.shape = ir.Shape(sizes)
