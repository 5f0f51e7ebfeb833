"""What a model carries beside its graph: a copy takes it along, and nothing but extras.py knows where it lies."""

import ast
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxprune import graph
from onnxprune.graph import extras, half

PACKAGE = Path(graph.__file__).parent.parent
TEXT = """<ir_version: 8, opset_import: ["": 13]>
g (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1.5, 2.5}> { y = Mul(x, w) }"""


@pytest.fixture
def model() -> ir.Model:
    made = ir.from_proto(onnx.parser.parse_model(TEXT))
    given = extras.Extras(external=True, only_batch=3, described=frozenset({"y"}), notes=("seen",))
    extras.put(made, given)
    return made


@pytest.mark.parametrize("change", [graph.copy, graph.normalize, graph.finish, half.single])
def test_what_a_model_carries_goes_through_every_rewriting(model: ir.Model, change):
    assert extras.of(change(model)) == extras.of(model) != extras.Extras()


def test_a_copy_carries_a_record_of_its_own(model: ir.Model):
    made = graph.copy(model)
    extras.put(made, replace(extras.of(made), only_batch=None))
    assert extras.of(model).only_batch == 3


def test_inferred_sizes_do_not_go_to_a_copy_which_may_be_changed(model: ir.Model):
    made = graph.normalize(model)
    extras.put(made, replace(extras.of(made), inferred={"y": (1, 2)}))
    assert extras.of(made).inferred
    assert not extras.of(graph.copy(made)).inferred


def test_a_note_stands_once(model: ir.Model):
    extras.note(model, "new", "seen", "new")
    assert extras.of(model).notes == ("seen", "new")


def test_only_extras_reads_what_a_model_carries():
    for file in PACKAGE.rglob("*.py"):
        reads = {n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)}
        assert "meta" not in reads or file.name == "extras.py", f"{file}: go through graph/extras.py"
