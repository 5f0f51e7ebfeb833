"""The picture and the table of several fronts."""

import json
import sys
import xml.etree.ElementTree as ET

import pytest

from tools import front_picture


def report(measured: tuple[bool, ...] = (True, False, False)) -> dict:
    """A front of three sizes; the original has 90 % and a model that answers all alike 10 %."""
    front = [
        {"macs": macs, "params": macs, "latency": None if macs < 0.2 else macs, "quick": 0.9 - lost / 100, "lost": lost,
         "measured": seen, "chosen": macs == 0.5}
        for macs, lost, seen in zip((0.8, 0.5, 0.1), (0.5, 4.0, 50.0), measured, strict=True)
    ]  # fmt: skip
    final = {"value": 0.86, "original": 0.9, "null": 0.1}
    return {"models": [{"accuracy": {}}, {"accuracy": final}], "front": front}


def test_the_table_has_a_line_for_each_size():
    lines = list(front_picture.rows("net", report()))
    assert lines[0] == "| net | 0.800 | 0.800 | 0.800 | 0.63 | 0.50 | measured |"
    assert lines[1].endswith("| 5.00 | 4.00 | predicted, the result |")
    assert "| – |" in lines[2]


def test_hollow_dots_are_predicted(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    paths[0].write_text(json.dumps(report()))
    paths[1].write_text(json.dumps(report((True, True, True))))
    monkeypatch.setattr(sys, "argv", ["", *map(str, paths), "--out", str(tmp_path / "front.svg")])
    front_picture.main()
    assert "| two | 0.500 |" in capsys.readouterr().out
    circles = ET.fromstring((tmp_path / "front.svg").read_text()).findall(".//{*}circle")
    # Of each network: the original and two sizes with both recoveries against three costs; the third lost too much.
    assert len(circles) == 2 * 3 * 2 * 3
    assert sum(circle.get("fill") == "#fff" for circle in circles) == 3


def test_a_report_without_a_front_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "plain.json").write_text(json.dumps({**report(), "front": []}))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "plain.json")])
    with pytest.raises(SystemExit):
        front_picture.main()
    assert "without --front" in capsys.readouterr().err
