"""`onnxprune sensitivity`: accuracy against the fraction removed, as a table and as curves in reports."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from onnxprune import cli
from onnxprune.errors import UsageError, no_samples
from onnxprune.measure.records import Report
from onnxprune.report import text
from onnxprune.system import streams

EPILOG = """examples:
  onnxprune sensitivity model.onnx --data digits
  onnxprune sensitivity model.onnx --data val.npz --fractions 0.5 --include '/layer3*' --report curves.html
"""


def parser() -> cli.Parser:
    """The command's options."""
    made = cli.Parser(
        prog="onnxprune sensitivity",
        description="Accuracy (labels) or agreement with the original, with a part of one dimension removed at a time.",
        epilog=EPILOG,
    )
    made.add_argument("model", metavar="MODEL.onnx", type=Path)
    made.add_argument("--fractions", type=_fractions, help="to remove of each dimension (default: 0.25,0.5,0.75)")
    made.add_argument("--method", default="l2", help="whose scores say what goes first (default: l2)")
    cli.add(made, "include", "exclude")
    made.add_argument("--samples", type=int, metavar="N", help="at most this many to measure on (default: 1000)")
    cli.add(made, "report", "seed")
    cli.data_arguments(made)
    cli.verbosity(made)
    return made


def run(arguments: list[str]) -> int:
    """Measures, prints the table and writes the reports."""
    settings = cli.settings_of(parser(), arguments)
    options = cli.options_of(settings, shlex.join(["onnxprune", "sensitivity", *arguments]))
    if options.data is None and options.val is None:
        raise no_samples("sensitivity")
    if settings.get("samples", 1) < 1:
        raise UsageError(f"--samples {settings['samples']}: give 1 or more")
    from onnxprune.report import check_report_path, write_report
    from onnxprune.run import checks
    from onnxprune.studies import sensitivity

    targets = [check_report_path(path) for path in options.report]
    checks.check_writes(targets, checks.read(settings["model"], options))
    fractions = settings.get("fractions", sensitivity.FRACTIONS)
    most = settings.get("samples", sensitivity.MOST_SAMPLES)
    found = sensitivity.sensitivity(settings["model"], options, fractions, most)
    streams.say(table(found, fractions).rstrip("\n"))
    for path in targets:
        write_report(found, path)
    return 0


def table(found: Report, fractions: Sequence[float]) -> str:
    """One line per dimension in the order of the graph, a column per fraction; what was removed is rounded to units."""
    from onnxprune.report.curves import header, lines

    original = found.models[0].accuracy
    assert original is not None
    told = f"{text.metric(original.metric)} of the original: {text.accuracy(original)} on {original.samples} samples\n"
    return told + text.columns([header(fractions), *lines(found.sensitivity, fractions)])


def _fractions(written: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in written.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{written}' is not a list of numbers such as 0.25,0.5,0.75") from error
