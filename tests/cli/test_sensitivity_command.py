"""`onnxprune sensitivity`: what the curves hold, what is printed and written, and what is refused."""

import json

import jsonschema
import numpy as np
import onnx
import pytest

from onnxprune import cli
from onnxprune.measure.records import SensitivityCurve
from onnxprune.options import Options
from onnxprune.plan.select import Selection
from onnxprune.report import curves, schema
from onnxprune.run.subject import prepare
from onnxprune.studies import sensitivity
from onnxprune.system.clock import Clock

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 6, 6] x) => (float[N, 4] y)
<float[10, 3, 3, 3] w, float[10] b, float[4, 10] v>
{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
  y = Gemm <transB = 1> (f, v) }"""
DEAD = [1, 4, 7]  # units that no one reads and that emit little


@pytest.fixture
def model(tmp_path):
    proto, rng = onnx.parser.parse_model(MODEL), np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in (("w", (10, 3, 3, 3)), ("b", 10), ("v", (4, 10)))}
    arrays["w"][DEAD] *= 1e-3
    arrays["b"][DEAD] = 0.5
    del proto.graph.initializer[:]
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "samples.npz"
    np.savez(path, x=rng.standard_normal((60, 3, 6, 6)).astype(np.float32), y=rng.integers(0, 4, 60))
    return path


def test_units_that_say_nothing_cost_nothing(model, samples):
    found = sensitivity.sensitivity(model, Options(method="l2", data=samples, val=samples), (0.3, 0.9))
    (curve,) = found.sensitivity
    assert curve.removed == (0.0, 0.3, 0.9)
    assert curve.metric == "top1"
    assert curve.value[0] == curve.value[1] == found.models[0].accuracy.value
    assert curve.value[2] != curve.value[0]
    assert all(low <= value <= high for value, (low, high) in zip(curve.value, curve.interval95, strict=True))


def test_without_labels_agreement_starts_at_one(model, tmp_path):
    data = tmp_path / "plain.npz"
    np.savez(data, x=np.random.default_rng(2).standard_normal((99, 3, 6, 6)).astype(np.float32))
    (curve,) = sensitivity.sensitivity(model, Options(method="l2", data=data, val=data), (0.3, 0.9)).sensitivity
    assert curve.metric == "agreement"
    assert curve.value[:2] == (1.0, 1.0)
    assert curve.value[2] < 1.0


def test_the_constants_of_removed_units_are_pushed(model, samples):
    subject = prepare(model, Options(val=samples), Clock())
    (dim,) = subject.coupling.free
    keep = np.ones(dim.size, bool)
    keep[DEAD] = False
    reference = sensitivity.reference_of(subject)
    assert sensitivity.trial(subject, Selection(subject.coupling, {dim: keep}), reference) == reference.accuracy


def test_the_command_prints_a_table_and_writes_reports(model, samples, tmp_path, capsys):
    files = [tmp_path / f"curves.{suffix}" for suffix in ("json", "md", "html")]
    reports = [part for file in files for part in ("--report", str(file))]
    given = [str(model), "--data", str(samples), "--fractions", "0.5", "--samples", "8", *reports]
    assert cli.main(["sensitivity", *given]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("Top-1 accuracy of the original:")
    assert out[0].endswith("on 8 samples")
    assert out[1].split() == ["removed", "50", "%"]
    assert len(out) == 3
    written = json.loads(files[0].read_text())
    jsonschema.validate(written, schema())
    assert written["sensitivity"][0]["removed"] == [0.0, 0.5]
    assert written["models"][0]["accuracy"]["samples"] == 8
    assert "| removed | 50 % |" in files[1].read_text()
    assert "sensitivity of net.onnx" in files[2].read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --data or --val"),
        (["--data", "DATA", "--fractions", "0.5,1"], "fractions to remove lie between 0 and 1"),
        (["--data", "DATA", "--fractions", "half"], "is not a list of numbers"),
        (["--data", "DATA", "--samples", "0"], "give 1 or more"),
        (["--data", "DATA", "--method", "nothing"], "there is no such method"),
        (["--data", "DATA", "--include", "elsewhere*"], "matches no node"),
        (["--data", "DATA", "--report", "r.txt"], "suffix '.txt' is none of"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(model, samples, capsys, more, message):
    assert cli.main(["sensitivity", str(model), *(str(samples) if part == "DATA" else part for part in more)]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert not found.out


def test_methods_that_train_are_refused(model, samples, capsys):
    assert cli.main(["sensitivity", str(model), "--data", str(samples), "--method", "gss"]) == 2
    assert "trains" in capsys.readouterr().err


def test_at_least_one_unit_stays_and_no_point_is_measured_twice():
    assert sensitivity.removable(4, (0.1, 0.25, 0.3, 0.99)) == [1, 3]
    assert sensitivity.removable(1, (0.5,)) == []


def test_the_table_takes_the_nearest_measured_point():
    curve = SensitivityCurve("d", (0.0, 0.2, 0.6), (1.0, 0.9, 0.5))
    assert [curves.value_at(curve, f) for f in (0.05, 0.25, 0.5, 0.9)] == [1.0, 0.9, 0.5, 0.5]
    assert curves.lines([curve], [0.25]) == [["d", "90.00 %"]]
    error = SensitivityCurve("d", (0.0, 0.2), (0.0, 0.031), "relative_error")
    assert curves.lines([error], [0.2]) == [["d", "0.031"]]
