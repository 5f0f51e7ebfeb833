"""What other tools chose, read off the weights that they left."""

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from networks import CNN, filled
from onnx_text import random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.graph import sessions
from onnxprune.plan.select import Selection

HALF = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 64] x) => (float[N, 8] y) <float16[64, 8] w, float[8] b>
    {
        wide = Cast<to = 1>(w)
        p = MatMul(x, wide)
        y = Add(p, b)
    }
"""
TOOLS = Path(__file__).parents[2] / "tools"
MODULES = (
    "allocation_rivals",
    "allocation_study",
    "cifar",
    "cifar_resnet",
    "imagenet",
    "torch_modules",
    "torch_pruning_cifar",
)


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.syspath_prepend(str(TOOLS / "zoo"))
    yield importlib.import_module("allocation_rivals")
    for name in (*MODULES, "tools.zoo.onnxsim_worker", "feeds"):
        sys.modules.pop(name, None)


@pytest.fixture
def cut():
    """A network, a random plan, and the weights that are left by it."""
    coupling = analyze(graph.normalize(ir.from_proto(filled(CNN))))
    keep = random_keep(coupling, 3, 0.6)
    left = surgery.cut(Selection(coupling, keep)).graph.initializers
    return coupling, keep, {name: graph.array_of(value) for name, value in left.items()}


def test_the_positions_that_another_tool_kept_are_read_off_its_weights(rivals, cut):
    coupling, keep, arrays = cut
    assert any(not mask.all() for mask in keep.values())
    found = rivals.selection_of(coupling, arrays).keep
    assert all(np.array_equal(found[dim], mask) for dim, mask in keep.items())


def test_weights_that_disagree_or_are_others_are_refused(rivals, cut):
    coupling, _, arrays = cut
    with pytest.raises(ValueError, match="holds other numbers than before"):
        rivals.selection_of(coupling, {name: array + 1 for name, array in arrays.items()})
    whole = {name: graph.array_of(value) for name, value in coupling.model.graph.initializers.items()}
    with pytest.raises(ValueError, match="do not agree on what is left"):
        rivals.selection_of(coupling, {**arrays, "w4": whole["w4"]})


def test_half_precision_weights_are_widened_and_told_apart(rivals):
    made = ir.from_proto(filled(HALF))
    stored = made.graph.initializers
    w, b = graph.array_of(stored["w"]).astype(np.float16), graph.array_of(stored["b"])
    stored["w"].const_value, stored["w"].type = ir.Tensor(w, name="w"), ir.TensorType(ir.DataType.FLOAT16)
    assert len(np.unique(w)) < w.size
    x = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    (before,) = sessions.run(sessions.open_session(made), {"x": x}).values()
    found = rivals.torch_modules.widened(made, apart=True)
    assert [node.op_type for node in found.graph] == ["MatMul", "Add"]
    wide = graph.array_of(found.graph.initializers["w"])
    assert wide.dtype == np.float32
    assert len(np.unique(wide)) == wide.size
    np.testing.assert_allclose(wide, w.astype(np.float32), rtol=2**-12)
    assert np.array_equal(graph.array_of(found.graph.initializers["b"]), b)
    (after,) = sessions.run(sessions.open_session(found), {"x": x}).values()
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_equal_values_do_not_hide_which_positions_are_kept(rivals):
    whole = np.random.default_rng(0).integers(0, 40, (24, 12, 3)).astype(np.float32)
    keep = [np.array([5, 17]), np.array([2, 3, 11]), np.arange(3)]
    found = rivals.kept_positions(whole, whole[np.ix_(*keep)])
    assert found is not None
    assert all(np.array_equal(*pair) for pair in zip(found, keep, strict=True))
    assert rivals.kept_positions(whole, whole[np.ix_(*keep)] + 0.5) is None
