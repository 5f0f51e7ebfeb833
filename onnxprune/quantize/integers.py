"""int8 in order: what stays in float by rule, ranges, what brings the outputs nearer, what stays in float by measuring,
training with the rounding in place, and the proof."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import onnx_ir as ir

from onnxprune.data import Samples
from onnxprune.quantize import floats as choice
from onnxprune.quantize import forms, nearer, prepare, proof, spared
from onnxprune.quantize.nearer import JUDGED
from onnxprune.quantize.ranges import Ranges, calibrated, doubts, drawn, in_batches
from onnxprune.quantize.records import Context, Quantized, proof_feeds
from onnxprune.system.words import counted

LOOKED_AT = 8  # samples on which it is looked how far rounding moves what layers read
Form = Callable[..., ir.Model]


def int8(floats: ir.Model, excluded: Sequence[str], context: Context) -> Quantized:
    """`floats`, in the form that quantizers take, as int8; `excluded` nodes stay in float."""
    asked = context.asked
    masking = spared.masking(floats)
    excluded = list(dict.fromkeys([*excluded, *masking, *context.known.get("float", ())]))

    def form(model: ir.Model, ranges: Ranges, more: Sequence[str] = ()) -> ir.Model:
        left = dict.fromkeys([*excluded, *spared.endless(model, ranges), *more])
        ranges = spared.finite(ranges)
        return forms.int8(model, asked, ranges, list(left), context.provider, asked["reduce_range"])

    few = None if context.samples is None else drawn(context.samples, asked["samples"], context.seed)
    pruned = floats
    floats, exponents, notes = nearer.equalized(pruned, few, form, context)
    ranges, more = _ranges(floats, few, context)
    endless = spared.endless(floats, ranges)
    notes = (*notes, *more, *_spared(masking, endless))
    excluded = list(dict.fromkeys([*excluded, *endless]))
    if few is None or "float" in context.known or asked["float"] == "none":
        made = form(floats, ranges)
    else:
        made, left, more = _standing(floats, ranges, form, few, context)
        excluded, notes = [*excluded, *left], (*notes, *more)
    rounded, trained = floats, None
    if asked["finetune"]:
        trained, more = _trained(floats, made, context)
        notes = (*notes, *more)
    if trained is not None:
        rounded = trained
        ranges, _ = _ranges(rounded, few, context)
        made = form(rounded, ranges)
    elif few is not None and asked["biases"]:
        rounded, made, more = nearer.without_mean_errors(floats, made, lambda model: form(model, ranges), few)
        notes = (*notes, *more)
    ranges = spared.finite(ranges)
    simulation = proof.require(proof.simulate(made, rounded, "int8", proof_feeds(context.feeds), ranges))
    record = {
        "options": str(asked),
        "float": excluded,
        "ranges": {name: list(pair) for name, pair in sorted(ranges.items())},
    }
    if exponents:
        record["exponents"] = {name: [int(k) for k in steps] for name, steps in sorted(exponents.items())}
    return Quantized(made, rounded, pruned, record, simulation, notes, trained is not None)


def _spared(masking: Sequence[str], endless: Sequence[str]) -> Iterator[str]:
    """A note on the nodes that stay in float by rule."""
    if masking:
        yield f"{spared.counted(masking)} in float: masks go through, numbers that no grid of 256 holds beside others"
    if endless:
        yield f"{spared.counted(endless)} in float: on some sample what they read or make is infinite or no number"


def _standing(
    floats: ir.Model, ranges: Ranges, form: Form, few: Samples, context: Context
) -> tuple[ir.Model, tuple[str, ...], tuple[str, ...]]:
    """(the quantized model, nodes that it leaves in float because their rounding costs too much, notes)."""
    far = context.far(floats, list(in_batches(floats, drawn(few, JUDGED, 0))))
    own = partial(form, floats, ranges)
    plain = choice.plainly(own, far)

    def layers(made: ir.Model) -> Sequence[str]:
        one_by_one = in_batches(floats, drawn(few, LOOKED_AT, 0), 1)  # all that layers read is held at once
        return choice.candidates(floats, made, one_by_one)

    chosen = choice.standing(floats, plain, own, far, forms.op_types(context.provider), layers)
    if context.asked["float"] == "auto":
        chosen = choice.less_layers(layers(chosen.model), chosen, own, far, most=choice.MOST)
    notes = (choice.told(floats, plain.off, chosen),) if chosen.left else ()
    return chosen.model, chosen.left, notes


def _trained(floats: ir.Model, made: ir.Model, context: Context) -> tuple[ir.Model | None, tuple[str, ...]]:
    """(`floats` with weights trained for the rounding of `made`, a note); None where that was not or did not help."""
    if context.samples is None or context.teacher is None:
        return None, ("training with the rounding in place was left out: there are no samples; give --data",)
    from onnxprune.quantize import tuning

    model, history = tuning.tuned(
        floats, made, context.teacher, context.samples, context.asked["finetune"], context.seed
    )
    if history is None:
        return None, (
            f"training with the rounding in place was left out: only {counted(len(context.samples), 'sample')}",
        )
    note = f"with the rounding in place, {history.told}"
    return (model if history.best_epoch else None), (note,)


def _ranges(floats: ir.Model, few: Samples | None, context: Context) -> tuple[Ranges, tuple[str, ...]]:
    """(what values reach, notes): on the samples, else what the plan recorded."""
    if few is None:
        known = {name: (float(pair[0]), float(pair[1])) for name, pair in context.known.get("ranges", {}).items()}
        return known, ("ranges of values are those that the plan recorded: there are no samples to measure them on",)
    batches = in_batches(floats, few)
    found = calibrated(prepare.proto_of(floats), forms.op_types(context.provider), batches, context.asked)
    return found, tuple(doubts(few))
