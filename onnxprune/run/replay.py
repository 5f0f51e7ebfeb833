"""Checking a result by its plan, from the files alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import graph, quantize, surgery
from onnxprune.coupling import Coupling, Dim, analyze, dims, unit_positions
from onnxprune.errors import GraphError, VerificationError
from onnxprune.graph import half, sessions, shapes
from onnxprune.graph.apart import apart
from onnxprune.graph.inputs import Feeds
from onnxprune.options import Options
from onnxprune.plan import plan
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, interface
from onnxprune.proof.evidence import NOT_BY_PLAN
from onnxprune.recover import biases
from onnxprune.recover.levels import twin_of
from onnxprune.recover.linear import linears
from onnxprune.run import depth
from onnxprune.run.checks import file_sha256
from onnxprune.run.finish import finish
from onnxprune.run.subject import Subject, prepare
from onnxprune.surgery import narrow
from onnxprune.system.clock import Clock
from onnxprune.system.isolation import CrashedError


def check(
    source: Path, out: Path, plan_path: Path, options: Options, *, any_weights: bool = False
) -> tuple[comparison.Verification, str]:
    """(how far `out` is from the masked `source`, what was compared).

    A result that was recovered has weights of its own: it is compared with the mask that carries them, when both the
    model and the file are those that the plan was written with, or `any_weights` are allowed.
    Raises: VerificationError when they differ, UsageError when the plan does not belong to `source`.
    """
    loaded = plan.load(plan_path)
    subject = depth.again(prepare(source, options, Clock(), loaded.tokens), loaded)
    selection = plan.selection_of(loaded, subject.coupling)
    result = graph.load(out)
    file = None if loaded.states else out
    if loaded.states:
        result = narrow.widened(result, narrow.of_json(loaded.states))
    interface.check(subject.model, result, out, same_opsets=loaded.quantize is None)
    if loaded.quantize is not None:
        return _check_quantized(subject, selection, result, out, loaded, any_weights)
    other = "" if loaded.model_sha256 == subject.sha256 else "; the plan was made for other weights of this model"
    masked = surgery.mask(selection)
    found = _compared(result, masked, subject, out, file)
    if found.ok:
        _check_operators(subject, selection, result, out, loaded)
        return found, f"cut = mask{other}"
    _check_in_floats(subject, result, out)
    if loaded.recover == "none" and not any_weights:
        return comparison.require(found, str(out), NOT_BY_PLAN), "cut = mask"
    masked = _with_constants(subject, selection)
    with_constants = _compared(result, masked, subject, out, file)
    if with_constants.ok:
        _check_operators(subject, selection, result, out, loaded)
        return with_constants, f"cut = mask with the constants of removed units{other}"
    if not any_weights:
        _check_weights(loaded, subject, source, out)
    found, what = check_recovered(subject, selection, result, out)
    _check_operators(subject, selection, result, out, loaded)
    foreign = other or loaded.result_sha256 != file_sha256(out)
    return found, f"{what}{', which are not those that the plan was written with (--any-weights)' if foreign else ''}"


def _compared(
    result: ir.Model, masked: ir.Model, subject: Subject, out: Path, file: Path | None
) -> comparison.Verification:
    """`result`, which lies in `file`, against the masked model. Raises: VerificationError where it does not run."""
    try:
        return comparison.compare_or_tell(result, masked, subject.feeds, str(out), file=file)
    except GraphError as error:
        if isinstance(error.__cause__, CrashedError):
            raise
        raise _no_run(out, subject, error) from error


def _check_in_floats(subject: Subject, result: ir.Model, out: Path) -> None:
    """Checks that `result` is not quantized where the model is not. Raises: VerificationError otherwise."""
    node = quantize.quantized_node(result)
    if node is not None and quantize.quantized_node(subject.model) is None:
        raise VerificationError(
            f"{out}: it is quantized ({node.op_type} '{node.name}'), and the plan says nothing of that; give the plan "
            "that a run with --quantize wrote, or verify what 'onnxprune apply --quantize none' writes"
        )


def _check_runs(result: ir.Model, subject: Subject, out: Path) -> None:
    """Checks that `result` runs, before its integers are read as their scales say. Raises: VerificationError if not."""
    try:
        apart(_ran, [result], subject.feeds[0])
    except GraphError as error:
        raise _no_run(out, subject, error) from error


def _ran(model: ir.Model, feeds: Feeds) -> None:
    sessions.run(sessions.open_session(model, threads=sessions.few_threads(), optimize=False), feeds)


def _no_run(out: Path, subject: Subject, error: GraphError) -> VerificationError:
    return VerificationError(f"{out}: it does not run on inputs that '{subject.path}' takes: {error}")


def _check_weights(loaded: plan.Plan, subject: Subject, source: Path, out: Path) -> None:
    """Checks that both files are those that the plan was written with; raises VerificationError otherwise."""
    advice = "give --any-weights where it was tuned on purpose"
    if loaded.model_sha256 != subject.sha256:
        raise VerificationError(
            f"{out}: its weights are not those of {source}, and the plan was made for another checkpoint "
            f"({loaded.model_sha256[:12]}..., not {subject.sha256[:12]}...); verify it against that one, or {advice}"
        )
    if loaded.result_sha256 != file_sha256(out):
        raise VerificationError(
            f"{out}: its weights are neither the model's nor those that the plan was written with (another sha256); "
            f"make it again with 'onnxprune apply', or {advice}"
        )


def _check_quantized(
    subject: Subject, selection: Selection, result: ir.Model, out: Path, loaded: plan.Plan, any_weights: bool
) -> tuple[comparison.Verification, str]:
    """The two promises of a quantized result: its weights as floats are a pruned model that equals the masked one that
    carries them, and the file is the rounding of that model."""
    try:
        _check_runs(result, subject, out)
        pruned = finish(surgery.cut(selection))
        floats = quantize.as_floats(result, pruned, quantize.kind_of(loaded.quantize or {}), out)
        simulation = quantize.verify(result, floats, loaded.quantize or {}, subject.feeds, str(out))
    except CrashedError as crash:
        raise GraphError(f"{out}: onnxruntime ends with {crash} on it, so that it cannot be verified") from crash
    if not any_weights:
        _check_weights(loaded, subject, subject.path, out)
    found, what = check_recovered(subject, selection, floats, out, partial(quantize.begun, like=floats))
    return found, f"{what}; {simulation}"


def _with_constants(subject: Subject, selection: Selection) -> ir.Model:
    from onnxprune.recover import constants

    cut_model = surgery.cut(selection)
    constants.push(selection, cut_model, subject.tune)
    return twin_of(selection, cut_model)


def _check_operators(subject: Subject, selection: Selection, result: ir.Model, out: Path, loaded: plan.Plan) -> None:
    """Checks that a file that is not the one that the plan was written with does nothing that the cut model does not:
    numbers alone show no bound that none of them comes near. Raises: VerificationError otherwise."""
    if loaded.result_sha256 == file_sha256(out) or not interface.added(result, subject.model):
        return
    cut_model = surgery.cut(selection)
    others = subject.model, cut_model, finish(cut_model), finish(cut_model, rewrite=False)
    more = interface.added(result, *others)
    if more and interface.added(graph.normalize(graph.copy(result)), *others):  # --pack computes weights from codes
        listed = ", ".join(f"{count} {op_type}" for op_type, count in more.items())
        raise VerificationError(
            f"{out}: has operators that the cut model does not have ({listed}), and is not the file that the plan was "
            "written with (another sha256); make it again with 'onnxprune apply'"
        )


def check_recovered(
    subject: Subject,
    selection: Selection,
    result: ir.Model,
    out: Path,
    rewritten: Callable[[ir.Model], ir.Model] = lambda m: m,
) -> tuple[comparison.Verification, str]:
    """Compares `result` with the masked model into which its own weights were put back at the kept positions.

    A result has its norms folded into weights of other names: so the model is folded in the same way, and weights
    are known by the node that uses them. rewritten: what else was done to the result before its weights were changed.
    """
    tuned = graph.normalize(result)
    failed: VerificationError | None = None
    # Nodes that finishing makes are numbered as they come: all biases have to be there before. Which of them recovery
    # made is told by names, as far as finishing kept these; else none were made, or all that it can make.
    base = depth.with_constants(subject, subject.base, 1.0)  # no zeros, or they would be simplified away
    for biased in (_with_biases_of(base, tuned), base, _with_biases_of(base, None)):
        try:
            # Weights that are equal here may be so no longer in the result.
            folded = graph.normalize(rewritten(finish(biased, join=False)))
            coupling = analyze(folded, shapes.observe(folded, subject.coupling.shapes.probe))
            kept = same_positions(selection, coupling)
            twin = surgery.mask(kept.of(coupling.of(_put_back(kept, tuned, out))))
            compared = comparison.compare_or_tell(result, twin, subject.feeds, str(out))
            found = comparison.require(compared, str(out), NOT_BY_PLAN)
            return found, "cut = mask with the recovered weights"
        except VerificationError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _with_biases_of(model: ir.Model, tuned: ir.Model | None) -> ir.Model:
    """A copy of `model` with a bias wherever recovery made one in `tuned`, None: wherever it can; their numbers are of
    no account."""
    model = graph.copy(model)
    nodes = {node.name: node for node in tuned.graph} if tuned is not None else {}
    for name, linear in linears(model).items():
        other = nodes.get(name)
        fused = other is None or other.op_type != linear.node.op_type
        longer = other is not None and len(other.inputs) > len(linear.node.inputs)
        b = biases.read_bias(linear)
        if b is not None and not biases.has_bias(linear) and (fused or longer or f"{name}.add_bias" in nodes):
            biases.write_bias(model, linear, b + 1)  # no zeros, or they would be simplified away
    return model


def same_positions(old: Selection, new: Coupling) -> Selection:
    """The same positions of `new`, a rewriting of the same model, found by the names of shared values."""
    found: dict[Dim, np.ndarray] = {}
    for name, axes in new.axes.items():
        for axis, before in zip(axes, old.coupling.axes.get(name, ()), strict=False):
            mask = old.mask_of(before)
            for dim in dims.leaves(axis):
                units = unit_positions(axis, dim)
                if dim.frozen is not None or dim in found or len(units) != len(mask):
                    continue
                found[dim] = np.zeros(dim.size, bool)
                found[dim][units[(units >= 0) & mask]] = True
    return replace(old, coupling=new, keep=found)


def _put_back(selection: Selection, result: ir.Model, out: Path) -> ir.Model:
    """The model of a selection with the floats of `result` at the kept positions of those that the same nodes use."""
    coupling = selection.coupling
    model = graph.copy(coupling.model)
    nodes = _paired(coupling.model, result)
    for node in coupling.model.graph.all_nodes():
        if not any(_holds_floats(value) for value in node.inputs):
            continue  # nothing of it was tuned, and what repeats or reshapes may be gone with the heads
        other = nodes.get(node)
        if other is None or other.op_type != node.op_type or not _reads_alike(node, other):
            raise VerificationError(
                f"{out}: has no {node.op_type} '{node.name}' as the model has; it was not made from it"
            )
        for value, theirs in zip(_in_order(node), _in_order(other), strict=False):
            tuned = graph.constant(theirs)
            if value is None or not value.is_initializer() or tuned is None or not half.is_floating(tuned.dtype):
                continue
            axes = coupling.axes.get(value.name or "")  # none for numbers such as the factors of Resize
            whole = [np.ones(size, bool) for size in graph.array_of(value).shape]
            masks = whole if axes is None else [selection.mask_of(axis) for axis in axes]
            expected = tuple(int(mask.sum()) for mask in masks)
            if tuned.shape != expected:
                raise VerificationError(
                    f"{out}: '{node.name}' has weights of shape {tuned.shape} where the plan leaves {expected}; "
                    "it was not made by this plan"
                )
            target = model.graph.initializers[value.name or ""]
            full = graph.array_of(target).copy()
            full[np.ix_(*masks)] = tuned
            graph.set_constant(target, full)
    return model


def _paired(model: ir.Model, result: ir.Model) -> dict[ir.Node, ir.Node]:
    """The node of `result` for each node of `model`, by where they stand, seen from the outputs; else by name.

    Simplifying numbers nodes as they come, so names change with what was added or removed before them.
    """
    found: dict[ir.Node, ir.Node] = {}
    taken: set[ir.Node] = set()
    outputs = {value.name: value for value in result.graph.outputs}
    waiting = [(value, outputs[value.name]) for value in model.graph.outputs if value.name in outputs]
    while waiting:
        ours, theirs = waiting.pop()
        node, other = ours.producer(), theirs.producer()
        if node is None or other is None or node in found:
            continue
        if node.op_type != other.op_type:
            # What repeats or reshapes may be gone with the heads, on either side.
            if node.op_type in MOVING and node.inputs[0] is not None:
                waiting.append((node.inputs[0], theirs))
            elif other.op_type in MOVING and other.inputs[0] is not None:
                waiting.append((ours, other.inputs[0]))
            continue
        if other in taken:
            continue
        found[node] = other
        taken.add(other)
        pairs = zip(_in_order(node), _in_order(other), strict=False)
        waiting += [(a, b) for a, b in pairs if a is not None and b is not None]
    nodes = {node.name: node for node in result.graph.all_nodes()}
    for node in model.graph.all_nodes():
        other = nodes.get(node.name)
        if node not in found and other is not None and other not in taken and other.op_type == node.op_type:
            found[node] = other
    return found


MOVING = frozenset("Reshape Expand Tile Squeeze Unsqueeze Identity Transpose Flatten".split())


def _in_order(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a node; of those that may stand in any order the computed ones first."""
    if node.op_type in ("Add", "Mul"):
        return sorted(node.inputs, key=lambda value: value is None or value.is_initializer())
    return list(node.inputs)


def _holds_floats(value: ir.Value | None) -> bool:
    tensor = None if value is None or not value.is_initializer() else value.const_value  # the value may have no type
    return tensor is not None and tensor.dtype.is_floating_point()


def _reads_alike(node: ir.Node, other: ir.Node) -> bool:
    """Whether `other` reads as many values; it may read more integers, as a Split whose parts are no longer equal."""
    more = [graph.constant(value) for value in other.inputs[len(node.inputs) :]]
    return len(other.inputs) >= len(node.inputs) and all(a is not None and a.dtype.kind == "i" for a in more)
