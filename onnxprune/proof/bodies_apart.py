"""Bodies of control flow, compared in the main graph: there their decisions are replayed and their values looked at.

An If is compared as if each of its branches were always taken, a Loop and a Scan as one step, see steps.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import onnx_ir as ir

from onnxprune.errors import GraphError
from onnxprune.graph import bodies, branches, extras
from onnxprune.graph.inputs import Feeds
from onnxprune.proof import decisions, inside, steps
from onnxprune.proof.evidence import Evidence, Verification

DEPTH = 3  # bodies inside bodies that are looked at
MOST = 16  # bodies of one model

Compare = Callable[[ir.Model, ir.Model, Sequence[Feeds]], Verification]


def compared(
    compare: Compare, cut: ir.Model, masked: ir.Model, batches: Sequence[Feeds], done: Iterable[Mapping[str, bool]]
) -> tuple[list[Evidence], list[str]]:
    """(what was compared inside the bodies of both models, the operators that were fed there with what the twin
    decided on); decisions that could not be replayed are told.

    done: choices of branches with which the models were compared before.
    """
    told = list(decisions.in_bodies(masked))
    evidence: list[Evidence] = []
    fed: list[str] = []
    seen = {_name(node) for choices in done if told for node in branches.decide(masked, choices).graph}
    if told or any(_holds_weights(node) for node in masked.graph):
        for name, own, twin in _inlined(cut, masked, DEPTH):
            # Where one of both does not run, what the outputs of the operator show is all.
            with suppress(GraphError):
                found = compare(own, twin, batches)
                seen.update(map(_name, twin.graph))
                evidence += _as_of_body(found, name)
                fed += found.replayed
    evidence += [
        Evidence("decision", name, untested=f"it decides in the body of '{outer}', where it was not replayed")
        for name, outer in told
        if name not in seen
    ]
    return evidence, fed


def _as_of_body(found: Verification, name: str) -> Iterator[Evidence]:
    """The evidence of one body; outputs of it that were silent are left out, for other steps may show them."""
    for each in found.evidence:
        if each.kind not in ("output", "part"):
            yield each
        elif not each.untested:
            yield replace(each, kind="body", where=f"{name}: {each.where}")


def _inlined(cut: ir.Model, masked: ir.Model, depth: int) -> Iterator[tuple[str, ir.Model, ir.Model]]:
    """`_opened`, and what is opened of the bodies inside these."""
    for name, own, twin in islice(_opened(cut, masked), MOST if depth else 0):
        yield name, own, twin
        yield from _inlined(own, twin, depth - 1)


def _opened(cut: ir.Model, masked: ir.Model) -> Iterator[tuple[str, ir.Model, ir.Model]]:
    """(name, cut, masked) for each body that holds weights or decides, shown in the main graph of both models."""
    kept = extras.of(masked).kept
    ours = {decisions.first_output(node): node for node in cut.graph}
    done = [choices for choices in extras.of(masked).forced if len(choices) == 1]
    repeated = {*steps.of(cut), *steps.of(masked)}
    for node in masked.graph:
        name, output = _name(node), decisions.first_output(node)
        own = ours.get(output)
        if own is None or own.op_type != node.op_type or not (_holds_weights(node) or _decides(node)):
            continue
        if node in repeated and own in repeated:
            yield name, steps.stepped(cut, output, kept), steps.stepped(masked, output, kept)
        elif node.op_type == "If" and own.name == node.name:
            for choice in (True, False):
                choices: Mapping[str, bool] = {name: choice}
                if choices not in done:
                    where = f"{name}, {'then' if choice else 'else'} branch"
                    yield where, branches.decide(cut, choices), _alone(branches.decide(masked, choices))


def _name(node: ir.Node) -> str:
    return node.name or node.op_type


def _alone(model: ir.Model) -> ir.Model:
    """`model`, in which branches that are not taken were compared elsewhere."""
    extras.put(model, replace(extras.of(model), forced=()))
    return model


def _holds_weights(node: ir.Node) -> bool:
    return any(inside.is_weight(value) for inner in bodies.nodes_inside(node) for value in inner.inputs)


def _decides(node: ir.Node) -> bool:
    return any(map(decisions.decides, bodies.nodes_inside(node)))
