"""--states narrow: the last step of a run, from a proven file to one with a narrower interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import graph, report
from onnxprune.errors import VerificationError
from onnxprune.graph import extras, half, sessions
from onnxprune.graph.inputs import Feeds
from onnxprune.measure import measure_file
from onnxprune.measure.records import final
from onnxprune.plan.plan import Plan
from onnxprune.run.checks import file_sha256
from onnxprune.run.subject import Subject
from onnxprune.surgery import narrow


@dataclass(frozen=True)
class Narrow:
    """A result with a narrower interface, and which axes became narrower; none where no state lost positions."""

    model: ir.Model
    axes: Sequence[narrow.Narrowed]


def of(subject: Subject, place: Path) -> Narrow:
    """The narrow form that the file at `place` is to get once it is measured and proven."""
    pairs = [(given, output) for given, output, _ in extras.of(subject.model).states]
    return Narrow(*narrow.narrow(graph.load(place), pairs))


def narrowed(
    made: Plan, models: tuple[report.Measurement, ...], subject: Subject, result: Narrow, place: Path
) -> tuple[Plan, tuple[report.Measurement, ...], list[str]]:
    """(the plan and the measurements with what was narrowed, notes): the file at `place`, proven, becomes narrower.

    Raises: VerificationError where it does not give what the proven one gives at the kept positions.
    """
    model, found = result.model, result.axes
    if not found:
        return made, models, ["--states narrow: no state lost positions, so the interface is as it was"]
    # Halves are compared in single precision: onnxruntime rounds them at other places of the narrower file.
    before, after = (sessions.open_session(half.single(each)) for each in (graph.load(place), model))
    every_feeds = half.single_feeds(subject.feeds)
    expected = [narrow.fed(sessions.run(before, feeds), found, "output") for feeds in every_feeds]
    graph.save(model, place)
    sessions.open_session(place)
    for feeds, wanted in zip(every_feeds, expected, strict=True):
        said = sessions.run(after, narrow.fed(feeds, found))
        for name, array in wanted.items():
            if array.shape != said[name].shape or not np.allclose(said[name], array, 1e-4, 1e-6, equal_nan=True):
                raise VerificationError(f"the narrowed states change the output '{name}'; nothing was written")
    notes = [
        f"narrowed state: axis {entry.axis} of '{entry.input}' and '{entry.output}' is {len(entry.keep)} where it was "
        f"{entry.size}"
        for entry in found
    ]
    sha256 = file_sha256(place)
    made = replace(made, states=tuple(entry.as_json() for entry in found), result_sha256=sha256)
    last = (final(models) or models[-1]).name
    sized = replace(measure_file(last, place, made.after), path=None)
    models = tuple(replace(m, bytes=sized.bytes, sha256=sha256) if m.name == last else m for m in models)
    return made, models, notes


def timed(result: Narrow, file: Path, feeds: Feeds) -> tuple[Path, Callable[[ort.InferenceSession, int], Feeds]]:
    """(`file`, into which the narrow result is written; what to feed a session of it or of the wide models)."""
    graph.save(result.model, file)
    return file, partial(_feeds_for, result.axes, feeds)


def _feeds_for(axes: Sequence[narrow.Narrowed], feeds: Feeds, session: ort.InferenceSession, _batch: int) -> Feeds:
    """`feeds` as the model of `session` takes them, the narrowed one or one of those of before."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    narrower = axes and all(shapes[one.input][one.axis] == len(one.keep) for one in axes)
    return narrow.fed(feeds, axes) if narrower else feeds
