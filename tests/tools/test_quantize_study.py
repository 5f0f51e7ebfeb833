"""The table of tools/quantize_study.py, from reports as a run writes them."""

import json
import xml.etree.ElementTree as ET

import pytest

from tools import quantize_study


def report(macs: float, sizes: tuple[float, float], times: tuple[float, float], lost: tuple[float, float]) -> dict:
    models = [{"name": "original", "accuracy": {"value": 0.9}, "ratios": None}]
    for name, size, time, points in zip(("pruned", "quantized"), sizes, times, lost, strict=True):
        ratios = {"macs": macs, "bytes": size, "latency": [{"median": time}]}
        models.append({"name": name, "accuracy": {"value": 0.9 - points / 100}, "ratios": ratios})
    return {"models": models}


def test_the_table_has_the_float_and_the_quantized_file_of_each_run_the_largest_first(tmp_path):
    (tmp_path / "digits-0.5.json").write_text(json.dumps(report(0.5, (0.6, 0.2), (0.7, 0.4), (1, 1.5))))
    (tmp_path / "digits-1.json").write_text(json.dumps(report(1, (1, 0.3), (1, 0.6), (0, 0.25))))
    lines = quantize_study.table(tmp_path, ["digits", "resnet56"]).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:]] == [
        "original in floats",
        "int8 alone",
        "pruned",
        "pruned and int8",
    ]
    assert lines[-1] == "| digits | 0.50 | pruned and int8 | 0.200 | 0.400 | 88.50 % | 1.50 |"


def test_the_picture_has_a_dot_for_each_file_that_did_not_lose_too_much(tmp_path):
    for budget, lost in ((0.5, (1, 1.5)), (0.3, (30, 40))):
        (tmp_path / f"digits-{budget}.json").write_text(json.dumps(report(budget, (0.6, 0.2), (0.7, 0.4), lost)))
    dots = quantize_study.dots(tmp_path, ["digits"])
    assert [(dot.series, *dot.costs.values()) for dot in dots[:2]] == [("floats", 0.6, 0.7), ("int8", 0.2, 0.4)]
    drawn = ET.fromstring(quantize_study.picture(dots, quantize_study.LOOK))
    assert len(drawn.findall(".//{*}circle")) == 2 * 2  # size and latency of two files


def test_without_labels_what_is_kept_of_the_answers_counts():
    models = {"original": {"accuracy": None}, "pruned": {"accuracy": {"value": 0.9, "share": 0.8}}}
    assert quantize_study.accuracies(models, "pruned") == (80, pytest.approx(20))


def test_a_run_without_latency_has_a_dash(tmp_path):
    found = report(0.5, (0.6, 0.2), (0.7, 0.4), (1, 1.5))
    for model in found["models"][1:]:
        model["ratios"]["latency"] = []
    assert "| – |" in quantize_study.rows("digits", found)[0]
