"""The command line: parses, calls, prints results on stdout and everything else on stderr, and returns exit codes.

entry      `main`: which command, and what an error becomes
parser     argparse from the table in options.py, and the parts that several commands share
config     the same options from a TOML file
commands   what each command does; those with a module of their own stand beside it, under their names
"""

from onnxprune.cli.entry import main
from onnxprune.cli.parser import (
    SELECTION,
    TRAINING,
    Parser,
    add,
    data_arguments,
    json_argument,
    options_of,
    set_logging,
    settings_of,
    verbosity,
)

__all__ = [
    "SELECTION",
    "TRAINING",
    "Parser",
    "add",
    "data_arguments",
    "json_argument",
    "main",
    "options_of",
    "set_logging",
    "settings_of",
    "verbosity",
]
