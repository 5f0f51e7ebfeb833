"""`verify` refuses files that show something else to the outside, or do more, than the result of the plan."""

import contextlib
import io
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_text import model, proto

from onnxprune.cli import main
from onnxprune.proof import interface

TEXT = (
    "(float[n,8] x, float[1] xg, float[8,16] w, float[16,4] v, float[16,4] u) => (float[n,4] p, float[n,4] y) "
    "{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Mul(c, xg) p = Softmax(d) y = MatMul(b, u) }"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a model that has metadata, a default and a map of class names; its result and plan."""
    folder = tmp_path_factory.mktemp("interface")
    made = proto(TEXT)
    made.graph.initializer.append(numpy_helper.from_array(np.array([2], np.float32), "xg"))
    made.metadata_props.add(key="names", value="{0: 'cat', 1: 'dog'}")
    names: dict[str, Any] = {"classlabels_strings": ["a", "b", "c", "d"]}
    made.graph.node.append(helper.make_node("ZipMap", ["p"], ["map"], "zip", domain="ai.onnx.ml", **names))
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.STRING
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    made.graph.output[0].CopyFrom(helper.make_value_info("map", kind))
    onnx.save(made, folder / "m.onnx")
    return folder


@pytest.fixture(scope="module")
def checked(written):
    """Exit code of `verify` for the result as a function changed it, and what it said."""
    source, out, planned = (str(written / name) for name in ("m.onnx", "o.onnx", "p.json"))
    assert main([source, out, "--method", "l1", "--no-latency", "--plan", planned]) == 0

    def verified(change) -> tuple[int, str]:
        result = onnx.load(out)
        change(result)
        onnx.save(result, written / "changed.onnx")
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(["verify", source, str(written / "changed.onnx"), "--plan", planned])
        return code, " ".join(said.getvalue().split())

    return verified


def classes(model):
    next(n for n in model.graph.node if n.op_type == "ZipMap").attribute[0].strings[:] = [b"b", b"a", b"c", b"d"]


def default(model):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "xg")
    tensor.CopyFrom(numpy_helper.from_array(np.array([5], np.float32), "xg"))


def own_relu(model):
    """A function of the name of an operator that does more than that: a bound that no number comes near."""
    next(node for node in model.graph.node if node.op_type == "Relu").domain = "own"
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Constant", [], ["c"], value_float=1e5),
        helper.make_node("Min", ["r", "c"], ["y"]),
    ]
    model.functions.append(helper.make_function("own", "Relu", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("own", 1))


def opset(model):
    next(entry for entry in model.opset_import if not entry.domain).version = 17


def in_front_of_y(model, *operators):
    """Makes `operators` give y of what gave it."""
    next(node for node in model.graph.node if "y" in node.output).output[0] = "y0"
    numbers = {"low": np.float32(-1e4), "high": np.float32(1e4), "none": np.array([0]), "many": np.array([40])}
    numbers["two"] = np.array([2, 4])
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items())
    model.graph.node.extend(operators)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: setattr(m.metadata_props[0], "value", "{0: 'dog', 1: 'cat'}"), "metadata are {'names'"),
        (lambda m: m.ClearField("metadata_props"), "metadata are {'names': None}"),
        (classes, "class names are"),
        (default, "defaults of inputs are {'xg': [5.0]}, in the original {'xg': [2.0]}"),
        (lambda m: m.graph.output.reverse(), "outputs are"),
        (own_relu, "has operators that the cut model does not have (1 own.Relu"),
        (opset, "opsets are {'': 17"),
        (lambda m: in_front_of_y(m, helper.make_node("Squeeze", ["y0"], ["y"])), "weights are neither the model's nor"),
        (lambda m: in_front_of_y(m, helper.make_node("Reshape", ["y0", "two"], ["y"])), "it does not run on inputs"),
        (
            lambda m: in_front_of_y(
                m, helper.make_node("Cast", ["y0"], ["h"], to=10), helper.make_node("Cast", ["h"], ["y"], to=1)
            ),
            "weights are neither the model's nor",
        ),
        (
            lambda m: in_front_of_y(
                m, helper.make_node("Cast", ["y0"], ["h"], to=11), helper.make_node("Cast", ["h"], ["y"], to=1)
            ),
            "has operators that the cut model does not have (2 Cast)",
        ),
        (
            lambda m: in_front_of_y(m, helper.make_node("Clip", ["y0", "low", "high"], ["y"])),
            "has operators that the cut model does not have (1 Clip)",
        ),
        (
            lambda m: in_front_of_y(m, helper.make_node("Slice", ["y0", "none", "many"], ["y"])),
            "has operators that the cut model does not have (1 Slice)",
        ),
    ],
)
def test_a_file_that_shows_or_does_something_else_is_refused(checked, change, told):
    code, said = checked(change)
    assert code == 3
    assert told in said


def test_the_result_and_one_that_says_more_are_accepted(checked):
    """A result with a map of class names was refused: its outputs had no shape beside those of the original."""
    assert checked(lambda m: None)[0] == 0
    assert checked(lambda m: m.metadata_props.add(key="author", value="me"))[0] == 0


def test_operators_that_are_added_are_counted_in_bodies_too():
    text = (
        "(float[2,4] x, bool xc) => (float[2,4] y) { y = If(xc) <then_branch = t () => (float[2,4] o) { o = OP(x) }, "
        "else_branch = e () => (float[2,4] p) { p = Neg(x) }> }"
    )
    one, two = (model(text.replace("OP", op)) for op in ("Relu", "Abs"))
    assert interface.added(two, one) == {"Abs": 1}
    assert not interface.added(one, one)
