"""quantized = simulated: the file against the float model with the same rounding carried out here.

Three things are compared, none by the quantizer's own code:

weights  what the file stores stands within half a step of the float weight, number by number, read as the file says
grids    the scale and zero point of every value follow from the range that was calibrated
nodes    every node of the float model, given the values of the file rounded here (divide, round, clip, multiply) and
         weights rounded in numpy, gives what the file's node gives

Every node reads the file's own values: a rounding that falls the other way does not add up from node to node. What
the rounding costs is another matter, which rounding.py tells, and no proof.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.graph import bodies, half, sessions
from onnxprune.graph.apart import apart
from onnxprune.graph.inputs import Feeds
from onnxprune.proof import comparison
from onnxprune.proof.differences import TOLERANCE
from onnxprune.proof.evidence import REPORT
from onnxprune.quantize import parts, ties
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
# onnxruntime (1.31) lets these write their output over their first input while they still read it, which gives wrong
# numbers; an input that is an output as well is left alone.
OVERWRITING = frozenset(("MoE", "QMoE"))
ROWS = 2  # samples on which nodes are compared: every value of the model is held twice


@dataclass(frozen=True)
class Simulation:
    """The result of a simulation: what was compared, and what was found wrong."""

    nodes: int  # compared with the simulation
    weights: int  # arrays that are stored as integers
    ratio: float  # the largest difference of a node, relative to its largest number
    worst: str
    faults: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found that rounding does not explain."""
        return not self.faults


def simulate(
    quantized: ir.Model,
    float_model: ir.Model,
    kind: str,
    feeds: Sequence[Feeds],
    ranges: Ranges | None = None,
) -> Simulation:
    """Compares `quantized`, of `kind`, with `float_model`, rounded here in the same way.

    ranges: what the grids of values have to follow from, where they were calibrated.
    Raises: CrashedError when a native library ended the process in which they were run.
    """
    return apart(_simulated, [quantized, float_model], kind, list(feeds), ranges)


def _simulated(
    quantized: ir.Model, float_model: ir.Model, kind: str, feeds: Sequence[Feeds], ranges: Ranges | None
) -> Simulation:
    """Runs the quantized model beside its twins, and says how far they differ."""
    if kind == "fp16":
        return _halved(quantized, float_model, feeds)
    if half.has_halves(quantized):  # what int4 leaves as it was: halves would tell nothing of so small differences
        quantized, float_model, feeds = half.single(quantized), half.single(float_model), half.single_feeds(feeds)
    twins = _int8_twins(quantized, float_model) if kind == "int8" else _stored_twins(quantized, float_model, kind)
    faults = list(twins.faults)
    if ranges:
        faults += _grid_faults(float_model, twins.grids, ranges)
    if faults:  # where a value is missing, what reads it cannot be run
        return Simulation(len(twins.compared), len(twins.weights), np.inf, "", tuple(faults))
    ratio, worst = 0.0, ""
    both = twins.finished()
    spared = [node.inputs[0].name or "" for node in both.graph if node.op_type in OVERWRITING and node.inputs[0]]
    session = sessions.open_session(both, extra_outputs=spared, threads=sessions.few_threads(), optimize=False)
    for batch in feeds:
        found = sessions.run(session, batch)
        for name, (difference, scale) in twins.compared.items():
            off, size = float(found[difference]), float(found[scale])
            own = off / size if size else (np.inf if off else 0.0)
            if not own <= ratio:
                ratio, worst = own, name
    if not ratio <= TOLERANCE:
        faults.append(f"node '{worst}' differs from its simulation by {ratio:.2g} of its largest number")
    return Simulation(len(twins.compared), len(twins.weights), ratio, worst, tuple(faults))


def require(found: Simulation, where: str = "the quantized model", advice: str = REPORT) -> Simulation:
    """`found`, when it holds. Raises: VerificationError otherwise, which ends with `advice`."""
    if found.ok:
        return found
    first, *rest = found.faults
    more = f" (and {len(rest)} more)" if rest else ""
    raise VerificationError(f"{where} is not the pruned model rounded: {first}{more}; {advice}")


class _Twins:
    """A model that holds the file and nodes of its simulation, and gives how far apart they are."""

    def __init__(self, quantized: ir.Model) -> None:
        self.model = graph.copy(quantized)
        self.nodes = {node.name: node for node in list(self.model.graph)}
        self.values: dict[str, ir.Value] = {value.name or "": value for value in self.model.graph.inputs}
        self.faults: list[str] = []
        self.grids: dict[str, list[Grid]] = {}  # by name of the float model's value
        self.weights: set[str] = set()  # that are stored as integers
        self.compared: dict[str, tuple[str, str]] = {}  # node -> names of the largest difference and number
        self._made: list[ir.Node] = []

    def finished(self) -> ir.Model:
        """The model; its outputs are the numbers of `compared`, and nothing else."""
        self.model.graph.extend(self._made)
        made = {value.name: value for node in self._made for value in node.outputs}
        del self.model.graph.outputs[:]
        self.model.graph.outputs.extend(made[name] for pair in self.compared.values() for name in pair)
        return self.model

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        domain: str = "",
        outputs: int = 1,
    ) -> ir.Node:
        name = f"twin/{len(self._made)}"
        node = ir.Node(domain, op_type, inputs, attributes, name=name, num_outputs=outputs)
        for k, value in enumerate(node.outputs):
            value.name = f"{name}/{k}"
        self._made.append(node)
        return node

    def call(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a node of one output."""
        return self.node(op_type, inputs, [ir.AttrInt64(k, v) for k, v in attributes.items()]).outputs[0]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return graph.add_constant(self.model.graph, f"{name}/twin", array)

    def number(self, x: float) -> ir.Value:
        return self.constant("number", np.array(x, np.float32))

    def twin_of(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        """A copy of a node of the float model that reads `inputs`."""
        made = self.node(node.op_type, inputs, list(node.attributes.values()), node.domain, len(node.outputs))
        for twin, value in zip(made.outputs, node.outputs, strict=True):
            twin.type = value.type
        return made

    def rounded(self, value: ir.Value, grid: Grid) -> ir.Value:
        """`value` on the grid, by operators that know nothing of quantization."""
        low, high = parts.bounds(grid.zero.dtype)
        scale, zero = self.number(float(grid.scale.reshape(-1)[0])), float(grid.zero.reshape(-1)[0])
        steps = self.call("Round", self.call("Div", value, scale))
        return self.call("Mul", self.call("Clip", steps, self.number(low - zero), self.number(high - zero)), scale)

    def rounded_as_it_comes(self, value: ir.Value) -> ir.Value:
        """`value` on the grid of 256 numbers that reaches from its least to its largest number, and holds zero."""
        low = self.call("Min", self.call("ReduceMin", value, keepdims=0), self.number(0))
        high = self.call("Max", self.call("ReduceMax", value, keepdims=0), self.number(0))
        scale = self.call("Div", self.call("Sub", high, low), self.number(255))
        zero = self.call("Round", self.call("Div", self.call("Neg", low), scale))
        steps = self.call("Add", self.call("Round", self.call("Div", value, scale)), zero)
        inside = self.call("Clip", steps, self.number(0), self.number(255))
        return self.call("Mul", self.call("Sub", inside, zero), scale)

    def compare(self, name: str, twin: ir.Value | None, own: ir.Value) -> None:
        if twin is None or isinstance(own.type, ir.SequenceType) or own.dtype == ir.DataType.STRING:
            return
        a, b = (self.call("Cast", value, to=int(ir.DataType.FLOAT)) for value in (twin, own))
        while name in self.compared:
            name += "'"
        # What is infinite, or no number, in both is the same: no difference can be told of it.
        neither = self.call("And", self.call("IsNaN", a), self.call("IsNaN", b))
        same = self.call("Or", self.call("Equal", a, b), neither)
        off = self.call("Where", same, self.number(0), self.call("Sub", a, b))
        size = self.call("Where", self.call("IsInf", b), self.number(0), b)
        size = self.call("Where", self.call("IsNaN", size), self.number(0), size)
        names = (self._largest(value).name or "" for value in (off, size))
        self.compared[name] = (next(names), next(names))

    def _largest(self, value: ir.Value) -> ir.Value:
        flat = self.call("Abs", self.call("Reshape", value, self.constant("flat", np.array([-1]))))
        whole = self.call("Concat", flat, self.constant("zero", np.zeros(1, np.float32)), axis=0)  # it may be empty
        largest = self.call("ReduceMax", whole, keepdims=0)
        largest.type, largest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        return largest


# int8: nodes are known by their names, values by the nodes that make them -------------------------------------------


def _int8_twins(quantized: ir.Model, float_model: ir.Model) -> _Twins:
    twins = _Twins(quantized)
    shown = list(twins.model.graph.outputs)
    for node in float_model.graph:
        _add_int8(twins, node)
    for value, own in zip(float_model.graph.outputs, shown, strict=True):
        if value.name in twins.values:
            twins.compare(f"output {value.name}", _read(twins, value, own), own)
    return twins


def _add_int8(twins: _Twins, node: ir.Node) -> None:
    """A twin of `node` that reads what the file's node reads, and the comparison of what both give."""
    own = twins.nodes.get(node.name)
    if own is not None and own.op_type != node.op_type:
        twins.faults.append(f"node '{node.name}' is a {own.op_type}, and a {node.op_type} in the pruned model")
        return
    if own is None and node.op_type not in parts.DROPPED:
        twins.faults.append(f"{node.op_type} '{node.name}' is missing")
        return
    if own is not None and bodies.of(node):  # bodies are not quantized
        twins.values.update({a.name or "": b for a, b in zip(node.outputs, own.outputs, strict=True)})
        return
    theirs = [] if own is None else list(own.inputs)
    theirs += [None] * (len(node.inputs) - len(theirs))
    made = twins.twin_of(node, [_read(twins, a, b) for a, b in zip(node.inputs, theirs, strict=False)])
    for k, value in enumerate(node.outputs):
        twins.values[value.name or ""] = made.outputs[k] if own is None else own.outputs[k]
        if own is not None and (value.uses() or value.is_graph_output()):
            twins.compare(node.name or "", made.outputs[k], own.outputs[k])


def _read(twins: _Twins, value: ir.Value | None, own: ir.Value | None) -> ir.Value | None:
    """The value that a twin reads in place of `value`, where the file's node reads `own`."""
    if value is None:
        return None
    array = graph.constant(value)
    if array is not None:
        return _constant(twins, value.name or "", array, own)
    known = twins.values.get(value.name or "")
    if known is None:
        twins.faults.append(f"value '{value.name}' is missing")
        return own
    pair = parts.rounding(own)
    if pair is None:
        return known
    _, write, read = pair
    if not (np.array_equal(write.scale, read.scale) and np.array_equal(write.zero, read.zero)):
        twins.faults.append(f"value '{value.name}' is rounded to another grid than it is read by")
    twins.grids.setdefault(value.name or "", []).append(write)
    return twins.rounded(known, write)


def _constant(twins: _Twins, name: str, array: np.ndarray, own: ir.Value | None) -> ir.Value:
    """A constant as a twin reads it, rounded as the file stores it, which is compared with the one in floats."""
    found = parts.stored(own)
    if found is None:
        _check_equal(twins, name, array, graph.constant(own))
        return twins.constant(name, array)
    integers, grid = found
    if name not in twins.weights and integers.shape == array.shape:
        step = np.broadcast_to(grid.step(array.ndim), array.shape)
        twins.faults += _weight_faults(name, array, grid.real(integers), step)
    elif integers.shape != array.shape:
        twins.faults.append(f"'{name}' is stored with shape {integers.shape}, and has {array.shape}")
    twins.weights.add(name)
    return twins.constant(name, grid.rounded(array))


def _check_equal(twins: _Twins, name: str, array: np.ndarray, theirs: np.ndarray | None) -> None:
    if theirs is not None and not np.array_equal(theirs, array, equal_nan=array.dtype.kind == "f"):
        twins.faults.append(f"initializer '{name}' has other numbers than in the pruned model")


def _weight_faults(name: str, array: np.ndarray, real: np.ndarray, step: np.ndarray) -> Iterator[str]:
    """Numbers of a weight that are stored further than half a step away."""
    off = np.abs(real.astype(np.float64) - array)
    # Biases have steps far smaller than what a float of 32 bits tells apart.
    wrong = off > 0.5 * step.astype(np.float64) * (1 + SLACK) + 1e-6 * np.abs(array)
    if wrong.any():
        where = tuple(int(k) for k in np.argwhere(wrong)[0])
        yield (
            f"'{name}' at {where} is stored as {float(real[where]):.4g}, and is {float(array[where]):.4g}, "
            f"further than half of a step of {float(step[where]):.3g} ({int(wrong.sum())} of {array.size} numbers)"
        )


# dynamic and int4: values keep their names, nodes of matrices do not ------------------------------------------------


def _stored_twins(quantized: ir.Model, float_model: ir.Model, kind: str) -> _Twins:
    """Twins of the nodes of a model in which only weights are stored as integers (dynamic, int4)."""
    twins = _Twins(quantized)
    stored, tables = parts.matrices(twins.model, kind), parts.tables(twins.model)
    if kind == "dynamic":
        float_model, _ = ties.untied(float_model, {node.name or "" for node in float_model.graph} - set(stored))
    for node in twins.model.graph:
        if node.op_type == "MatMulNBits":  # as the file means it: not with values that a kernel may round for speed
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    own_values = {value.name: value for node in twins.model.graph for value in node.outputs}
    for node in float_model.graph:
        _add_stored(twins, node, stored.get(node.name or ""), own_values, kind, tables.get(node.name or ""))
    return twins


def _add_stored(
    twins: _Twins,
    node: ir.Node,
    matrix: parts.Matrix | None,
    own_values: Mapping[str | None, ir.Value],
    kind: str,
    table: parts.Table | None,
) -> None:
    """Adds the twin of a node, which multiplies by the weights as they are stored, and compares their results."""
    missing = [value.name for value in node.outputs if value.uses() and value.name not in own_values]
    if missing:
        twins.faults.append(f"value '{missing[0]}' of {node.op_type} '{node.name}' is missing")
        return
    own = twins.nodes.get(node.name)
    if not bodies.of(node):
        inputs = [_read_stored(twins, node, k, matrix, own) for k in range(len(node.inputs))]
        if table is not None:
            inputs[0] = _read_table(twins, node, table)
        if matrix is not None and kind == "dynamic" and inputs[0] is not None:
            inputs[0] = twins.rounded_as_it_comes(inputs[0])
        made = twins.twin_of(node, inputs)
        for twin, value in zip(made.outputs, node.outputs, strict=True):
            if value.name and value.name in own_values:  # optional outputs that are left out have no name
                twins.compare(node.name or "", twin, own_values[value.name])
    twins.values.update(
        {value.name or "": own_values[value.name] for value in node.outputs if value.name in own_values}
    )


def _read_stored(
    twins: _Twins, node: ir.Node, k: int, matrix: parts.Matrix | None, own: ir.Node | None
) -> ir.Value | None:
    """Input `k` of a node as its twin reads it: weights as they are stored, which are compared with those in floats."""
    value = node.inputs[k]
    array = graph.constant(value)
    if value is None:
        return None
    if array is None:
        return twins.values.get(value.name or "")
    name = value.name or ""
    if matrix is None or k != 1:
        _check_equal(twins, name, array, None if own is None or k >= len(own.inputs) else graph.constant(own.inputs[k]))
        return twins.constant(name, array)
    twins.weights.add(name)
    if matrix.real.shape != array.shape:
        twins.faults.append(f"'{name}' is stored with shape {matrix.real.shape}, and has {array.shape}")
        return twins.constant(name, array)
    twins.faults += _weight_faults(name, np.clip(array, matrix.low, matrix.high), matrix.real, matrix.step)
    return twins.constant(name, matrix.real)


def _read_table(twins: _Twins, node: ir.Node, table: parts.Table) -> ir.Value | None:
    value = node.inputs[0]
    array = graph.constant(value)
    if value is None or array is None or array.shape != table.real.shape:
        twins.faults.append(f"'{value.name if value else ''}' is stored with shape {table.real.shape}")
        return value
    twins.weights.add(value.name or "")
    twins.faults += _weight_faults(value.name or "", array, table.real, table.step)
    return twins.constant(value.name or "", table.real)


# fp16 ---------------------------------------------------------------------------------------------------------------


def _halved(quantized: ir.Model, float_model: ir.Model, feeds: Sequence[Feeds]) -> Simulation:
    """Compares the file, computed in single precision, with the float model of which the weights are halves."""
    floats = parts.as_floats(quantized, float_model, "fp16")
    halved, nodes = graph.copy(float_model), {node.name: node for node in floats.graph.all_nodes()}
    faults: list[str] = []
    weights = 0
    for node in list(halved.graph.all_nodes()):
        theirs = nodes.get(node.name)
        if theirs is None or theirs.op_type != node.op_type:
            faults.append(f"{node.op_type} '{node.name}' is missing")
            continue
        for k, value in enumerate(node.inputs):
            array, stored = graph.constant(value), graph.constant(theirs.inputs[k] if k < len(theirs.inputs) else None)
            if value is None or array is None or stored is None or array.dtype != np.float32:
                continue
            weights += 1
            half = array if np.array_equal(array, stored) else _half(array)
            if not np.array_equal(half, stored):
                faults.append(f"'{value.name}' is not the nearest half of the float weight")
            node.replace_input_with(k, graph.add_constant(halved.graph, f"{value.name}/half", half))
    found = comparison.compare(floats, halved, feeds)
    ratio = found.max_abs / found.scale if found.scale else found.max_abs
    if not found.ok:
        faults.append(f"output '{found.worst}' differs from its simulation by {ratio:.2g} of its largest number")
    return Simulation(len(halved.graph.outputs), weights, ratio, found.worst, tuple(faults))


def _half(array: np.ndarray) -> np.ndarray:
    """`array` as halves, which onnxruntime's converter keeps off the numbers that halves do not have."""
    small, large = 5.96e-08, 65504.0
    tiny = (np.abs(array) < small) & (array != 0)
    bounded = np.where(tiny, np.copysign(small, array), np.clip(array, -large, large))
    return bounded.astype(np.float16).astype(np.float32)


# Grids ------------------------------------------------------------------------------------------------------------


def _grid_faults(model: ir.Model, grids: Mapping[str, Sequence[Grid]], ranges: Ranges) -> Iterator[str]:
    """Values whose scale or zero point follows from no range that can be theirs."""
    near = _neighbors(model)
    stored = {name: graph.constant(value) for name, value in model.graph.initializers.items()}
    ends = {name: (float(a.min()), float(a.max())) for name, a in stored.items() if a is not None and _is_floats(a)}
    known = {**ends, **ranges}  # what is looked up in a table has the grid of the table
    for name, own in grids.items():
        candidates = [known[other] for other in _reached(name, near) if other in known]
        candidates += [(0.0, 1.0)] if any(_made_by(model, other) == "Softmax" for other in _reached(name, near)) else []
        for grid in own:
            if candidates and not any(_follows(grid, low, high) for low, high in candidates):
                low, high = candidates[0]
                scale, zero = float(grid.scale.reshape(-1)[0]), int(grid.zero.reshape(-1)[0])
                yield (
                    f"value '{name}' is stored with scale {scale:.4g} and zero point {zero}, which do not follow from "
                    f"its range {low:.4g} to {high:.4g}"
                )


def _is_floats(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.size > 0


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
