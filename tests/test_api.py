"""What Python users call."""

import inspect
import threading

import numpy as np
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


def test_analyze_leaves_the_model_as_it_is():
    """Two nodes read one list of sizes: each gets its own, by another name, in the model that is analysed."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y) <int64[3] s = {0, 2, 4}> '
        "{ a = Reshape(x, s) b = Relu(a) c = Flatten(b) d = Reshape(c, s) y = Flatten(d) }"
    )
    before = proto.SerializeToString()
    onnxprune.analyze(proto)
    assert proto.SerializeToString() == before


def test_the_version_is_known():
    assert onnxprune.__version__[0].isdigit()


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = onnxprune.prunes


DATA_FREE = {"method": "l1", "latency": False, "target": {"macs": 0.9}, "align": 1}


@pytest.mark.parametrize(
    "given",
    [lambda p: p, lambda p: p.SerializeToString(), ir.from_proto, lambda p: memoryview(p.SerializeToString())],
    ids=["proto", "bytes", "ir", "memoryview"],
)
def test_a_model_in_memory_gives_a_model_in_memory_and_no_file(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    proto = filled(CNN)
    result = onnxprune.prune(given(proto), **DATA_FREE)
    if isinstance(given(proto), ir.Model):
        assert isinstance(result.model, ir.Model)
    else:
        onnx.checker.check_model(result.model)
    assert result.after.macs < result.before.macs
    assert result.after.path == ""
    assert list(tmp_path.iterdir()) == []


def test_a_result_in_a_file_is_read_from_there(cnn_path, tmp_path):
    result = onnxprune.prune(filled(CNN), tmp_path / "o.onnx", **DATA_FREE)
    assert result.model == onnx.load(tmp_path / "o.onnx")
    assert onnxprune.prune(cnn_path, **DATA_FREE).model == result.model


@pytest.mark.parametrize("model", [None, 3, ["a"]])
def test_what_is_no_model_is_a_usage_error(model):
    with pytest.raises(UsageError, match=r"give a path, bytes, an onnx\.ModelProto or an ir\.Model"):
        onnxprune.prune(model, **DATA_FREE)


def test_a_result_is_shown_in_one_line_and_in_notebooks(cnn_path):
    result = onnxprune.prune(cnn_path, **DATA_FREE)
    assert repr(result).startswith("<onnxprune.Result l1: ")
    assert "% of the MACs" in repr(result)
    assert "\n" not in repr(result)
    assert result._repr_html_().startswith("<table><tr><th></th><th>original</th>")


SAMPLES = np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32)


class Rows:
    """As Hugging Face's datasets: numbered dicts of lists."""

    def __len__(self):
        return len(SAMPLES)

    def __getitem__(self, index):
        return {"x": SAMPLES[index].tolist(), "label": index % 4}


def torch_loader():
    import torch

    return torch.utils.data.DataLoader(torch_dataset(), batch_size=5)


def torch_dataset():
    import torch

    return torch.utils.data.TensorDataset(torch.from_numpy(SAMPLES))


@pytest.mark.parametrize(
    "made",
    [
        lambda: SAMPLES,
        lambda: {"x": SAMPLES},
        lambda: (SAMPLES, np.arange(12) % 4),
        lambda: list(SAMPLES),
        lambda: iter(SAMPLES),
        lambda: ((x, k % 4) for k, x in enumerate(SAMPLES)),
        torch_loader,
        torch_dataset,
        Rows,
    ],
    ids=["array", "dict", "tuple", "list", "iterator", "generator", "loader", "dataset", "rows"],
)
def test_samples_of_any_form(cnn_path, made):
    result = onnxprune.prune(cnn_path, **DATA_FREE, data=made(), recover="constants")
    assert result.after.accuracy.samples == 2


def test_threads_prune_beside_each_other_and_stdout_stays(cnn_path, capsys):
    import sys

    before, found = sys.stdout, []

    def work(runs):
        for _ in range(runs):
            found.append(onnxprune.prune(cnn_path, **DATA_FREE).after.macs)

    threads = [threading.Thread(target=work, args=(runs,)) for runs in (4, 3, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 10
    assert sys.stdout is before
    print("still there")
    assert capsys.readouterr().out == "still there\n"


def test_events_tell_of_every_step(cnn_path):
    seen = []
    onnxprune.prune(cnn_path, **DATA_FREE, on_step=seen.append)
    assert [event.name for event in seen if event.seconds is None][:2] == ["load", "normalize"]
    assert [event.name for event in seen if event.seconds is not None][:2] == ["load", "normalize"]


def test_steps_are_logged_by_the_standard_library_and_nothing_is_printed(cnn_path, caplog, capsys):
    with caplog.at_level("INFO", logger="onnxprune"):
        onnxprune.prune(cnn_path, **DATA_FREE)
    assert "proving the smaller model ..." in caplog.messages
    assert {record.name for record in caplog.records} == {"onnxprune"}
    assert capsys.readouterr() == ("", "")


def test_editors_are_told_every_option_and_its_type():
    from onnxprune.options import TABLE
    from tools import keywords

    assert keywords.TARGET.read_text() == keywords.text(), "run: python tools/keywords.py"
    assert set(keywords.fields()) == set(TABLE)
    assert set(inspect.signature(onnxprune.prune).parameters) == {"source", "out", "on_step", *TABLE}
