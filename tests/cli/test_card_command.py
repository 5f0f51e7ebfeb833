"""`onnxprune card`: a report as a model card."""

import json

import numpy as np
import pytest
import yaml


@pytest.fixture
def report(cli, cnn_path, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32))
    words = ("--method", "l1", "--data", tmp_path / "x.npz", "--recover", "constants", "--no-latency", "-q")
    assert cli(cnn_path, tmp_path / "small.onnx", *words, "--report", tmp_path / "r.json").code == 0
    return tmp_path / "r.json"


def test_a_card_says_what_the_report_says(cli, report, tmp_path):
    assert cli("card", report, tmp_path / "README.md").code == 0
    text = (tmp_path / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    known = json.loads(report.read_text())
    found = yaml.safe_load(head)
    assert found["tags"] == ["onnx", "pruned", "onnxprune"]
    assert found["metrics"] == [known["models"][1]["accuracy"]["metric"]]
    assert "# small.onnx" in body
    assert f"| {known['ratios']['macs']:.3f} |" in body
    assert known["command"] in body
    assert known["models"][0]["sha256"] in body
    assert all(f"- {note}" in body for note in known["notes"])
    assert cli("card", report).out == text


def test_a_name_with_quotes_does_not_break_the_head(cli, report, tmp_path):
    known = json.loads(report.read_text())
    known["models"][1]["accuracy"]["metric"] = 'my: "metric"'
    report.write_text(json.dumps(known))
    head = cli("card", report).out.split("---\n", 2)[1]
    assert yaml.safe_load(head)["metrics"] == ['my: "metric"']


@pytest.mark.parametrize(
    "change", [lambda r: r.pop("models"), lambda r: r.update(ratios=3), lambda r: r.update(tool=[])]
)
def test_a_damaged_report_is_one_line(cli, report, change):
    known = json.loads(report.read_text())
    change(known)
    report.write_text(json.dumps(known))
    ran = cli("card", report)
    assert ran.code == 2
    assert "is no report of pruning" in ran.err
    assert ran.err.count("\n") == 1


def test_the_report_is_never_the_card(cli, report):
    assert "this run has read that file already" in cli("card", report, report).err
