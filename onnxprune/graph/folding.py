"""Numbers that networks compute from the sizes of their values, where these are fixed: computed once, in this process.

Exporters write `x.view(x.shape[0], -1)` as Shape, Gather, Concat, Reshape. onnxsim folds such nodes too, in a copy of
the process and after its import, which takes longer than all else for a small network. What is folded here are sizes,
indices and the like; larger constant expressions are left to it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph import bodies
from onnxprune.graph.stored import is_stored
from onnxprune.graph.tensors import add_constant, array_of

MOST_NUMBERS = 65536  # of an array that is read, or made
Arrays = Sequence[np.ndarray]
FEW = 16  # numbers are no weight
PASSES = 2  # what is folded lets more sizes be inferred
FOLD: dict[str, Callable[[ir.Node, Arrays], np.ndarray | None]] = {}


def fold_sizes(model: ir.Model, plain: Collection[str], sizes: Callable[[], Mapping[str, Sequence[int]]]) -> bool:
    """Makes initializers, in place, of what is computed from fixed sizes and small constants; whether there was any.

    plain: operators that may stand beside those that are folded; where others do, nothing is changed.
    sizes: gives the sizes of all values of which every one is known.
    """
    graph = model.graph
    if not any(node.op_type == "Shape" or _is_constant(node) for node in graph):
        return False
    for node in graph:
        if node.domain not in ("", "ai.onnx") or (node.op_type not in plain and node.op_type not in FOLD):
            return False
        if any(bodies.of(node)):
            return False
    passes = 0
    while passes < PASSES and _fold(graph, sizes()):
        passes += 1
        if not any(node.op_type == "Shape" for node in graph):
            break
    return passes > 0


def _fold(graph: ir.Graph, sizes: Mapping[str, Sequence[int]]) -> bool:
    outputs, folded = set(graph.outputs), False
    for node in list(graph):
        y = node.outputs[0]
        array = None if y in outputs or len(node.outputs) > 1 else _computed(node, sizes)
        if array is not None and array.size <= MOST_NUMBERS:
            y.replace_all_uses_with(add_constant(graph, y.name or "", array))
            graph.remove(node, safe=True)
            folded = True
    return folded


def _is_constant(node: ir.Node) -> bool:
    """Whether a node reads constants alone."""
    return bool(node.inputs) and all(value is None or value.is_initializer() for value in node.inputs)


def _computed(node: ir.Node, sizes: Mapping[str, Sequence[int]]) -> np.ndarray | None:
    """The result of a node, None where it is not known without running the model."""
    read = [value for value in node.inputs if value is not None]
    if node.op_type == "Shape":
        known = sizes.get(read[0].name or "")
        return None if known is None else np.array(known, np.int64)[_part(node, len(known))]
    if node.op_type not in FOLD or not read or len(read) < len(node.inputs) or not all(map(_is_small, read)):
        return None
    with np.errstate(all="ignore"):
        return FOLD[node.op_type](node, [array_of(value) for value in read])


def _is_small(value: ir.Value) -> bool:
    """Whether `value` is a constant of few numbers; a weight that others read too would be stored twice."""
    tensor = value.const_value
    if tensor is None or not value.is_initializer() or value.is_graph_input() or is_stored(value):
        return False
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return False
    if tensor.size <= FEW:
        return True
    packed = tensor.dtype.bitwidth <= 16  # a weight that is cast: as it is it is smaller
    twice = tensor.dtype.is_floating_point() and len(list(value.uses())) > 1
    return tensor.size <= MOST_NUMBERS and not packed and not twice


def _part(node: ir.Node, rank: int) -> slice:
    """The axes of which Shape gives the sizes."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    return slice(start, end)


# One function for each operator, named like it: (node, arrays of its inputs) -> array, or None where it is not known -


def folds(function: Callable[[ir.Node, Arrays], np.ndarray | None]) -> Callable[..., np.ndarray | None]:
    """Registers the decorated function under its name."""
    FOLD[function.__name__] = function
    return function


FOLD["Shape"] = lambda node, arrays: np.array(arrays[0].shape, np.int64)[_part(node, arrays[0].ndim)]
for _op, _ufunc in {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Equal": np.equal}.items():
    FOLD[_op] = lambda node, arrays, ufunc=_ufunc: ufunc(*arrays)
FOLD["Neg"] = lambda node, arrays: -arrays[0]
FOLD["Sqrt"] = lambda node, arrays: np.sqrt(arrays[0])
FOLD["Where"] = lambda node, arrays: np.where(*arrays)


@folds
def Div(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    a, b = arrays
    if a.dtype.kind not in "iu":
        return a / b
    # Integers are divided towards zero, of which numpy has no operator; sizes are never negative.
    return a // b if (a >= 0).all() and (b > 0).all() else None


@folds
def Cast(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    to = ir.DataType(node.attributes.get_int("to", 0))
    (x,) = arrays
    exact = to in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
    return x.astype(to.numpy()) if exact and np.isfinite(x).all() else None


@folds
def Gather(node: ir.Node, arrays: Arrays) -> np.ndarray:
    return np.take(arrays[0], arrays[1], node.attributes.get_int("axis", 0))


@folds
def Tile(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    x, repeats = arrays
    return np.tile(x, repeats.tolist()) if x.size * np.prod(repeats) <= MOST_NUMBERS else None


@folds
def Concat(node: ir.Node, arrays: Arrays) -> np.ndarray:
    return np.concatenate(arrays, node.attributes.get_int("axis", 0))


@folds
def Unsqueeze(node: ir.Node, arrays: Arrays) -> np.ndarray:
    return np.expand_dims(arrays[0], _axes(node, arrays))


@folds
def Squeeze(node: ir.Node, arrays: Arrays) -> np.ndarray:
    axes = _axes(node, arrays)
    return np.squeeze(arrays[0], axes or None)


def _axes(node: ir.Node, arrays: Arrays) -> tuple[int, ...]:
    """Axes, an input since opset 13 and an attribute before."""
    return tuple(arrays[1].tolist()) if len(arrays) > 1 else tuple(node.attributes.get_ints("axes", ()))


@folds
def Slice(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    if len(arrays) < 3:  # before opset 10 all are attributes
        return None
    x, starts, ends, *rest = arrays
    axes = rest[0].tolist() if rest else range(len(starts))
    steps = rest[1].tolist() if len(rest) > 1 else [1] * len(starts)
    if any(step < 0 and start < -x.shape[axis] for axis, start, step in zip(axes, starts, steps, strict=True)):
        return None  # Python begins before the first number there, ONNX at it
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        parts[axis] = slice(start, end, step)
    return x[tuple(parts)]


@folds
def ConstantOfShape(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    value = node.attributes.get("value")
    shape = arrays[0].tolist()
    filling = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    return np.full(shape, filling.ravel()[0], filling.dtype) if np.prod(shape) <= MOST_NUMBERS else None


@folds
def Expand(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    shape = np.broadcast_shapes(arrays[0].shape, tuple(arrays[1].tolist()))
    return np.broadcast_to(arrays[0], shape) if np.prod(shape) <= MOST_NUMBERS else None


@folds
def Reshape(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    if node.attributes.get_int("allowzero", 0):
        return None
    x, shape = arrays
    return x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(shape.tolist())])


@folds
def Transpose(node: ir.Node, arrays: Arrays) -> np.ndarray:
    return arrays[0].transpose(node.attributes.get_ints("perm", None))


@folds
def Range(node: ir.Node, arrays: Arrays) -> np.ndarray | None:
    start, limit, delta = (array.item() for array in arrays)
    if arrays[0].dtype.kind != "i" or not delta or (limit - start) / delta > MOST_NUMBERS:
        return None
    return np.arange(start, limit, delta).astype(arrays[0].dtype)
