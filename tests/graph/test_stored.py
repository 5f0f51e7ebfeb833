"""Weights that stay in files: they are read, changed and run without being held."""

import numpy as np
import onnx
import pytest
from networks import CNN, filled

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.graph import files, sessions, stored
from onnxprune.graph.tensors import tensor_of
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A model of which all weights stay in the file beside it, as those of large models do."""
    monkeypatch.setattr(files, "LARGE_MODEL_BYTES", 0)
    monkeypatch.setattr("onnxprune.graph.tensors.SMALL_WEIGHT_BYTES", 0)
    path = tmp_path / "model.onnx"
    onnx.save(filled(CNN), path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


def test_a_stored_weight_is_what_the_file_holds_and_maps_nothing(beside):
    whole = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(beside).graph.initializer}
    model = graph.load(beside)
    for name, value in model.graph.initializers.items():
        tensor = tensor_of(value)
        assert isinstance(tensor, stored.Stored)
        np.testing.assert_array_equal(tensor.numpy(), whole[name])
        assert tensor.tobytes() == whole[name].tobytes()
        assert tensor.raw is None


def test_a_change_of_a_stored_weight_is_made_when_it_is_asked_for(beside):
    value = next(v for v in graph.load(beside).graph.initializers.values() if len(tensor_of(v).shape) > 1)
    before, calls = graph.array_of(value), []

    def halved(array):
        calls.append(1)
        return array[: len(array) // 2]

    graph.change(value, (len(before) // 2, *before.shape[1:]), halved)
    assert not calls
    np.testing.assert_array_equal(graph.array_of(value), before[: len(before) // 2])
    assert tuple(tensor_of(value).shape.numpy()) == (len(before) // 2, *before.shape[1:])


def test_cut_and_mask_of_stored_weights_are_proven_and_written_like_those_in_memory(beside, tmp_path):
    """Once a view of a weight that was still held ended the run: BufferError, cannot close exported pointers."""
    results = []
    for model in (graph.normalize(graph.load(beside)), graph.normalize(_in_memory(beside, tmp_path))):
        coupling = analyze(model)
        keep = {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}
        cut = surgery.cut(Selection(coupling, keep))
        twin = surgery.uncut(Selection(coupling, keep), cut)
        feeds = comparison.random_feeds(model, coupling.shapes, 0)
        assert comparison.compare(cut, twin, feeds).ok
        results.append([*sessions.run(sessions.open_session(cut), feeds[0]).values()])
    stored_model = graph.normalize(graph.load(beside))
    assert all(isinstance(tensor_of(v), stored.Stored) for v in stored_model.graph.initializers.values())
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_new_weights_of_a_large_model_stay_on_disk(beside):
    """Least squares held every layer that it had refitted in memory."""
    model = graph.load(beside)
    value = next(v for v in model.graph.initializers.values() if len(tensor_of(v).shape) == 4)
    spill, wanted = stored.Spill(), 2 * graph.array_of(value)[:3]
    spill.take(value, wanted)
    spill.take(next(v for v in model.graph.initializers.values() if v is not value), np.ones(5, np.float32))
    assert stored.is_stored(value)
    assert stored.beyond_memory(model)
    np.testing.assert_array_equal(graph.array_of(graph.copy(model).graph.initializers[value.name]), wanted)


def _in_memory(path, folder):
    onnx.save(onnx.load(path), folder / "whole.onnx")
    return graph.load(folder / "whole.onnx")
