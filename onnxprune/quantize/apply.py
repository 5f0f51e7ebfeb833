"""From a finished float model to the quantized one: prepared, calibrated, rounded, proven."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onnxprune import graph
from onnxprune.data import Samples
from onnxprune.errors import VerificationError
from onnxprune.graph.inputs import Feeds
from onnxprune.proof.evidence import NOT_BY_PLAN
from onnxprune.quantize import floats as choice
from onnxprune.quantize import forms, integers, prepare, proof, rounding, spared, ties
from onnxprune.quantize.asked import Asked
from onnxprune.quantize.nearer import JUDGED
from onnxprune.quantize.ranges import drawn, in_batches, reached
from onnxprune.quantize.records import Context, Quantized, proof_feeds
from onnxprune.system.words import counted

FAR = 0.3  # of the outputs' size: what is off by more is of little use
LOST = 0.1  # share of the answers
ADVICE = {
    "int8": "give --quantize dynamic or fp16, train with --quantize int8:finetune=4",
    "dynamic": "give --quantize fp16 or int8",
    "int4": "give --quantize int4:block=16, dynamic or fp16",
    "fp16": "leave the result in floats",
}


def quantize(model: ir.Model, context: Context) -> Quantized:
    """`model`, finished and in floats, as the context asks.

    Raises: UsageError where it cannot be quantized so, VerificationError when the result is not its rounding.
    """
    asked = context.asked
    floats, notes = _prepared(model, asked.kind)
    excluded = prepare.excluded(floats, asked.excluded)
    made = (integers.int8 if asked.kind == "int8" else _stored)(floats, excluded, context)
    return replace(made, notes=(*notes, *made.notes, *_warned(made, context), *_larger(model, made, asked.kind)))


def _warned(made: Quantized, context: Context) -> Iterator[str]:
    """A note where the outputs have little to do with those of floats, after all that was tried."""
    kind, feeds = context.asked.kind, proof_feeds(context.feeds)
    if context.samples is not None:
        feeds = list(in_batches(made.pruned, drawn(context.samples, JUDGED, 0)))
    off = rounding.worst_error(made.model, made.pruned, feeds)
    lost = 0.0 if context.lost is None else context.lost(made.model)
    if off > FAR or lost > LOST:
        answers = f", and {100 * lost:.0f} % of its answers are lost" if lost > LOST else ""
        far = f"by {100 * off:.0f} %" if off < 100 else "beyond all measure"
        yield (
            f"{kind} does not fit this model: its outputs are off {far}{answers}; {ADVICE[kind]}, or --max-drop, which "
            "writes no such file"
        )


def _larger(model: ir.Model, made: Quantized, kind: str) -> Iterator[str]:
    """A note where the file of the quantized model is larger than that of the finished `model` in floats."""
    before, after = map(graph.message_bytes, (model, made.model))
    if after > before:
        yield (
            f"{kind} makes the file larger, {after} bytes where it has {before} as it was: scales, and nodes that "
            "round, outweigh what so few weights save"
        )


def file_bytes(model: ir.Model, asked: Asked, provider: str) -> int:
    """Bytes of the file that `model`, finished and in floats, becomes when it is quantized: no sample changes them."""
    return graph.message_bytes(as_stored(model, asked, provider))


def as_stored(model: ir.Model, asked: Asked, provider: str) -> ir.Model:
    """`model` in the form asked for, with ranges of values that nothing was measured for: for sizes and times."""
    floats, _ = _prepared(model, asked.kind)
    excluded = prepare.excluded(floats, asked.excluded)
    if asked.kind == "int8":
        ranges = {value.name or "": (-1.0, 1.0) for node in floats.graph for value in node.outputs}
        ranges |= {value.name or "": (-1.0, 1.0) for value in floats.graph.inputs}
        excluded = [*excluded, *spared.masking(floats)]
        return forms.int8(floats, asked, ranges, excluded, provider, asked["reduce_range"])
    return _form(floats, asked, excluded)


def _form(floats: ir.Model, asked: Asked, excluded: Sequence[str]) -> ir.Model:
    if asked.kind == "fp16":
        return forms.fp16(floats, excluded)
    if asked.kind == "int4":
        return forms.int4(floats, asked, excluded)
    apart, tied = ties.untied(floats, excluded)
    return ties.retied(forms.dynamic(apart, asked, excluded), tied)


def _prepared(model: ir.Model, kind: str) -> tuple[ir.Model, tuple[str, ...]]:
    split, halves = kind in ("dynamic", "int4"), kind == "int4"
    prepare.check_model(model, kind)
    made, notes = prepare.prepared(model, forms.OPSET[kind], split, halves)
    if kind == "int8":
        prepare.own_biases(made)
    return made, notes


def kind_of(record: Mapping[str, Any]) -> str:
    """The kind of quantization that a plan records."""
    return str(record["options"]).partition(":")[0]


def verify(
    model: ir.Model,
    floats: ir.Model,
    record: Mapping[str, Any],
    feeds: Sequence[Feeds],
    where: str,
) -> str:
    """What is proven of `model` as the rounding of `floats`; record: what the plan says of it.

    Raises: VerificationError when it is not.
    """
    kind = kind_of(record)
    left = prepare.quantized_node(floats)
    if left is not None:
        raise VerificationError(
            f"{where}: {left.op_type} '{left.name}' is not as --quantize {kind} writes it; {NOT_BY_PLAN}"
        )
    own, _ = _prepared(floats, kind)
    simulation = proof.simulate(model, own, kind, proof_feeds(feeds), record.get("ranges"))
    if not simulation.weights:
        raise VerificationError(f"{where}: its weights are floats, and the plan says that it was quantized as {kind}")
    return proven(proof.require(simulation, where, NOT_BY_PLAN))


def proven(found: proof.Simulation) -> str:
    """A simulation that holds, in words."""
    return (
        f"quantized = simulated: {counted(found.nodes, 'node')} within {found.ratio:.2g} of their largest numbers, "
        f"{found.weights} weights within half a step"
    )


def told(made: Quantized, feeds: Sequence[Feeds]) -> dict[str, Any]:
    """The section of a report on quantization."""
    cost = rounding.error(made.model, made.pruned, feeds[:1])
    return {
        "options": made.record["options"],
        "float": list(made.record["float"]),
        "proof": proven(made.simulation),
        "error": cost,
    }


def _stored(floats: ir.Model, excluded: Sequence[str], context: Context) -> Quantized:
    """The kinds that need no samples; where there are some, what does not stand it stays in float."""
    asked = context.asked
    excluded = list(dict.fromkeys([*excluded, *context.known.get("float", ())]))
    made, left, notes = _form(floats, asked, excluded), (), ()
    if context.samples is not None and "float" not in context.known:
        made, left, notes = _standing(floats, made, excluded, context.samples, context)
    simulation = proof.require(proof.simulate(made, floats, asked.kind, proof_feeds(context.feeds)))
    record = {"options": str(asked), "float": [*excluded, *left]}
    return Quantized(made, floats, floats, record, simulation, notes)


def _standing(
    floats: ir.Model, made: ir.Model, excluded: Sequence[str], samples: Samples, context: Context
) -> tuple[ir.Model, tuple[str, ...], tuple[str, ...]]:
    """(the model, nodes that stay in float besides, notes): those that halves do not reach, or whose matrices make the
    largest part of the error where that is large."""
    kind, feeds = context.asked.kind, list(in_batches(floats, drawn(samples, JUDGED, 0)))

    def form(left: Sequence[str]) -> ir.Model:
        return _form(floats, context.asked, [*excluded, *left])

    if kind == "fp16":  # by rule: CPUs compute so in single precision, and do not show it
        left = tuple(spared.beyond_halves(floats, reached(prepare.proto_of(floats), (), feeds, {})))
        note = f"{spared.counted(left)} in float: halves do not reach what they compute with" if left else ""
        return (form(left), left, (note,)) if left else (made, (), ())
    far = context.far(floats, feeds)
    plain = choice.Choice(made, (), far(made))
    if plain.off <= FAR:
        return made, (), ()
    chosen = choice.less_layers(choice.matrices(floats, made, kind), plain, form, far)
    return chosen.model, chosen.left, (choice.told(floats, plain.off, chosen),) if chosen.left else ()
