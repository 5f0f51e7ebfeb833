"""The command line: parses, calls, prints results on stdout and everything else on stderr, and returns exit codes.

entry      `main`: which command, and what an error becomes
parser     the options, and the parts that several commands share
values     KEY=VALUE, numbers and other words of the command line as Python values
config     the same options from a TOML file
commands   what each command does; more, calibrate, compare, compare_reports, sensitivity: those besides pruning
"""

from onnxprune.cli.entry import main
from onnxprune.cli.parser import Parser, data_arguments, selection, set_logging, settings_of, training, verbosity
from onnxprune.cli.values import options_of

__all__ = [
    "Parser",
    "data_arguments",
    "main",
    "options_of",
    "selection",
    "set_logging",
    "settings_of",
    "training",
    "verbosity",
]
