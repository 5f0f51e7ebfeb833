"""The report of 'inspect': what can be pruned, what not and why, and what each layer costs, as data and as a table."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune import graph
from onnxprune.coupling import Coupling, analyze
from onnxprune.graph import shapes
from onnxprune.options import Options
from onnxprune.outputs import kinds
from onnxprune.outputs.describe import describe
from onnxprune.plan import cost
from onnxprune.plan.cost import Cost
from onnxprune.plan.select import Selection
from onnxprune.proof import normal_form
from onnxprune.report import build, text, widths
from onnxprune.run.subject import load_data, sample_shapes
from onnxprune.surgery import blocks
from onnxprune.system.words import counted


def inspect_file(path: Path, options: Options) -> dict[str, Any]:
    """Everything that is known of the model in the file at `path`, ready for JSON."""
    loaded = graph.load(path)
    model = graph.normalize(loaded)
    tune, held = load_data(model, options)
    given = sample_shapes(model, tune or held)
    model, observed = normal_form.proven(loaded, *normal_form.observed_form(loaded, model, given), given)
    outputs = describe(model, tune or held, sizes=observed.sizes, overrides=options.kinds)
    return inspect(model, observed, outputs, original=loaded)


def inspect(
    model: ir.Model,
    observed: shapes.Shapes | None = None,
    outputs: kinds.Outputs | None = None,
    *,
    original: ir.Model | None = None,
) -> dict[str, Any]:
    """All that is known of a normalized model's outputs, Dims and cost, ready for JSON; `original` is counted."""
    observed = observed or shapes.observe(model)
    coupling = analyze(model, observed)
    outputs = outputs or describe(model, sizes=observed.sizes)
    costs = cost.of(coupling, original)
    wide = widths.outputs(coupling)
    return {
        "format": "onnxprune-inspect/1",
        "model": {"sha256": graph.digest(model), "nodes": len(list(model.graph)), **costs.totals()},
        "outputs": outputs.as_json(),
        "shrinkable": shrinkable(coupling, costs),
        "dims": [_dim(coupling, costs, dim) for dim in coupling.free],
        "blocks": list(_blocks(coupling, costs)),
        "notes": build.fallbacks(coupling),
        "nothing": [] if coupling.free else build.why_nothing(coupling),
        "frozen": [
            {
                "dim": dim.name,
                "size": dim.size,
                "reason": str(dim.frozen),
                "node": dim.frozen.node if dim.frozen else "",
            }
            for dim in build.frozen_dims(coupling)
        ],
        "layers": [
            {
                "node": row.node,
                "op": row.op,
                "dims": list(row.dims),
                "weight": list(row.before),
                "macs": row.macs_before,
                **wide.get(row.node, {}),
            }
            for row in build.layers(Selection(coupling, {}), costs)
        ],
    }


def shrinkable(coupling: Coupling, costs: Cost) -> dict[str, float]:
    """Share of parameters and MACs that depend on a free Dim."""
    free = set(coupling.free)
    shares: dict[str, float] = {}
    for kind in ("params", "macs"):
        terms = costs.terms[kind]  # type: ignore[index]
        total = sum(term.value(costs.reference) for term in terms)
        some = sum(
            term.value(costs.reference)
            for term in terms
            if any(d in free for a in term.axes for d in cost.dims.leaves(a))
        )
        shares[kind] = some / total if total else 0.0
    return shares


def _dim(coupling: Coupling, costs: Cost, dim: Any) -> dict[str, Any]:
    return {
        "name": dim.name,
        "size": dim.size,
        "exact": dim.reduced is None,
        "reduced_by": str(dim.reduced) if dim.reduced else None,
        "macs_per_unit": round(costs.marginal("macs", dim)),
        "params_per_unit": round(costs.marginal("params", dim)),
        "members": [
            {"initializer": m.initializer, "node": m.node, "input": m.input, "axis": m.axis, "role": m.role}
            for m in coupling.members[dim]
        ],
    }


def _blocks(coupling: Coupling, costs: Cost) -> Iterator[dict[str, Any]]:
    """The branches that are added to a stream: what each costs, and why it cannot go where it cannot."""
    spent, whole = costs.by_node(), max(1.0, costs.total("macs", {}))
    for block in blocks.find(coupling):
        macs = sum(spent.get(name, 0) for name in block.nodes)
        yield {
            "name": block.name,
            "adds": block.branch,
            "to": block.stream,
            "nodes": len(block.nodes),
            "macs": macs,
            "share": macs / whole,
            "reason": block.reason or None,
        }


def print_table(found: dict[str, Any], console: Console) -> None:
    """The readable form of `inspect`."""
    model, share = found["model"], found["shrinkable"]
    console.print(
        f"{counted(model['nodes'], 'node')}, {text.count(model['macs'])} MACs, "
        f"{text.count(model['params'])} parameters, "
        f"{text.size(model['bytes'])} of weights; {share['params']:.1%} of the parameters and {share['macs']:.1%} of "
        "the MACs can shrink",
        highlight=False,
    )
    outputs = Table("output", "is", "because", box=None, pad_edge=False)
    for entry in found["outputs"]:
        outputs.add_row(*(Text(cell) for cell in (entry["name"], text.kind(entry), entry["reason"])))
    console.print(outputs)
    table = Table("free dimension", "size", "exact", "MACs/unit", "params/unit", "stands in", box=None, pad_edge=False)
    for dim in found["dims"]:
        exact = "yes" if dim["exact"] else f"no: {dim['reduced_by']}"
        row = (
            dim["name"],
            str(dim["size"]),
            exact,
            text.count(dim["macs_per_unit"]),
            text.count(dim["params_per_unit"]),
        )
        table.add_row(*row, f"{len(dim['members'])} places")
    console.print(table)
    if found["blocks"]:
        listed = Table("block", "nodes", "MACs", "share", "can go as a whole (--blocks)", box=None, pad_edge=False)
        for block in found["blocks"]:
            cells = (
                (str(block["nodes"]), text.count(block["macs"]), f"{block['share']:.1%}")
                if block["nodes"]
                else ("",) * 3
            )
            listed.add_row(Text(block["name"]), *cells, Text(f"no: {block['reason']}" if block["reason"] else "yes"))
        console.print(listed)
    for note in found["notes"]:
        console.print(f"note: {note}", highlight=False)
    if found["nothing"]:
        console.print(f"nothing can be pruned: {'; '.join(found['nothing'])}", highlight=False)
    reasons = Counter(entry["reason"].split(" (")[0] for entry in found["frozen"])
    if reasons:
        frozen = Table("frozen because", "dimensions", "for example", box=None, pad_edge=False)
        for reason, count in reasons.most_common():
            example = next(e for e in found["frozen"] if e["reason"].startswith(reason))
            frozen.add_row(reason, str(count), f"{example['dim']} [{example['size']}]")
        console.print(frozen)
