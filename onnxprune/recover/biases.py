"""The bias of a linear node: read, added to, or made where there is none.

A bias that was made is a place that the dense model lacks: `carry` gives it to the masked twin of a recovered model.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.graph import extras
from onnxprune.plan.select import Selection
from onnxprune.recover.linear import Linear, linears, number, only_user, stored_behind, users


def bias_add(linear: Linear) -> ir.Node | None:
    """The Add that gives a layer its bias that reads none itself, or None."""
    node = only_user(linear.y)
    if linear.weights.bias is not None or node is None or node.op_type != "Add":
        return None
    other = node.inputs[1] if node.inputs[0] is linear.y else node.inputs[0]
    stored = stored_behind(other)
    if stored is None:
        return None
    shape = graph.array_of(stored).shape
    return node if shape and shape[-1] == linear.width == np.prod(shape) else None


def output_of(linear: Linear) -> ir.Value:
    """The value that holds W x + b."""
    add = bias_add(linear)
    return linear.y if add is None else add.outputs[0]


def read_bias(linear: Linear) -> np.ndarray | None:
    """b (O,) float32, zeros where there is none, None where it is computed, shared or differs from row to row."""
    value, factor = _slot(linear)
    if value is None:
        return np.zeros(linear.width, np.float32)
    stored = stored_behind(value)
    if stored is None or len(list(users(stored))) > 1:
        return None
    array = np.asarray(graph.array_of(stored), np.float32) * np.float32(factor)
    if array.size not in (1, linear.width) or (array.size > 1 and array.shape[-1] != array.size):
        return None
    return np.broadcast_to(array.reshape(-1), (linear.width,)).copy()


def add_to_bias(model: ir.Model, linear: Linear, delta: np.ndarray) -> bool:
    """Adds delta (O,) to the output of `linear`; False where its bias is computed or shared."""
    b = read_bias(linear)
    if b is None or not takes_bias(linear):
        return False
    norm = _norm_behind(linear)
    if norm is not None and _slot(linear)[0] is None:
        mean = stored_behind(norm.inputs[3])
        assert mean is not None
        graph.set_constant(mean, graph.array_of(mean).astype(np.float32) - delta)
    else:
        write_bias(model, linear, b + delta)
    return True


def write_bias(model: ir.Model, linear: Linear, b: np.ndarray) -> None:
    """Sets b (O,), in the stored type; makes the bias where there is none."""
    value, factor = _slot(linear)
    stored = stored_behind(value)
    if stored is None or factor == 0:
        _make(model, linear, np.asarray(b, np.float32))  # which takes the factor away
        return
    b = np.asarray(b, np.float32) / np.float32(factor)
    shape = graph.array_of(stored).shape
    graph.set_constant(stored, b.reshape(shape if np.prod(shape) == b.size else (b.size,)))


def takes_bias(linear: Linear) -> bool:
    """Whether `linear` has a stored bias or a norm that can take one, or can be given one.

    A product of matrices without a bias cannot: with one it would be fused to another operator when the model is
    finished, and no longer be found under its name.
    """
    if linear.weights.bias is None and bias_add(linear) is None:
        return linear.y.shape is not None and len(linear.y.shape) > 2
    return read_bias(linear) is not None


def most_made(model: ir.Model) -> tuple[int, int]:
    """(biases, numbers in them) that recovery can at most give to linear nodes of `model` that have none."""
    widths = [
        linear.width
        for linear in linears(model).values()
        if not has_bias(linear) and _norm_behind(linear) is None and takes_bias(linear)
    ]
    return len(widths), sum(widths)


def carry(selection: Selection, cut_model: ir.Model, masked: ir.Model) -> int:
    """Gives `masked` the biases that `cut_model` has beyond it, zero at removed positions; how many."""
    made = 0
    for name, mine, theirs in _beyond(masked, cut_model):
        b = read_bias(theirs)
        kept = selection.mask_of(selection.coupling.axes[output_of(mine).name or ""][mine.y_axis])
        if b is None or int(kept.sum()) != len(b):
            raise VerificationError(
                f"{mine.node.op_type} '{name}': {0 if b is None else len(b)} biases were made for {kept.sum()} outputs"
            )
        full = np.zeros(len(kept), np.float32)
        full[kept] = b
        _make(masked, mine, full)
        made += 1
    return made


def _beyond(model: ir.Model, like: ir.Model) -> Iterator[tuple[str, Linear, Linear]]:
    """(name, node of model, node of like) where only the latter has a bias."""
    others = linears(like)
    for name, mine in linears(model).items():
        theirs = others.get(name)
        if theirs is not None and theirs.node.op_type == mine.node.op_type and not has_bias(mine) and has_bias(theirs):
            yield name, mine, theirs


def has_bias(linear: Linear) -> bool:
    """Whether the layer adds a bias."""
    return _slot(linear)[0] is not None


def _slot(linear: Linear) -> tuple[ir.Value | None, float]:
    """(the value that is the bias, the factor before it)."""
    if linear.weights.bias is None:
        add = bias_add(linear)
        if add is None:
            return None, 1.0
        return (add.inputs[1] if add.inputs[0] is linear.y else add.inputs[0]), 1.0
    return linear.bias, linear.beta


def _norm_behind(linear: Linear) -> ir.Node | None:
    """The BatchNormalization that alone reads the output of a convolution, its running mean stored."""
    node = only_user(linear.y)
    if not linear.spatial or node is None or node.op_type != "BatchNormalization":
        return None
    mean = stored_behind(node.inputs[3])
    return node if mean is not None and len(list(mean.uses())) == 1 and not number(node, "training_mode", 0) else None


def _make(model: ir.Model, linear: Linear, b: np.ndarray) -> None:
    """Adds a bias to a layer that has none."""
    node = linear.node
    dtype = linear.weight.dtype or linear.y.dtype or linear.stored.dtype
    assert dtype is not None
    value = graph.add_constant(model.graph, f"{node.name}.bias", b.astype(dtype.numpy()))
    index = linear.weights.bias
    if index is None:
        _insert_add(model, linear, value)
        return
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    if linear.weights.beta is not None:
        node.attributes.pop(linear.weights.beta, None)


def _insert_add(model: ir.Model, linear: Linear, bias: ir.Value) -> None:
    """y = MatMul + bias under the name that y had, so that graph outputs keep theirs."""
    y = linear.y
    name, uses, is_output = y.name, list(y.uses()), y.is_graph_output()
    add = ir.Node("", "Add", [y, bias], name=f"{linear.name}.add_bias")
    total = add.outputs[0]
    total.shape, total.type = y.shape, y.type
    model.graph.insert_after(linear.node, [add])
    for node, slot in uses:
        node.replace_input_with(slot, total)
    if is_output:
        model.graph.outputs[:] = [total if value is y else value for value in model.graph.outputs]
    y.name, total.name = f"{name}.product", name
    held = extras.of(model)
    if name is not None and name in held.kept:  # a masked model: the product loses what the sum does
        extras.put(model, replace(held, kept={**held.kept, f"{name}.product": held.kept[name]}))
