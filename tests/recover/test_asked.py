"""Fine-tuning as users ask for it: --finetune, --loss and --metric, in files, in Python and on the command line."""

import json
import sys

import numpy as np
import pytest
import torch
from networks import DIGITS

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.options import TUNING, Options
from onnxprune.recover import asked
from onnxprune.recover.settings import Settings
from onnxprune.system import plugins

MINE = """
import numpy as np
import torch

def loss(outputs, originals, labels):
    assert labels is not None and outputs.keys() == originals.keys() == {"logits"}
    return torch.nn.functional.cross_entropy(outputs["logits"], labels) + (
        (outputs["logits"] - originals["logits"]) ** 2).mean()

def right(outputs, originals, labels):
    assert originals["logits"].shape == outputs["logits"].shape
    return outputs["logits"].argmax(1) == labels

def one_number(outputs, originals, labels):
    return float((outputs["logits"].argmax(1) == labels).mean())

def text(outputs, originals, labels):
    return "good"

def broken(outputs, originals, labels):
    return outputs["nothing"]

def frozen(outputs, originals, labels):
    return torch.zeros(3)
"""
QUICK = ("--method", "l1", "--target", "macs=0.6", "--data", "digits", "--epochs", 1, "--no-latency", "-q")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with the user's module in it."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_own_loss_and_metric_from_a_module_in_the_current_folder(cli, here, tmp_path):
    own = ("--loss", f"{here}:loss", "--metric", f"{here}:right", "--finetune", "ema=0", "--finetune", "batchnorm=off")
    ran = cli(DIGITS, "out.onnx", *QUICK, *own, "--report", "r.json", "--report", "r.html", "--max-drop", 20)
    assert ran.code == 0, ran
    report = json.loads((tmp_path / "r.json").read_text())
    before, after = (model["accuracy"] for model in report["models"])
    assert before["metric"] == after["metric"] == f"{here}:right"
    assert before["value"] > 0.99
    assert after["value"] > 0.8
    assert after["interval95"][0] < after["value"] <= after["interval95"][1]
    assert f"{here}:right (" in ran.out


def test_a_metric_of_one_number_has_no_interval(cli, here, tmp_path):
    ran = cli(
        DIGITS, "out.onnx", *QUICK, "--recover", "constants", "--metric", f"{here}:one_number", "--report", "r.json"
    )
    assert ran.code == 0, ran
    assert json.loads((tmp_path / "r.json").read_text())["models"][1]["accuracy"]["interval95"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--metric {m}:text", "gave 'good'; return one finite number, or one per sample"),
        ("--metric {m}:broken", "the function raised KeyError: 'nothing'; mend that"),
        ("--metric {m}:score", "has no function 'score'; it has loss, right, one_number, text, broken, frozen"),
        ("--loss {m}:broken", "the function raised KeyError: 'nothing'; mend that"),
        ("--loss {m}:frozen", "gave a tensor of shape (3,) without a gradient; return one number"),
    ],
)
def test_what_is_wrong_with_a_function_is_one_clear_line(cli, here, tmp_path, words, told):
    ran = cli(DIGITS, "out.onnx", *QUICK, *words.format(m=here).split())
    assert ran.code == 2
    assert told in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bad_syntax_here.py").write_text("def f(:")
    (tmp_path / "needs_missing.py").write_text("import no_such_package_at_all")
    with pytest.raises(UsageError, match="raised SyntaxError"):
        plugins.find("bad_syntax_here:f", "--loss")
    with pytest.raises(UsageError, match="needs 'no_such_package_at_all', which is not installed"):
        plugins.find("needs_missing:f", "--loss")


def test_python_takes_functions_and_settings(tmp_path):
    def loss(outputs, originals, labels):
        return torch.nn.functional.mse_loss(outputs["logits"], originals["logits"])

    def same(outputs, originals, labels):
        return (outputs["logits"].argmax(1) == originals["logits"].argmax(1)).astype(np.float64)

    result = onnxprune.prune(
        DIGITS, tmp_path / "o.onnx", method="l1", target={"macs": 0.6}, data="digits", epochs=1, latency=False,
        loss=loss, metric=same, finetune={"flip": False, "optimizer": "adamw", "ema": None},
    )  # fmt: skip
    assert result.after.accuracy is not None
    assert result.before.accuracy is not None
    assert result.after.accuracy.metric.endswith("same")
    assert result.before.accuracy.value == 1.0
    assert 0.8 < result.after.accuracy.value <= 1.0


def test_every_key_is_a_setting_and_arrives():
    given = {
        "optimizer": "adamw", "weight_decay": "0.1", "warmup": 0.2, "clip": "2", "ema": "auto", "labels": 1,
        "features": "0.5", "temperature": 2, "flip": "yes", "crop": "2", "zoom": 0.1, "mixup": "0.2", "batchnorm": True,
        "statistics": "frozen", "amp": "off", "channels-last": "auto", "compile": "false", "patience": 0,
        "checkpoint_seconds": 5, "versions": 0,
    }  # fmt: skip
    made = asked.settings_of(Options(finetune=given, epochs=7, seed=3))
    assert {key.replace("-", "_") for key in given} == set(TUNING)
    assert (made.optimizer, made.weight_decay, made.clip, made.ema, made.labels) == ("adamw", 0.1, 2.0, None, 1.0)
    assert (made.features, made.temperature, made.flip, made.crop, made.mixup) == (0.5, 2.0, True, 2, 0.2)
    assert (made.batchnorm, made.amp, made.channels_last, made.compile, made.patience) == ("on", "off", None, False, 0)
    assert made.statistics == "frozen"
    assert (made.epochs, made.seed, made.checkpoint_seconds, made.warmup) == (7, 3, 5.0, 0.2)
    assert set(TUNING) <= set(Settings.__dataclass_fields__)


def test_a_run_is_as_long_as_its_epochs_unless_patience_is_asked_for():
    """The learning rate falls over the whole run: the first epochs after a good start are worse than the last."""
    assert asked.settings_of(Options(epochs=10)).patience == 0
    assert asked.settings_of(Options(epochs=10, finetune={"patience": 2})).patience == 2
