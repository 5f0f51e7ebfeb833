"""What Python users call."""

import onnx
import onnx_ir as ir
import pytest
from networks import CNN, DIGITS, filled

import onnxprune
from onnxprune.errors import UsageError


def test_prune_gives_plan_and_measurements(cnn_path, tmp_path):
    result = onnxprune.prune(cnn_path, tmp_path / "o.onnx", method="l1", target={"macs": 0.5}, latency=False)
    assert isinstance(result, onnxprune.Result)
    assert isinstance(result.plan, onnxprune.Plan)
    assert result.after.macs <= 0.5 * result.before.macs
    assert result.after.path == str(tmp_path / "o.onnx")
    assert result.plan.after["macs"] == result.after.macs


def test_one_word_stands_for_a_list_of_one(cnn_path, tmp_path):
    options = {"method": "l1", "latency": False, "target": {"macs": 0.95}, "include": "wide"}
    result = onnxprune.prune(
        str(cnn_path), str(tmp_path / "o.onnx"), report=str(tmp_path / "r.md"), plan=str(tmp_path / "p.json"), **options
    )
    assert len(result.plan.dims) == 1
    assert (tmp_path / "r.md").read_text()
    assert (tmp_path / "p.json").is_file()


def test_images_are_described_by_flat_options(tmp_path):
    with pytest.raises(onnxprune.OnnxPruneError, match="--size is for folders of images"):
        onnxprune.prune(DIGITS, tmp_path / "o.onnx", data="digits", size=8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"metod": "l1"}, "no option 'metod'; choose of align"),
        ({"target": "macs=0.5"}, "give a mapping such as"),
        ({"target": {"macs": "half"}}, "--target macs=half: give the fraction"),
        ({"target": {"macs": True}}, "--target macs=True"),
        ({"epochs": "3"}, "--epochs 3: give 1 or more"),
        ({"epochs": 1.5}, "--epochs 1.5"),
        ({"floor": float("nan")}, "--floor nan: give a share"),
        ({"seed": True}, "--seed True"),
        ({"device": "tpu"}, "--device tpu: unknown"),
    ],
)
def test_wrong_options_are_usage_errors(cnn_path, tmp_path, options, told):
    with pytest.raises(UsageError) as caught:
        onnxprune.prune(cnn_path, tmp_path / "o.onnx", **options)
    assert told in str(caught.value)


def test_analyze_takes_files_and_models(cnn_path):
    proto = filled(CNN)
    found = [onnxprune.analyze(model) for model in (cnn_path, str(cnn_path), proto, ir.from_proto(proto))]
    assert [[dim.size for dim in coupling.free] for coupling in found] == [[8, 12]] * 4
    assert isinstance(found[0], onnxprune.Coupling)
    onnx.checker.check_model(proto)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = onnxprune.prunes
