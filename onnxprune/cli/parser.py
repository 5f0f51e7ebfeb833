"""The options of every command. -h fits a screen per group, and shows defaults and two examples."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

from onnxprune.cli import values
from onnxprune.errors import UsageError
from onnxprune.options import LEVELS, TARGETS, TUNING

LOG = logging.getLogger("onnxprune")

EPILOG = """examples:
  onnxprune model.onnx small.onnx --method l1 --target macs=0.5
  onnxprune model.onnx small.onnx --data samples.npz --target latency=0.6 --max-drop 1 --report report.html

other commands:
  onnxprune inspect MODEL [--json] [--data SPEC]   what can be pruned, what not and why, cost by layer
  onnxprune normalize IN OUT                       the graph that plans refer to
  onnxprune apply IN PLAN OUT                      replay a plan
  onnxprune verify IN OUT --plan PLAN              cut = mask?  exit 0 or 3
  onnxprune bench MODEL... [--provider cpu,cuda]   latency of models against the first
  onnxprune compare MODEL --data SPEC --out DIR    methods x budgets x seeds: a table and a plot
  onnxprune compare-reports OLD.json NEW.json      what became worse beyond noise?  exit 0 or 1
  onnxprune sensitivity MODEL --data SPEC          accuracy against the fraction removed, dimension by dimension
  onnxprune calibrate [--provider cpu]             what multiple of channels this machine likes, for --align auto
  onnxprune methods | onnxprune ops                what there is

--plugin MODULE with any command imports a module that registers your operators or methods, see docs/extending.md

exit codes: 0 done; 1 a gate was missed; 2 bad usage or input; 3 verification failed; 130 interrupted
"""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no guessing of abbreviated options, and descriptions as they were written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})

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
    parser.add_argument("input", metavar="IN.onnx", type=Path)
    parser.add_argument("output", metavar="OUT.onnx", type=Path)
    _what(parser.add_argument_group("what to remove"))
    data_arguments(parser)
    recovery(parser.add_argument_group("recovery, see docs/recovery.md"))
    _output(parser.add_argument_group("measuring and output"))
    return parser


def _what(group: argparse._ArgumentGroup) -> None:
    targets = ", ".join(TARGETS)
    group.add_argument("--method", metavar="NAME", help="see 'onnxprune methods' (default: snacs)")
    group.add_argument(
        "--target",
        action="append",
        metavar="KEY=FRACTION",
        help=f"what may remain, of {targets}; repeatable, all must hold (default: snacs decides, else macs=0.5)",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="search the smallest model that loses at most this (default: none)",
    )
    group.add_argument(
        "--min-speedup", type=float, metavar="X", help="fail unless the result is X times as fast (default: none)"
    )
    selection(group)
    group.add_argument(
        "--option", action="append", metavar="KEY=VALUE", help="an option of the method, see docs/methods; repeatable"
    )


def selection(group: argparse._ActionsContainer) -> None:
    """Adds what says which units may go, in what multiples and in how many steps."""
    group.add_argument(
        "--steps", type=int, metavar="N", help="reach --target in N steps with recovery between them (default: 1)"
    )
    group.add_argument(
        "--align",
        type=values.align,
        metavar="N",
        help="kept sizes are multiples of N, or auto: what the provider likes, where the target allows (default: auto)",
    )
    group.add_argument(
        "--floor", type=float, metavar="SHARE", help="smallest share of a dimension that stays (default: 0.05)"
    )
    group.add_argument(
        "--include", action="append", metavar="PATTERN", help="only these nodes or initializers, globs (default: all)"
    )
    group.add_argument("--exclude", action="append", metavar="PATTERN", help="not these (default: none)")
    group.add_argument(
        "--exact-only", action="store_true", default=None, help="leave reduced dimensions alone (default: off)"
    )
    group.add_argument(
        "--inner-only",
        action="store_true",
        default=None,
        help="leave widths of residual streams alone: what is inside blocks can be made good best (default: off)",
    )


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which samples there are and how images become arrays."""
    data = parser.add_argument_group("samples (SPEC: .npz, folder of images, module:function, digits)")
    data.add_argument("--data", metavar="SPEC", help="to score and tune on (default: none)")
    data.add_argument("--val", metavar="SPEC", help="to measure accuracy on (default: a held-out part of --data)")
    data.add_argument(
        "--size", type=values.numbers, metavar="N", help="images: shorter side, or height,width (default: the model's)"
    )
    data.add_argument("--mean", type=values.numbers, metavar="M", help="per channel, after scaling (default: 0)")
    data.add_argument("--std", type=values.numbers, metavar="S", help="per channel, after scaling (default: 1)")
    data.add_argument("--scale", type=float, metavar="X", help="of pixels 0..255 (default: 1/255)")
    data.add_argument("--layout", choices=("nchw", "nhwc"), help="(default: the model's)")


def recovery(group: argparse._ActionsContainer, default: str = "the best that the data allows") -> None:
    """Adds what says how the model recovers, and by what it is judged."""
    training(group, default)
    group.add_argument(
        "--loss",
        metavar="MODULE:FUNCTION",
        help="your own, of (outputs, the original's outputs, labels or None) (default: distance to the original)",
    )
    group.add_argument(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="your own, larger is better, or relative_error: for the epoch to keep, accuracy and --max-drop "
        "(default: top1 with labels, else agreement of classes, else relative_error)",
    )
    group.add_argument(
        "--resume", type=Path, metavar="DIR", help="checkpoints live there; an interrupted run goes on (default: none)"
    )


def training(group: argparse._ActionsContainer, default: str = "the best that the data allows") -> None:
    """Adds the level of recovery, and what fine-tuning is most often told."""
    group.add_argument("--recover", metavar="LEVEL", help=f"{', '.join(LEVELS)} (default: {default})")
    group.add_argument(
        "--epochs", type=int, metavar="N", help="of fine-tuning (default: chosen by the size of the data)"
    )
    group.add_argument("--lr", type=float, metavar="X", help="learning rate (default: chosen)")
    group.add_argument("--batch-size", type=int, metavar="N", help="of fine-tuning (default: chosen)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help="for training (default: auto)")
    group.add_argument(
        "--finetune",
        action="append",
        metavar="KEY=VALUE",
        help=f"{', '.join(TUNING)}; repeatable (default: chosen)",
    )


def _output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--provider", metavar="NAME", help="cpu, cuda or tensorrt, for measuring (default: auto)")
    group.add_argument("--threads", type=int, metavar="N", help="for measuring (default: the physical cores)")
    group.add_argument(
        "--no-latency", dest="latency", action="store_false", default=None, help="do not measure latency"
    )
    group.add_argument(
        "--pack",
        action="store_true",
        default=None,
        help="store zeros small; standard operators unpack them at load (default: off)",
    )
    group.add_argument("--plan", type=Path, metavar="FILE", help="write the plan (default: none)")
    group.add_argument(
        "--report",
        type=Path,
        action="append",
        metavar="FILE",
        help=".json, .md or .html by suffix; repeatable (default: the terminal only)",
    )
    group.add_argument(
        "--config", type=Path, metavar="FILE.toml", help="any of these options; the command line wins (default: none)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    verbosity(group)


def verbosity(parser: argparse._ActionsContainer) -> None:
    """Adds -q and -v."""
    parser.add_argument("-q", "--quiet", action="store_true", default=None, help="results and errors only")
    parser.add_argument("-v", "--verbose", action="store_true", default=None, help="every step, and traces of errors")


def settings_of(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, Any]:
    """What was given, by name, without what was left out; logging is set to it."""
    settings = {key: value for key, value in vars(parser.parse_args(given)).items() if value is not None}
    set_logging(settings)
    return settings


def set_logging(settings: dict[str, Any]) -> None:
    """Messages on stderr: steps on a terminal or with -v, warnings always, with -q errors only.

    Elsewhere than on a terminal steps are left out, so that an error is the one line there.
    """
    level = logging.INFO if sys.stderr.isatty() else logging.WARNING
    if settings.get("quiet") or settings.get("verbose"):
        level = logging.ERROR if settings.get("quiet") else logging.DEBUG
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(level)
    LOG.propagate = False
