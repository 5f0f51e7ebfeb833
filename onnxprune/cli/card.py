"""`onnxprune card`: a model card, as hubs show it, from a report."""

from pathlib import Path

from onnxprune import cli
from onnxprune.errors import UsageError
from onnxprune.system import streams


def parser() -> cli.Parser:
    """The command's options."""
    made = cli.Parser(
        prog="onnxprune card",
        description="Writes a model card of a report that pruning wrote: what the model is, its numbers and its proof.",
        epilog="examples:\n  onnxprune card report.json README.md\n  onnxprune card report.json",
    )
    made.add_argument("report", metavar="REPORT.json", type=Path)
    made.add_argument("card", metavar="CARD.md", type=Path, nargs="?", help="where it is written (default: stdout)")
    cli.verbosity(made)
    return made


def run(arguments: list[str]) -> int:
    """Writes or prints the card. Raises: UsageError for a report that is none of pruning."""
    settings = cli.settings_of(parser(), arguments)
    from onnxprune.report import card, read_report
    from onnxprune.run import checks
    from onnxprune.system.atomic_files import replace_text

    target = settings.get("card")
    if target is not None:
        checks.check_writes([target], [settings["report"]])
    found = read_report(settings["report"])
    try:
        made = card.to_card(found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        where = f"{settings['report']}: is no report of pruning ({what})"
        raise UsageError(f"{where}; give one that --report wrote") from error
    if target is None:
        streams.say(made.rstrip("\n"))
    else:
        replace_text(target, made)
    return 0
