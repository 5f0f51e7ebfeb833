"""Training with the rounding in place: what is trained computes what the file does, and its weights are kept."""

import json

import numpy as np
import pytest
from networks import DIGITS
from quantizing import CNN, SQUARE, feeds_for, finished, samples_for

from onnxprune import graph
from onnxprune.bridge import Network
from onnxprune.quantize import Context, parse, quantize, rounding, tuning

PLAIN = "equalize=false,biases=false"


@pytest.mark.parametrize("text", [CNN, SQUARE], ids=["convolutions", "matrices"])
@pytest.mark.parametrize("asked", ["int8", "int8:per_channel=false", "int8:symmetric=true"])
def test_the_model_that_is_trained_rounds_as_the_file_does(text, asked):
    model = finished(text)
    words = asked if ":" in asked else f"{asked}:symmetric=false"
    made = quantize(model, Context(parse(f"{words},{PLAIN}"), samples_for(model), feeds_for(model)))
    learning = tuning.rounding_model(made.float_model, made.model)
    assert rounding.error(learning, made.model, feeds_for(model)) < 1e-3
    parameters = {name.removeprefix("parameter:") for name, _ in Network(learning).named_parameters()}
    weights = [name for name, value in model.graph.initializers.items() if graph.array_of(value).dtype == np.float32]
    assert {f"{name}{tuning.HELD}" for name in weights} <= parameters


def test_numbers_come_back_by_name_and_zeros_stay():
    model = finished(SQUARE)
    value = model.graph.initializers["w2"]
    array = graph.array_of(value).copy()
    array[:, 2] = 0
    graph.set_constant(value, array)
    made = quantize(model, Context(parse(f"int8:{PLAIN}"), samples_for(model), feeds_for(model)))
    trained, history = tuning.tuned(made.float_model, made.model, model, samples_for(model, 200), 2, 0)
    assert history is not None
    arrays = {name: graph.array_of(value) for name, value in trained.graph.initializers.items()}
    assert not arrays["w2"][:, 2].any()
    assert np.abs(np.delete(arrays["w2"] - array, 2, axis=1)).min() > 0
    assert np.abs(arrays["b3"] - graph.array_of(model.graph.initializers["b3"])).max() > 0


def test_coarse_rounding_costs_less_after_training():
    model = finished(CNN)
    plain = f"int8:per_channel=false,reduce_range=true,{PLAIN}"
    feeds = feeds_for(model)
    errors = []
    for text in (plain, f"{plain},finetune=12"):
        made = quantize(model, Context(parse(text), samples_for(model, 512), feeds, teacher=model))
        assert made.simulation.ok
        assert made.trained == ("finetune" in text)
        errors.append(rounding.error(made.model, model, feeds))
    assert errors[1] < errors[0]


def test_without_samples_or_with_too_few_it_is_left_out_and_that_is_said():
    model = finished(SQUARE)
    ranges = dict.fromkeys([*(v.name for n in model.graph for v in n.outputs), "x"], (-9.0, 9.0)) | {"a1": (0.0, 9.0)}
    ranges["a"] = (0.0, 9.0)
    asked = parse("int8:finetune=1")
    made = quantize(model, Context(asked, None, feeds_for(model), known={"ranges": ranges}, teacher=model))
    assert (made.trained, any("there are no samples" in note for note in made.notes)) == (False, True)
    made = quantize(model, Context(asked, samples_for(model, 2), feeds_for(model), teacher=model))
    assert (made.trained, any("left out: only 2 samples" in note for note in made.notes)) == (False, True)


def test_a_run_trains_proves_and_replays_and_a_search_does_not_train(cli, tmp_path, monkeypatch):
    calls, tuned = [], tuning.tuned
    monkeypatch.setattr(tuning, "tuned", lambda *args: calls.append(1) or tuned(*args))
    words = (DIGITS, tmp_path / "out.onnx", "--method", "l1", "--data", "digits", "--recover", "reconstruct")
    files = ("--plan", tmp_path / "p.json", "--report", tmp_path / "r.json", "--no-latency")
    ran = cli(*words, *files, "--quantize", "int8:finetune=1", "--max-drop", 5)
    assert ran.code == 0, ran.err
    assert len(calls) == 1
    told = json.loads((tmp_path / "r.json").read_text())
    assert any("with the rounding in place" in note for note in told["notes"])
    assert json.loads((tmp_path / "p.json").read_text())["quantize"]["options"] == "int8:finetune=1"
    ran = cli("verify", DIGITS, tmp_path / "out.onnx", "--plan", tmp_path / "p.json")
    assert (ran.code, ran.err) == (0, "")


def test_weights_that_are_not_the_pruned_model_are_found(cli, tmp_path, monkeypatch):
    tuned = tuning.tuned

    def wrong(*args):
        model, history = tuned(*args)
        next(iter(node for node in model.graph if node.op_type == "Relu")).op_type = "Abs"
        return model, history

    monkeypatch.setattr(tuning, "tuned", wrong)
    words = (
        DIGITS,
        tmp_path / "out.onnx",
        "--method",
        "l1",
        "--data",
        "digits",
        "--target",
        "macs=0.7",
        "--no-latency",
    )
    ran = cli(*words, "--recover", "none", "--quantize", "int8:finetune=1")
    assert (ran.code, (tmp_path / "out.onnx").exists()) == (3, False), ran.err
