"""`onnxprune compare-reports`: what of a report is worse than in an earlier one by more than noise; exit 0 or 1."""

from pathlib import Path

from onnxprune import cli
from onnxprune.errors import UsageError
from onnxprune.system import streams

EXIT_REGRESSION = 1
DESCRIPTION = """Lists what of NEW is worse than in OLD beyond the noise of both, and exits 1 if anything is.

Costs are exact: any increase counts. Accuracy and latency ratios count when their 95 % intervals lie apart,
milliseconds when quartiles do and both were measured on the same kind of machine. What OLD had and NEW lacks counts.
Two files of times that hyperfine, or 'bench --export-json', wrote are compared command by command."""


def parser() -> cli.Parser:
    """The command's options."""
    made = cli.Parser(
        prog="onnxprune compare-reports",
        description=DESCRIPTION,
    )
    made.add_argument("old", metavar="OLD.json", type=Path, help="a stored report, written by --report")
    made.add_argument("new", metavar="NEW.json", type=Path, help="the report to judge")
    return made


def run(arguments: list[str]) -> int:
    """Prints one line per regression; 1 when there are any."""
    namespace = parser().parse_args(arguments)
    from onnxprune.report import compare_reports, hyperfine, read_report

    old, new = (hyperfine.read(path) or read_report(path) for path in (namespace.old, namespace.new))
    try:
        found = compare_reports(old, new)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        which = f"{namespace.old} or {namespace.new}"
        raise UsageError(f"{which}: the report is damaged ({type(error).__name__}: {error}); write it again") from error
    for regression in found:
        streams.say(f"worse: {regression.message}")
    if not found:
        streams.say(f"nothing is worse than in {namespace.old}")
    return EXIT_REGRESSION if found else 0
