"""TOML files give what the command line gives, and nothing else."""

from pathlib import Path

import pytest

from onnxprune.cli import config, options_of
from onnxprune.cli.parser import prune_parser
from onnxprune.errors import UsageError
from onnxprune.options import Options
from onnxprune.plan import plan as plans
from onnxprune.run.vocabulary import read_ids


def read(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return config.read(path)


EQUAL = {
    'method = "l1"': ["--method", "l1"],
    "target = {macs = 0.5, params = 0.4}": ["--target", "macs=0.5", "--target", "params=0.4"],
    'target = ["macs=0.5"]': ["--target", "macs=0.5"],
    "[target]\nmacs = 0.5": ["--target", "macs=0.5"],
    "max-drop = 1\ndata = 'digits'": ["--max-drop", "1", "--data", "digits"],
    "max_drop = 1.5\nval = 'digits'": ["--max-drop", "1.5", "--val", "digits"],
    'align = "auto"\nfloor = 0.1': ["--align", "auto", "--floor", "0.1"],
    "align = 8": ["--align", "8"],
    'include = "a*"': ["--include", "a*"],
    'include = ["a*", "b"]': ["--include", "a*", "--include", "b"],
    "exact-only = true": ["--exact-only"],
    "no-latency = true": ["--no-latency"],
    "mean = [0.5, 0.25, 1]": ["--mean", "0.5,0.25,1"],
    "std = 2": ["--std", "2"],
    "size = [32, 48]": ["--size", "32,48"],
    'report = ["a.md", "b.json"]': ["--report", "a.md", "--report", "b.json"],
    'plan = "p.json"': ["--plan", "p.json"],
    "option = {bits = 3, name = 'x', fast = true}": [
        "--option",
        "bits=3",
        "--option",
        "name=x",
        "--option",
        "fast=true",
    ],
    "finetune = {mixup = 0.2, flip = true, batchnorm = 'on'}": [
        *("--finetune", "mixup=0.2", "--finetune", "flip=True"),
        *("--finetune", "batchnorm=on"),
    ],
    "loss = 'mine:loss'\nmetric = 'mine:score'": ["--loss", "mine:loss", "--metric", "mine:score"],
    "steps = 3\ntarget = {macs = 0.5}": ["--steps", "3", "--target", "macs=0.5"],
    "seed = 3\nlr = 0.1\nepochs = 2": ["--seed", "3", "--lr", "0.1", "--epochs", "2"],
}


@pytest.mark.parametrize("text", EQUAL)
def test_file_equals_command_line(tmp_path, text):
    given = vars(prune_parser().parse_args(["in.onnx", "out.onnx", *EQUAL[text]]))
    expected = options_of({key: value for key, value in given.items() if value is not None}, "")
    assert options_of(read(tmp_path, text), "") == expected
    assert expected != Options()


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    """Editors and shells of Windows put one in front of what they save: of configurations, ids and plans."""
    text = tmp_path / "c.toml"
    text.write_text('method = "l1"', encoding="utf-8-sig")
    assert config.read(text) == {"method": "l1"}
    ids = tmp_path / "ids.txt"
    ids.write_text("3\n1\n", encoding="utf-8-sig")
    assert read_ids(ids) == (1, 3)
    plan = tmp_path / "plan.json"
    plan.write_text("{}", encoding="utf-8-sig")
    with pytest.raises(UsageError, match="format"):  # read, and found to be no plan
        plans.load(plan)


def test_false_switches_are_defaults(tmp_path):
    assert options_of(read(tmp_path, "no-latency = false\nexact-only = false"), "").latency is True


REFUSED = {
    "epochs = 1.5": "'epochs' is 1.5; give a whole number",
    'lr = "small"': "'lr' is 'small'; give a number",
    "report = 3": "'report' is 3; give a path in quotes",
    'report = ["a.md", 3]': "'report' is 3",
    'mean = ["a"]': "give a number or a list of numbers",
    "mean = []": "give a number or a list of numbers",
    'align = "big"': 'give a whole number, "auto" or "calibrated"',
    'target = {macs = "0.5"}': "give a table such as {macs = 0.5}",
    "finetune = 3": "give a table such as {mixup = 0.2}",
    "option = 3": "give a table such as {name = 1}",
    'config = "other.toml"': "unknown option 'config'",
    "help = true": "unknown option 'help'",
    'layout = "hwc"': "'layout' is 'hwc'; choose of nchw, nhwc",
    "latency = false": "unknown option 'latency'",
    "[prune]\nmethod = 'l1'": "unknown option 'prune'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, text):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert REFUSED[text] in str(caught.value)
    assert str(tmp_path / "c.toml") in str(caught.value)


def test_folder_is_no_configuration(tmp_path):
    with pytest.raises(UsageError, match="not a TOML file"):
        config.read(Path(tmp_path))
