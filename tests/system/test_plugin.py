"""`--plugin`: users' operators and methods, and the example of docs/extending.md as it stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxprune
from onnxprune.cli import main
from onnxprune.coupling.registry import RULES
from onnxprune.methods.base import METHODS

DOCUMENT = Path(__file__).parents[2] / "docs" / "extending.md"
# An operator that onnxruntime runs (it copies its input) and that has no rule here.
MODEL = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[n, 3, 6, 6] x, float[8, 3, 3, 3] w1, float[4, 8, 1, 1] w2) => (float[n, 4, 4, 4] y) {
        a = Conv(x, w1)
        b = com.microsoft.SampleOp(a)
        y = Conv(b, w2)
    }"""
RULE = """
@onnxprune.coupling_rule("SampleOp", domain="com.microsoft")
def sample(n):
    n.give(list(n.x(0)))
"""


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The code blocks of the document as a module in the current folder, and the registries as they were after."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    (tmp_path / "my_example_ops.py").write_text("\n".join([*blocks, RULE]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_example_ops", raising=False)
    yield tmp_path
    # Only what the plugin added goes: built-in methods register once, when they are first imported.
    METHODS.pop("mine", None)
    for key in (("my.ops", "ScaledAdd"), ("com.microsoft", "SampleOp")):
        RULES.pop(key, None)


def model_with_custom_op() -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for value in list(model.graph.input)[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[1:]
    return model


def test_registered_rule_frees_what_an_unknown_operator_freezes(example):
    frozen = onnxprune.analyze(model_with_custom_op())
    assert not frozen.free
    assert any("SampleOp" in str(dim.frozen) for dim in frozen.dims)
    main(["--plugin", "my_example_ops", "methods"])
    assert ("my.ops", "ScaledAdd") in RULES
    free = onnxprune.analyze(model_with_custom_op()).free
    assert [dim.size for dim in free] == [8]


def test_method_of_a_plugin_prunes(example, capsys):
    model = Path(__file__).parents[2] / "models" / "digits.onnx"
    options = [
        "--method",
        "mine",
        "--target",
        "macs=0.6",
        "--recover",
        "none",
        "--no-latency",
        "--plugin",
        "my_example_ops",
    ]
    assert main([str(model), "out.onnx", *options]) == 0
    assert Path("out.onnx").is_file()
    assert "cut = mask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--plugin"], "give the module"), (["--plugin", "no_such"], "no_such")]
)
def test_missing_plugin_is_one_line(arguments, message, capsys):
    assert main(["methods", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
