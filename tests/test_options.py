"""The table of options: the command line, configuration files and Python say the same of each row."""

import inspect

import pytest

import onnxprune
from onnxprune.cli import config
from onnxprune.cli.parser import in_group, prune_parser
from onnxprune.errors import UsageError
from onnxprune.options import DATA, DATA_FREE, MEASURE, RECOVERY, REMOVE, SWITCH, TABLE, Options, options_of

ACTIONS = {action.dest: action for action in prune_parser()._actions}


@pytest.mark.parametrize("name", TABLE)
def test_every_row_is_an_option_of_the_command_line_of_files_and_of_python(name):
    row, default = TABLE[name], getattr(Options(), name)
    assert ACTIONS[name].option_strings == [row.flag]
    assert config.BY_NAME[row.flag.removeprefix("--")] is row
    assert inspect.signature(onnxprune.prune).parameters[name].default == row.default
    assert default == (DATA_FREE if name == "method" else row.default)  # which method "auto" is depends on the samples
    assert row.negative or "(default: " in ACTIONS[name].help


def test_every_row_stands_under_a_heading_that_help_prints():
    assert sorted(TABLE) == sorted(name for title in (REMOVE, DATA, RECOVERY, MEASURE) for name in in_group(title))


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.wanted])
def test_numbers_out_of_range_are_refused_and_the_ends_are_not(name):
    row = TABLE[name]
    ends = [end for end in (row.low, row.high) if abs(end) < 1e9]
    for end in ends:
        row.check(type(end)(end))
    beyond = [row.low - 1, float("nan")] + ([row.high * 2] if row.high < 1e9 else [])
    for number in beyond:
        with pytest.raises(UsageError, match=f"{row.flag} .*: give"):
            row.check(number)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.kind is SWITCH])
def test_switches_of_python_are_truth_values(name):
    with pytest.raises(UsageError, match="give true or false"):
        options_of({name: "yes"})
    assert getattr(options_of({name: not TABLE[name].default}), name) is not TABLE[name].default
