"""The twin: on random and real inputs the cut model equals the masked model, in numbers."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.data import batch_axes, batch_size_of, input_infos
from onnxprune.errors import VerificationError
from onnxprune.graph import half, sessions, shapes
from onnxprune.graph.tensors import size_bytes
from onnxprune.proof.differences import HALF_TOLERANCE, TOLERANCE, Worst
from onnxprune.proof.inside import Feeds, behind, only_decisions_differ
from onnxprune.system.memory import give_up, out_of_memory, smaller

DRAWING = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())
NOTHING_SHOWS = "and so does what stands in front of them: real samples may show more"


@dataclass(frozen=True)
class Verification:
    """How far the cut model is from the masked one."""

    max_abs: float
    scale: float  # largest absolute masked output
    samples: int  # number of rows compared, summed over the inputs
    ok: bool
    worst: str = ""  # the output, or the value in front of one, that differs most
    note: str = ""
    tolerance: float = TOLERANCE  # times `scale` is what was allowed


def random_feeds(model: ir.Model, observed: shapes.Shapes, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random inputs at both probe sizes."""
    inputs = list(model.graph.inputs)
    probes = (
        [observed.probe]
        if observed.probe == observed.second or not observed.second
        else [observed.probe, observed.second]
    )
    return [shapes.feeds(inputs, probe, seed + k) for k, probe in enumerate(probes)]


def compare(
    cut: ir.Model | str, masked: ir.Model, feeds: Iterable[Feeds], tolerance: float = TOLERANCE
) -> Verification:
    """Runs both models on all `feeds` in onnxruntime and compares every output.

    Where an output differs, the masked model is run without onnxruntime's optimizations, which round a quantized model
    in their own way; the cut one runs as it will. Where it differs still, the values inside are compared: rounding
    errors in front of an operator that decides (TopK, QuantizeLinear) are no difference, and neither is what follows
    from the decision. Where an output shows little (a class, all zeros), the values in front of it are compared too.
    Half precision rounds by more than the tolerance: where such models differ, what they compute in single precision
    is compared.
    """
    batches = list(feeds)
    cut, masked = seeded(cut) if isinstance(cut, ir.Model) else cut, seeded(masked)
    batches, ours, theirs = _outputs_of_both(cut, masked, batches)
    result = _worst(masked, ours, theirs, tolerance)
    rows = sum(next((int(array.shape[0]) for array in batch.values() if array.ndim), 1) for batch in batches)
    note = ""
    if not result.ok:
        plain = _worst(masked, ours, _outputs(masked, batches, optimize=False), tolerance)
        if plain.ok:
            note = f"onnxruntime's optimizations move '{result.name}' of the masked model by {result.max_abs:.2g}; "
            result = plain
    if result.ok and isinstance(cut, ir.Model):
        blind, compared = behind(cut, masked, batches, theirs)
        result = max((result, *compared), key=lambda found: found.ratio)
        if blind:
            note += f"{_listed(blind)} {'vary' if len(blind) > 1 else 'varies'} too little to show an error; "
            note += f"compared in front of them: {_listed(c.name for c in compared)}" if compared else NOTHING_SHOWS
    if not result.ok and isinstance(cut, ir.Model) and half.has_halves(masked):
        models = half.single(cut), half.single(masked)
        found = compare(*models, half.single_feeds(batches), HALF_TOLERANCE)
        moved = f"compared in single precision: half moves '{result.name}' by {result.max_abs:.2g}"
        return replace(found, note="; ".join(filter(None, (moved, found.note))))
    ok = result.ok
    if not ok and isinstance(cut, ir.Model) and only_decisions_differ(cut, masked, batches):
        ok, note = True, f"'{result.name}' differs only by decisions on values that are equal within the tolerance"
    return Verification(result.max_abs, result.scale, rows, ok, result.name, note.removesuffix("; "), tolerance)


def _worst(masked: ir.Model, ours: Sequence[Mapping], theirs: Sequence[Mapping], tolerance: float) -> Worst:
    """The largest difference of an output."""
    result = Worst(tolerance)
    for a, b in zip(ours, theirs, strict=True):
        for value in masked.graph.outputs:
            result.add(value.name or "", a[value.name or ""], b[value.name or ""])
    return result


def _listed(names: Iterable[str]) -> str:
    found = [f"'{name}'" for name in names]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _outputs_of_both(
    cut: ir.Model | str, masked: ir.Model, batches: list[Feeds]
) -> tuple[list[Feeds], list[dict], list[dict]]:
    """(the batches, what both models give on each); batches are halved until memory does."""
    try:
        return batches, _outputs(cut, batches), _outputs(masked, batches)
    except Exception as error:
        if not out_of_memory(error):
            raise
        inputs = input_infos(masked)
        fixed = batch_size_of(inputs)
        if fixed is not None:
            raise give_up(error, "the proof", fixed, fixed=True) from error
        axes = batch_axes(inputs)
        stacked = {name: axis for name, axis in axes.items() if axis is not None}
        largest = max((_count(batch, stacked) for batch in batches), default=1)
        if largest < 2:
            raise give_up(error, "the proof", 1) from error
        fewer = smaller(largest, "the proof")
    return _outputs_of_both(cut, masked, [part for batch in batches for part in _parts(batch, stacked, fewer)])


def _parts(batch: Feeds, stacked: Mapping[str, int], most: int) -> Iterator[Feeds]:
    """`batch` in parts of at most `most` samples."""
    count = _count(batch, stacked)
    for start in range(0, count, most):
        few = np.arange(start, min(start + most, count))
        yield {**batch, **{name: np.take(batch[name], few, axis) for name, axis in stacked.items()}}


def _count(batch: Feeds, stacked: Mapping[str, int]) -> int:
    """Number of samples; stacked: axes of the inputs along which they stand."""
    return min((batch[name].shape[axis] for name, axis in stacked.items()), default=1)


def _outputs(model: ir.Model | str, batches: Sequence[Feeds], optimize: bool = True) -> list[dict[str, np.ndarray]]:
    """The outputs on each batch. The session ends here: two at a time would hold the weights of two models."""
    large = isinstance(model, ir.Model) and size_bytes(model) > sessions.LEAN_BYTES
    entries = {"session.disable_prepacking": "1"} if large else {}  # which would copy the weights once more
    session = sessions.open_session(model, threads=sessions.few_threads(), session_options=entries, optimize=optimize)
    return [sessions.run(session, batch) for batch in batches]


def seeded(model: ir.Model) -> ir.Model:
    """`model` with a seed in every operator that draws random numbers: those of one name draw the same."""
    drawing = [node for node in model.graph.all_nodes() if node.op_type in DRAWING and "seed" not in node.attributes]
    if not drawing:
        return model
    meta, model = model.meta, model.clone()
    model.meta.update(meta)
    for node in model.graph.all_nodes():
        if node.op_type in DRAWING and "seed" not in node.attributes:
            name = node.outputs[0].name or ""
            node.attributes["seed"] = ir.AttrFloat32("seed", float(zlib.crc32(name.encode()) % 65521))
    return model


def require(verification: Verification) -> Verification:
    """`verification`, when it holds. Raises: VerificationError otherwise."""
    if verification.ok:
        return verification
    raise VerificationError(
        f"the cut model differs from the masked model at '{verification.worst}' by "
        f"{verification.max_abs:.3g} where {verification.tolerance:g} x {verification.scale:.3g} is allowed; "
        "nothing was written. Please report this model"
    )
