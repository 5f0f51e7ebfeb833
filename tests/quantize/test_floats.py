"""Nodes that do not stand being rounded are found by leaving them out, and stay in float."""

import numpy as np
import onnx_ir as ir
import pytest
from quantizing import CNN, feeds_for, finished, samples_for

from onnxprune import graph
from onnxprune.quantize import Context, floats, parse, proof, quantize


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
    errors = [proof.error(made.model, made.pruned, feeds_for(model)) for made in (plain, better)]
    assert errors[1] < 0.95 * errors[0]


def test_a_plan_that_is_replayed_leaves_the_same_nodes_in_float_without_a_search(monkeypatch):
    model = with_outliers(finished(CNN))
    better = made_of(model, "int8:per_channel=false,float=auto")
    monkeypatch.setattr(floats, "chosen", lambda *_: pytest.fail("searched again"))
    context = Context(parse(better.record["options"]), samples_for(model), feeds_for(model), known=better.record)
    again = quantize(model, context)
    assert ir.to_proto(again.model) == ir.to_proto(better.model)


def test_the_first_the_last_and_depthwise_ones_are_tried_first():
    made = made_of(finished(CNN), "int8:biases=false")
    names = floats.candidates(made.float_model, made.model)
    assert names[:3] == ["stem", "head", "deep"]
    assert set(names) == {"stem", "inner", "deep", "wide", "head"}


def test_time_bounds_the_trials():
    made = made_of(finished(CNN), "int8:biases=false")
    tried = []

    def form(left):
        tried.append(list(left))
        return made.model

    chosen, notes = floats.chosen(made.float_model, made.model, form, feeds_for(made.float_model), seconds=0.0)
    assert (chosen, notes, tried) == ([], (), [["stem"]])


def test_where_no_node_stands_out_all_are_rounded():
    model = finished(CNN)
    feeds = feeds_for(model)
    made = made_of(model, "int8:biases=false")
    assert floats.chosen(made.float_model, made.model, lambda _: made.model, feeds) == ([], ())
    assert np.isfinite(proof.error(made.model, made.pruned, feeds))


FAR_OFF = """<ir_version: 8, opset_import: ["" : 17]>
far (float[N, 6] x) => (float[N, 4] y) <float[6, 8] w, float[8] up, float[8] down, float[8, 4] v>
{
  [first] a = MatMul (x, w)
  [rise] b = Add (a, up)
  [relu] c = Relu (b)
  [fall] d = Add (c, down)
  [last] y = MatMul (d, v)
}
"""


@pytest.mark.parametrize(("height", "told"), [(5000.0, True), (1.0, False)])
def test_a_model_that_int8_ruins_says_so(height, told):
    model = finished(FAR_OFF)
    for name, number in (("up", height), ("down", -height)):
        graph.set_constant(model.graph.initializers[name], np.full(8, number, np.float32) + np.arange(8, dtype="f") / 8)
    made = made_of(model, "int8")
    assert any("int8 does not fit this model" in note for note in made.notes) == told
