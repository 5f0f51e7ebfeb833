"""What may bring the outputs nearer to those of floats before any node is left in float, tried and kept where it does:
channels of more equal ranges, and the mean error of rounded weights taken out of the biases."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples
from onnxprune.errors import VerificationError
from onnxprune.graph import sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.proof import differences
from onnxprune.quantize import biases, equalize, forms, prepare, rounding
from onnxprune.quantize.ranges import calibrated, drawn, in_batches
from onnxprune.quantize.records import Context, proof_feeds
from onnxprune.system.words import counted

JUDGED = 64  # samples on which what is tried has to help
SHARES = (0.5, 0.75)  # of the range of a value that its weights take over, see equalize
HELPS = 0.95  # share of the error that is left where equalizing is worth its while


def equalized(
    floats: ir.Model, samples: Samples | None, form: Callable[..., ir.Model], context: Context
) -> tuple[ir.Model, equalize.Exponents, tuple[str, ...]]:
    """(`floats` with channels of more equal ranges, by which powers of two, notes); as a plan that is replayed says.

    Raises: VerificationError where that changes what it computes.
    """
    if context.known:
        exponents, notes = context.known.get("exponents", {}), ()
    elif samples is None or not context.asked["equalize"]:
        exponents, notes = {}, ()
    else:
        exponents, notes = _best_exponents(floats, samples, form, context)
    if not exponents:
        return floats, {}, notes
    made = equalize.scaled(floats, exponents)
    off = moved(made, floats, proof_feeds(context.feeds))
    if off > differences.FLOOR:
        raise VerificationError(
            f"--quantize: bringing channels to more equal ranges moved the outputs by {off:.2g} of their size; give "
            f"--quantize {context.asked.kind}:equalize=false, and please report this model"
        )
    return made, exponents, notes


def moved(model: ir.Model, floats: ir.Model, feeds: list[Feeds]) -> float:
    """The largest difference of an output of `model` from that of `floats`, as a share of its largest number."""
    two = [sessions.open_session(each, threads=sessions.few_threads()) for each in (model, floats)]
    most = 0.0
    for batch in feeds:
        ours, theirs = (sessions.run(session, batch) for session in two)
        for name, array in theirs.items():
            if np.asarray(array).dtype.kind == "f" and array.size:
                size = np.abs(array[np.isfinite(array)]).max(initial=0.0)
                off = differences.deviation(ours[name], array).max()
                most = max(most, float(off / size) if size else float(off))
    return most


def _best_exponents(
    floats: ir.Model, samples: Samples, form: Callable[..., ir.Model], context: Context
) -> tuple[equalize.Exponents, tuple[str, ...]]:
    """(the powers of two that bring the outputs nearest to those of floats, a note), nothing where none does."""
    groups = equalize.groups(floats)
    if not groups:
        return {}, ()
    picked = drawn(samples, 2 * JUDGED, 0)
    # What is judged has to reach further than what was calibrated on, as it will.
    first, judged = (list(in_batches(floats, picked.subset(half))) for half in _halves(len(picked)))
    reached = equalize.reached(floats, groups, first)
    ways = [(share, False) for share in SHARES] + ([] if context.asked["per_channel"] else [(0.5, True)])
    tried = [equalize.exponents(groups, reached, share, by_rows) for share, by_rows in ways]
    errors = []
    for exponents in ({}, *filter(None, tried)):
        model = equalize.scaled(floats, exponents) if exponents else floats
        ranges = calibrated(prepare.proto_of(model), forms.op_types(context.provider), first, context.asked)
        errors.append((rounding.error(form(model, ranges), floats, judged), exponents))
    before, (after, best) = errors[0][0], min(errors[1:], key=lambda found: found[0], default=(np.inf, {}))
    if not after < HELPS * before:  # also where they are no numbers
        return {}, ()
    note = (
        f"channels of {counted(len(best), 'value')} were brought to more equal ranges: outputs are off by "
        f"{100 * after:.2g} % instead of {100 * before:.2g} %"
    )
    return best, (note,)


def without_mean_errors(
    floats: ir.Model, made: ir.Model, form: Callable[[ir.Model], ir.Model], samples: Samples
) -> tuple[ir.Model, ir.Model, tuple[str, ...]]:
    """(floats, quantized, notes) with corrected biases where that brings the outputs nearer, else what was given."""
    changed, count = biases.corrected(floats, made, in_batches(floats, samples))
    if not count:
        return floats, made, ()
    again = form(changed)
    judged = list(in_batches(floats, drawn(samples, JUDGED, 0)))
    before, after = (rounding.error(model, floats, judged) for model in (made, again))
    if after >= before:
        return floats, made, ()
    note = (
        f"the mean error of rounded weights was taken out of {count} biases: outputs are off by {100 * after:.2g} % "
        f"instead of {100 * before:.2g} %"
    )
    return changed, again, (note,)


def _halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The even and the odd ones of `count` samples; of one sample, that one twice."""
    numbers = np.arange(count)
    return numbers[::2], numbers[1::2] if count > 1 else numbers
