"""From a finished float model to the quantized one: prepared, calibrated, rounded, proven."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Samples, batches, fixed_batch
from onnxprune.errors import UsageError, VerificationError
from onnxprune.graph import providers, sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.proof import differences
from onnxprune.proof.evidence import NOT_BY_PLAN
from onnxprune.quantize import biases, equalize, forms, prepare, proof, ties
from onnxprune.quantize import floats as choice
from onnxprune.quantize.asked import Asked
from onnxprune.quantize.ranges import Ranges, calibrated

LOG = logging.getLogger("onnxprune")
JUDGED = 64  # samples on which corrected biases have to help
SHARES = (0.5, 0.75)  # of the range of a value that its weights take over, see equalize
FAR = 0.3  # of the outputs' size: what is off by more is of little use
HELPS = 0.95  # share of the error that is left where equalizing is worth its while
BATCH = 32  # samples that are calibrated on at a time


@dataclass(frozen=True)
class Quantized:
    """A quantized model, the float model that it is the rounding of, and what is to be recorded of how it was made.

    pruned is the float model before its biases were corrected for the rounding.
    """

    model: ir.Model
    float_model: ir.Model
    pruned: ir.Model
    record: Mapping[str, Any]
    simulation: proof.Simulation
    notes: tuple[str, ...] = ()
    trained: bool = False  # so that the weights of float_model are others than those of pruned


@dataclass(frozen=True)
class Context:
    """What quantization is made with; known: the record of a plan that is replayed. teacher: the model before it was
    pruned, for training."""

    asked: Asked
    samples: Samples | None
    feeds: Sequence[Feeds]  # on which the proof runs
    provider: str = "cpu"
    seed: int = 0
    known: Mapping[str, Any] = field(default_factory=dict)
    teacher: ir.Model | None = None


def check(asked: Asked | None, provider: str, has_samples: bool, has_ranges: bool = False) -> None:
    """Checks before any work that the quantization asked for can be made. Raises: UsageError otherwise."""
    if asked is None:
        return
    if asked.kind == "int8" and not has_samples and not has_ranges:
        raise UsageError(
            "--quantize int8 calibrates on samples, and there are none; give --data, or --quantize dynamic, which "
            "needs none"
        )
    if asked.kind == "int8" and not providers.of(provider).integers:
        raise UsageError(
            f"--quantize {asked.kind}: onnxruntime's {providers.short_name(provider)} provider has no integer kernels "
            f"and would compute in floats, with conversions between them; give --quantize {providers.of(provider).form}"
            f", or one of --provider {', '.join(providers.computing_integers())}"
        )


def quantize(model: ir.Model, context: Context) -> Quantized:
    """`model`, finished and in floats, as the context asks.

    Raises: UsageError where it cannot be quantized so, VerificationError when the result is not its rounding.
    """
    asked = context.asked
    floats, notes = _prepared(model, asked.kind)
    excluded = prepare.excluded(floats, asked.excluded)
    made = (_int8 if asked.kind == "int8" else _stored)(floats, excluded, context)
    return replace(made, notes=(*notes, *made.notes))


def file_bytes(model: ir.Model, asked: Asked, provider: str) -> int:
    """Bytes of the file that `model`, finished and in floats, becomes when it is quantized: no sample changes them."""
    return len(ir.to_proto(as_stored(model, asked, provider)).SerializeToString())


def as_stored(model: ir.Model, asked: Asked, provider: str) -> ir.Model:
    """`model` in the form asked for, with ranges of values that nothing was measured for: for sizes and times."""
    floats, _ = _prepared(model, asked.kind)
    excluded = prepare.excluded(floats, asked.excluded)
    if asked.kind == "int8":
        ranges = {value.name or "": (-1.0, 1.0) for node in floats.graph for value in node.outputs}
        ranges |= {value.name or "": (-1.0, 1.0) for value in floats.graph.inputs}
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
    return prepare.prepared(model, forms.OPSET[kind], split=kind in ("dynamic", "int4"))


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
    own, _ = _prepared(floats, kind)
    simulation = proof.simulate(model, own, kind, proof_feeds(feeds), record.get("ranges"))
    if not simulation.weights:
        raise VerificationError(f"{where}: its weights are floats, and the plan says that it was quantized as {kind}")
    return proven(proof.require(simulation, where, NOT_BY_PLAN))


def proven(found: proof.Simulation) -> str:
    """A simulation that holds, in words."""
    return (
        f"quantized = simulated: {found.nodes} nodes within {found.ratio:.2g} of their largest numbers, "
        f"{found.weights} weights within half a step"
    )


def told(made: Quantized, feeds: Sequence[Feeds]) -> dict[str, Any]:
    """What reports say of it."""
    cost = proof.error(made.model, made.pruned, feeds[:1])
    return {
        "options": made.record["options"],
        "float": list(made.record["float"]),
        "proof": proven(made.simulation),
        "error": cost,
    }


def _int8(floats: ir.Model, excluded: Sequence[str], context: Context) -> Quantized:
    asked = context.asked
    excluded = list(dict.fromkeys([*excluded, *context.known.get("float", ())]))

    def form(model: ir.Model, ranges: Ranges, more: Sequence[str] = ()) -> ir.Model:
        return forms.int8(model, asked, ranges, [*excluded, *more], context.provider, asked["reduce_range"])

    few = None if context.samples is None else drawn(context.samples, asked["samples"], context.seed)
    pruned = floats
    floats, exponents, notes = _equalized(pruned, few, form, context)
    ranges, more = _ranges(floats, few, context)
    made, notes = form(floats, ranges), (*notes, *more)
    if few is not None and asked["float"] == "auto" and "float" not in context.known:
        judged = list(in_batches(floats, drawn(few, JUDGED, 0)))
        left, more = choice.chosen(floats, made, partial(form, floats, ranges), judged)
        excluded, notes = [*excluded, *left], (*notes, *more)
        made = form(floats, ranges)
    rounded, trained = floats, None
    if asked["finetune"]:
        trained, more = _trained(floats, made, context)
        notes = (*notes, *more)
    if trained is not None:
        rounded = trained
        ranges, _ = _ranges(rounded, few, context)
        made = form(rounded, ranges)
    elif few is not None and asked["biases"]:
        rounded, made, more = _without_mean_errors(floats, made, lambda model: form(model, ranges), few)
        notes = (*notes, *more)
    notes = (*notes, *_warned(pruned, made, few))
    simulation = proof.require(proof.simulate(made, rounded, "int8", proof_feeds(context.feeds), ranges))
    record = {
        "options": str(asked),
        "float": excluded,
        "ranges": {name: list(pair) for name, pair in sorted(ranges.items())},
    }
    if exponents:
        record["exponents"] = {name: [int(k) for k in steps] for name, steps in sorted(exponents.items())}
    return Quantized(made, rounded, pruned, record, simulation, notes, trained is not None)


def _warned(pruned: ir.Model, made: ir.Model, samples: Samples | None) -> Iterator[str]:
    """A note where the outputs have little to do with those of floats."""
    off = 0.0 if samples is None else proof.error(made, pruned, list(in_batches(pruned, drawn(samples, JUDGED, 0))))
    if off > FAR:
        yield (
            f"int8 does not fit this model: its outputs are off by {100 * off:.0f} %. Give --quantize dynamic or "
            "fp16, or leave out what computes a norm or an activation step by step with exclude=NAMES"
        )


def _trained(floats: ir.Model, made: ir.Model, context: Context) -> tuple[ir.Model | None, tuple[str, ...]]:
    """(`floats` with weights trained for the rounding of `made`, a note); None where that was not or did not help."""
    if context.samples is None or context.teacher is None:
        return None, ("training with the rounding in place was left out: there are no samples; give --data",)
    from onnxprune.quantize import tuning

    model, history = tuning.tuned(
        floats, made, context.teacher, context.samples, context.asked["finetune"], context.seed
    )
    if history is None:
        return None, (f"training with the rounding in place was left out: {len(context.samples)} samples are too few",)
    note = f"with the rounding in place, {history.told}"
    return (model if history.best_epoch else None), (note,)


def _equalized(
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
    off = _moved(made, floats, proof_feeds(context.feeds))
    if off > differences.FLOOR:
        raise VerificationError(
            f"--quantize: bringing channels to more equal ranges moved the outputs by {off:.2g} of their size; give "
            f"--quantize {context.asked.kind}:equalize=false, and please report this model"
        )
    return made, exponents, notes


def _moved(model: ir.Model, floats: ir.Model, feeds: Sequence[Feeds]) -> float:
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
        errors.append((proof.error(form(model, ranges), floats, judged), exponents))
    before, (after, best) = errors[0][0], min(errors[1:], key=lambda found: found[0], default=(np.inf, {}))
    if not after < HELPS * before:  # also where they are no numbers
        return {}, ()
    note = (
        f"channels of {len(best)} values were brought to more equal ranges: outputs are off by {100 * after:.2g} % "
        f"instead of {100 * before:.2g} %"
    )
    return best, (note,)


def _without_mean_errors(
    floats: ir.Model, made: ir.Model, form: Callable[[ir.Model], ir.Model], samples: Samples
) -> tuple[ir.Model, ir.Model, tuple[str, ...]]:
    """(floats, quantized, notes) with corrected biases where that brings the outputs nearer, else what was given."""
    changed, count = biases.corrected(floats, made, in_batches(floats, samples))
    if not count:
        return floats, made, ()
    again = form(changed)
    judged = list(in_batches(floats, drawn(samples, JUDGED, 0)))
    before, after = (proof.error(model, floats, judged) for model in (made, again))
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


def _ranges(floats: ir.Model, few: Samples | None, context: Context) -> tuple[Ranges, tuple[str, ...]]:
    """(what values reach, notes): on the samples, else what the plan recorded."""
    if few is None:
        known = {name: (float(pair[0]), float(pair[1])) for name, pair in context.known.get("ranges", {}).items()}
        return known, ("ranges of values are those that the plan recorded: there are no samples to measure them on",)
    batches = in_batches(floats, few)
    found = calibrated(prepare.proto_of(floats), forms.op_types(context.provider), batches, context.asked)
    return found, tuple(_doubts(few))


def _doubts(samples: Samples) -> Iterator[str]:
    labels = samples.labels
    if labels is not None and len(samples) > 1 and (labels == labels.flat[0]).all():
        yield (
            f"calibrated on {len(samples)} samples that are all of class {labels.flat[0]}: others may reach further "
            "and be cut off; give samples of every class"
        )
    if len(samples) < 16:
        yield f"calibrated on {len(samples)} samples only: others may reach further and be cut off; give some hundred"


def drawn(samples: Samples, count: int, seed: int) -> Samples:
    """`count` of the samples, or all where there are no more."""
    if len(samples) <= count:
        return samples
    return samples.subset(np.sort(np.random.default_rng(seed).choice(len(samples), count, replace=False)))


def in_batches(model: ir.Model, samples: Samples, size: int = BATCH) -> Iterator[Feeds]:
    """The samples in batches that the model takes."""
    fixed = fixed_batch(model)
    for block in batches(samples, fixed or size, fixed=fixed):
        yield samples.batch(block)


def proof_feeds(feeds: Sequence[Feeds]) -> list[Feeds]:
    """A few of the feeds of the proof: every value of the model is held twice on each."""
    return list(feeds[:1]) + list(feeds[-1:]) if len(feeds) > 1 else list(feeds)


def _stored(floats: ir.Model, excluded: Sequence[str], context: Context) -> Quantized:
    """The kinds that need no samples."""
    asked = context.asked
    excluded = list(dict.fromkeys([*excluded, *context.known.get("float", ())]))
    made = _form(floats, asked, excluded)
    simulation = proof.require(proof.simulate(made, floats, asked.kind, proof_feeds(context.feeds)))
    return Quantized(made, floats, floats, {"options": str(asked), "float": excluded}, simulation)
