"""The continuous values that a decision is made of: those behind ArgMax, TopK, NonMaxSuppression and comparisons.

A matrix of all samples of one input against all of another is looked through as well, to the vectors that it compares.
"""

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph import states

SAME_VALUES = frozenset({"Identity", "Cast", "Dropout", "Clip"})
SAME_NUMBERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
MOVES = SAME_VALUES | SAME_NUMBERS | {"Transpose", "Gather", "GatherND", "GatherElements", "Slice", "Concat", "Split"}
DECIDES = frozenset({"ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Compress", "Hardmax"})
SCALES = frozenset({"Mul", "Div", "Add", "Sub"})
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})
LISTS = frozenset({"SequenceConstruct", "SplitToSequence", "Optional"})
SIZES = frozenset({"Shape", "Size"})
INDICES = SIZES | {"ArgMax", "ArgMin", "NonZero", "NonMaxSuppression"}
DEEPEST = 24  # nodes between an output and the decision that it was made by


def behind(model: ir.Model) -> dict[str, str]:
    """Name of each value that an output decides on -> the operator that decides."""
    return {name: op for value in model.graph.outputs for name, op, _ in decided_on(value)}


def decided_on(output: ir.Value) -> list[tuple[str, str, ir.Node]]:
    """(value, deciding operator, its node) of every float value that `output` is a choice of or from."""
    listed = output.producer()
    if listed is not None and listed.op_type in LISTS:
        return [(v.name or "", listed.op_type, listed) for v in _floats(listed)]
    compared = _compared(output)
    if compared:
        return compared
    whole = not is_float(output)
    found: list[tuple[str, str, ir.Node]] = []
    chosen_from: list[tuple[str, str, ir.Node]] = []
    front, visited = [output], {output}
    for _ in range(DEEPEST):
        reached: list[ir.Value] = []
        for node in (node for value in front if (node := value.producer()) is not None):
            floats = _floats(node)
            if floats and (node.op_type in DECIDES or (whole and node.op_type not in SIZES)):
                most = 2 if node.op_type == "NonMaxSuppression" else 1 if node.op_type in DECIDES else len(floats)
                found += [(v.name or "", node.op_type, node) for v in floats[:most]]
                continue
            if node.op_type.startswith("Gather") and floats and node.inputs[0] is floats[0]:
                chosen_from.append((floats[0].name or "", node.op_type, node))
            if node.op_type not in SIZES and (node.op_type in MOVES or not is_float(node.outputs[0])):
                reached += [v for v in node.inputs if v is not None and not v.is_initializer()]
            elif node.op_type in SCALES and len(_floats(node)) == 1:  # as boxes are put back into the size of an image
                reached += _floats(node)
        front = [v for v in dict.fromkeys(reached) if v not in visited]
        visited.update(front)
        if not front:
            break
    # Of what a TopK over anchors has chosen, NonMaxSuppression chooses again: that one is nearest to the answer.
    last = [entry for entry in found if entry[1] == "NonMaxSuppression"]
    kept = last or (found and [*found, *chosen_from[-1:]])
    return list({entry[0]: entry for entry in kept}.values())


def _compared(output: ir.Value) -> list[tuple[str, str, ir.Node]]:
    """The vectors of which `output` (N, M) holds all products, each of N samples with each of M; else nothing."""
    source = output
    while (node := source.producer()) is not None and node.op_type in SAME_VALUES | SCALES | {"Transpose"}:
        before = main_input(node)
        if before is None:
            return []
        source = before
    graph = node.graph if node is not None else None
    if node is None or graph is None or node.op_type not in PRODUCTS or len(_floats(node)) < 2:
        return []
    if batch_axes(output, graph.inputs) != (0, 1):
        return []
    vectors = [through(v, frozenset({"Transpose", "Identity"})) for v in _floats(node)[:2]]
    return [(v.name or "", node.op_type, node) for v in vectors]


def batch_axes(value: ir.Value, inputs: Sequence[ir.Value]) -> tuple[int, ...]:
    """The axes of `value` that are named as the first axis of an input is, which counts samples."""
    first = [next(iter(v.shape)) for v in inputs if v.shape]
    names = {dim.value for dim in first if isinstance(dim, ir.SymbolicDim)} - {None}
    dims = value.shape or ()
    return tuple(k for k, dim in enumerate(dims) if isinstance(dim, ir.SymbolicDim) and dim.value in names)


def main_input(node: ir.Node) -> ir.Value | None:
    """The input whose numbers a node moves or changes one by one: the first that is computed or given."""
    given = [v for v in node.inputs if v is not None and not v.is_initializer() and _moves(v)]
    return given[0] if given else None


def _moves(value: ir.Value) -> bool:
    return value.is_graph_input() or (value.producer() is not None and _varies(value))


def _floats(node: ir.Node) -> list[ir.Value]:
    """Float inputs of a node that are made by the model."""
    return [v for v in node.inputs if v is not None and v.producer() is not None and is_float(v) and _varies(v)]


def _varies(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type not in ("Constant", "ConstantOfShape")


def is_float(value: ir.Value) -> bool:
    """Whether a value holds floats, as far as its type or what makes it tells."""
    if value.dtype is not None:
        return value.dtype.is_floating_point()
    node = value.producer()
    return node is None or not (node.op_type in INDICES or (node.op_type == "TopK" and value is node.outputs[1]))


def through(value: ir.Value, operators: frozenset[str]) -> ir.Value:
    """The value nearest to the inputs that `value` is made of by such operators alone."""
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type not in operators and not states.fills(node):
            break
        value = node.inputs[0]
    return value
