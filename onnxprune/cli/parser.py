"""Parsers of the commands, made from the table in options.py. -h fits a screen per group, and shows two examples."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

from onnxprune import options
from onnxprune.cli.patience import Patient
from onnxprune.errors import UsageError
from onnxprune.options import DATA, MEASURE, RECOVERY, REMOVE, SWITCH, TABLE, Option, Options
from onnxprune.system import streams
from onnxprune.system.processes import Leave

LOG = logging.getLogger("onnxprune")

EPILOG = """examples:
  onnxprune model.onnx small.onnx --method l1 --target macs=0.5
  onnxprune model.onnx small.onnx --data samples.npz --target latency=0.6 --max-drop 1 --report report.html

other commands:
  onnxprune inspect MODEL [--json] [--data SPEC]   what can be pruned, what not and why, cost by layer
  onnxprune normalize IN OUT                       the graph that plans refer to
  onnxprune apply IN PLAN OUT                      replay a plan
  onnxprune verify IN OUT --plan PLAN              cut = mask?  exit 0 or 3
  onnxprune check PLAN... [--model MODEL]          can these plans be replayed?  exit 0 or 2
  onnxprune bench MODEL... [--provider cpu,cuda]   latency of models against the first
  onnxprune compare MODEL --data SPEC --out DIR    methods x budgets x seeds: a table and a plot
  onnxprune compare-reports OLD.json NEW.json      what became worse beyond noise?  exit 0 or 1
  onnxprune card REPORT.json [CARD.md]             a model card of a report
  onnxprune sensitivity MODEL --data SPEC          accuracy against the fraction removed, dimension by dimension
  onnxprune calibrate [--provider cpu]             what multiple of channels this machine likes, for --align calibrated
  onnxprune methods | onnxprune ops                what there is

--plugin MODULE with any command imports a module that registers your operators or methods, see docs/extending.md

exit codes: 0 done; 1 a gate was missed; 2 bad usage or input; 3 verification failed; 130 interrupted
"""
SELECTION = ("steps", "align", "floor", "include", "exclude", "exact_only", "inner_only", "allocate", "blocks")
TRAINING = ("recover", "epochs", "lr", "batch_size", "device", "finetune")


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no guessing of abbreviated options, and descriptions as they were written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})

    def print_help(self, file: Any = None) -> None:
        streams.say(self.format_help().rstrip("\n"))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Leave(status)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; '{self.prog} -h' shows the options")


def prune_parser() -> Parser:
    """The parser of the default command."""
    parser = Parser(
        prog="onnxprune",
        description="Prune an ONNX model into a smaller, faster ONNX model with the same interface, with the proof\n"
        "and the numbers.",
        epilog=EPILOG,
    )
    parser.add_argument("source", metavar="IN.onnx", type=Path)
    parser.add_argument("out", metavar="OUT.onnx", type=Path)
    for title in (REMOVE, DATA, RECOVERY, MEASURE):
        group = parser.add_argument_group(title)
        add(group, *in_group(title))
    group.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="any of these options; the command line wins (default: none)"
    )
    json_argument(group)
    verbosity(group)
    return parser


def in_group(title: str) -> tuple[str, ...]:
    """Names of the options under one heading of the help text, in the order of the table."""
    return tuple(name for name, row in TABLE.items() if row.group == title)


def add(group: argparse._ActionsContainer, *names: str, help: str = "") -> None:
    """Adds options of the table by name; `help` tells of them what the table cannot know of this command."""
    for name in names:
        row = TABLE[name]
        told = help or _help(row)
        if row.kind is SWITCH:
            group.add_argument(row.flag, dest=name, action="store_const", const=not row.default, help=told)
            continue
        many = row.several or bool(row.kind.pair)
        group.add_argument(
            row.flag,
            dest=name,
            metavar=row.metavar,
            help=told,
            action="append" if many else "store",
            type=str if row.kind.pair else _reader(row),
        )


def _help(row: Option) -> str:
    told = ": ".join(part for part in (row.help, ", ".join(row.choices)) if part)
    if row.negative:
        return told
    return f"{told} (default: {row.shown or _default(row.default)})"


def _default(value: Any) -> str:
    return "none" if value in (None, (), {}) else "off" if value is False else str(value)


def _reader(row: Option) -> Any:
    def read(text: str) -> Any:
        return row.kind.read(text)

    read.__name__ = row.kind.said.removeprefix("a ").replace('"', "")  # argparse names the type in its message
    return read


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which samples there are and how images become arrays."""
    add(parser.add_argument_group(DATA), *in_group(DATA))


def json_argument(parser: argparse._ActionsContainer) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, nothing else there")


def verbosity(parser: argparse._ActionsContainer) -> None:
    """Adds -q and -v."""
    parser.add_argument("-q", "--quiet", action="store_true", default=None, help="results and errors only")
    parser.add_argument("-v", "--verbose", action="store_true", default=None, help="every step, and traces of errors")


def settings_of(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, Any]:
    """The arguments that were given, by name; sets the level of logging as they say."""
    settings = {key: value for key, value in vars(parser.parse_args(given)).items() if value is not None}
    set_logging(settings)
    return settings


def options_of(settings: dict[str, Any], command: str = "") -> Options:
    """The record of a run from what a parser or a configuration file gave. Raises: UsageError for what cannot be."""
    return options.options_of(settings, command, progress=sys.stderr.isatty() and not settings.get("quiet"))


def set_logging(settings: dict[str, Any]) -> None:
    """Messages on stderr: steps and warnings, with -q errors only.

    Elsewhere than on a terminal steps wait until the input was accepted, so that an error in it is the one line there.
    """
    level = logging.INFO
    if settings.get("quiet") or settings.get("verbose"):
        level = logging.ERROR if settings.get("quiet") else logging.DEBUG
    at_once = sys.stderr.isatty() or settings.get("verbose")
    handler = logging.StreamHandler(sys.stderr) if at_once else Patient(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(level)
    LOG.propagate = False
