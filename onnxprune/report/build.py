"""The report of a run, put together from what its steps made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune import report
from onnxprune.coupling import Coupling, Dim, Member
from onnxprune.coupling.analyze import RAISED
from onnxprune.coupling.layers import layer_of
from onnxprune.graph import bodies, extras
from onnxprune.measure import machine, tool
from onnxprune.outputs.kinds import Outputs
from onnxprune.plan import cost, plan
from onnxprune.plan.cost import Cost
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.system.words import counted

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History


def describe(
    coupling: Coupling,
    costs: Cost,
    outputs: Outputs,
    made: plan.Plan,
    models: tuple[report.Measurement, ...],
    ratios: tuple[report.LatencyRatio, ...],
    proof: comparison.Verification,
    history: History | None,
    steps: Sequence[report.Step],
    notes: Sequence[str],
    packed: report.Packing | None = None,
    quantized: Mapping[str, Any] | None = None,
    *,
    gone: Sequence[report.Layer] = (),
    command: str = "",
    data: Any = None,
) -> report.Report:
    """Everything that a reader needs to judge a run and to repeat it; command and data: as they were given.

    gone: layers of blocks that went as a whole.
    """
    return report.Report(
        command,
        models,
        ratios,
        proof,
        (*layers(plan.selection_of(made, coupling), costs), *gone),
        tuple(report.Frozen(dim.name, str(dim.frozen), dim.size) for dim in frozen_dims(coupling)),
        tuple(steps),
        _tuning_points(history),
        plan={
            "dims": [{"name": d.name, "before": d.size, "after": len(d.keep), "exact": d.exact} for d in made.dims],
            **({"blocks": [block.name for block in made.blocks]} if made.blocks else {}),
        },
        pack=packed,
        outputs=tuple(outputs.as_json()),
        quantize=quantized,
        method=made.method,
        seed=made.seed,
        settings=made.settings,
        data=_told(data),
        notes=tuple(notes),
        tool=tool(),
        machine=machine(),
    )


def _told(data: Any) -> str | None:
    """The name of samples in reports: their file or function, the type of those that Python handed over."""
    return None if data is None else str(data) if isinstance(data, str | Path) else type(data).__name__


def _tuning_points(history: History | None) -> tuple[report.TuningPoint, ...]:
    if history is None:
        return ()
    start = report.TuningPoint(0, None, history.initial)
    ends = (k + (1 if e.share == 1 else round(e.share, 3)) for k, e in enumerate(history.epochs))
    return (
        start,
        *(report.TuningPoint(end, e.loss, e.metric, e.lr) for end, e in zip(ends, history.epochs, strict=True)),
    )


def layers(selection: Selection, costs: Cost) -> tuple[report.Layer, ...]:
    """Every node with MACs and a weight, before and after."""
    coupling, sizes = selection.coupling, cost.keep_sizes(selection.keep)
    before, after = costs.by_node(), costs.by_node(sizes)
    rows: list[report.Layer] = []
    for node in coupling.model.graph.all_nodes():
        weight = next(
            (v for v in node.inputs[1:] if v is not None and len(coupling.axes.get(v.name or "", ())) > 1), None
        )
        if node.name not in before or weight is None:
            continue
        axes = coupling.axes[weight.name or ""]
        names = tuple(d.name for axis in axes for d in dict.fromkeys(cost.dims.leaves(axis)) if d.frozen is None)
        rows.append(
            report.Layer(
                node.name or "",
                node.op_type,
                names,
                tuple(cost.dims.length(axis) for axis in axes),
                tuple(cost.dims.kept_length(axis, sizes) for axis in axes),
                before[node.name or ""],
                after[node.name or ""],
                _produced_axis(node, len(axes)),
            )
        )
    return tuple(rows)


def layers_gone(coupling: Coupling, costs: Cost, left: ir.Model) -> tuple[report.Layer, ...]:
    """The layers of a whole model that are not in what is `left` of it: nothing of them stays."""
    names = {node.name for node in left.graph.all_nodes()}
    return tuple(
        replace(row, after=(0,) * len(row.before), macs_after=0)
        for row in layers(Selection(coupling, {}), costs)
        if row.node not in names
    )


def _produced_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of output channels of a node's weight, which has `rank` axes; None where that is not known."""
    layer = layer_of(node)
    return None if layer is None else layer.outputs(rank)


def fallbacks(coupling: Coupling) -> list[str]:
    """Notes on what failed and was replaced by a lesser way: steps of the normal form, and coupling rules."""
    raised = [str(dim.frozen) for dim in coupling.dims if dim.frozen is not None and RAISED in str(dim.frozen)]
    rules = [f"a coupling rule failed, so that what it stands for is left as it is: {reason}" for reason in raised]
    return list(dict.fromkeys([*extras.of(coupling.model).notes, *rules]))


STANDARD = ("", "ai.onnx")


def why_nothing(coupling: Coupling, most: int = 3) -> list[str]:
    """Why nothing of a model is free, the reasons for most positions first."""
    dims = frozen_dims(coupling) or [dim for dim in coupling.dims if dim.frozen]
    counts: Counter[str] = Counter()
    for dim in dims:
        counts[str(dim.frozen).split(" (")[0]] += dim.size
    reasons = [reason for reason, _ in counts.most_common(most)]
    unseen = [node for node in coupling.model.graph.all_nodes() if not all(map(coupling.sees, bodies.of(node)))]
    if unseen:
        count = sum(1 for node in unseen for _ in bodies.nodes_inside(node))
        first = f"{unseen[0].op_type} '{unseen[0].name}'"
        reasons.append(f"{counted(count, 'node')} in bodies of control flow (such as {first}) did not run")
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in coupling.model.graph if node.domain not in STANDARD})
    unknown = f" ({', '.join(foreign[:3])})" if foreign else ""
    return reasons or [f"no operator has weights that can shrink{unknown}"]


def frozen_dims(coupling: Coupling) -> list[Dim]:
    """Dims that someone might expect to be pruned: those of weights, stored as numbers or as integers."""
    stored = {node.name for node in coupling.model.graph if node.op_type == "DequantizeLinear"}

    def is_weight(member: Member) -> bool:
        return member.role in ("produces", "consumes") or (member.node in stored and member.input == 0)

    return [dim for dim in coupling.dims if dim.frozen is not None and any(map(is_weight, coupling.members[dim]))]
