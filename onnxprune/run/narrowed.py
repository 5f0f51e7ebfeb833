"""--states narrow: the last step of a run, from a proven file to one with a narrower interface."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxprune import graph, report
from onnxprune.errors import VerificationError
from onnxprune.graph import extras, sessions
from onnxprune.measure import measure_file
from onnxprune.measure.records import final
from onnxprune.plan.plan import Plan
from onnxprune.run.checks import file_sha256
from onnxprune.run.subject import Subject
from onnxprune.surgery import narrow


def narrowed(
    made: Plan, models: tuple[report.Measurement, ...], subject: Subject, place: Path
) -> tuple[Plan, tuple[report.Measurement, ...], list[str]]:
    """(the plan and the measurements with what was narrowed, notes): the file at `place`, proven, becomes narrower.

    Raises: VerificationError where it does not give what the proven one gives at the kept positions.
    """
    wide = graph.load(place)
    pairs = [(given, output) for given, output, _ in extras.of(subject.model).states]
    model, found = narrow.narrow(wide, pairs)
    if not found:
        return made, models, ["--states narrow: no state lost positions, so the interface is as it was"]
    before = sessions.open_session(place)
    expected = [narrow.fed(sessions.run(before, feeds), found, "output") for feeds in subject.feeds]
    graph.save(model, place)
    after = sessions.open_session(place)
    for feeds, wanted in zip(subject.feeds, expected, strict=True):
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
    return made, models, [*notes, "accuracy and speed were measured before the states were narrowed, which copied them"]
