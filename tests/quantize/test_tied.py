"""A table that is a head as well, transposed, is stored once however it is quantized."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnx_text
import pytest

from onnxprune import graph
from onnxprune.graph import sessions
from onnxprune.quantize import Context, parse, proof, quantize
from onnxprune.run.finish import finish

# A language model in small: its table (64, 16) looks words up and, transposed, gives the logits.
TIED = (
    "(int64[N,5] x, float[64,16] e, float[16,24] w, float[24] b, float[24,16] u) => (float[N,5,64] y) "
    "{ a = Gather(e, x) h = MatMul(a, w) g = Add(h, b) r = Relu(g) d = MatMul(r, u) s = Add(a, d) "
    "t = Transpose <perm = [1, 0]> (e) y = MatMul(s, t) }"
)


@pytest.fixture
def tied(tmp_path):
    onnx.save(onnx_text.proto(TIED), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 64, (64, 5)))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "size"),
    [("fp16", 2), ("int8", 1), ("int8:symmetric=true", 1), ("dynamic", 1), ("dynamic:per_channel=false", 1)],
)
def test_a_tied_table_is_stored_once_and_meets_the_targets_of_its_weights(kind, size, tied, cli):
    words = ("--data", tied / "x.npz", "--recover", "none", "--align", "1", "--target", "params=0.8", "--no-latency")
    files = ("--plan", tied / "p.json", "--report", tied / "r.json")
    ran = cli(tied / "in.onnx", tied / "out.onnx", *words, *files, "--quantize", kind, "-q")
    assert ran.code == 0, ran.err
    _, pruned, quantized, _ = json.loads((tied / "r.json").read_text())["models"]
    assert quantized["params"] == pruned["params"]
    tables = [
        tensor
        for tensor in onnx.load(tied / "out.onnx").graph.initializer
        if 64 in tensor.dims and len(tensor.dims) == 2
    ]
    assert [onnx.numpy_helper.to_array(tensor).itemsize for tensor in tables] == [size]
    ran = cli("verify", tied / "in.onnx", tied / "out.onnx", "--plan", tied / "p.json")
    assert (ran.code, ran.err) == (0, "")
    assert cli("apply", tied / "in.onnx", tied / "p.json", tied / "again.onnx", *words[:2], "--no-latency").code == 0
    assert (tied / "again.onnx").read_bytes() == (tied / "out.onnx").read_bytes()


def made_of(asked: str):
    model = finish(graph.normalize(ir.from_proto(onnx_text.proto(TIED))))
    x = {"x": np.random.default_rng(1).integers(0, 64, (8, 5))}
    return quantize(model, Context(parse(asked), None, [x])), x


@pytest.mark.parametrize("asked", ["dynamic", "dynamic:per_channel=false"])
def test_rows_that_are_looked_up_are_the_columns_that_are_multiplied(asked):
    made, x = made_of(asked)
    session = sessions.open_session(made.model, extra_outputs=["a"], threads=1)
    table = graph.array_of(made.float_model.graph.initializers["e"])
    integers = graph.array_of(made.model.graph.initializers["e_quantized"])
    rows = sessions.run(session, x)["a"]
    assert integers.dtype == np.int8
    assert np.abs(rows - table[x["x"]]).max() <= 0.51 * np.abs(table).max() / 127
    assert made.simulation.weights == 4  # the table as a table and as a matrix


def off_by_one(model: ir.Model) -> None:
    value = model.graph.initializers["e_quantized"]
    array = graph.array_of(value).copy()
    array[3, 2] -= np.int8(1) if array[3, 2] > 0 else np.int8(-1)
    graph.set_constant(value, array)


def scales_of_other_rows(model: ir.Model) -> None:
    node = next(node for node in model.graph if (node.name or "").endswith("_rows_scale"))
    scale = graph.array_of(node.inputs[0])
    node.replace_input_with(0, graph.add_constant(model.graph, "other", np.roll(scale, 1)))


def other_rows(model: ir.Model) -> None:
    node = next(node for node in model.graph if (node.name or "").endswith("_rows"))
    table = graph.array_of(node.inputs[0])
    node.replace_input_with(0, graph.add_constant(model.graph, "other", np.roll(table, 1, axis=0)))


@pytest.mark.parametrize("plant", [off_by_one, scales_of_other_rows, other_rows], ids=lambda plant: plant.__name__)
def test_a_fault_planted_in_a_tied_table_is_found(plant):
    made, x = made_of("dynamic")
    assert proof.simulate(made.model, made.float_model, "dynamic", [x]).ok
    plant(made.model)
    assert not proof.simulate(made.model, made.float_model, "dynamic", [x]).ok


@pytest.mark.parametrize("asked", ["dynamic:exclude=MatMul_7", "int4"])
def test_a_head_that_stays_in_float_shares_its_table_in_floats(asked):
    made, _ = made_of(asked)
    tables = [value for value in made.model.graph.initializers.values() if 64 in (value.shape or ())]
    assert [value.dtype for value in tables] == [ir.DataType.FLOAT]
