"""The layers that reconstruction refits, in which order, and to which values of the dense model.

A layer is refitted to the dense model's output of the last thing that it can correct alone: its own output, that of
the BatchNormalization behind it, or the residual sum behind that, whose other branch is then taken as it is now (He
et al. 2017, section 3.2). So every sum makes good what its shortcut lost.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import dims
from onnxprune.plan.select import Selection
from onnxprune.recover.biases import output_of, read_bias
from onnxprune.recover.linear import Linear, linears, number, only_user, read_weights, stored_behind, users
from onnxprune.recover.refit import logits

MOST_FEATURES = 8192  # beyond, the matrix of a layer would be larger than half a gigabyte


@dataclass(frozen=True)
class Layer:
    """A linear node of the cut model that is refitted after all nodes of earlier waves.

    y: its output; target: the dense value that it is fitted to; other: the other term of the sum that is the target;
    kept: positions of the target's channels; rows: axis -> positions that are left of its other axes, where some went
    (a mixer mixes tokens, and loses channels); scale, shift: of the norm between y and the target, (O,) or None;
    counts: between which values the activation that alone reads the target is not flat, None where it has no such part.
    """

    linear: Linear
    wave: int
    y: str
    target: str
    kept: np.ndarray
    rows: Mapping[int, np.ndarray]
    other: str | None = None
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    counts: tuple[float, float] | None = None

    @property
    def x(self) -> str:
        """The name of the layer's input."""
        return self.linear.x.name or ""


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization of the cut model that no refitted layer stands before; kept: positions of its channels."""

    node: ir.Node
    wave: int
    kept: np.ndarray

    @property
    def x(self) -> str:
        """The name of the layer's input."""
        value = self.node.inputs[0]
        assert value is not None
        return value.name or ""


Item = Layer | Norm | logits.Logits


def find(selection: Selection, cut_model: ir.Model, gone: Collection[str] = ()) -> list[Item]:
    """All layers, norms, and products of queries and keys that read something changed.

    They come in an order in which what they read is ready. gone: nodes that no longer add what they added in the dense
    model.
    """
    nodes = linears(cut_model)
    changed = _changed(selection, cut_model, gone)
    depth: dict[ir.Value, int] = {}
    found: list[Item] = []
    normed: set[ir.Node] = set()
    for node in cut_model.graph:
        wave = max((depth.get(value, 0) for value in node.inputs if value is not None), default=0)
        item: Item | None = None
        if node.inputs and node.inputs[0] in changed:
            linear = nodes.get(node.name or "")
            if linear is not None:
                item = _layer(linear, wave, selection, depth)
            elif node.op_type == "BatchNormalization" and node not in normed and not _intact(node, nodes, changed):
                item = _norm(node, wave, selection)
            else:
                item = logits.find(node, wave, selection, nodes)
        if item is not None:
            found.append(item)
            wave += 1
            if isinstance(item, Layer) and item.scale is not None:
                behind = only_user(item.linear.y)
                assert behind is not None
                normed.add(behind)
        depth.update(dict.fromkeys(node.outputs, wave))
    return found


def waves(items: list[Item]) -> Iterator[list[Item]]:
    """Items that do not depend on one another, together."""
    for wave in sorted({item.wave for item in items}):
        yield [item for item in items if item.wave == wave]


def _intact(norm: ir.Node, nodes: Mapping[str, Linear], changed: set[ir.Value]) -> bool:
    """Whether what `norm` reads comes of a layer that only lost outputs: the others are as they were."""
    producer = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    return producer is not None and (producer.name or "") in nodes and producer.inputs[0] not in changed


def _changed(selection: Selection, cut_model: ir.Model, gone: Collection[str]) -> set[ir.Value]:
    """Values that differ from the dense model's: they lost positions, or come of something that did."""
    lost = {name for name, axes in selection.coupling.axes.items() if any(not selection.mask_of(a).all() for a in axes)}
    changed: set[ir.Value] = set()
    for node in cut_model.graph:
        # A layer that loses outputs only computes the others as before.
        if node.name in gone or any(v in changed for v in node.inputs if v is not None):
            changed.update(node.outputs)
        else:
            changed.update(value for value in node.outputs if value.name in lost)
    return changed


def _layer(linear: Linear, wave: int, selection: Selection, depth: Mapping[ir.Value, int]) -> Layer | None:
    """A layer with what reconstruction fits it to."""
    w = read_weights(linear)
    if w.shape[2] * w.shape[3] > MOST_FEATURES or read_bias(linear) is None or len(list(users(linear.stored))) > 1:
        return None
    out = output_of(linear)
    axes = selection.coupling.axes.get(out.name or "")
    if not axes:
        return None
    kept = selection.mask_of(axes[linear.y_axis])
    if int(kept.sum()) != w.shape[0] * w.shape[1]:
        return None
    masks = {k: selection.mask_of(a) for k, a in enumerate(axes) if k != linear.y_axis % len(axes)}
    rows = {k: np.flatnonzero(mask) for k, mask in masks.items() if not mask.all()}
    if any(dims.is_dynamic(axes[k]) for k in rows):
        return None
    scale = shift = None
    value, norm = out, only_user(out)
    if norm is not None and norm.op_type == "BatchNormalization":
        affine = _affine(norm)
        if affine is not None:
            scale, shift = affine
            value = norm.outputs[0]
    total, other = _sum_behind(value, wave, depth)
    target = total if total is not None else value
    return Layer(linear, wave, out.name or "", target.name or "", kept, rows, other, scale, shift, _counts(target))


def _counts(value: ir.Value) -> tuple[float, float] | None:
    """Between which values the activation that alone reads `value` is not flat; None where it is nowhere flat."""
    node = only_user(value)
    if node is None:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type == "HardSwish":
        return -3.0, np.inf
    if node.op_type == "HardSigmoid":
        slope, middle = number(node, "alpha", 0.2), number(node, "beta", 0.5)
        return (-middle / slope, (1 - middle) / slope) if slope > 0 else None
    return _clipped(node) if node.op_type == "Clip" else None


def _clipped(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Clip, which old models have as attributes; None where they are computed."""
    found = [number(node, "min", -np.inf), number(node, "max", np.inf)]
    for k, value in enumerate(node.inputs[1:3]):
        stored = stored_behind(value) if value is not None else None
        if value is not None and stored is None:
            return None
        if stored is not None:
            found[k] = float(graph.array_of(stored).reshape(()))
    return found[0], found[1]


def _affine(norm: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift) of a BatchNormalization with stored statistics, None where a channel is all but switched off."""
    stored = [stored_behind(value) for value in norm.inputs[1:5]]
    if any(value is None for value in stored) or number(norm, "training_mode", 0):
        return None
    gamma, beta, mean, var = (np.asarray(graph.array_of(v), np.float64) for v in stored if v is not None)
    scale = gamma / np.sqrt(var + number(norm, "epsilon", 1e-5))
    if np.abs(scale).min(initial=np.inf) < 1e-4:
        return None
    return scale, beta - mean * scale


def _sum_behind(value: ir.Value, wave: int, depth: Mapping[ir.Value, int]) -> tuple[ir.Value | None, str | None]:
    """(the sum that `value` alone goes into, its other term), where that term is ready in this wave."""
    node = only_user(value)
    if node is None or node.op_type != "Add":
        return None, None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or other is value or other.is_initializer() or depth.get(other, wave + 1) > wave:
        return None, None
    if value.shape is None or other.shape is None or list(value.shape)[1:] != list(other.shape)[1:]:
        return None, None
    return node.outputs[0], other.name


def _norm(node: ir.Node, wave: int, selection: Selection) -> Norm | None:
    axes = selection.coupling.axes.get(node.outputs[0].name or "")
    stored = [stored_behind(value) for value in node.inputs[3:5]]
    if not axes or any(value is None for value in stored) or number(node, "training_mode", 0):
        return None
    return Norm(node, wave, selection.mask_of(axes[1]))
