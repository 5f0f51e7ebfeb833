"""tools/papers.py: rows that are taken up where they were, tables, and the commands."""

import importlib
import json
import subprocess
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
COMMON = ["--data", "digits", "--test", "digits:test", "--device", "cpu", "--epochs"]


@pytest.fixture
def papers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("tools.papers")


@pytest.fixture
def row(papers):
    words = "--method l1 --target macs=0.5"
    return papers.Row("digits-half", str(ROOT / "models" / "digits.onnx"), words, "common", "a paper's 99.0 %")


REPORT = {
    "models": [
        {"macs": 100, "params": 10, "nonzeros": 10, "accuracy": {"value": 0.93}},
        {
            "macs": 50,
            "params": 4,
            "nonzeros": 3,
            "accuracy": {"value": 0.92, "interval95": [0.915, 0.925], "samples": 10_000},
        },
    ],
    "settings": {name: {"value": 1} for name in "batch_size optimizer lr ema statistics batchnorm amp".split()},
    "finetune": [{"epoch": 0}, {"epoch": 1}, {"epoch": 1.64}],
    "notes": ["something", "fine-tuning was kept: the model after it is better"],
    "verify": {"ok": True},
    "steps": [{"name": "score", "seconds": 2.04}, {"name": "finetune", "seconds": 60.5}],
    "command": "onnxprune a b",
}


def test_a_row_says_how_many_epochs_were_trained_and_what_the_judge_kept(papers, row):
    found = papers.row_of(row, REPORT, 3)
    assert (found["epochs"], found["seed"], found["seconds"]) == (1.64, 3, 63)
    assert found["judge"] == "fine-tuning was kept: the model after it is better"
    assert (found["macs"], found["params"], found["nonzeros"]) == (0.5, 0.4, 0.3)


def test_ended_rows_stand_in_the_table_and_are_not_made_again(papers, row, tmp_path, monkeypatch, capsys):
    (tmp_path / row.name).mkdir()
    (tmp_path / row.name / "row.json").write_text(json.dumps(papers.row_of(row, REPORT, 0)))
    monkeypatch.setattr(papers.subprocess, "run", lambda *_, **__: pytest.fail("it has ended"))
    assert papers.main([str(tmp_path)], rows=(row,)) == 0
    line = (tmp_path / "rows.md").read_text().splitlines()[-1]
    for text in ("| 92.00 % | 91.50 to 92.50 % | 0.500 |", "| 1.64 | 63 |", "a paper's 99.0 %"):
        assert text in line
    assert json.loads((tmp_path / "rows.jsonl").read_text())["row"] == "digits-half"
    assert papers.main([str(tmp_path), "--list"], rows=(row, replace(row, name="other"))) == 0
    assert [line.split(": ")[-1] for line in capsys.readouterr().out.splitlines()] == ["ended", "not ended"]


def test_a_row_that_fails_is_told_and_the_next_one_is_made(papers, row, tmp_path, capsys):
    bad = replace(row, name="bad", words="--method nonsense")
    later = replace(row, name="later", network=str(tmp_path / "none.onnx"))
    assert papers.main([str(tmp_path / "out")], rows=(bad, later)) == 1
    told = capsys.readouterr().err
    assert "bad: exit code 2" in told
    assert "later: exit code 2" in told
    assert "nonsense" in (tmp_path / "out" / "bad" / "log.txt").read_text()


def test_options_behind_two_dashes_and_the_network_decide_the_command(papers, tmp_path):
    for row in papers.ROWS:
        args = papers.parsed([str(tmp_path), "--time", "40m", "--", "--threads", "1"], papers.ROWS)
        words = papers.command(row, tmp_path / row.name, args)
        assert words[words.index("--time") + 1] == "40m"
        assert words[words.index("--threads") + 1] == "1"
        assert words[words.index("--data") + 1] == f"tools.cifar:{'vgg_' if row.network == papers.VGG else ''}train"


def test_the_command_line_takes_what_the_rows_say(papers, tmp_path):
    """Options by their names and values, those of methods too: a night must not end at its first line."""
    from onnxprune.cli.parser import prune_parser
    from onnxprune.methods import base

    args = papers.parsed([str(tmp_path), "--epochs", "2"], papers.ROWS)
    for row in papers.ROWS:
        given = prune_parser().parse_args(papers.command(row, tmp_path, args)[3:])
        method = base.get(given.method)
        assert method.options is not None
        known = {field.name for field in fields(method.options)}
        assert {pair.split("=")[0] for pair in given.method_options or ()} <= known


@pytest.mark.slow
def test_a_row_that_was_interrupted_ends_as_one_that_was_not(papers, row, tmp_path):
    quick = ["--", "--finetune", "amp=off", "--finetune", "channels_last=false", "--finetune", "checkpoint_seconds=0"]
    assert papers.main([str(tmp_path / "whole"), *COMMON, "4", *quick], rows=(row,)) == 0
    args = papers.parsed([str(tmp_path / "halves"), *COMMON, "4", *quick], (row,))
    folder = args.out / row.name
    folder.mkdir(parents=True)
    process = subprocess.Popen(papers.command(row, folder, args), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not any(folder.glob("checkpoints/*.npz")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (folder / "report.json").exists()
    assert papers.main([str(args.out), *COMMON, "4", *quick], rows=(row,)) == 0
    assert "goes on after epoch" in (folder / "log.txt").read_text()
    one, other = (json.loads((out / row.name / "row.json").read_text()) for out in (tmp_path / "whole", args.out))
    for name in ("accuracy", "interval95", "epochs", "macs", "params", "nonzeros", "settings", "judge"):
        assert one[name] == other[name]
    models = [(out / row.name / "out.onnx").read_bytes() for out in (tmp_path / "whole", args.out)]
    assert models[0] == models[1]
