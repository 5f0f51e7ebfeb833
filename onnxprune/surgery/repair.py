"""Edits of nodes around axes that shrink: lengths rewritten, values gathered and spread. Used by surgery.py."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import gcd
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Length, Range, dims
from onnxprune.coupling.dims import Axis
from onnxprune.errors import CouplingError
from onnxprune.graph import states
from onnxprune.plan.select import Selection
from onnxprune.surgery import dynamic_positions

Record = TypeVar("Record", bound=tuple[Any, ...])


class Surgeon:
    """One operation on a copy of the analysed model: what is lost, and the edits that make up for it.

    Raises: CouplingError for a plan that removes all of a Dim, or positions of a frozen one.
    """

    def __init__(self, selection: Selection):
        self.coupling = coupling = selection.coupling
        # A Dim that keeps all is as good as absent: nothing has to be repaired for it.
        self.keep = {dim: mask for dim, mask in selection.keep.items() if not mask.all()}
        for dim, kept in self.keep.items():
            if dim.frozen is not None or kept.sum() < dim.least:
                why = dim.frozen or (f"{dim.picks} of them are picked for each input" if dim.picks else "none is left")
                raise CouplingError(f"'{dim.name}' cannot lose {int((~kept).sum())} of {dim.size} positions: {why}")
        self.sizes = {dim: int(mask.sum()) for dim, mask in self.keep.items()}
        self.model = graph.copy(coupling.model)
        self.opset = self.model.opset_imports.get("", 1)
        # Name of an inserted value -> the analysed value that it replaces: axes are known of the latter alone.
        self.stands_for: dict[str, str] = {}
        self.lengths: dict[str, list[Length]] = {}
        for length in coupling.lengths:
            if self.loses(length.axis):
                self.lengths.setdefault(length.node, []).append(length)
        self.lifts = _by_node(lift for lift in coupling.lifts)
        self.pins = _by_node(coupling.pins)
        self.sizes_read = _by_node(read for read in coupling.sizes_read if self.loses(read[2]))
        self.ranges = {r.node: r for r in coupling.ranges if any(map(self.loses, (r.before, *r.factors)))}

    # What is lost -----------------------------------------------------------------------------------------------

    def loses(self, axis: Axis) -> bool:
        """Whether the plan removes positions of `axis`."""
        return not self.keep.keys().isdisjoint(dims.leaves(axis))

    def axes(self, value: ir.Value | None) -> Sequence[Axis]:
        """The axes of `value`, also where it replaces a value of the analysed model."""
        if value is None:
            return ()
        name = value.name or ""
        return self.coupling.axes.get(self.stands_for.get(name, name), ())

    def mask_of(self, axis: Axis) -> np.ndarray:
        """True at the positions (length,) of `axis` that stay."""
        return dims.keep_mask(axis, self.keep)

    def kept(self, axis: Axis) -> int:
        """The length of `axis` after the cut."""
        return dims.kept_length(axis, self.sizes)

    def lost_axes(self, value: ir.Value | None) -> list[int]:
        """The places of those axes of `value` that lose positions."""
        return [k for k, axis in enumerate(self.axes(value)) if self.loses(axis)]

    def loses_reduced(self, node: ir.Node) -> bool:
        """Whether `node` reads an axis that loses positions and that something sums or averages over.

        Zeros at removed positions are not enough there: a mean divides by the positions that are left.
        """
        axes = [axis for value in node.inputs for axis in self.axes(value)]
        return any(dim in self.keep and dim.reduced is not None for axis in axes for dim in dims.leaves(axis))

    def cut_array(self, array: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
        """`array` without the removed positions of its `axes`."""
        for position, axis in enumerate(axes):
            if self.loses(axis):
                array = np.take(array, np.flatnonzero(self.mask_of(axis)), axis=position)
        return array

    # Lengths ----------------------------------------------------------------------------------------------------

    def repair(self, node: ir.Node) -> None:
        """Rewrites what the coupling rule of `node` said depends on lengths.

        A number that is computed from Shape is repaired where it is used as a length, entry by entry. So Shape itself
        goes on to give the lengths of the original: otherwise the removal would be counted twice.
        """
        name = node.name or ""
        self.repair_attributes(node)
        inputs = [length for length in self.lengths.get(name, ()) if isinstance(length.target, int)]
        for index in sorted({length.target for length in inputs if isinstance(length.target, int)}):
            self._repair_input(
                node, index, {length.entry or 0: length.axis for length in inputs if length.target == index}
            )
        if name in self.ranges:
            self._renumber(node, self.ranges[name])
        for _, entry, axis in self.sizes_read.get(name, ()):
            value = node.outputs[0]
            uses = list(value.uses())
            restored = {entry: (self.kept(axis), dims.length(axis), dims.is_dynamic(axis))}
            self.replace(value, self._overwritten(node, value, restored, before=False), uses)
        # Last: a lift reads the node's output as it is by now.
        for _, index, position in self.lifts.get(name, ()):
            self._lift(node, index, position)

    def repair_attributes(self, node: ir.Node) -> None:
        """Attributes that are lengths, and defaults that would change with a length."""
        for length in self.lengths.get(node.name or "", ()):
            if isinstance(length.target, int):
                continue
            number = self.kept(length.axis)
            if length.entry is None:
                node.attributes[length.target] = ir.AttrInt64(length.target, number)
                continue
            attribute = node.attributes.get(length.target)
            numbers = list(attribute.value) if attribute is not None else self._even_parts(node, length.target)
            numbers[length.entry] = number  # entry by entry: the others may belong to axes that lose nothing
            node.attributes[length.target] = ir.AttrInt64s(length.target, numbers)
        for _, attribute, number in self.pins.get(node.name or "", ()):
            node.attributes[attribute] = ir.AttrFloat32(attribute, number)

    def _even_parts(self, node: ir.Node, target: str | int) -> list[int]:
        """The lengths of the parts of a Split that does not state them: parts that were even may now be uneven."""
        lengths = (each for each in self.coupling.lengths if each.node == node.name and each.target == target)
        return [self.kept(length.axis) for length in lengths]

    def _repair_input(self, node: ir.Node, index: int, axes: Mapping[int, Axis]) -> None:
        """Sets the entries of an integer input that are lengths: stored ones in a copy, computed ones behind it.

        axes: entry -> the axis that it is the length of.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:  # a Split into even parts, which are named from now on
            node.attributes.pop("num_outputs", None)
            if len(node.inputs) <= index:
                node.resize_inputs(index + 1)
            self._give(node, index, np.array(self._even_parts(node, index), np.int64))
            return
        array = graph.constant(value)
        if array is None:
            changes = {k: (dims.length(axis), self.kept(axis), dims.is_dynamic(axis)) for k, axis in axes.items()}
            node.replace_input_with(index, self._overwritten(node, value, changes, before=True))
            return
        array = array.copy()  # others may read the same numbers as lengths of axes that lose nothing
        for entry, axis in axes.items():
            array.reshape(-1)[entry] = self.kept(axis)
        self._give(node, index, array)

    def _give(self, node: ir.Node, index: int, array: np.ndarray) -> None:
        node.replace_input_with(index, self._constant(f"{node.name}.{index}", array))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return graph.add_constant(self.model.graph, name, array)

    def _overwritten(
        self, node: ir.Node, value: ir.Value, changes: Mapping[int, tuple[int, int, bool]], *, before: bool
    ) -> ir.Value:
        """A computed vector with some entries replaced, in operators of every opset.

        changes: entry -> (number before, number after, whether it is a multiple of something dynamic). A multiple
        is scaled, vector * after / before; any other entry is set.
        """
        count = self._vector_length(value)
        factors, divisors, terms = np.ones(count, np.int64), np.ones(count, np.int64), np.zeros(count, np.int64)
        for entry, (old, new, dynamic) in changes.items():
            common = gcd(old, new)
            factors[entry], divisors[entry], terms[entry] = (
                (new // common, old // common, 0) if dynamic else (0, 1, new)
            )
        dtype = np.int32 if value.dtype == ir.DataType.INT32 else np.int64
        steps = [("Mul", factors), ("Div", divisors), ("Add", terms)]
        nodes: list[ir.Node] = []
        result = value
        for op_type, numbers in steps:
            if (numbers != (op_type != "Add")).any():  # times one, divided by one and plus zero are left out
                # The constants are unique in the graph, so the names of the values derived from them are as well.
                constant = self._constant(f"{node.name}.{op_type}", numbers.astype(dtype))
                nodes.append(self._node(op_type, [result, constant], f"{constant.name}.of"))
                result = nodes[-1].outputs[0]
        (graph_of(node).insert_before if before else graph_of(node).insert_after)(node, nodes)
        self.stands_for[result.name or ""] = self.stands_for.get(value.name or "", value.name or "")
        return result

    def _node(
        self, op_type: str, inputs: list[ir.Value], name: str, attributes: dict[str, ir.Attr] | None = None
    ) -> ir.Node:
        node = ir.Node("", op_type, inputs, attributes or {}, name=name)
        node.outputs[0].name = f"{name}.y"
        return node

    def _vector_length(self, value: ir.Value) -> int:
        """How many numbers a computed vector has; a scalar counts as one."""
        name = self.stands_for.get(value.name or "", value.name or "")
        sizes = self.coupling.shapes.sizes[name]
        return sizes[0] if sizes else 1

    def _renumber(self, node: ir.Node, grid: Range) -> None:
        """Indices of a Gather of a range, after removals in front of it and inside."""
        counts = [self.kept(axis) for axis in grid.factors]
        index = np.int64(self.kept(grid.before))
        stride = 1
        for k in reversed(grid.stored):
            shape = [counts[k] if j == k else 1 for j in range(len(counts))]
            index = index + (np.arange(counts[k], dtype=np.int64) * stride).reshape(shape)
            stride *= counts[k]
        indices = np.broadcast_to(index, counts).reshape([self.kept(axis) for axis in grid.shape])
        self._give(node, 1, np.ascontiguousarray(indices).reshape(indices.shape))

    # Gathered and spread ------------------------------------------------------------------------------------------

    def _lift(self, node: ir.Node, index: int, position: int) -> None:
        """`node` sees zeros where positions were removed, and its output is cut to the kept ones.

        For operators that look at neighbors along the axis (LRN over channels, a convolution over them): closed up,
        the kept ones would have other neighbors than in the model.
        """
        value = node.inputs[index]
        assert value is not None, node.name
        axis = self.axes(value)[position]
        if not self.loses(axis):
            return
        spread = self._spread(value, len(self.axes(value)), position, axis, f"{node.name}.lift")
        graph_of(node).insert_before(node, spread)
        node.replace_input_with(index, spread[-1].outputs[0])
        output = node.outputs[0]
        uses = list(output.uses())  # taken before: what is inserted reads the output as well
        chosen = self._choose(output, position, axis, f"{node.name}.lower")
        graph_of(node).insert_after(node, chosen)
        self.replace(output, chosen[-1].outputs[0], uses)

    def cut_gate(self, gate: ir.Node) -> None:
        """The gate of a state, see states.py, as what reads the kept positions of it, or fills it up with zeros."""
        value, flags, position = gate.inputs[1], gate.inputs[0], states.axis_of(gate)
        assert value is not None, gate.name
        assert flags is not None, gate.name
        axis = self.axes(flags)[position]
        if not self.loses(axis):
            return
        output, name = gate.outputs[0], f"{gate.name}.cut"
        if states.side(gate) == "in":
            nodes = self._choose(value, position, axis, name)
        else:
            nodes = self._spread(value, len(self.axes(value)), position, axis, name, states.fill_of(gate))
        uses = list(output.uses())
        self.model.graph.insert_before(gate, nodes)
        result = nodes[-1].outputs[0]
        self.replace(output, result, uses)
        if output.is_graph_output():
            states.become_output(self.model.graph, output, result)
        else:
            result.type, result.shape = output.type, output.shape
        self.model.graph.remove(gate, safe=True)
        # The flags are as long as the state was, which would count in the size of the result.
        for constant in (flags, gate.inputs[2]):
            if constant is not None and not constant.uses():
                self.model.graph.initializers.pop(constant.name or "", None)

    def silence_lifted(self, node: ir.Node) -> None:
        """The masked twin of a node that sees removed positions as zeros: they are made zero in front of it."""
        for _, index, position in self.lifts.get(node.name or "", ()):
            value = node.inputs[index]
            assert value is not None, node.name
            axis = self.axes(value)[position]
            if not self.loses(axis):
                continue
            chosen = self._choose(value, position, axis, f"{node.name}.kept")
            rank = len(self.axes(value))
            spread = self._spread(chosen[-1].outputs[0], rank, position, axis, f"{node.name}.zeros")
            graph_of(node).insert_before(node, [*chosen, *spread])
            node.replace_input_with(index, spread[-1].outputs[0])

    def compute_over_kept(self, node: ir.Node) -> None:
        """The masked twin of a node that summarizes over removed positions: it runs on the kept ones alone.

        Its inputs are gathered at the kept positions, and its output is spread to the full shape again: the rest of
        the twin keeps its shapes.
        """
        outputs = [list(value.uses()) for value in node.outputs]
        for index, value in enumerate(list(node.inputs)):
            if value is not None and self.lost_axes(value):
                node.replace_input_with(index, self._kept_part(node, index, value))
        self.repair_attributes(node)
        after = node
        for index, (output, uses) in enumerate(zip(node.outputs, outputs, strict=True)):
            result, rank = output, len(self.axes(output))
            for position in self.lost_axes(output):
                axis = self.axes(output)[position]
                spread = self._spread(result, rank, position, axis, f"{node.name}.spread.{index}.{position}")
                graph_of(node).insert_after(after, spread)
                after, result = spread[-1], spread[-1].outputs[0]
            if result is not output:
                self.replace(output, result, uses)

    def _kept_part(self, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
        """`value` at the kept positions of all its axes: an array for a stored one, else behind Gather nodes."""
        axes = self.axes(value)
        if value.is_initializer():  # silenced already, so the original is cut
            original = self.coupling.model.graph.initializers[value.name or ""]
            return self._constant(f"{value.name}.kept", self.cut_array(graph.array_of(original), axes))
        for position in self.lost_axes(value):
            chosen = self._choose(value, position, axes[position], f"{node.name}.kept.{index}.{position}")
            graph_of(node).insert_before(node, chosen)
            value = chosen[-1].outputs[0]
        return value

    def _spread(
        self, value: ir.Value, rank: int, position: int, axis: Axis, name: str, fill: float = 0.0
    ) -> list[ir.Node]:
        """Nodes that put zeros, or `fill`, at the removed positions of `value`: one is padded, then gathered."""
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + position] = 1
        if self.opset >= 11:
            inputs = [value, self._constant(f"{name}.pads", pads)]
            if fill:
                assert value.dtype is not None, value.name
                inputs.append(self._constant(f"{name}.fill", np.array(fill, value.dtype.numpy())))
            pad = self._node("Pad", inputs, f"{name}.Pad")
        else:
            pad = self._node(
                "Pad",
                [value],
                f"{name}.Pad",
                {"pads": ir.AttrInt64s("pads", pads.tolist()), "value": ir.AttrFloat32("value", fill)},
            )
        padded = pad.outputs[0]
        if parts := dynamic_positions.parts_of(axis, self.keep):
            return [pad, *self._built(name, lambda add: dynamic_positions.spread(add, value, padded, position, parts))]
        kept = self.mask_of(axis)
        count = int(kept.sum())
        places = np.full(len(kept), count, np.int64)
        places[kept] = np.arange(count)
        return [pad, self._gather(padded, position, places, name)]

    def _choose(self, value: ir.Value, position: int, axis: Axis, name: str) -> list[ir.Node]:
        """Nodes that gather the kept positions of `value` on its axis number `position`."""
        if parts := dynamic_positions.parts_of(axis, self.keep):
            return self._built(name, lambda add: dynamic_positions.chosen(add, value, position, parts))
        return [self._gather(value, position, np.flatnonzero(self.mask_of(axis)), name)]

    def _built(self, name: str, build: Callable[[dynamic_positions.Add], object]) -> list[ir.Node]:
        """The nodes that `build` adds, in order."""
        nodes: list[ir.Node] = []

        def add(op_type: str, *inputs: ir.Value | np.ndarray, **attributes: int | ir.TensorProtocol) -> ir.Value:
            own = f"{name}.{len(nodes)}"
            values = [
                self._constant(f"{own}.{k}", x if x.dtype == bool else x.astype(np.int64))
                if isinstance(x, np.ndarray)
                else x
                for k, x in enumerate(inputs)
            ]
            named = {key: ir.convenience.convert_attribute(key, value) for key, value in attributes.items()}
            nodes.append(self._node(op_type, values, f"{own}.{op_type}", named))
            return nodes[-1].outputs[0]

        build(add)
        return nodes

    def _gather(self, value: ir.Value, position: int, indices: np.ndarray, name: str) -> ir.Node:
        constant = self._constant(f"{name}.indices", indices.astype(np.int64))
        return self._node("Gather", [value, constant], f"{name}.Gather", {"axis": ir.AttrInt64("axis", position)})

    def replace(self, old: ir.Value, new: ir.Value, uses: Iterable[tuple[ir.Node, int]]) -> None:
        """Lets `new` stand for `old` in the given uses."""
        self.stands_for[new.name or ""] = self.stands_for.get(old.name or "", old.name or "")
        for user, slot in uses:
            user.replace_input_with(slot, new)
        node = old.producer()
        if node is not None and graph_of(node) is not self.model.graph:
            outputs = graph_of(node).outputs
            outputs[:] = [new if value is old else value for value in outputs]


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph, or body, in which `node` stands."""
    assert isinstance(node.graph, ir.Graph), node.name
    return node.graph


def _by_node(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by the name of their node, which stands first in each."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record[0]), []).append(record)
    return found
