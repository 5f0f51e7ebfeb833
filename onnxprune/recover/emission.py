"""Constants that removed units emit, estimated where there are no samples.

- Behind a normalization a channel is about normal with mean beta and deviation |gamma|: the model is run with noise
  in front of every normalization, and what its activations make of that is averaged.
- A unit whose kernels are zero, or nearly so, emits sigma(b).
- Of any other unit nothing is known. sigma(b) is then worse than silence (measured on folded ResNet-20 and the digits
  models: the error of the outputs grew in most cases), so it counts as silent.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, dims, unit_positions
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover.biases import has_bias, read_bias, write_bias
from onnxprune.recover.linear import Linear, linears, number, stored_behind

NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"})
DEAD = 0.05  # of the median norm of a kernel's units: below, a unit's input hardly moves it
RUNS = 8


def silenced(selection: Selection) -> ir.Model:
    """The dense model in which dropped units have zero kernels, live ones among them zero biases too, and noise
    stands before each normalization."""
    model = graph.copy(selection.coupling.model)
    live: dict[Dim, np.ndarray] = {}
    nodes = list(linears(model).values())
    for linear in sorted(nodes, key=_depthwise):  # what a depthwise node emits depends on the unit that feeds it
        _silence(model, linear, selection, live)
    seed = 0
    for node in list(model.graph):
        if node.op_type in NORMS and _takes_noise(node):
            seed += 1
            _feed_noise(model, node, seed)
    return model


def noise_feeds(model: ir.Model, coupling: Coupling) -> Iterator[Mapping[str, np.ndarray]]:
    """Random inputs; every run draws other noise. Without a normalization what is known is the same in each run."""
    noisy = any(node.op_type in NORMS for node in model.graph)
    for seed in range(RUNS if noisy else 1):
        yield comparison.random_feeds(model, coupling.shapes, seed)[0]


def _silence(model: ir.Model, linear: Linear, selection: Selection, live: dict[Dim, np.ndarray]) -> None:
    """Zeroes dropped units of one node; notes in `live` the units that say something, and makes their biases zero."""
    axes = selection.coupling.axes.get(linear.stored.name or "")
    if not axes:
        return
    axis = linear.outputs(len(axes))
    dropped = ~selection.mask_of(axes[axis])
    if not dropped.any():
        return
    array = graph.array_of(linear.stored)
    rows = np.moveaxis(array, axis, 0)
    norms = np.linalg.norm(rows.reshape(len(rows), -1).astype(np.float32), axis=1)
    if not _depthwise(linear):
        graph.change(linear.stored, array.shape, partial(_without, axis, dropped))
        _note(live, axes[axis], dropped & (norms > DEAD * np.median(norms)))
    b = read_bias(linear)
    alive = dropped & ~dims.keep_mask(axes[axis], {dim: ~units for dim, units in live.items()})
    if _depthwise(linear):  # a kernel of zeros emits its bias, whatever feeds it
        alive &= norms > 0
    if b is not None and len(b) == len(alive) and alive.any() and has_bias(linear):
        write_bias(model, linear, np.where(alive, 0.0, b))


def _without(axis: int, dropped: np.ndarray, array: np.ndarray) -> np.ndarray:
    """`array` with zeros at the `dropped` positions of `axis`."""
    array = array.copy()
    np.moveaxis(array, axis, 0)[dropped] = 0
    return array


def _note(live: dict[Dim, np.ndarray], axis: dims.Axis, positions: np.ndarray) -> None:
    for dim in dict.fromkeys(dims.leaves(axis)):
        units = unit_positions(axis, dim)
        live.setdefault(dim, np.zeros(dim.size, bool))[units[positions & (units >= 0)]] = True


def _depthwise(linear: Linear) -> bool:
    shape = graph.array_of(linear.stored).shape
    return linear.kind == "convolution" and shape[linear.inputs(len(shape))] == 1 and linear.groups > 1


def _takes_noise(node: ir.Node) -> bool:
    x = node.inputs[0]
    known = x is not None and x.dtype in (ir.DataType.FLOAT, None) and x.producer() is not None
    if node.op_type != "BatchNormalization":
        return known
    stored = (stored_behind(value) for value in node.inputs[3:5])
    return known and all(value is not None for value in stored)


def _feed_noise(model: ir.Model, node: ir.Node, seed: int) -> None:
    """`node` reads standard normal noise; a BatchNormalization with mean 0 and variance 1 then gives gamma z + beta."""
    attributes = {"seed": ir.AttrFloat32("seed", float(seed)), "dtype": ir.AttrInt64("dtype", 1)}
    noise = ir.Node("", "RandomNormalLike", [node.inputs[0]], attributes, name=f"{node.name}.noise")
    noise.outputs[0].name = f"{node.name}.noise"
    model.graph.insert_before(node, [noise])
    node.replace_input_with(0, noise.outputs[0])
    if node.op_type == "BatchNormalization":
        epsilon = number(node, "epsilon", 1e-5)
        for slot, value in ((3, 0.0), (4, 1.0 - epsilon)):
            stored = stored_behind(node.inputs[slot])
            assert stored is not None
            graph.set_constant(stored, np.full_like(graph.array_of(stored), value))
