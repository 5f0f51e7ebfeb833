"""quantized = simulated: the file against the float model with the same rounding carried out here.

Three things are compared, none by the quantizer's own code:

weights  what the file stores stands within half a step of the float weight, number by number, read as the file says
grids    the scale and zero point of every value follow from the range that was calibrated
nodes    every node of the float model, given the values of the file rounded here (divide, round, clip, multiply) and
         weights rounded in numpy, gives what the file's node gives

Every node reads the file's own values: a rounding that falls the other way does not add up from node to node. What
the rounding costs is another matter: an error, which `error` tells, and no proof.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.graph import sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.proof.differences import TOLERANCE
from onnxprune.quantize import parts
from onnxprune.quantize.parts import Grid
from onnxprune.quantize.ranges import Ranges

SLACK = 1e-3  # of a step: floats of 32 bits are not exact
SCALE_TOLERANCE = 1e-4
HALF_SLACK = 0.01  # of a zero point: what lies so near to a half may be rounded either way
# Operators of which values before and after may share one grid.
MOVING = frozenset(
    "Relu Clip Reshape Transpose Flatten Squeeze Unsqueeze MaxPool AveragePool Slice Split Pad Resize Gather Where "
    "Concat GatherElements".split()
)
ROWS = 2  # samples on which nodes are compared: every value of the model is held twice


@dataclass(frozen=True)
class Simulation:
    """What was compared, and what was found wrong with it."""

    nodes: int  # compared with the simulation
    weights: int  # arrays that are stored as integers
    ratio: float  # the largest difference of a node, relative to its largest number
    worst: str
    faults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults


def simulate(
    quantized: ir.Model, float_model: ir.Model, feeds: Sequence[Feeds], ranges: Ranges | None = None
) -> Simulation:
    """Compares `quantized` with `float_model`, rounded here in the same way; ranges: what grids have to follow from."""
    joint = _Joint(quantized, float_model)
    faults = list(joint.faults)
    if ranges is not None:
        faults += _grid_faults(float_model, joint.grids, ranges)
    ratio, worst = 0.0, ""
    session = sessions.open_session(joint.model, threads=sessions.few_threads(), optimize=False)
    for batch in feeds:
        found = sessions.run(session, batch)
        for name, (difference, scale) in joint.compared.items():
            off, size = float(found[difference]), float(found[scale])
            own = off / size if size else (np.inf if off else 0.0)
            if not own <= ratio:
                ratio, worst = own, name
    if not ratio <= TOLERANCE:
        faults.append(f"node '{worst}' differs from its simulation by {ratio:.2g} of its largest number")
    return Simulation(len(joint.compared), joint.weights, ratio, worst, tuple(faults))


def require(found: Simulation, where: str = "the quantized model") -> Simulation:
    """`found`, when it holds. Raises: VerificationError otherwise."""
    if found.ok:
        return found
    first, *rest = found.faults
    more = f" (and {len(rest)} more)" if rest else ""
    raise VerificationError(
        f"{where} is not the pruned model rounded: {first}{more}; nothing was written. Please report this model"
    )


def error(quantized: ir.Model, float_model: ir.Model, feeds: Iterable[Feeds]) -> float:
    """|quantized - float| / |float| over all outputs of floats, as onnxruntime runs both: what rounding costs."""
    off, size = 0.0, 0.0
    two = [sessions.open_session(model, threads=sessions.few_threads()) for model in (quantized, float_model)]
    for batch in feeds:
        ours, theirs = (sessions.run(session, batch) for session in two)
        for name, array in theirs.items():
            if np.asarray(array).dtype.kind == "f":
                a, b = (np.asarray(x, np.float64) for x in (ours[name], array))
                off, size = off + float(((a - b) ** 2).sum()), size + float((b**2).sum())
    return float(np.sqrt(off / size)) if size else 0.0


class _Joint:
    """A model that holds the file and its simulation, and gives how far apart their nodes are."""

    def __init__(self, quantized: ir.Model, float_model: ir.Model) -> None:
        self.model = quantized.clone()
        self.faults: list[str] = []
        self.grids: dict[str, list[Grid]] = {}  # by name of the float model's value
        self.compared: dict[str, tuple[str, str]] = {}
        self.weights = 0
        self._nodes = {node.name: node for node in list(self.model.graph)}
        self._values: dict[str, ir.Value] = {value.name or "": value for value in self.model.graph.inputs}
        self._checked: set[str] = set()
        self._made: list[ir.Node] = []
        for node in float_model.graph:
            self._add(node)
        outputs = [
            (v.name or "", v, own) for v, own in zip(float_model.graph.outputs, self.model.graph.outputs, strict=True)
        ]
        for name, value, own in outputs:
            if name in self._values:
                self._compare(f"output {name}", self._read(value, own), own)
        del self.model.graph.outputs[:]
        self.model.graph.extend(self._made)
        names = [name for pair in self.compared.values() for name in pair]
        made = {value.name: value for node in self._made for value in node.outputs}
        self.model.graph.outputs.extend(made[name] for name in names)

    def _add(self, node: ir.Node) -> None:
        """A twin of `node` that reads what the file's node reads, and the comparison of what both give."""
        own = self._nodes.get(node.name)
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            if own is not None:  # bodies are not quantized
                self._values.update({a.name or "": b for a, b in zip(node.outputs, own.outputs, strict=True)})
            return
        if own is not None and own.op_type != node.op_type:
            self.faults.append(f"node '{node.name}' is a {own.op_type}, and a {node.op_type} in the pruned model")
            return
        if own is None and node.op_type not in parts.DROPPED:
            self.faults.append(f"{node.op_type} '{node.name}' is missing")
            return
        inputs = [
            self._read(v, own.inputs[k] if own and k < len(own.inputs) else None) for k, v in enumerate(node.inputs)
        ]
        made = self._node(node.op_type, inputs, list(node.attributes.values()), node.domain, len(node.outputs))
        for k, value in enumerate(node.outputs):
            twin = made.outputs[k]
            twin.type = value.type
            self._values[value.name or ""] = twin if own is None else own.outputs[k]
            if own is not None and (value.uses() or value.is_graph_output()):
                self._compare(node.name or "", twin, own.outputs[k])

    def _read(self, value: ir.Value | None, own: ir.Value | None) -> ir.Value | None:
        """What a twin reads for `value`, where the file's node reads `own`."""
        if value is None:
            return None
        array = graph.constant(value)
        if array is not None:
            return self._constant(value.name or "", array, own)
        known = self._values.get(value.name or "")
        if known is None:
            self.faults.append(f"value '{value.name}' is missing")
            return own
        pair = parts.rounding(own)
        if pair is None:
            return known
        _, write, read = pair
        if not (np.array_equal(write.scale, read.scale) and np.array_equal(write.zero, read.zero)):
            self.faults.append(f"value '{value.name}' is rounded to another grid than it is read by")
        self.grids.setdefault(value.name or "", []).append(write)
        return self._rounded(known, write)

    def _constant(self, name: str, array: np.ndarray, own: ir.Value | None) -> ir.Value:
        found = parts.stored(own)
        if found is not None:
            integers, grid = found
            self._check_weight(name, array, integers, grid)
            array = grid.rounded(array) if grid.real(integers).shape == array.shape else array
        else:
            theirs = graph.constant(own)
            if theirs is not None and not np.array_equal(theirs, array, equal_nan=array.dtype.kind == "f"):
                self.faults.append(f"initializer '{name}' has other numbers than in the pruned model")
        return graph.add_constant(self.model.graph, f"{name}/twin", array)

    def _check_weight(self, name: str, array: np.ndarray, integers: np.ndarray, grid: Grid) -> None:
        if name in self._checked:
            return
        self._checked.add(name)
        self.weights += 1
        if integers.shape != array.shape:
            self.faults.append(f"'{name}' is stored with shape {integers.shape}, and has {array.shape}")
            return
        step = np.broadcast_to(grid.step(array.ndim), array.shape).astype(np.float64)
        off = np.abs(grid.real(integers).astype(np.float64) - array)
        # A sum of 32 bits holds steps far smaller than a float does.
        wrong = off > 0.5 * step * (1 + SLACK) + 1e-6 * np.abs(array)
        if wrong.any():
            where = tuple(int(k) for k in np.argwhere(wrong)[0])
            self.faults.append(
                f"'{name}' at {where} is stored as {float(grid.real(integers)[where]):.4g}, and is "
                f"{float(array[where]):.4g}, "
                f"further than half of a step of {float(step[where]):.3g} ({int(wrong.sum())} of {array.size} numbers)"
            )

    def _rounded(self, value: ir.Value, grid: Grid) -> ir.Value:
        """`value` on the grid, by operators that know nothing of quantization."""
        low, high = parts.bounds(grid.zero.dtype)
        zero = float(grid.zero.reshape(-1)[0])

        def number(x: float) -> ir.Value:
            return graph.add_constant(self.model.graph, "number/twin", np.array(x, np.float32))

        scale = number(float(grid.scale.reshape(-1)[0]))
        steps = self._node("Round", [self._node("Div", [value, scale]).outputs[0]]).outputs[0]
        inside = self._node("Clip", [steps, number(low - zero), number(high - zero)]).outputs[0]
        return self._node("Mul", [inside, scale]).outputs[0]

    def _compare(self, name: str, twin: ir.Value | None, own: ir.Value) -> None:
        if twin is None or isinstance(own.type, ir.SequenceType) or own.dtype == ir.DataType.STRING:
            return
        a, b = (self._node("Cast", [v], [ir.AttrInt64("to", int(ir.DataType.FLOAT))]).outputs[0] for v in (twin, own))
        difference = self._largest(self._node("Sub", [a, b]).outputs[0])
        size = self._largest(b)
        key = name
        while key in self.compared:
            key += "'"
        self.compared[key] = (difference.name or "", size.name or "")

    def _largest(self, value: ir.Value) -> ir.Value:
        flat = self._node(
            "Reshape", [value, graph.add_constant(self.model.graph, "flat/twin", np.array([-1]))]
        ).outputs[0]
        zero = graph.add_constant(self.model.graph, "zero/twin", np.zeros(1, np.float32))  # an array may be empty
        whole = self._node("Concat", [self._node("Abs", [flat]).outputs[0], zero], [ir.AttrInt64("axis", 0)]).outputs[0]
        largest = self._node("ReduceMax", [whole], [ir.AttrInt64("keepdims", 0)]).outputs[0]
        largest.type, largest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        return largest

    def _node(
        self, op_type: str, inputs, attributes: Sequence[ir.Attr] = (), domain: str = "", outputs: int = 1
    ) -> ir.Node:
        name = f"twin/{len(self._made)}"
        node = ir.Node(domain, op_type, inputs, attributes, name=name, num_outputs=outputs)
        for k, value in enumerate(node.outputs):
            value.name = f"{name}/{k}"
        self._made.append(node)
        return node


# Grids ------------------------------------------------------------------------------------------------------------


def _grid_faults(model: ir.Model, grids: Mapping[str, Sequence[Grid]], ranges: Ranges) -> Iterator[str]:
    """Values whose scale or zero point follows from no range that can be theirs."""
    near = _neighbors(model)
    for name, own in grids.items():
        candidates = [ranges[other] for other in _reached(name, near) if other in ranges]
        candidates += [(0.0, 1.0)] if _made_by(model, name) == "Softmax" else []
        for grid in own:
            if candidates and not any(_follows(grid, low, high) for low, high in candidates):
                low, high = candidates[0]
                scale, zero = float(grid.scale.reshape(-1)[0]), int(grid.zero.reshape(-1)[0])
                yield (
                    f"value '{name}' is stored with scale {scale:.4g} and zero point {zero}, which do not follow from "
                    f"its range {low:.4g} to {high:.4g}"
                )


def _follows(grid: Grid, low: float, high: float) -> bool:
    """Whether the grid is that of the range: with zero point 0 of signed integers, that of its larger side."""
    scale, zero = float(grid.scale.reshape(-1)[0]), int(grid.zero.reshape(-1)[0])
    least, most = parts.bounds(grid.zero.dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-30:
        return True
    expected = (high - low) / (most - least)
    if least < 0 and zero == 0:
        expected = max(-low, high) / most
        return abs(scale - expected) <= 0.01 * expected  # of 127 or of 127.5 steps
    place = least - low / expected
    return abs(scale - expected) <= SCALE_TOLERANCE * expected and abs(zero - place) <= 0.5 + HALF_SLACK


def _neighbors(model: ir.Model) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {}
    for node in model.graph:
        if node.op_type in MOVING:
            names = {value.name or "" for value in (*node.inputs, *node.outputs) if value is not None}
            for name in names:
                near.setdefault(name, set()).update(names)
    return near


def _reached(name: str, near: Mapping[str, set[str]]) -> list[str]:
    found, todo = [name], [name]
    while todo:
        for other in sorted(near.get(todo.pop(), ())):
            if other not in found:
                found.append(other)
                todo.append(other)
    return found


def _made_by(model: ir.Model, name: str) -> str:
    return next((node.op_type for node in model.graph for value in node.outputs if value.name == name), "")
