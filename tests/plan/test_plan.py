"""Plans as data: written, read, replayed, and refused when they do not fit."""

import json

import numpy as np
import pytest
from onnx_text import model, random_keep

from onnxprune import surgery
from onnxprune.coupling import analyze
from onnxprune.errors import UsageError
from onnxprune.plan import plan
from onnxprune.plan.select import Selection

TEXT = (
    "(float[2,3,6,6] x, float[8,3,1,1] w, float[6,8,1,1] u, float[5,6,1,1] v) => (float[2,5,6,6] y) "
    "{ a = Conv(x, w) b = Conv(a, u) y = Conv(b, v) }"
)


@pytest.fixture
def made():
    coupling = analyze(model(TEXT))
    keep = random_keep(coupling, 0)
    costs = {"macs": 10, "params": 5, "bytes": 20}
    selection = Selection(coupling, keep, "random")
    return coupling, keep, plan.make(selection, seed=0, sha256="ab", name="m", before=costs, after=costs)


def test_a_plan_survives_the_file(made, tmp_path):
    coupling, keep, one = made
    plan.save(one, tmp_path / "p.json")
    two = plan.load(tmp_path / "p.json")
    assert two == one
    again = plan.selection_of(two, coupling)
    assert all(np.array_equal(again.keep[dim], mask) for dim, mask in keep.items() if not mask.all())


def test_the_slices_rebuild_the_mask(made):
    """Anyone can zero what is not kept and has the masked model."""
    coupling, keep, one = made
    masked = surgery.mask(Selection(coupling, keep))
    arrays = {name: v.const_value.numpy().copy() for name, v in coupling.model.graph.initializers.items()}
    for piece in one.slices:
        gone = np.setdiff1d(np.arange(arrays[piece.initializer].shape[piece.axis]), piece.keep)
        index = (*[slice(None)] * piece.axis, gone)
        arrays[piece.initializer][index] = 0
    for name, array in arrays.items():
        assert np.array_equal(array, masked.graph.initializers[name].const_value.numpy())


def test_dims_that_lose_nothing_are_not_in_the_plan(made):
    coupling, _, _ = made
    nothing = {dim: np.ones(dim.size, bool) for dim in coupling.free}
    empty = plan.make(Selection(coupling, nothing, "l1"), seed=0, sha256="", name="", before={}, after={})
    assert (empty.dims, empty.slices) == ((), ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format="other/2"), "format is 'other/2'"),
        (lambda d: d["dims"][0].update(keep=[]), "damaged"),
        (lambda d: d["dims"][0].update(keep=[3, 1]), "rising"),
        (lambda d: d["dims"][0].update(keep=[99]), "below"),
        (lambda d: d["dims"][0].pop("size"), "damaged"),
        (lambda d: d.pop("slices"), "damaged"),
        (lambda d: d["dims"][0].update(keep=[0, 1.0]), r"1\.0 is no whole number"),
        (lambda d: d["dims"][0].update(keep=["0"]), "'0' is no whole number"),
        (lambda d: d["dims"][0].update(keep=[False]), "False is no whole number"),
        (lambda d: d["dims"].append(d["dims"][0]), "stands twice in 'dims'"),
        (lambda d: d["slices"][0].update(keep=["0"]), "'0' is no whole number"),
        (lambda d: d.update(seed="0"), "'0' is no whole number"),
    ],
)
def test_a_damaged_plan_is_refused(made, tmp_path, change, words):
    data = made[2].to_json()
    change(data)
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=words):
        plan.load(tmp_path / "p.json")


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", "\x00", "[" * 100_000])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UsageError, match=r"p\.json"):
        plan.load(tmp_path / "p.json")


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such plan"):
        plan.load(tmp_path / "none.json")


def test_a_plan_for_another_model_is_refused(made):
    other = analyze(model(TEXT.replace("[8,3,", "[10,3,").replace("[6,8,", "[6,10,")))
    with pytest.raises(UsageError, match="another model"):
        plan.selection_of(made[2], other)


def test_edited_slices_are_noticed(made):
    from dataclasses import replace

    coupling, _, one = made
    with pytest.raises(UsageError, match="slices do not follow"):
        plan.selection_of(replace(one, slices=one.slices[1:]), coupling)
