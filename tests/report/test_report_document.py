"""The JSON report: its schema, null for unknown, and files that are refused."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.report import Layer, Measurement, Report, document, read_report, schema
from onnxprune.report.document import FORMAT, plain, to_json


def validate(found):
    jsonschema.validate(found, schema(), jsonschema.Draft202012Validator)


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_a_full_report_fits_the_schema(report):
    found = json.loads(to_json(report))
    validate(found)
    assert found["format"] == FORMAT
    assert found["ratios"]["macs"] == pytest.approx(61_700_096 / 125_485_696)
    assert [entry["batch"] for entry in found["ratios"]["latency"]] == [1, 64]
    assert found["models"][1]["ratios"] == found["ratios"]
    assert found["models"][0]["accuracy"]["interval95"][0] < 4669 / 5000


def test_unknown_is_null_and_never_zero():
    bare = Report("onnxprune", (Measurement("original"), Measurement("pruned", macs=5)))
    found = document(bare)
    validate(found)
    assert found["ratios"] == {"macs": None, "params": None, "bytes": None, "latency": []}
    assert found["models"][0]["macs"] is None
    assert found["models"][0]["accuracy"] is None
    assert found["verify"] is None


def test_a_ratio_to_zero_is_unknown_and_one_of_zero_is_zero():
    models = (Measurement("original", macs=0, params=8), Measurement("pruned", macs=0, params=0))
    found = document(Report("", models))["ratios"]
    assert found["macs"] is None
    assert found["params"] == 0


def test_one_model_has_no_ratios():
    found = document(Report("", (Measurement("only", macs=3),)))
    validate(found)
    assert found["ratios"]["macs"] is None


def test_further_models_carry_their_own_ratios():
    models = tuple(Measurement(name, macs=macs) for name, macs in (("a", 8), ("b", 4), ("c", 2)))
    found = document(Report("", models))
    assert [m.get("ratios", {}).get("macs") for m in found["models"]] == [None, 0.5, 0.25]
    assert found["ratios"]["macs"] == 0.5


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "onnxprune-report/2"),
        (("models", 0, "macs"), -1),
        (("models", 0, "sha256"), "short"),
        (("models", 0, "latency", 0, "median_ms"), 0),
        (("models", 0, "latency", 0, "provider"), "cpu"),
        (("models", 0, "latency", 0, "batch"), 0),
        (("models", 0, "accuracy", "interval95"), [0.5]),
        (("verify", "ok"), "yes"),
        (("layers", 0, "before"), ["wide"]),
        (("ratios", "latency", 0, "median"), None),
        (("steps", 0, "seconds"), None),
    ],
)
def test_the_schema_refuses(report, path, value):
    found = document(report)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(found)


@pytest.mark.parametrize("key", ["format", "models", "ratios", "verify", "layers", "frozen", "steps"])
def test_the_schema_misses(report, key):
    found = document(report)
    del found[key]
    with pytest.raises(jsonschema.ValidationError):
        validate(found)


def test_numpy_and_infinities_become_json(report):
    assert plain({"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), 4: (np.int64(1), None, True)}) == {
        "a": 0.5,
        "b": [0, 1],
        "c": None,
        "4": [1, None, True],
    }
    odd = replace(report, plan={"size": np.int64(3)})
    assert json.loads(to_json(odd))["plan"] == {"size": 3}


def test_widths_follow_the_axis_of_output_channels():
    def widths(op, shape, axis=None):
        return Layer("n", op, (), shape, tuple(s // 2 for s in shape), axis=axis).widths

    assert widths("Conv", (8, 4, 3, 3)) == (8, 4)
    assert widths("ConvTranspose", (8, 4, 3, 3)) == (4, 2)
    assert widths("MatMul", (8, 6)) == (6, 3)
    assert widths("Gemm", (8, 6), axis=1) == (6, 3)
    assert widths("BatchNormalization", (8,)) == (8, 4)
    assert widths("Constant", ()) == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [("not json", "no JSON"), ("[]", "format is 'list'"), ('{"format": "onnxprune-plan/1"}', "onnxprune-plan/1")],
)
def test_read_report_refuses(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_report(path)


def test_read_report_reads_what_was_written_and_misses_what_was_not(tmp_path, report):
    path = tmp_path / "r.json"
    path.write_text(to_json(report))
    assert read_report(path) == document(report)
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path / "absent.json")
