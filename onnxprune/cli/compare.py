"""`onnxprune compare`: methods x budgets x seeds through one pipeline, as a table and a plot with 95 % intervals."""

import argparse
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune import cli
from onnxprune.errors import no_samples
from onnxprune.options import literal, pairs
from onnxprune.system import streams

LOG = logging.getLogger("onnxprune")
EXIT_NOTHING = 1
NONE = "none"  # results in floats
METHODS, TARGETS, SEEDS = ["l1,fpgm,taylor,snacs"], ["macs=0.5"], (0,)
DESCRIPTION = """Prunes a model by every method to every budget with every seed, all with the same recovery and
measured on the same samples. Each finished run is a file in FOLDER/runs; the table (compare.md, .csv, .json) and the
plot (compare.svg) are written anew after each. The same command goes on where it was interrupted; a method that
refuses is a line with its reason."""
EPILOG = """methods are names with options behind colons, separated by commas: l1,snacs:tolerance=0.3,aswl:density=0.3
budgets: KEY=FRACTION as for --target; several that must hold together with commas: macs=0.5,params=0.6
         nonzeros=F   weights that are not zero: sparse methods (aswl, cci, snacs:mode=connection) are told their
                      density, others get params=F
         own          the method decides, or its default
sparse methods whose own option says how much stays (density, kept) run once per seed, without a budget

examples:
  onnxprune compare model.onnx --data train.npz --val test.npz --methods l1,fpgm,taylor,snacs --out compared/
  onnxprune compare model.onnx --data train.npz --val test.npz --quantize none int8 --out compared/
  onnxprune compare model.onnx --data digits --methods snacs,paam,aswl:density=0.3,cci:kept=4 --seeds 0,1,2
      --targets macs=0.5 macs=0.75 --recover finetune --epochs 2 --out compared/
"""


def parser() -> cli.Parser:
    """The command's options."""
    made = cli.Parser(
        prog="onnxprune compare",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    made.add_argument("model", metavar="MODEL.onnx", type=Path)
    made.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="rows, table and plot; goes on there")
    made.add_argument("--methods", nargs="+", metavar="NAME", help=f"see below (default: {METHODS[0]})")
    made.add_argument("--targets", nargs="+", metavar="KEY=FRACTION", help="see below (default: macs=0.5)")
    made.add_argument("--seeds", type=_seeds, metavar="N,N", help="of everything random (default: 0)")
    made.add_argument("--quantize", nargs="+", metavar="KIND", help="none, int8, ...: each as a row (default: none)")
    made.add_argument("--keep-models", action="store_true", help="keep the results in FOLDER/models (default: off)")
    made.add_argument("--again", action="store_true", help="repeat runs that failed (default: off)")
    made.add_argument("--latency", action="store_true", help="measure latency, too (default: off)")
    cli.add(made, *cli.SELECTION, *cli.TRAINING)
    cli.data_arguments(made)
    cli.json_argument(made)
    cli.verbosity(made)
    return made


def run(arguments: list[str]) -> int:
    """Runs what is missing and prints the table; 1 when no run gave a result."""
    settings = cli.settings_of(parser(), arguments)
    forms = settings.pop("quantize", [NONE])
    common = cli.options_of(settings, shlex.join(["onnxprune", "compare", *arguments]))
    if common.data is None and common.val is None:
        raise no_samples("compare")
    from onnxprune.studies import compare
    from onnxprune.studies.compare import tables

    entries = [_entry(text) for words in settings.get("methods", METHODS) for text in words.split(",") if text]
    wanted = compare.runs(entries, settings.get("targets", TARGETS), settings.get("seeds", SEEDS), forms)
    folder = settings["out"]
    head, rows = compare.compare(
        settings["model"],
        folder,
        wanted,
        replace(common, progress=False),
        keep_models=settings["keep_models"],
        again=settings["again"],
        show=lambda head, rows: compare.write(folder, head, rows),
    )
    lines = compare.write(folder, head, rows)
    table = tables.to_json(head, rows, lines) if settings["json"] else _original(head) + tables.plain(lines)
    streams.say(table.rstrip("\n"))
    LOG.info("table and plot are in %s", folder)
    return 0 if any(line.seeds for line in lines) else EXIT_NOTHING


def _entry(text: str) -> Any:
    from onnxprune.studies.compare import entry_of

    _, *words = text.split(":")
    return entry_of(text, pairs(f"--methods {text}:", words, literal))


def _original(head: Any) -> str:
    found = head["original"]["accuracy"]
    return f"the original: {100 * found['value']:.2f} % on {found['samples']} samples\n" if found else ""


def _seeds(written: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in written.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{written}' is not a list of whole numbers such as 0,1,2") from error
