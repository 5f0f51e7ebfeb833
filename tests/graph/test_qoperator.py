"""Models of QLinearConv and the like: written out as QDQ, alike up to a step of rounding, and pruned."""

import json

import numpy as np
import onnx
import pytest
from onnx_text import model, proto

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.graph import qoperator, shapes
from onnxprune.proof import comparison, normal_form

MS = "com.microsoft."
NUMBERS = {"s": 0.11, "t": 0.3, "r": 0.07, "z": 128, "i": 3, "o": 0}
HEAD = "(float[2,3,6,6] x, float s, float t, float r, uint8 z, int8 i, int8 o"
IN = "{ q = QuantizeLinear(x, s, z) "


def quantized(node: str, more: str = "", out: str = "a", constants=None, opset: int = 18):
    """A model of one quantized operator that reads q (s, z) and writes `out` (t, z)."""
    text = f"{HEAD}{more}) => (float[b,c,h,w] y) {IN}{node} y = DequantizeLinear({out}, t, z) }}"
    return graph.normalize(model(text, {**NUMBERS, **(constants or {})}, opset), rewrite=False)


NODES = {
    "QLinearConv": ("a = QLinearConv<pads = [1,1,1,1]>(q, s, z, w, r, i, t, z)", ", int8[8,3,3,3] w"),
    "with a bias": ("a = QLinearConv(q, s, z, w, r, i, t, z, b)", ", int8[8,3,3,3] w, int32[8] b"),
    "per channel": (
        "a = QLinearConv(q, s, z, w, f, k, t, z, b)",
        ", int8[4,3,1,1] w, float[4] f, int8[4] k, int32[4] b",
    ),
    "QLinearMatMul": ("a = QLinearMatMul(q, s, z, w, r, i, t, z)", ", int8[6,5] w"),
    "per column": ("a = QLinearMatMul(q, s, z, w, f, k, t, z)", ", int8[6,4] w, float[4] f, int8[4] k"),
    "QLinearAdd": (f"a = {MS}QLinearAdd(q, s, z, q, s, z, t, z)", ""),
    "QLinearMul": (f"a = {MS}QLinearMul(q, s, z, q, s, z, t, z)", ""),
    "QLinearLeakyRelu": (f"a = {MS}QLinearLeakyRelu<alpha = 0.2>(q, s, z, t, z)", ""),
    "QLinearSigmoid": (f"a = {MS}QLinearSigmoid(q, s, z, t, z)", ""),
    "QLinearSoftmax": (f"a = {MS}QLinearSoftmax<axis = 1, opset = 18>(q, s, z, t, z)", ""),
    "QLinearConcat": (f"a = {MS}QLinearConcat<axis = 1>(t, z, q, s, z, q, s, z)", ""),
    "QLinearAveragePool": (f"a = {MS}QLinearAveragePool<kernel_shape = [2,2]>(q, s, z, t, z)", ""),
    "QLinearGlobalAveragePool": (f"a = {MS}QLinearGlobalAveragePool(q, s, z, t, z)", ""),
}
PER_POSITION = {"f": [0.02, 0.05, 0.09, 0.2], "k": [0, 0, 0, 0]}


def feeds_of(found):
    return comparison.random_feeds(found, shapes.observe(found))


@pytest.mark.parametrize("name", NODES)
def test_each_operator_says_the_same_written_out_up_to_a_step(name):
    plain = quantized(*NODES[name], constants=PER_POSITION)
    assert qoperator.rounds_alike(plain, feeds_of(plain))
    assert qoperator.write_out(plain) == 1
    assert {node.op_type for node in plain.graph} & set(qoperator.PLAIN) == set()
    assert "DequantizeLinear" in {node.op_type for node in plain.graph}


def test_what_operators_without_names_are_written_out_as_has_names_that_differ():
    plain = quantized(
        "o1 = QLinearConv(q, s, z, w, r, i, t, z) a = QLinearConv(o1, t, z, u, r, i, t, z)",
        ", int8[8,3,1,1] w, int8[8,8,1,1] u",
    )
    for node in plain.graph:
        node.name = ""
    assert qoperator.write_out(plain) == 2
    names = [node.name for node in plain.graph if node.name]
    assert len(set(names)) == len(names) == 8


def test_gemm_with_an_output_of_floats_is_written_out():
    text = (
        "(float[2,6] x, float s, float r, uint8 z, int8 o, int8[5,6] w, int32[5] b) => (float[n,c] y) "
        f"{{ q = QuantizeLinear(x, s, z) y = {MS}QGemm<transB = 1, alpha = 0.5>(q, s, z, w, r, o, b) }}"
    )
    plain = graph.normalize(model(text, NUMBERS), rewrite=False)
    assert qoperator.rounds_alike(plain, feeds_of(plain))
    assert qoperator.write_out(plain) == 1


@pytest.mark.parametrize(
    ("node", "more", "opset"),
    [
        (*NODES["per channel"], 12),  # DequantizeLinear takes one scale only
        (f"a = {MS}QLinearGlobalAveragePool<channels_last = 1>(q, s, z, t, z)", "", 18),
        (f"a = {MS}QLinearSoftmax<axis = 1, opset = 12>(q, s, z, t, z)", "", 18),
    ],
)
def test_what_the_plain_operator_does_not_say_stays(node, more, opset):
    plain = quantized(node, more, constants=PER_POSITION, opset=opset)
    assert qoperator.write_out(plain) == 0


def test_scales_that_are_no_numbers_stay():
    plain = quantized(*NODES["QLinearSigmoid"], constants={"s": np.inf})
    assert qoperator.write_out(plain) == 0


CHAIN = (
    "(float[n,3,6,6] x, float s, uint8 z, float r, int8 i, int8[16,3,3,3] w, int32[16] b, int8[16,16,3,3] u, "
    "float[5,16,1,1] v) => (float[n,5,p,t] y) { q = QuantizeLinear(x, s, z) a = QLinearConv(q, s, z, w, r, i, s, z, b) "
    f"c = QLinearConv<pads = [1,1,1,1]>(a, s, z, u, r, i, s, z) d = {MS}QLinearAdd(a, s, z, c, s, z, s, z) "
    "e = DequantizeLinear(d, s, z) y = Conv(e, v) }"
)
CHAIN_NUMBERS = {"s": 0.1, "z": 128, "r": 0.02, "i": 0}


def test_a_model_of_quantized_operators_is_pruned_and_verified(cli, tmp_path):
    source, out, plan = (tmp_path / name for name in ("q.onnx", "out.onnx", "plan.json"))
    onnx.save(proto(CHAIN, CHAIN_NUMBERS), source)
    ran = cli(source, out, "--method", "l1", "--no-latency", "--target", "params=0.5", "--align", 1, "--plan", plan)
    assert ran.code == 0, ran.err
    assert qoperator.NOTE in ran.err
    made = onnx.load(out)
    assert sum(np.prod(t.dims) for t in made.graph.initializer if len(t.dims) == 4) <= 0.5 * (16 * 27 + 16 * 144 + 80)
    assert {t.data_type for t in made.graph.initializer if list(t.dims[2:]) == [3, 3]} == {onnx.TensorProto.INT8}
    assert cli("verify", source, out, "--plan", plan).code == 0


@pytest.mark.parametrize("method", ["l1", "gss"])
def test_weights_that_are_all_integers_are_not_trained(cli, tmp_path, method):
    source, out, data = (tmp_path / name for name in ("q.onnx", "out.onnx", "x.npz"))
    text = CHAIN.replace(", float[5,16,1,1] v)", ")").replace("e = DequantizeLinear(d, s, z) y = Conv(e, v)", "@")
    last = "g = QLinearConv(d, s, z, u, r, i, s, z) y = DequantizeLinear(g, s, z)"
    text = text.replace("@", last).replace("float[n,5,p,t]", "float[n,16,p,t]")
    onnx.save(proto(text, CHAIN_NUMBERS), source)
    np.savez(data, x=np.random.default_rng(0).normal(size=(40, 3, 6, 6)).astype(np.float32))
    words = ("--method", method, "--no-latency", "--target", "macs=0.7", "--align", 1, "--data", data)
    ran = cli(source, out, *words, "--report", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    left_out = "fine-tuning was left out: all weights are integers"
    assert left_out in ran.err
    assert any(left_out in note for note in json.loads((tmp_path / "r.json").read_text())["notes"])
    assert out.exists()


def test_what_is_written_out_wrongly_is_not_taken(monkeypatch):
    right = qoperator._bias
    plain = model(CHAIN, CHAIN_NUMBERS)

    def wrong(model, node, position, read):
        found = right(model, node, position, read)
        graph.set_constant(found.scale, graph.array_of(found.scale) * np.float32(40))
        return found

    assert analyze(normal_form.form_of(plain)).free
    monkeypatch.setattr(qoperator, "_bias", wrong)
    found = normal_form.form_of(plain)
    assert sum(node.op_type == "QLinearConv" for node in found.graph) == 2
    assert not analyze(found).free
