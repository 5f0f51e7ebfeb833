"""Where masking is exact: which values are zero at silenced positions.

The mask sets the slices of initializers to zero. A channel is *silent* in a value when it is then zero there.
Most consumers ignore a channel anyway, because their own slice is zero too. Those that sum over it without a
slice of their own (a product of two activations, a sum over channels) need it to be silent; where it is not, the
Dim is marked `reduced`, and the masked twin computes that node over kept positions only.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import dims
from onnxprune.coupling.dims import Axis, Dim, Reason
from onnxprune.graph import bodies, states

if TYPE_CHECKING:
    from onnxprune.coupling.analyze import Analysis

Silent = frozenset[Dim]
NOTHING: Silent = frozenset()

# f(0) = 0, or the operator only moves values, or averages and picks among them.
PRESERVING = frozenset(
    (
        "Abs Asin Asinh Atan Atanh Cast CastLike Ceil Celu Elu Erf Floor Gelu HardSwish Identity LeakyRelu Mish Neg "
        "PRelu Relu Round Selu Sign Sin Sinh Softsign Sqrt Swish Tan Tanh Dropout Shrink ThresholdedRelu QuickGelu "
        "Reshape Flatten Squeeze Unsqueeze Transpose Split Slice Tile Expand DepthToSpace SpaceToDepth Concat MaxPool "
        "AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize Upsample GridSample RoiAlign Col2Im "
        "ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceProd CumSum Trilu TopK Add "
        "Sub Sum Max Min Mean Or Xor Where BiasGelu FastGelu Gather GatherElements GatherND ScatterND "
        "ScatterElements Scatter LRN LpNormalization QuantizeLinear DequantizeLinear DynamicQuantizeLinear "
        "InstanceNormalization GroupNormalization LayerNormalization RMSNormalization SimplifiedLayerNormalization "
        "SkipLayerNormalization SkipSimplifiedLayerNormalization EmbedLayerNormalization RotaryEmbedding DFT STFT "
        "Compress ReverseSequence"
    ).split()
)
ANY = frozenset(("Mul", "And"))  # one silent operand silences the result
CONTRACTING = frozenset("MatMul Gemm Einsum FusedMatMul FusedGemm MatMulInteger".split())
# The inputs whose silence, all together, silences the result: the weights, and what is added.
PRODUCING = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvInteger": (1,),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "DynamicQuantizeMatMul": (1, 4),
    "FusedConv": (1, 2, 3),
    "MatMulIntegerToFloat": (1, 6),
    "MatMulNBits": (1, 2, 5),
    "MoE": (4, 5),
    "QMoE": (6, 7),  # where scales are zero so are the weights
}
# No number, or none that is exact, comes from zeros.
POLES = frozenset("Reciprocal Log Acosh ReduceLogSum MeanVarianceNormalization".split())
# Activations inside recurrent and fused operators that map zero to zero.
KEEPING_ZERO = frozenset("Tanh Relu ScaledTanh LeakyRelu ThresholdedRelu Softsign Elu".split())
ATTENTION = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"))


def mark_reduced(analysis: Analysis) -> None:
    """Marks Dims that some node sums over without being silent there, and divisors that the mask makes zero."""
    walk = _Walk(analysis)
    for node in analysis.model.graph:
        walk.visit(node)
    for node, axis, inputs in analysis.contractions:
        walk.require(node, axis, *(walk.of(node, index) for index in inputs))
    for name, index, position in analysis.lifts:
        node = walk.nodes[name]
        walk.require(node, walk.axes(node, index)[position], walk.of(node, index))


class _Walk:
    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.silent: dict[ir.Value, Silent] = {}
        self.nodes = {node.name or "": node for node in bodies.all_nodes(analysis.model.graph)}

    def axes(self, node: ir.Node, index: int) -> list[Axis]:
        value = node.inputs[index]
        return self.analysis.axes.get(value, []) if value is not None else []

    def of(self, node: ir.Node, index: int) -> Silent:
        """Dims in which input `index` is zero once they are silenced."""
        return self.of_value(node.inputs[index] if index < len(node.inputs) else None)

    def of_value(self, value: ir.Value | None) -> Silent:
        """Dims in which `value` is zero once they are silenced."""
        if value is None:
            return NOTHING
        if value not in self.silent and value.is_initializer():
            self.silent[value] = frozenset(_free(self.analysis.axes.get(value, [])))
        return self.silent.get(value, NOTHING)

    def present(self, node: ir.Node) -> list[int]:
        return [index for index, value in enumerate(node.inputs) if value is not None]

    def require(self, node: ir.Node, axis: Axis, *silent: Silent) -> None:
        for dim in dims.leaves(axis):
            if dim.frozen is None and not any(dim in operand for operand in silent):
                if dim.reduced is None:
                    dim.reduced = Reason(f"{node.op_type}: sums over positions that are not zero", node.name or "")
                self.analysis.local.add(node.name or "")

    def visit(self, node: ir.Node) -> None:
        """Finds the Dims on which the outputs of `node` are zero at positions that its inputs have zero."""
        if any(value not in self.analysis.axes for value in node.outputs if value.name):
            return
        if bodies.of(node):
            self._visit_bodies(node)
            return
        out = frozenset(_free(axis for value in node.outputs for axis in self.analysis.axes.get(value, [])))
        if not out and not self._needs_check(node):
            return
        result = self._result(node, out)
        for value in node.outputs:
            self.silent[value] = result

    def _visit_bodies(self, node: ir.Node) -> None:
        """An output of an If is silent where it is in both branches, a state where what it starts from is, and what a
        step makes of it: what is silent at first may not be so after a step, so that steps are followed until it is."""
        if node.op_type == "If":
            branches = bodies.of(node)
            for branch in branches:
                self._walk(branch)
            for index, output in enumerate(node.outputs):
                first, *rest = (self.of_value(branch.outputs[index]) for branch in branches)
                self.silent[output] = first.intersection(*rest)
            return
        body = bodies.of(node)[0]
        skipped = 2 if node.op_type == "Loop" else 0  # the number of the step and a condition
        given, made = body.inputs[skipped:], body.outputs[1 if skipped else 0 :]
        for inner, value in zip(given, node.inputs[skipped:], strict=True):
            self.silent[inner] = self.of_value(value)
        states = len(given) - (0 if skipped else node.attributes["num_scan_inputs"].as_int())
        while True:
            self._walk(body)
            after = [
                self.silent[inner] & self.of_value(value) for inner, value in zip(given[:states], made, strict=False)
            ]
            if after == [self.silent[inner] for inner in given[:states]]:
                break
            self.silent.update(zip(given[:states], after, strict=True))
        for output, value in zip(node.outputs, made, strict=True):
            self.silent[output] = self.of_value(value)
        self.silent.update(zip(node.outputs[:states], after, strict=True))

    def _walk(self, body: ir.Graph) -> None:
        for node in body:
            for value in node.outputs:
                self.silent.pop(value, None)  # of an earlier step
            self.visit(node)

    def _needs_check(self, node: ir.Node) -> bool:
        return node.op_type in CONTRACTING

    def _result(self, node: ir.Node, out: Silent) -> Silent:
        """The Dims among `out` on which `node` gives zero where what it reads is zero, by its operator."""
        op = node.op_type
        fused = node.attributes.get("activation")
        if fused is not None and fused.value and fused.value not in KEEPING_ZERO:
            return NOTHING
        if op in CONTRACTING:
            return self._contracting(node, out)
        if op in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
            return self._recurrent(node, out)
        if op in PRODUCING:
            return out.intersection(*(self.of(node, k) for k in self.present(node) if k in PRODUCING[op]))
        if op in ATTENTION:
            return self._attention(node, out)
        if states.side(node):
            return self._union(node, out, (0, 1))  # false flags silence; other axes are as they were
        if op in ANY:
            return self._union(node, out, self.present(node))
        if op in POLES or op in ("Div", "Pow", "Mod"):
            return self._pole(node, out)
        if op == "Clip":
            return self.of(node, 0) if self._clip_keeps_zero(node) else NOTHING
        if op == "Pad":
            return (
                self.of(node, 0) | (out - frozenset(_free(self.axes(node, 0))))
                if _pads_zero(node)
                else self.of(node, 0)
            )
        if op in PRESERVING:
            return self._all(node, out)
        return NOTHING

    def _union(self, node: ir.Node, out: Silent, inputs: Iterable[int]) -> Silent:
        return out.intersection(chain.from_iterable(self.of(node, index) for index in inputs))

    def _all(self, node: ir.Node, out: Silent) -> Silent:
        """Silent in every floating input: in one that lacks the Dim it would be broadcast, unless it is zero."""
        inputs = [index for index in self.present(node) if self._carries(node, index)]
        if node.op_type in ("Concat",):
            relevant = [(self.of(node, i), frozenset(_free(self.axes(node, i)))) for i in inputs]
            return frozenset(d for d in out if all(d in silent for silent, own in relevant if d in own))
        result = out
        for index in inputs:
            result = result & self.of(node, index)
        return result

    def _carries(self, node: ir.Node, index: int) -> bool:
        """Whether input `index` carries values rather than positions, sizes, conditions or scales."""
        op = node.op_type
        if op == "Where":
            return index > 0
        if op in ("ScatterND", "ScatterElements", "Scatter", "LayerNormalization"):
            return index in (0, 2)
        if op == "EmbedLayerNormalization":
            return index in (2, 3, 4, 5, 6)
        if op in ("Add", "Sub", "Sum", "Max", "Min", "Mean", "Or", "Xor", "BiasGelu", "FastGelu", "Concat"):
            return not (op != "Concat" and _is_zero(node.inputs[index]))
        if op.startswith("Skip"):
            return index in (0, 1, 3, 4)
        return index == 0

    def _attention(self, node: ir.Node, out: Silent) -> Silent:
        """Silent values, earlier ones included, give a silent result."""
        projects = node.domain and node.op_type in ("Attention", "QAttention")
        silent = self._union(node, out, (1,) if projects else (2,))
        past = max(states.of_operator(node).values(), default=len(node.inputs))
        return silent & self.of(node, past) if past in self.present(node) else silent

    def _contracting(self, node: ir.Node, out: Silent) -> Silent:
        operands = self.present(node) if node.op_type == "Einsum" else [0, 1]
        silent = [self.of(node, index) for index in operands]
        contracted = frozenset(_free(axis for index in operands for axis in self.axes(node, index))) - out
        for dim in contracted:
            self.require(node, ((dim,),), *silent)
        result = out.intersection(chain.from_iterable(silent))
        if node.op_type in ("Gemm", "FusedGemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
            result &= self.of(node, 2)
        return result

    def _recurrent(self, node: ir.Node, out: Silent) -> Silent:
        """Zero weights leave zero states, if activations map zero to zero and the first states are zero too."""
        activations = node.attributes.get("activations")
        if activations is not None:
            # The first of each direction's functions is that of the gates, which multiply; RNN has no gates.
            count, gates = {"GRU": (2, 1), "RNN": (1, 0)}.get(node.op_type, (3, 1))
            used = {name for k, name in enumerate(activations.as_strings()) if k % count >= gates}
            if not used <= KEEPING_ZERO:
                return NOTHING
        states = [index for index in (5, 6) if index < len(node.inputs) and node.inputs[index] is not None]
        return self._union(node, out, (1,)).intersection(*(self.of(node, index) for index in states))

    def _pole(self, node: ir.Node, out: Silent) -> Silent:
        """x / y, x ** y, log(x) and their like, where a masked, hence zero, operand gives no number: kept ones only."""
        power = graph.constant(node.inputs[1]) if node.op_type == "Pow" else None
        bad = NOTHING
        if node.op_type in POLES or (power is not None and bool((power <= 0).any())):
            bad = self.of(node, 0) & out
        if node.op_type in ("Div", "Pow", "Mod"):
            bad |= self.of(node, 1) & out
        for dim in bad:
            self.require(node, ((dim,),))
        # What is computed over kept positions alone is zero elsewhere.
        return bad if node.op_type in POLES else bad | self.of(node, 0)

    def _clip_keeps_zero(self, node: ir.Node) -> bool:
        low, high = (_bound(node, name, index) for name, index in (("min", 1), ("max", 2)))
        return (low is None or low <= 0) and (high is None or high >= 0)


def _free(axes: Iterable[Axis]) -> Iterable[Dim]:
    return (dim for axis in axes for dim in dims.leaves(axis) if dim.frozen is None)


def _is_zero(value: ir.Value | None) -> bool:
    array = graph.constant(value)
    return array is not None and array.size <= 4096 and not np.any(array)


def _pads_zero(node: ir.Node) -> bool:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return _is_zero(node.inputs[2])
    attribute = node.attributes.get("value")
    return attribute is None or attribute.value == 0


def _bound(node: ir.Node, name: str, index: int) -> float | None:
    attribute = node.attributes.get(name)
    if attribute is not None:
        return float(attribute.value)
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    array = graph.constant(node.inputs[index])  # a scalar by the standard, but onnxruntime takes shape [1] as well
    return float(array.item()) if array is not None and array.size == 1 else float("nan")
