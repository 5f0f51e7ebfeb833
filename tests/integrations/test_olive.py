"""The pass of Olive, with classes that have the names of its own: Olive brings much that tests do not need."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from onnxprune.errors import UsageError
from onnxprune.options import TABLE


@dataclass
class Handler:
    model_path: str
    onnx_file_name: str | None = None


@dataclass
class Param:
    type_: Any
    default_value: Any
    description: str


class Base:
    """As olive.passes.Pass: options that were given, over the defaults."""

    def __init__(self, given):
        defaults = {name: param.default_value for name, param in self._default_config(None).items()}
        assert given.keys() <= defaults.keys()
        self.config = SimpleNamespace(**{**defaults, **given})

    def run(self, model, output_model_path):
        return self._run_for_config(model, self.config, output_model_path)


def resolve(path, name):
    found = Path(path)
    found.mkdir(parents=True, exist_ok=True)
    return str(found / name)


NAMES = {
    "olive": {},
    "olive.hardware": {},
    "olive.hardware.accelerator": {"AcceleratorSpec": object},
    "olive.model": {"ONNXModelHandler": Handler},
    "olive.model.utils": {"resolve_onnx_path": resolve},
    "olive.passes": {"Pass": Base},
    "olive.passes.pass_config": {"BasePassConfig": object, "PassConfigParam": Param},
}


@pytest.fixture
def run(monkeypatch):
    """Runs the pass with options on a model: what Olive is given."""
    for name, held in NAMES.items():
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "onnxprune.integrations.olive", raising=False)
    found = importlib.import_module("onnxprune.integrations.olive").OnnxPrune
    yield lambda path, out, **given: found(given).run(Handler(str(path)), str(out))
    sys.modules.pop("onnxprune.integrations.olive", None)


L1 = {"method": "l1", "latency": False, "align": 1}


def test_the_pass_prunes_into_the_folder_that_olive_names(run, cnn_path, tmp_path):
    made = run(cnn_path, tmp_path / "cache", **L1, target={"macs": 0.5}, report=[str(tmp_path / "r.json")])
    assert made.model_path == str(tmp_path / "cache" / "cnn.onnx")
    assert made.onnx_file_name is None
    small, whole = (
        sum(onnx.numpy_helper.to_array(tensor).size for tensor in onnx.load(path).graph.initializer)
        for path in (made.model_path, cnn_path)
    )
    assert small < whole
    assert (tmp_path / "r.json").is_file()


def test_every_option_is_a_parameter(run):
    found = sys.modules["onnxprune.integrations.olive"].OnnxPrune._default_config(None)
    assert set(found) == set(TABLE)
    assert all(param.default_value is None and param.description for param in found.values())


def test_a_wrong_option_ends_the_pass(run, cnn_path, tmp_path):
    with pytest.raises(UsageError, match="--target macs=5: give the fraction"):
        run(cnn_path, tmp_path / "cache", **L1, target={"macs": 5})
    assert list((tmp_path / "cache").iterdir()) == []


def test_weights_beside_the_model_are_told(run, cnn_path, tmp_path, monkeypatch):
    from onnxprune.run import pipeline

    def prune(source, out, options):
        out.write_bytes(b"")
        out.with_name(f"{out.name}.data").write_bytes(b"")

    monkeypatch.setattr(pipeline, "prune", prune)
    made = run(cnn_path, tmp_path / "cache")
    assert (made.model_path, made.onnx_file_name) == (str(tmp_path / "cache"), "cnn.onnx")
