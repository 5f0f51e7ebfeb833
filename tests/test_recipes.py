"""The recipes of CONTRIBUTING.md, run as they stand there: each is short, and does what the text beside it promises."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from networks import DIGITS

import onnxprune
from onnxprune import methods
from onnxprune.bridge import Network
from onnxprune.bridge.ops import registry as torch_functions
from onnxprune.coupling.layers import STATED
from onnxprune.coupling.registry import RULES
from onnxprune.data.samples import ArraySamples
from onnxprune.methods import base
from onnxprune.outputs import accuracies, answers, kinds, measures
from onnxprune.outputs.describe import describe
from onnxprune.plan import cost

ROOT = Path(__file__).parents[1]
TABLES: tuple[dict, ...] = (RULES, STATED, cost.MACS, torch_functions._TABLE, base.METHODS, measures.MEASURES)
IMPORTS = """
import numpy as np
from torch import Tensor
from onnxprune.bridge.ops.registry import torch_function
from onnxprune.coupling.layers import Weights
from onnxprune.coupling.node import NodeAxes
from onnxprune.coupling.registry import coupling_rule
from onnxprune.methods.base import Context, NoOptions, Outcome, method, slices
from onnxprune.outputs.measures import Found, output_kind
from onnxprune.plan.cost import Counted, NodeCost, macs_rule
"""
MOST_LINES = 12
# h = relu(x w1 + b1), a = distances of h to the rows of w2, y = a w3
MODEL = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[n, 6] x, float[16, 6] w1, float[16] b1, float[12, 16] w2, float[5, 12] w3) => (float[n, 5] y) {
        h = Gemm <transB = 1> (x, w1, b1)
        r = Relu(h)
        a = com.microsoft.CDist <metric = "sqeuclidean"> (r, w2)
        y = Gemm <transB = 1> (a, w3)
    }"""


def recipe(heading: str) -> str:
    """The code under a heading of CONTRIBUTING.md that begins with these words."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.search(rf"^## {re.escape(heading)}.*?(?=^## |\Z)", text, re.M | re.S)
    assert section, f"CONTRIBUTING.md has no section '{heading}'"
    return "\n".join(re.findall(r"```python\n(.*?)```", section[0], re.S))


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables that recipes register in, restored afterwards."""
    methods.load_all()  # those that register when they are first imported do so once: they must stay
    before, known = [dict(table) for table in TABLES], list(kinds.KINDS)
    yield
    for table, old in zip(TABLES, before, strict=True):
        table.clear()
        table.update(old)
    kinds.KINDS[:] = known


def run(code: str) -> dict[str, Any]:
    """The names that `code` defines, beside what the files import that it is meant for."""
    names: dict[str, Any] = {}
    exec(IMPORTS + code, names)
    return names


def filled(text: str) -> onnx.ModelProto:
    """A model with random weights as initializers in place of all inputs but the first."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in list(model.graph.input)[1:]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[1:]
    return model


def test_every_recipe_is_short():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == text.count("\n## ")
    for block in blocks:
        for one in re.split(r"\n\n\n", block):
            assert len(one.strip().splitlines()) <= MOST_LINES, one


def test_an_operator_is_cut_counted_proven_and_trained_through(tables, tmp_path):
    assert not {12, 16} & {dim.size for dim in onnxprune.analyze(filled(MODEL)).free}, (
        "CDist has a rule: choose another"
    )
    run(recipe("An operator: "))
    coupling = onnxprune.analyze(filled(MODEL))
    assert {dim.size for dim in coupling.free} == {12, 16}
    result = onnxprune.prune(filled(MODEL), method="l1", target={"macs": 0.5}, align=1, recover="none", latency=False)
    assert result.before.macs == 16 * 6 + 12 * 16 + 5 * 12
    assert result.after.macs <= 0.5 * result.before.macs
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    network = Network(ir.from_proto(result.model))
    (y,) = network({"x": torch.from_numpy(x)}).values()
    (expected,) = ort.InferenceSession(result.model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    y.square().mean().backward()
    assert all(w.grad is not None and w.grad.any() for w in network.parameters())


def test_an_operator_with_weights_is_cut_and_refitted_by_its_rule_alone(tables):
    run(recipe("An operator with weights"))
    text = MODEL.replace('CDist <metric = "sqeuclidean">', "TransposeMatMul <transB = 1>")
    x = np.random.default_rng(1).normal(size=(256, 6)).astype(np.float32)
    (wanted,) = ort.InferenceSession(filled(text).SerializeToString()).run(None, {"x": x})
    options = {"method": "l1", "target": {"macs": 0.5}, "align": 1, "data": x, "latency": False}
    errors = []
    for level in ("none", "reconstruct"):
        result = onnxprune.prune(filled(text), recover=level, **options)
        assert result.after.macs <= 0.5 * result.before.macs
        (found,) = ort.InferenceSession(result.model.SerializeToString()).run(None, {"x": x})
        errors.append(float(np.linalg.norm(found - wanted)))
    assert errors[1] < 0.8 * errors[0]


def test_a_method_scores_and_prunes(tables, tmp_path):
    run(recipe("A method"))
    options = {"method": "largest", "target": {"macs": 0.6}, "recover": "none", "latency": False}
    result = onnxprune.prune(DIGITS, tmp_path / "out.onnx", **options)
    assert result.after.macs <= 0.6 * result.before.macs
    assert result.plan.method == "largest"


def test_a_kind_of_output_is_measured_by_its_metric(tables):
    run(recipe("A kind of output"))
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }'
    )
    x = np.random.default_rng(0).uniform(0, 9, (40, 3)).astype(np.float32)
    outputs = describe(model, overrides={"y": "counts"})
    original = answers.reference(model, ArraySamples({"x": x}, {"x": 0}, {"x": x.dtype}, len(x), None), outputs)
    assert original is not None
    said = {"y": np.where(np.arange(3) == 1, original.said["y"] + 1, original.said["y"] + 1e-4)}
    (found,) = accuracies.measure(said, original)
    assert found.metric == "same_count"
    assert found.value == pytest.approx(2 / 3, abs=0.01)


def test_an_option_is_on_the_command_line_with_its_help(tmp_path):
    shutil.copytree(ROOT / "onnxprune", tmp_path / "onnxprune", ignore=shutil.ignore_patterns("__pycache__"))
    options = tmp_path / "onnxprune" / "options.py"
    last = "    latency: bool = option("
    line = recipe("An option")
    assert options.read_text().count(last) == 1
    options.write_text(options.read_text().replace(last, line + last))
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", "-h"], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, told = re.match(r"\s*(\w+): .*\"(.*)\"\)", line).groups()
    assert f"--{name}" in done.stdout
    assert told in " ".join(done.stdout.split())
