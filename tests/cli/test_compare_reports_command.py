"""`onnxprune compare-reports`: exit 0 when nothing is worse, 1 when something is, 2 for files that are no reports."""

import json
from dataclasses import replace

import pytest

from onnxprune import cli
from onnxprune.outputs.metrics import Accuracy
from onnxprune.report import Measurement, Report, write_report

BEFORE = Measurement("original", macs=100, params=50, bytes=400, accuracy=Accuracy("top1", 0.9, 1000, (0.88, 0.92)))
AFTER = Measurement("pruned", macs=50, params=20, bytes=200, accuracy=Accuracy("top1", 0.89, 1000, (0.87, 0.91)))


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "old.json"
    write_report(Report("onnxprune a b", (BEFORE, AFTER)), path)
    return path


def compare(stored, after):
    path = stored.parent / "new.json"
    write_report(Report("onnxprune a b", (BEFORE, after)), path)
    return cli.main(["compare-reports", str(stored), str(path)])


def test_equal_and_better_reports_pass(stored, capsys):
    assert compare(stored, AFTER) == 0
    assert compare(stored, replace(AFTER, macs=40)) == 0
    assert capsys.readouterr().out.count("nothing is worse") == 2


def test_noise_is_no_regression(stored):
    assert compare(stored, replace(AFTER, accuracy=Accuracy("top1", 0.88, 1000, (0.86, 0.9)))) == 0


def test_every_regression_is_a_line_and_the_exit_code_is_1(stored, capsys):
    worse = replace(AFTER, macs=51, accuracy=Accuracy("top1", 0.8, 1000, (0.77, 0.83)))
    assert compare(stored, worse) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["macs", "top1"]
    assert "was 0.8900, is 0.8000" in lines[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "no JSON"),
        ("[]", "format is 'list'"),
        (json.dumps({"format": "onnxprune-report/1", "models": [{}]}), "damaged"),
        (json.dumps({"format": "onnxprune-report/1", "models": 3}), "damaged"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(stored, capsys, content, message):
    path = stored.parent / "other.json"
    if content is not None:
        path.write_text(content)
    assert cli.main(["compare-reports", str(path), str(stored)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def times(path, **seconds):
    """A file as `hyperfine --export-json` writes it: each command with its times in seconds."""
    results = [
        {"command": name, "mean": sum(found) / len(found), "median": sorted(found)[len(found) // 2], "times": found}
        for name, found in seconds.items()
    ]
    path.write_text(json.dumps({"results": results}))
    return str(path)


def test_times_of_hyperfine_are_compared_command_by_command(tmp_path, capsys):
    steady, slower, near = [0.100, 0.101, 0.102], [0.120, 0.121, 0.122], [0.099, 0.1015, 0.103]
    old = times(tmp_path / "old.json", first=steady, second=steady)
    assert cli.main(["compare-reports", old, times(tmp_path / "new.json", first=steady, second=near)]) == 0
    assert cli.main(["compare-reports", old, times(tmp_path / "new.json", first=slower, second=steady)]) == 1
    out = capsys.readouterr().out
    assert "worse: first" in out
    assert "second" not in out
    assert cli.main(["compare-reports", old, times(tmp_path / "new.json", first=steady)]) == 1
    assert "worse: second: no longer in the report" in capsys.readouterr().out


def test_results_without_times_are_refused(tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"results": [{"command": "a"}]}')
    assert cli.main(["compare-reports", str(tmp_path / "bad.json"), str(tmp_path / "bad.json")]) == 2
    assert "result 0 is none of hyperfine's" in capsys.readouterr().err
