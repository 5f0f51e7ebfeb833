"""Rounded weights move the mean of a channel; what they move it by is taken out of the bias, where that helps."""

import numpy as np
from quantizing import CNN, SQUARE, finished, samples_for

from onnxprune import graph
from onnxprune.graph import sessions
from onnxprune.quantize import Context, biases, nearer, parse, quantize, rounding
from onnxprune.quantize.parts import stored


def made_of(text: str, asked: str):
    model = finished(text)
    samples = samples_for(model)
    batch = samples.batch(np.arange(len(samples)))
    return quantize(model, Context(parse(asked), samples, [batch])), batch


def shifted(made, batch, node: str):
    """The mean of (W - Wq) x by channel, computed apart: x as the float model has it, in numpy."""
    own = next(n for n in made.float_model.graph if n.name == node)
    twin = next(n for n in made.model.graph if n.name == node)
    w = graph.array_of(own.inputs[1])
    session = sessions.open_session(made.float_model, extra_outputs=[own.inputs[0].name], optimize=False)
    x = sessions.run(session, batch)[own.inputs[0].name]
    missing = w - stored(twin.inputs[1])[1].rounded(w)
    return x.mean(axis=0) @ (missing.T if own.attributes.get_int("transB", 0) else missing)


def test_the_mean_error_of_each_channel_is_what_is_missing_of_its_weights():
    made, batch = made_of(SQUARE, "int8:per_channel=false,biases=false")
    found = biases.mean_errors(made.float_model, made.model, [batch])
    assert set(found) == {"first", "last"}
    for node, shift in found.items():
        np.testing.assert_allclose(shift, shifted(made, batch, node), atol=1e-6)
        assert np.abs(shift).max() > 1e-4


def test_batches_of_different_sizes_weigh_by_their_samples():
    made, batch = made_of(CNN, "int8:per_channel=false,biases=false")
    x = batch["x"]
    whole = biases.mean_errors(made.float_model, made.model, [batch])
    parted = biases.mean_errors(made.float_model, made.model, [{"x": x[:7]}, {"x": x[7:]}])
    assert set(whole) == {"stem", "inner", "head"}
    for node, shift in whole.items():
        np.testing.assert_allclose(parted[node], shift, atol=1e-6)


def test_corrected_biases_bring_the_outputs_nearer_and_the_proof_still_holds():
    plain, batch = made_of(CNN, "int8:per_channel=false,reduce_range=true,equalize=false,biases=false")
    better, _ = made_of(CNN, "int8:per_channel=false,reduce_range=true,equalize=false")
    errors = [rounding.error(made.model, made.pruned, [batch]) for made in (plain, better)]
    assert errors[1] < errors[0]
    assert better.simulation.ok
    assert any("taken out of 3 biases" in note for note in better.notes)
    assert not any("biases" in note for note in plain.notes)


def test_a_correction_that_does_not_help_is_left_out():
    made, _ = made_of(CNN, "int8:biases=false")
    samples = samples_for(made.pruned)
    floats, kept, notes = nearer.without_mean_errors(made.pruned, made.model, lambda _: made.model, samples)
    assert (floats is made.pruned, kept is made.model, notes) == (True, True, ())
