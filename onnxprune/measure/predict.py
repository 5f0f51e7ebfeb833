"""Latency of a plan before it is made: the measured time of each node, scaled by what the plan leaves of its work.

    t(plan) = sum over nodes of t(node) * macs(node, plan) / macs(node)

Nodes without MACs scale with the size of their output. onnxruntime fuses and renames; a fused node is known by the
value that it writes, and does the work of the node with MACs behind it. What it adds itself does not shrink.
It says where a search should look; what is promised is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxprune.coupling import Coupling, Dim, Keep, dims
from onnxprune.measure.records import NodeTime
from onnxprune.plan.cost import Cost, keep_sizes

BLOCKED = "_nchwc"  # what onnxruntime's CPU layout adds to the names of values
FUSED = 6  # nodes at most between a value and the node with MACs that was fused into its producer


@dataclass(frozen=True)
class NodeTable:
    """Microseconds by node of the model, and of what belongs to none."""

    microseconds: Mapping[str, float]
    fixed: float
    coupling: Coupling
    cost: Cost

    def ratio(self, keep: Keep) -> float:
        """Predicted time of the plan divided by that of the whole model."""
        kept = keep_sizes(keep)
        sizes = {**self.cost.reference, **kept}
        macs = {term.name: term for term in self.cost.terms["macs"]}
        spent = self.fixed
        for node in self.coupling.model.graph:
            time = self.microseconds.get(node.name or "", 0.0)
            term = macs.get(node.name or "")
            if time and term is not None:
                time *= term.value(sizes) / (term.value(self.cost.reference) or 1.0)
            elif time:
                time *= self._output_left(node, kept)  # axes that no plan shrinks, such as the batch, stay as they are
            spent += time
        return spent / self.total

    @property
    def total(self) -> float:
        """The time of the whole original, in microseconds."""
        return self.fixed + sum(self.microseconds.values())

    def _output_left(self, node: ir.Node, sizes: Mapping[Dim, int]) -> float:
        axes = self.coupling.axes.get(node.outputs[0].name or "", ()) if node.outputs else ()
        return prod(dims.kept_length(axis, sizes) / max(1, dims.length(axis)) for axis in axes)


def node_table(coupling: Coupling, cost: Cost, times: tuple[NodeTime, ...]) -> NodeTable:
    """Measured times of a normalized model, as `profile` gives them, by the nodes whose work they are."""
    nodes = {node.name or "": node for node in coupling.model.graph.all_nodes()}
    makers = {out.name or "": node for node in nodes.values() for out in node.outputs}
    macs = {term.name for term in cost.terms["macs"]}
    spent: dict[str, float] = {}
    fixed = 0.0
    for entry in times:
        name = entry.node if entry.node in nodes else _fused(entry.node, makers, macs)
        if name is None:
            fixed += entry.microseconds
        else:
            spent[name] = spent.get(name, 0.0) + entry.microseconds
    return NodeTable(spent, fixed, coupling, cost)


def _fused(written: str, makers: Mapping[str, ir.Node], macs: set[str]) -> str | None:
    """The node with MACs whose result, after what was fused into it, is the value that `written` names."""
    found = makers.get(written.removesuffix(BLOCKED))
    for _ in range(FUSED):
        if found is None or found.name in macs:
            break
        # A residual sum is fused into the convolution on whichever side comes later; the first side with one will do.
        behind = (makers.get(value.name or "") for value in found.inputs if value is not None)
        found = next((node for node in behind if node is not None), None)
    return found.name if found is not None else None


def share_for(table: NodeTable, wanted: float, plan: Callable[[float], Keep | None], steps: int = 10) -> float:
    """The largest share of MACs whose plan is predicted to take `wanted` of the time; plan: None where none is."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        share = (low + high) / 2
        keep = plan(share)
        if keep is not None and table.ratio(keep) > wanted:
            high = share
        else:
            low = share
    return (low + high) / 2
