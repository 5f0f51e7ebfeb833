"""Channels of very different ranges are brought nearer to each other; the float model computes the same to the bit."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnx_text
import pytest
from quantizing import CNN, SQUARE, feeds_for, finished, samples_for

from onnxprune import graph
from onnxprune.errors import VerificationError
from onnxprune.graph import sessions
from onnxprune.quantize import Context, equalize, nearer, parse, quantize, rounding

# gamma of the norm has a channel that is far larger than the others, as transformers do.
NORM = (
    "(float[N,5,16] x, float[16] g, float[16] b, float[16,12] w, float[12] c, float[16,12] v, float[12,4] o) "
    "=> (float[N,5,4] y) { n = LayerNormalization(x, g, b) p = MatMul(n, w) q = Add(p, c) r = Relu(q) "
    "s = MatMul(n, v) t = Add(r, s) y = MatMul(t, o) }"
)


def outlying() -> ir.Model:
    model = graph.normalize(onnx_text.model(NORM))
    for name, factor in (("g", 200.0), ("w", 1 / 200), ("v", 1 / 200)):
        value = model.graph.initializers[name]
        array = graph.array_of(value).copy()
        array[3] *= factor
        graph.set_constant(value, array)
    return model


def run(model: ir.Model, feeds) -> np.ndarray:
    return sessions.run(sessions.open_session(model, threads=1), feeds)["y"]


@pytest.mark.parametrize("text", [CNN, SQUARE], ids=["convolutions", "matrices"])
def test_scaling_every_group_changes_weights_and_no_digit_of_the_output(text):
    model = finished(text)
    groups = equalize.groups(model)
    rng = np.random.default_rng(0)
    by = {group.name: rng.integers(-4, 5, group.channels) for group in groups}
    made = equalize.scaled(model, by)
    changed = [n for n, v in model.graph.initializers.items()
               if not np.array_equal(graph.array_of(v), graph.array_of(made.graph.initializers[n]))]  # fmt: skip
    assert len(changed) >= 2 * len(groups)
    feeds = feeds_for(model)[0]
    np.testing.assert_array_equal(run(made, feeds), run(model, feeds))


def test_groups_reach_over_sums_and_pooling_and_end_at_layers():
    found = {group.name: group for group in equalize.groups(finished(CNN))}
    assert set(found) == {"a", "d", "e"}
    assert {value.name for value in found["a"].values} == {"a", "a1", "b", "c"}
    assert {value.name for value in found["e"].values} == {"e", "e1", "f", "g"}
    assert sorted(slot.node.name for slot in found["a"].read) == ["deep", "inner"]  # depthwise: per channel of its own


@pytest.mark.parametrize(
    "between",
    ["a1 = Sigmoid (a)", "a1 = Clip (a, low, high)", "z = Relu (a) a1 = Transpose <perm = [1, 0]> (z)"],
)
def test_what_does_not_scale_with_its_input_leaves_a_group_as_it_is(between):
    text = (
        f"(float[8,6] x, float[6,8] w, float[8,8] v, float low, float high) => (float[8,8] y) "
        f"{{ a = MatMul(x, w) {between} y = MatMul(a1, v) }}"
    )
    assert equalize.groups(onnx_text.model(text, {"low": 0.0, "high": 6.0})) == []


def test_a_matrix_that_others_read_too_is_left_alone_and_a_vector_gets_a_copy():
    shared = (
        "(float[N,6] x, float[8,6] w, float[8] b, float[8,8] v, float[8,8] u) => (float[N,8] y) "
        "{ a = Gemm <transB = 1> (x, w, b) r = Relu(a) c = Gemm(r, v, b) s = Relu(c) y = MatMul(s, SECOND) }"
    )
    assert equalize.groups(onnx_text.model(shared.replace("SECOND", "v"))) == []
    model = onnx_text.model(shared.replace("SECOND", "u"))
    assert [group.name for group in equalize.groups(model)] == ["a", "c"]
    made = equalize.scaled(model, {"a": np.arange(8) - 4})
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    np.testing.assert_array_equal(run(made, feeds), run(model, feeds))
    np.testing.assert_array_equal(
        graph.array_of(made.graph.initializers["b"]), graph.constant(model.graph.initializers["b"])
    )


@pytest.mark.parametrize("asked", ["int8:biases=false", "int8:per_channel=false,biases=false"])
def test_a_channel_that_reaches_far_beyond_the_others_no_longer_costs_their_digits(asked):
    model = outlying()
    plain, better = (
        quantize(model, Context(parse(text), samples_for(model), feeds_for(model)))
        for text in (f"{asked},equalize=false", asked)
    )
    errors = [rounding.error(made.model, made.pruned, feeds_for(model)) for made in (plain, better)]
    assert errors[1] < 0.5 * errors[0]
    assert better.simulation.ok
    assert any("brought to more equal ranges" in note for note in better.notes)
    assert "exponents" not in plain.record
    assert rounding.error(better.float_model, model, feeds_for(model)) == 0


def test_where_it_does_not_help_nothing_is_scaled():
    model = finished(SQUARE)
    made = quantize(model, Context(parse("int8"), samples_for(model), feeds_for(model)))
    assert "exponents" not in made.record


def test_outputs_that_are_infinite_or_no_numbers_alike_are_no_change():
    text = NORM.replace("float[12,4] o)", "float[12,4] o, float[4] c2)").replace(
        "y = MatMul(t, o)", "z = MatMul(t, o) y = Add(z, c2)"
    )
    model = graph.normalize(onnx_text.model(text, {"c2": [0.0, -np.inf, np.nan, 1.0]}))
    finite = graph.normalize(onnx_text.model(text, {"c2": [0.0, 0.0, 0.0, 1.0]}))
    assert nearer.moved(equalize.scaled(model, {"n": np.arange(16)}), model, feeds_for(model)) == 0
    assert nearer.moved(model, finite, feeds_for(model)) > 1


def test_scales_that_change_the_outputs_are_found(monkeypatch):
    model = outlying()
    scaled = equalize.scaled

    def wrong(model, by):
        made = scaled(model, by)
        value = made.graph.initializers["v"]
        graph.set_constant(value, graph.array_of(value) * np.float32(1.001))
        return made

    monkeypatch.setattr(equalize, "scaled", wrong)
    with pytest.raises(VerificationError, match="equalize=false"):
        quantize(model, Context(parse("int8"), samples_for(model), feeds_for(model)))


def test_a_plan_says_how_and_is_replayed_with_and_without_samples(tmp_path, cli):
    onnx.save(ir.to_proto(outlying()), tmp_path / "in.onnx")
    x = np.random.default_rng(0).normal(size=(200, 5, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    words = ("--data", tmp_path / "x.npz", "--target", "macs=0.8", "--align", "1", "--recover", "none", "--no-latency")
    plan = tmp_path / "p.json"
    ran = cli(tmp_path / "in.onnx", tmp_path / "out.onnx", *words, "--quantize", "int8", "--plan", plan)
    assert ran.code == 0, ran.err
    assert len(json.loads(plan.read_text())["quantize"]["exponents"]["n"]) == 16
    ran = cli("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--plan", plan)
    assert (ran.code, ran.err) == (0, "")
    for more in (words[:2], ()):
        ran = cli("apply", tmp_path / "in.onnx", plan, tmp_path / "again.onnx", *more, "--no-latency")
        assert ran.code == 0, ran.err
        stored = [graph.load(tmp_path / name).graph.initializers["w_quantized"] for name in ("out.onnx", "again.onnx")]
        np.testing.assert_array_equal(*map(graph.array_of, stored))
