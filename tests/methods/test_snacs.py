"""SNACS on graphs: planted layers where the right answer is known, limits, protection, and its own decision."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_text import model as text_model

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.data import input_infos, load_samples
from onnxprune.errors import BridgeError, UsageError
from onnxprune.graph import sessions
from onnxprune.methods import base, taylor
from onnxprune.methods.base import Context
from onnxprune.methods.snacs import layers as connections
from onnxprune.methods.snacs import rules, snacs
from onnxprune.plan import cost

N, P, C = 600, 16, 24


def planted(dead: int, weak: int, seed: int = 0) -> tuple[ir.Model, np.ndarray]:
    """x (N, 8) -> Gemm (P) -> Relu -> Gemm (C) -> Relu -> Gemm (3): nobody reads `dead`, and few read `weak`."""
    rng = np.random.default_rng(seed)
    w1, w2, w3 = rng.normal(size=(P, 8)), rng.normal(size=(C, P)), rng.normal(size=(3, C))
    w2[:, dead] = 0
    w2[:, weak] *= 0.02
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 8] x, float[{P}, 8] w1, float[{P}] b1, float[{C}, {P}] w2,
           float[{C}] b2, float[3, {C}] w3, float[3] b3)
        => (float[batch, 3] y) {{
            h1 = Gemm<transB=1>(x, w1, b1)
            a1 = Relu(h1)
            h2 = Gemm<transB=1>(a1, w2, b2)
            a2 = Relu(h2)
            y = Gemm<transB=1>(a2, w3, b3)
        }}"""
    proto = onnx.parser.parse_model(text)
    arrays = {
        "w1": w1,
        "b1": rng.normal(size=P),
        "w2": w2,
        "b2": rng.normal(size=C),
        "w3": w3,
        "b3": rng.normal(size=3),
    }
    del proto.graph.input[1:]
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(proto)
    return graph.normalize(model), rng.normal(size=(N, 8)).astype(np.float32)


def context_of(model: ir.Model, x: np.ndarray, labels: np.ndarray | None = None, **options: object) -> Context:
    coupling = analyze(model)
    samples = load_samples(x if labels is None else (x, labels), input_infos(model))
    return Context(coupling, cost.of(coupling), coupling.free, samples, 0, "cpu", None, options)


def run(context: Context) -> base.Outcome:
    return base.run(base.get("snacs"), context)


@pytest.fixture(scope="module")
def outcome_and_context() -> tuple[base.Outcome, Context]:
    context = context_of(*planted(dead=5, weak=11))
    return run(context), context


def test_unit_that_nobody_reads_scores_lowest_and_the_weak_one_next(outcome_and_context):
    outcome, context = outcome_and_context
    hidden = next(dim for dim in context.dims if dim.size == P)
    order = np.argsort(outcome.scores[hidden])
    assert order[0] == 5
    assert order[1] == 11
    assert outcome.scores[hidden][5] < 1e-3 * np.median(outcome.scores[hidden])


def test_it_decides_by_itself_and_removes_the_dead_unit(outcome_and_context):
    outcome, context = outcome_and_context
    assert outcome.keep is not None
    hidden = next(dim for dim in context.dims if dim.size == P)
    kept = outcome.keep[hidden]
    assert not kept[5]
    assert 1 <= kept.sum() < P
    assert all(outcome.keep[dim].sum() >= 1 for dim in context.dims)


def test_a_larger_tolerance_never_keeps_more():
    model, x = planted(dead=5, weak=11)
    kept = [sum(k.sum() for k in run(context_of(model, x, tolerance=t)).keep.values()) for t in (0.05, 0.2, 0.6)]
    assert kept[0] >= kept[1] >= kept[2]
    assert kept[0] > kept[2]


def test_protected_units_stay_and_score_above_all_others():
    model, x = planted(dead=5, weak=11)
    context = context_of(model, x, protect=0.25, tolerance=0.9)
    layers = connections.find(context)
    activations = connections.mean_activations(context, layers, context.samples, np.arange(N))
    outcome = run(context)
    for dim in context.dims:
        shielded = connections.protect(layers, dim, activations, 0.25)
        assert shielded.sum() == dim.size // 4
        assert outcome.keep[dim][shielded].all()
        assert outcome.scores[dim][shielded].min() > outcome.scores[dim][~shielded].max()


def test_limits_use_labels_when_there_are_any_and_the_models_answers_otherwise():
    model, x = planted(dead=5, weak=11)
    labels = (x[:, 0] > 0).astype(np.int64)
    assert "how well the labels can still be told" in run(context_of(model, x, labels)).notes[-1]
    assert "own answers" in run(context_of(model, x)).notes[-1]
    assert "the error that its removal makes" in run(context_of(model, x, limits="error")).notes[-1]
    with pytest.raises(UsageError, match="needs labelled samples"):
        run(context_of(model, x, limits="labels"))


def test_limit_of_a_layer_grows_when_most_parents_are_useless():
    model, x = planted(dead=5, weak=11)
    context = context_of(model, x)
    layer = next(layer for layer in connections.find(context) if layer.weights.shape == (C, P))
    activations = connections.mean_activations(context, [layer], context.samples, np.arange(N))
    dim, units = next(iter(layer.units.items()))
    labels = activations[layer.child_value].argmax(1)[rules.limit_rows(N)]
    useful = snacs.filter_limit(layer, units, np.arange(P, dtype=float), activations, labels)
    layer.weights[:, :12] = 0  # children then depend on four parents alone, which score highest
    activations = {
        **activations,
        layer.child_value: activations[layer.parent_value] @ layer.weights.T.astype(np.float32),
    }
    labels = activations[layer.child_value].argmax(1)[rules.limit_rows(N)]
    useless = snacs.filter_limit(layer, units, np.arange(P, dtype=float), activations, labels)
    assert dim.size == P
    assert useless >= 0.75
    assert useless >= useful


def test_same_seed_same_scores_and_samples_are_balanced():
    model, x = planted(dead=5, weak=11)
    one, two = (run(context_of(model, x)) for _ in range(2))
    for a, b in zip(one.scores.values(), two.scores.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    labels = np.array([0] * 90 + [1] * 10)
    samples = load_samples((np.zeros((100, 8), np.float32), labels), input_infos(model))
    chosen = connections.balanced(samples, 20, 0)
    assert np.bincount(labels[chosen]).tolist() == [10, 10]


def test_needs_samples():
    model, x = planted(dead=5, weak=11)
    context = context_of(model, x)
    without = Context(context.coupling, context.cost, context.dims)
    with pytest.raises(UsageError, match="needs samples"):
        run(without)


def test_every_convolution_but_the_depthwise_one_is_a_layer():
    model = graph.normalize(graph.load("models/digits.onnx"))
    coupling = analyze(model)
    context = Context(coupling, cost.of(coupling), coupling.free, load_samples("digits", input_infos(model)))
    layers = connections.find(context)
    groups = [n.attributes["group"].as_int() for n in model.graph if n.op_type == "Conv" and "group" in n.attributes]
    weighted = [n for n in model.graph if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == len(weighted) - sum(group > 1 for group in groups) == 8
    # Children before the activation function are the layer's own linear output.
    indices = np.arange(32)
    found = connections.mean_activations(context, layers, context.samples, indices)
    assert all(len(array) == 32 for array in found.values())


def test_a_stack_of_matrices_is_no_layer():
    text = "(float[2,6,8] x, float[2,8,16] w, float[16,4] v) => (float[2,6,4] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    context = context_of(text_model(text), np.random.default_rng(0).normal(size=(64, 6, 8)).astype(np.float32))
    assert [layer.initializer for layer in connections.find(context)] == ["v"]


def test_layers_are_weighed_by_what_the_loss_loses_and_order_their_own_units_by_score():
    model, x = planted(dead=5, weak=11)
    context = context_of(model, x)
    by_mean, by_loss = (run(context_of(model, x, between=between)) for between in ("mean", "loss"))
    assert not by_mean.comparable
    assert by_loss.comparable
    losses = taylor.losses(context)
    for one, other in zip(by_mean.scores, by_loss.scores, strict=True):
        np.testing.assert_array_equal(np.argsort(by_mean.scores[one]), np.argsort(by_loss.scores[other]))
    for dim, scores in by_loss.scores.items():  # a whole layer costs what its units lose together
        alone = next(values for d, values in losses.items() if d.name == dim.name)
        assert scores.sum() == pytest.approx(np.sqrt(alone).sum() ** 2, rel=1e-6)


def test_without_a_gradient_layers_are_weighed_by_their_mean_and_a_note_says_so(monkeypatch):
    def fails(context: Context) -> dict:
        raise BridgeError("no torch function for Foo")

    monkeypatch.setattr(taylor, "losses", fails)
    outcome = run(context_of(*planted(dead=5, weak=11)))
    assert not outcome.comparable
    assert "no torch function for Foo" in outcome.notes[-1]


def test_with_a_target_residual_streams_may_lose_nothing_unless_asked_for():
    model = graph.normalize(graph.load("models/digits.onnx"))
    coupling = analyze(model)
    assert coupling.residual & set(coupling.free)
    samples = load_samples("digits", input_infos(model)).subset(np.arange(128))

    def limits(**options: object) -> list[float]:
        context = Context(coupling, cost.of(coupling), coupling.free, samples, 0, "cpu", 0.5, options)
        found = run(context).limits
        return [found[dim] for dim in found if dim in coupling.residual]

    assert set(limits()) == {0.0}
    assert min(limits(streams=True)) > 0


def test_where_a_target_decides_nothing_is_cut_to_find_how_much(monkeypatch):
    """Nine cuts and runs of the network looked for a threshold that a target makes useless."""
    monkeypatch.setattr(snacs, "decide", lambda *_: pytest.fail("the method looked for how much to remove"))
    outcome = run(replace(context_of(*planted(dead=5, weak=11)), decides=False))
    assert outcome.keep is None
    assert "threshold" not in outcome.notes[0]


def test_classes_of_a_few_samples_each_are_no_measure_of_a_layer(monkeypatch):
    """With a thousand classes a classifier took minutes per layer, and sklearn warned each time."""
    monkeypatch.setattr(rules, "class_accuracy", lambda *_: pytest.fail("a classifier was fitted"))
    model, x = planted(dead=5, weak=11)
    outcome = run(context_of(model, x, np.arange(N)))
    assert outcome.notes[0].endswith("the error that its removal makes")
    monkeypatch.setattr(rules, "class_accuracy", lambda *_: lambda pruned: 1.0)
    assert run(context_of(model, x, np.arange(N), limits="labels")).notes[0].endswith("the labels can still be told")


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_means_over_space_are_those_of_whole_feature_maps(opset):
    head = "(float[n,3,6,5] x, float[4,3,3,3] w, float[2,4,1,1] v) => (float[n,2,4,3] y) "
    body = "{ h = Conv(x, w) a = Relu(h) y = Conv(a, v) }"
    model = graph.normalize(text_model(head + body, opset=opset))
    x = np.random.default_rng(0).normal(size=(70, 3, 6, 5)).astype(np.float32)
    context = context_of(model, x)
    found = connections.mean_activations(context, connections.find(context), context.samples, np.arange(70))
    session = sessions.open_session(model, extra_outputs=["h", "a"])
    whole = sessions.run(session, {"x": x})
    assert {"h", "a"} <= found.keys()
    for name in found:
        np.testing.assert_allclose(found[name], (whole | {"x": x})[name].mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert len(connections._with_means(context, {"h": 1})[1]) == (opset >= 13)
