"""Cut and mask: the same plan carried out twice, by removing positions and by silencing them.

`cut` deletes slices of initializers and repairs the numbers that are lengths of axes. `mask` keeps all shapes and
zeroes the same slices; nodes that compute statistics over removed positions compute them over the kept ones.
The two are each other's proof, see verify.py.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Length, dims
from onnxprune.coupling.dims import Axis, Dim
from onnxprune.errors import CouplingError

Keep = Mapping[Dim, np.ndarray]


def cut(coupling: Coupling, keep: Keep) -> ir.Model:
    """A new model without the positions that `keep` leaves out.

    keep: Dim -> booleans (size,); Dims that are absent keep all.
    """
    surgeon = _Surgeon(coupling, keep)
    for value in list(surgeon.model.graph.initializers.values()):
        surgeon.cut_initializer(value)
    for node in list(surgeon.model.graph):
        surgeon.repair(node)
    surgeon.set_shapes()
    return surgeon.model


def mask(coupling: Coupling, keep: Keep) -> ir.Model:
    """A new model of the original shapes in which the left-out positions are silent."""
    surgeon = _Surgeon(coupling, keep)
    originals = {name: graph.constant(value) for name, value in surgeon.model.graph.initializers.items()}
    for value in list(surgeon.model.graph.initializers.values()):
        surgeon.silence_initializer(value)
    for node in list(surgeon.model.graph):
        if node.name in coupling.local and surgeon.loses_reduced(node):
            surgeon.compute_over_kept(node, originals)
    return surgeon.model


def uncut(coupling: Coupling, keep: Keep, cut_model: ir.Model) -> ir.Model:
    """The masked model with the arrays of `cut_model` at the kept positions: the twin of a tuned model."""
    masked = mask(coupling, keep)
    for name, value in masked.graph.initializers.items():
        tuned = cut_model.graph.initializers.get(name)
        axes = coupling.axes.get(name)
        if tuned is None or axes is None or tuned.const_value is None:
            continue
        full, part = graph.array_of(value), graph.array_of(tuned)
        masks_ = [dims.keep_mask(axis, keep) for axis in axes]
        if part.shape == tuple(int(m.sum()) for m in masks_) and (part.shape != full.shape or part.dtype.kind == "f"):
            full = full.copy()
            full[np.ix_(*masks_)] = part
            graph.set_constant(value, full)
    return masked


class _Surgeon:
    """One operation on a copy of the model."""

    def __init__(self, coupling: Coupling, keep: Keep):
        self.coupling = coupling
        self.keep = {dim: mask for dim, mask in keep.items() if not mask.all()}
        for dim, kept in self.keep.items():
            if dim.frozen is not None or not kept.any():
                raise CouplingError(
                    f"'{dim.name}' cannot lose {int((~kept).sum())} of {dim.size} positions: {dim.frozen or 'none is left'}"
                )
        self.sizes = {dim: int(mask.sum()) for dim, mask in self.keep.items()}
        self.model = coupling.model.clone()
        self.model.meta.update(coupling.model.meta)
        self.opset = self.model.opset_imports.get("", 1)
        self.stands_for: dict[str, str] = {}  # name of an inserted value -> the value that it replaces
        self.lengths: dict[str, list[Length]] = {}
        for length in coupling.lengths:
            self.lengths.setdefault(length.node, []).append(length)
        self.lifts = _by_node(coupling.lifts)
        self.pins = _by_node(coupling.pins)
        self.sizes_read = _by_node(coupling.sizes_read)
        self.ranges = _by_node(coupling.ranges)

    # What is lost -----------------------------------------------------------------------------------------------

    def loses(self, axis: Axis) -> bool:
        return any(dim in self.keep for dim in dims.leaves(axis))

    def axes(self, value: ir.Value | None) -> Sequence[Axis]:
        """The axes of `value`, also where it replaces a value of the analysed model."""
        if value is None:
            return ()
        name = value.name or ""
        return self.coupling.axes.get(self.stands_for.get(name, name), ())

    def mask_of(self, axis: Axis) -> np.ndarray:
        return dims.keep_mask(axis, self.keep)

    def kept(self, axis: Axis) -> int:
        return dims.kept_length(axis, self.sizes)

    def lost_axes(self, value: ir.Value | None) -> list[int]:
        return [k for k, axis in enumerate(self.axes(value)) if self.loses(axis)]

    def loses_reduced(self, node: ir.Node) -> bool:
        axes = [axis for value in node.inputs for axis in self.axes(value)]
        return any(dim in self.keep and dim.reduced is not None for axis in axes for dim in dims.leaves(axis))

    # Initializers -----------------------------------------------------------------------------------------------

    def cut_array(self, array: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
        for position, axis in enumerate(axes):
            if self.loses(axis):
                array = np.compress(self.mask_of(axis), array, axis=position)
        return array

    def cut_initializer(self, value: ir.Value) -> None:
        if self.lost_axes(value):
            graph.set_constant(value, self.cut_array(graph.array_of(value), self.axes(value)))

    def silence_initializer(self, value: ir.Value) -> None:
        lost = self.lost_axes(value)
        if not lost:
            return
        array = graph.array_of(value).copy()
        for position in lost:
            index: list[slice | np.ndarray] = [slice(None)] * array.ndim
            index[position] = ~self.mask_of(self.axes(value)[position])
            array[tuple(index)] = _silent_number(value, array.dtype)
        graph.set_constant(value, array)

    # Nodes ------------------------------------------------------------------------------------------------------

    def repair(self, node: ir.Node) -> None:
        """Rewrites what the coupling rule of `node` said depends on lengths."""
        if not self.keep:
            return
        name = node.name or ""
        changed = [length for length in self.lengths.get(name, ()) if self.loses(length.axis)]
        self._repair_attributes(node, [length for length in changed if isinstance(length.target, str)])
        for index in sorted({length.target for length in changed if isinstance(length.target, int)}):
            self._repair_input(
                node, index, {length.entry or 0: length.axis for length in changed if length.target == index}
            )
        for _, attribute, number in self.pins.get(name, ()):
            node.attributes[attribute] = ir.AttrFloat32(attribute, number)
        for _, before, chosen in self.ranges.get(name, ()):
            if self.loses(before) or self.loses(chosen):
                self._renumber(node, before, chosen)
        for _, entry, axis in self.sizes_read.get(name, ()):
            if self.loses(axis):
                self._overwrite_output(node, {entry: dims.length(axis)})
        for _, index, position in self.lifts.get(name, ()):
            self._lift(node, index, position)

    def _repair_attributes(self, node: ir.Node, lengths: Iterable[Length]) -> None:
        for length in lengths:
            assert isinstance(length.target, str)
            if length.entry is None:
                node.attributes[length.target] = ir.AttrInt64(length.target, self.kept(length.axis))
                continue
            attribute = node.attributes.get(length.target)
            if attribute is not None:
                numbers = list(attribute.value)
            else:  # an even Split says nothing; its parts may now be uneven
                numbers = [self.kept(each.axis) for each in self.lengths[node.name or ""]]
            numbers[length.entry] = self.kept(length.axis)
            node.attributes[length.target] = ir.AttrInt64s(length.target, numbers)

    def _repair_input(self, node: ir.Node, index: int, entries: Mapping[int, Axis]) -> None:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            self._give_split(node, index)
            return
        numbers = {entry: self.kept(axis) for entry, axis in entries.items()}
        array = graph.constant(value)
        if array is None:
            node.replace_input_with(index, self._overwritten(node, value, numbers, before=True))
            return
        array = array.copy()
        flat = array.reshape(-1)
        for entry, number in numbers.items():
            flat[entry] = number
        node.replace_input_with(index, graph.add_constant(self.model.graph, f"{node.name}.{index}", array))

    def _give_split(self, node: ir.Node, index: int) -> None:
        """An even Split without sizes gets them: its parts may now be uneven."""
        sizes = [self.kept(length.axis) for length in self.lengths[node.name or ""] if length.target == index]
        node.attributes.pop("num_outputs", None)
        if len(node.inputs) <= index:
            node.resize_inputs(index + 1)
        node.replace_input_with(
            index, graph.add_constant(self.model.graph, f"{node.name}.{index}", np.array(sizes, np.int64))
        )

    def _overwritten(self, node: ir.Node, value: ir.Value, numbers: Mapping[int, int], *, before: bool) -> ir.Value:
        """A computed vector with some entries replaced: value * keep + numbers, in every opset."""
        count = self._vector_length(value)
        keep, add = np.ones(count, np.int64), np.zeros(count, np.int64)
        for entry, number in numbers.items():
            keep[entry], add[entry] = 0, number
        dtype = np.int32 if value.dtype == ir.DataType.INT32 else np.int64
        graph_ = self.model.graph
        constants = [
            graph.add_constant(graph_, f"{node.name}.{part}", array.astype(dtype))
            for part, array in (("keep", keep), ("set", add))
        ]
        product = ir.Node("", "Mul", [value, constants[0]], name=f"{node.name}.overwrite.0")
        total = ir.Node("", "Add", [product.outputs[0], constants[1]], name=f"{node.name}.overwrite.1")
        product.outputs[0].name, total.outputs[0].name = (
            f"{node.name}.{value.name}.keep",
            f"{node.name}.{value.name}.set",
        )
        if before:
            graph_.insert_before(node, [product, total])
        else:
            graph_.insert_after(node, [product, total])
        return total.outputs[0]

    def _overwrite_output(self, node: ir.Node, numbers: Mapping[int, int]) -> None:
        value = node.outputs[0]
        uses = list(value.uses())
        self._replace(value, self._overwritten(node, value, numbers, before=False), uses)

    def _vector_length(self, value: ir.Value) -> int:
        sizes = self.coupling.shapes.sizes.get(value.name or "")
        if sizes:
            return sizes[0]
        producer = value.producer()  # an overwritten vector has the length of what it overwrites
        assert producer is not None, value.name
        known = next((s for v in producer.inputs if v is not None and (s := graph.constant(v)) is not None), None)
        assert known is not None, value.name
        return known.size

    def _renumber(self, node: ir.Node, before: Axis, chosen: Axis) -> None:
        old = graph.constant(node.inputs[1])
        first, count = self.kept(before), self.kept(chosen)
        shape = old.shape if old is not None and old.ndim == 0 else (count,)
        indices = np.arange(first, first + count, dtype=np.int64).reshape(shape)
        node.replace_input_with(1, graph.add_constant(self.model.graph, f"{node.name}.indices", indices))

    # Full size around a node --------------------------------------------------------------------------------------

    def _lift(self, node: ir.Node, index: int, position: int) -> None:
        """`node` sees zeros where positions were removed, and its output is cut to the kept ones."""
        value = node.inputs[index]
        axis = self.axes(value)[position]
        if not self.loses(axis):
            return
        kept = self.mask_of(axis)
        node.replace_input_with(index, self._spread(node, value, position, kept, f"{node.name}.lift"))
        output = node.outputs[0]
        uses = list(output.uses())
        chosen = self._choose(node, output, position, kept, f"{node.name}.lower", after=True)
        self._replace(output, chosen, uses)

    def _spread(
        self, node: ir.Node, value: ir.Value | None, position: int, kept: np.ndarray, name: str, *, after: bool = False
    ) -> ir.Value:
        """`value` with zeros inserted at the removed positions: one zero is padded, then gathered."""
        assert value is not None
        graph_, rank = self.model.graph, len(self.axes(value)) or len(self.axes(node.outputs[0]))
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + position] = 1
        if self.opset >= 11:
            pad = ir.Node("", "Pad", [value, graph.add_constant(graph_, f"{name}.pads", pads)], name=f"{name}.pad")
        else:
            pad = ir.Node("", "Pad", [value], {"pads": ir.AttrInt64s("pads", pads.tolist())}, name=f"{name}.pad")
        places = np.full(len(kept), int(kept.sum()), np.int64)
        places[kept] = np.arange(int(kept.sum()))
        gather = self._gather(pad.outputs[0], position, places, name)
        pad.outputs[0].name = f"{name}.padded"
        (graph_.insert_after if after else graph_.insert_before)(node, [pad, gather])
        return gather.outputs[0]

    def _choose(
        self, node: ir.Node, value: ir.Value, position: int, kept: np.ndarray, name: str, *, after: bool = False
    ) -> ir.Value:
        gather = self._gather(value, position, np.flatnonzero(kept), name)
        (self.model.graph.insert_after if after else self.model.graph.insert_before)(node, [gather])
        return gather.outputs[0]

    def _gather(self, value: ir.Value, position: int, indices: np.ndarray, name: str) -> ir.Node:
        constant = graph.add_constant(self.model.graph, f"{name}.indices", indices.astype(np.int64))
        gather = ir.Node(
            "", "Gather", [value, constant], {"axis": ir.AttrInt64("axis", position)}, name=f"{name}.gather"
        )
        gather.outputs[0].name = f"{name}.gathered"
        return gather

    def compute_over_kept(self, node: ir.Node, originals: Mapping[str, np.ndarray | None]) -> None:
        """The masked twin of a node that summarizes over removed positions: it runs on the kept ones alone."""
        outputs = [list(value.uses()) for value in node.outputs]
        for index, value in enumerate(list(node.inputs)):
            if value is None:
                continue
            if value.is_initializer():
                array = originals.get(value.name or "")
                if self.lost_axes(value) and array is not None:
                    part = self.cut_array(array, self.axes(value))
                    node.replace_input_with(index, graph.add_constant(self.model.graph, f"{value.name}.kept", part))
                continue
            axes = self.axes(value)
            for position in self.lost_axes(value):
                name = f"{node.name}.kept.{index}.{position}"
                value = self._choose(node, value, position, self.mask_of(axes[position]), name)
            node.replace_input_with(index, value)
        self.repair_kept(node)
        for index, uses in enumerate(outputs):
            self._spread_output(node, index, uses)

    def repair_kept(self, node: ir.Node) -> None:
        name = node.name or ""
        changed = [length for length in self.lengths.get(name, ()) if self.loses(length.axis)]
        self._repair_attributes(node, [length for length in changed if isinstance(length.target, str)])
        for _, attribute, number in self.pins.get(name, ()):
            node.attributes[attribute] = ir.AttrFloat32(attribute, number)

    def _spread_output(self, node: ir.Node, index: int, uses: Sequence[tuple[ir.Node, int]]) -> None:
        output = result = node.outputs[index]
        rank = len(self.axes(output))
        after = node
        for position in self.lost_axes(output):
            name = f"{node.name}.spread.{index}.{position}"
            kept = self.mask_of(self.axes(output)[position])
            pads = np.zeros(2 * rank, np.int64)
            pads[rank + position] = 1
            if self.opset >= 11:
                inputs = [result, graph.add_constant(self.model.graph, f"{name}.pads", pads)]
                pad = ir.Node("", "Pad", inputs, name=f"{name}.pad")
            else:
                pad = ir.Node("", "Pad", [result], {"pads": ir.AttrInt64s("pads", pads.tolist())}, name=f"{name}.pad")
            pad.outputs[0].name = f"{name}.padded"
            places = np.full(len(kept), int(kept.sum()), np.int64)
            places[kept] = np.arange(int(kept.sum()))
            gather = self._gather(pad.outputs[0], position, places, name)
            self.model.graph.insert_after(after, [pad, gather])
            after, result = gather, gather.outputs[0]
        if result is not output:
            self._replace(output, result, uses)

    def _replace(self, old: ir.Value, new: ir.Value, uses: Iterable[tuple[ir.Node, int]]) -> None:
        """Lets `new` stand for `old` in the given uses."""
        self.stands_for[new.name or ""] = self.stands_for.get(old.name or "", old.name or "")
        for user, slot in uses:
            user.replace_input_with(slot, new)

    # Shapes -----------------------------------------------------------------------------------------------------

    def set_shapes(self) -> None:
        """Known sizes of values follow the cut; symbolic ones stay."""
        for node in self.model.graph:
            for value in node.outputs:
                lost = self.lost_axes(value)
                if not lost or value.shape is None:
                    continue
                sizes = list(value.shape)
                for position in lost:
                    if isinstance(sizes[position], int):
                        sizes[position] = self.kept(self.axes(value)[position])
                value.shape = ir.Shape(sizes)


def _by_node(records: Iterable[tuple]) -> dict[str, list[tuple]]:
    found: dict[str, list[tuple]] = {}
    for record in records:
        found.setdefault(record[0], []).append(record)
    return found


def _silent_number(value: ir.Value, dtype: np.dtype) -> float | int | np.ndarray:
    """What stands for zero in an initializer: the zero point where it is quantized."""
    if dtype.kind not in "iu":
        return 0
    slots = {"DequantizeLinear": (0, 2), "MatMulInteger": (1, 3), "ConvInteger": (1, 3)}
    for node, index in value.uses():
        weight, zero = slots.get(node.op_type, (None, 0))
        if index == weight and zero < len(node.inputs):
            point = graph.constant(node.inputs[zero])
            if point is not None and point.size == 1:
                return point.reshape(()).item()
    return 0
