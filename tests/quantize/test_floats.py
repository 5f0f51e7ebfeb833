"""Nodes that do not stand being rounded are found by leaving them out, and stay in float."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from quantizing import CNN, FAR_OFF, SQUARE, feeds_for, finished, samples_for

from onnxprune import graph
from onnxprune.graph import sessions
from onnxprune.quantize import Context, floats, forms, parse, quantize, rounding


def with_outliers(model: ir.Model) -> ir.Model:
    """A model of which one node has a channel whose weights are far larger than the others."""
    value = next(node for node in model.graph if node.name == "inner").inputs[1]
    array = graph.array_of(value).copy()
    array[0, 0] *= 300
    graph.set_constant(value, array)
    return model


def made_of(model: ir.Model, asked: str):
    return quantize(model, Context(parse(asked), samples_for(model), feeds_for(model)))


def test_a_node_that_does_not_stand_it_stays_in_float_and_the_plan_says_so():
    model = with_outliers(finished(CNN))
    plain, better = (made_of(model, f"int8:per_channel=false,float={way}") for way in ("none", "auto"))
    assert plain.record["float"] == []
    assert better.record["float"] != []
    assert any("in float: outputs are off by" in note for note in better.notes)
    assert better.simulation.ok
    errors = [rounding.error(made.model, made.pruned, feeds_for(model)) for made in (plain, better)]
    assert errors[1] < 0.95 * errors[0]


def test_a_plan_that_is_replayed_leaves_the_same_nodes_in_float_without_a_search(monkeypatch):
    model = with_outliers(finished(CNN))
    better = made_of(model, "int8:per_channel=false,float=auto")
    monkeypatch.setattr(floats, "standing", lambda *_: pytest.fail("searched again"))
    context = Context(parse(better.record["options"]), samples_for(model), feeds_for(model), known=better.record)
    again = quantize(model, context)
    assert ir.to_proto(again.model) == ir.to_proto(better.model)


def test_the_first_the_last_and_depthwise_ones_are_tried_first():
    made = made_of(finished(CNN), "int8:biases=false")
    names = floats.candidates(made.float_model, made.model, feeds_for(made.float_model))
    assert names[:3] == ["stem", "head", "deep"]
    assert set(names) == {"stem", "inner", "deep", "wide", "head"}


def choice_of(model: ir.Model, off: float) -> floats.Choice:
    return floats.Choice(model, (), off)


def test_time_bounds_the_trials():
    made = made_of(finished(CNN), "int8:biases=false")
    tried = []

    def form(left):
        tried.append(list(left))
        return made.model

    best = choice_of(made.model, 0.5)
    assert floats.less_layers(["stem", "head"], best, form, lambda _: 0.5, seconds=0.0) is best
    assert tried == [["stem"], ["head"]]  # what it gains alone is measured of the first; the rest as they come


def test_where_no_layer_stands_out_all_are_rounded():
    made = made_of(finished(CNN), "int8:biases=false")
    best = choice_of(made.model, 0.05)
    assert floats.less_layers(["stem", "head"], best, lambda _: made.model, lambda _: 0.05, most=4) is best


def test_as_many_layers_stay_in_float_as_it_takes_and_no_more_are_tried():
    """Of five layers three ruin the outputs together: one alone in float brings little, four do, and so do three."""
    made = made_of(finished(CNN), "int8:biases=false")
    bad = {"stem", "inner", "wide"}
    left_of = {}

    def form(left):
        model = graph.copy(made.model)
        left_of[id(model)] = (model, bad - set(left))
        return model

    names = floats.candidates(made.float_model, made.model, feeds_for(made.float_model))
    chosen = floats.less_layers(
        names, choice_of(made.model, 0.9), form, lambda model: 0.3 * len(left_of[id(model)][1]), seconds=60
    )
    assert bad == set(chosen.left)
    assert chosen.off == 0.0


@pytest.mark.parametrize(("height", "told"), [(5000.0, True), (1.0, False)])
def test_a_model_that_int8_ruins_says_so(height, told):
    model = finished(FAR_OFF)
    for name, number in (("up", height), ("down", -height)):
        graph.set_constant(model.graph.initializers[name], np.full(8, number, np.float32) + np.arange(8, dtype="f") / 8)
    made = made_of(model, "int8:float=none")
    assert any("int8 does not fit this model" in note for note in made.notes) == told


def test_what_ruins_a_model_stays_in_float_unasked_and_is_told_of():
    """The layers stay in integers; what is far off is between them, and has no weights."""
    model = finished(FAR_OFF)
    for name, number in (("up", 5000.0), ("down", -5000.0)):
        graph.set_constant(model.graph.initializers[name], np.full(8, number, np.float32) + np.arange(8, dtype="f") / 8)
    made = made_of(model, "int8")
    assert {"rise", "relu", "fall"} <= set(made.record["float"])
    assert not {"first", "last"} & set(made.record["float"])
    assert rounding.error(made.model, made.pruned, feeds_for(model)) < 0.1
    assert any("stay in float: outputs are off by" in note for note in made.notes)
    assert not any("does not fit" in note for note in made.notes)


# A norm written out (x - mean) / sqrt(mean of squares + e) and a Gelu of Erf, behind integer layers.
WRITTEN_OUT = """<ir_version: 8, opset_import: ["" : 17]>
norm (float[N, 6] x) => (float[N, 4] y) <float[6, 16] w, float two = {2.0}, float e = {0.00001}, float root = {1.4142},
  float one = {1.0}, float half = {0.5}, float[16] gamma, float[16, 4] v>
{
  [first] a = MatMul (x, w)
  [mean] m = ReduceMean <axes = [-1]> (a)
  [centered] c = Sub (a, m)
  [square] s = Pow (c, two)
  [spread] p = ReduceMean <axes = [-1]> (s)
  [more] q = Add (p, e)
  [rooted] r = Sqrt (q)
  [unit] n = Div (c, r)
  [scaled] g = Mul (n, gamma)
  [shrunk] h = Div (g, root)
  [erf] i = Erf (h)
  [raised] j = Add (i, one)
  [gated] k = Mul (g, j)
  [halved] l = Mul (k, half)
  [last] y = MatMul (l, v)
}
"""


def test_a_norm_and_an_activation_that_are_written_out_stay_in_float_before_any_layer_does():
    model = finished(WRITTEN_OUT)
    steps = list(floats._steps(model, forms.op_types("cpu")))
    assert {"more", "scaled", "raised"} <= set(steps[0])
    assert not {"first", "last"} & set(steps[-1])


@pytest.mark.parametrize("needed", [1, 2, 5, 11, 13, 16, 40])
def test_no_more_layers_stay_in_float_than_a_little_more_than_it_takes(needed):
    model = finished(CNN)
    tried = []

    def without(end):
        tried.append(end)
        return floats.Choice(model, tuple(map(str, range(end))), 0.05 if end >= needed else 0.5 - 0.01 * end)

    found = floats._fewest(choice_of(model, 0.9), without, 31)
    if needed > 31:
        assert (len(found.left), found.off) == (16, pytest.approx(0.34))  # more would leave int8 little to do
    else:
        assert needed <= len(found.left) <= needed + max(1, needed // 8)
    assert len(tried) <= 9


def test_layers_are_tried_with_all_that_is_none_in_float_though_that_alone_gains_little():
    """A text encoder was left 38 % off: what came before the layers had gained less than a tenth."""
    model = finished(WRITTEN_OUT)
    steps = list(floats._steps(model, forms.op_types("cpu")))
    left_of = {}

    def form(left):
        made = graph.copy(model)
        left_of[id(made)] = (made, set(left))
        return made

    def far(made):
        left = left_of[id(made)][1]
        if not set(steps[0]) <= left:
            return 0.5
        return (0.38 if set(steps[-1]) <= left else 0.4) - (0.33 if {"first", *steps[-1]} <= left else 0.0)

    plain = floats.plainly(form, far)
    chosen = floats.standing(model, plain, form, far, forms.op_types("cpu"), lambda _: ["last", "first"])
    assert set(chosen.left) == {"first", *steps[-1]}
    assert chosen.off == pytest.approx(0.05)


@pytest.mark.parametrize("coarse", ["inner", "wide"])
def test_layers_that_read_values_on_a_coarse_grid_are_tried_before_the_rest(coarse):
    """A few large numbers, as transformers have them, leave the others a few steps of the grid."""
    made = made_of(finished(CNN), "int8:biases=false,equalize=false,float=none")
    reader = next(node for node in made.model.graph if node.name == coarse).inputs[0].producer()
    writer = reader.inputs[0].producer()
    for node in (reader, writer):
        scale = graph.array_of(node.inputs[1])
        node.replace_input_with(1, graph.add_constant(made.model.graph, f"{node.name}/coarse", 50 * scale))
    names = floats.candidates(made.float_model, made.model, feeds_for(made.float_model))
    assert names[:4] == ["stem", "head", "deep", coarse]


# Boxes of hundreds of pixels and scores of 0 to 1 in one output, as detectors of the YOLO kind give them.
JOINED = """<ir_version: 8, opset_import: ["" : 17]>
joined (float[N, 6] x) => (float[N, 12] y) <float[6, 8] w, float[8, 8] u, float size = {640.0}, float[8, 4] v>
{
  [trunk] a = MatMul (x, w)
  [boxes] b = MatMul (a, u)
  [inside] c = Sigmoid (b)
  [pixels] d = Mul (c, size)
  [logits] e = MatMul (a, v)
  [scores] f = Sigmoid (e)
  [join] y = Concat <axis = 1> (d, f)
}
"""


def test_scores_that_are_joined_with_boxes_are_not_rounded_to_their_grid():
    """By the distance of the whole output nothing is wrong: a step of 2.5 is nothing to boxes, and all to scores."""
    model = finished(JOINED)
    feeds = feeds_for(model)
    wanted = sessions.run(sessions.open_session(model), feeds[0])["y"][:, 8:]

    def lost(other: ir.Model) -> float:
        found = sessions.run(sessions.open_session(other), feeds[0])["y"][:, 8:]
        return float(np.abs(found - wanted).mean() / np.abs(wanted).mean())

    plain, better = (
        quantize(model, Context(parse(f"int8:float={way}"), samples_for(model), feeds, lost=lost))
        for way in ("none", "needed")
    )
    assert rounding.error(plain.model, plain.pruned, feeds) < 0.05
    assert lost(plain.model) > 0.3
    assert any("of its answers are lost" in note for note in plain.notes)
    assert {"pixels", "join"} <= set(better.record["float"])
    assert not {"trunk", "boxes", "logits"} & set(better.record["float"])
    assert lost(better.model) < 0.1


BEYOND = """<ir_version: 8, opset_import: ["" : 17]>
beyond (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float up = {200000.0}, float[8, 4] v>
{
  [first] a = MatMul (x, w)
  [rise] b = Mul (a, up)
  [fall] c = Div (b, up)
  [last] y = MatMul (c, v)
}
"""


def test_what_halves_do_not_reach_stays_in_float():
    made = made_of(finished(BEYOND), "fp16")
    assert set(made.record["float"]) == {"rise", "fall"}
    assert rounding.error(made.model, made.pruned, feeds_for(made.pruned)) < 0.01
    assert "2 nodes stay in float: halves do not reach what they compute with" in made.notes


@pytest.mark.parametrize("kind", ["dynamic", "int4"])
def test_a_matrix_that_8_or_4_bits_ruin_stays_in_float(kind):
    """The rows of 'last' that small values are multiplied with are far smaller than the others."""
    model = finished(SQUARE)
    value = next(node for node in model.graph if node.name == "last").inputs[1]
    array = graph.array_of(value).copy()
    array[:, :2] *= 1e4
    graph.set_constant(value, array)
    first = next(node for node in model.graph if node.name == "first")
    for k in (1, 2):
        held = graph.array_of(first.inputs[k]).copy()
        held[..., :2] = 0
        graph.set_constant(first.inputs[k], held)
    w2 = next(node for node in model.graph if node.name == "middle").inputs[1]
    held = graph.array_of(w2).copy()
    held[:, :2] = 0
    graph.set_constant(w2, held)
    made = made_of(model, kind)
    assert made.record["float"] == ["last"]
    assert rounding.error(made.model, made.pruned, feeds_for(model)) < 0.3


def test_answers_that_are_lost_count_though_the_outputs_are_near():
    """Large numbers of one column hide the others from a distance; what the outputs are for tells."""
    model = finished(CNN)
    context = Context(parse("int8"), samples_for(model), feeds_for(model), lost=lambda _: 0.4)
    made = quantize(model, context)
    assert any("40 % of its answers are lost" in note for note in made.notes)
    assert not any("does not fit" in note for note in quantize(model, replace(context, lost=lambda _: 0.0)).notes)
