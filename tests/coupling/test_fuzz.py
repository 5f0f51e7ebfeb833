"""Cut equals mask on random networks, and three broken rules that the twin must catch."""

import os

import numpy as np
import pytest
from fuzz import models
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx_text import model, prove, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze, dims
from onnxprune.coupling.registry import RULES
from onnxprune.errors import GraphError
from onnxprune.plan.select import Selection

LAX = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def check(source, seed: int) -> None:
    coupling = analyze(source)
    keep = random_keep(coupling, seed)
    verification = prove(coupling, keep, seed)
    assert verification.ok, (verification, {dim.name: mask for dim, mask in keep.items()})
    cut = surgery.cut(Selection(coupling, keep))
    for before, after in zip(source.graph.inputs, cut.graph.inputs, strict=True):
        assert (before.name, before.shape, before.type) == (after.name, after.shape, after.type)
    assert [v.name for v in source.graph.outputs] == [v.name for v in cut.graph.outputs]
    for value in cut.graph.initializers.values():
        axes = coupling.axes.get(value.name or "")
        if axes is not None and value.name in coupling.model.graph.initializers:
            sizes = {dim: int(mask.sum()) for dim, mask in keep.items()}
            assert graph.array_of(value).shape == tuple(dims.kept_length(axis, sizes) for axis in axes)


@given(models(), st.integers(0, 9))
@settings(max_examples=40, phases=[Phase.explicit, Phase.generate], **LAX)
def test_cut_equals_mask_on_random_networks(source, seed):
    check(source, seed)


@pytest.mark.slow
@given(models(steps=14), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=2000, **{**LAX, "derandomize": "CI" in os.environ})  # elsewhere other networks in every run
def test_cut_equals_mask_on_many_random_networks(source, seed, normalized):
    check(graph.normalize(source) if normalized else source, seed)


RESIDUAL = (
    "(float[2,3,6,6] x, float[8,3,1,1] w, float[8,8,3,3] u, float[8] g, float[8] c, float[8] m, float[8] var, "
    "float[5,8,1,1] v, int64[5] s, int64[4] r) => (float[p,q,t,z] y) { a = Conv(x, w) "
    "b = BatchNormalization(a, g, c, m, var) d = Conv<pads = [1, 1, 1, 1]>(b, u) e = Add(d, b) "
    "h = Reshape(e, s) k = Transpose<perm = [0, 2, 1, 3, 4]>(h) f = Reshape(k, r) y = Conv(f, v) }"
)
CONSTANTS = {"s": [2, 2, 4, 6, 6], "r": [2, 8, 6, 6]}


def add_without_unifying(n):
    n.give(list(n.x(0)))


def shuffle_without_turning(n):
    x = n.x(0)
    perm = n.attribute("perm")
    swapped = list(perm)
    swapped[1], swapped[2] = 1, 2
    sizes = [dims.length(x[k]) for k in perm]
    n.give(n.reshape([x[k] for k in swapped], sizes))


def bias_of_another_channel(n):
    """Shifts the channels of a norm by one against its input."""
    RULES["", "BatchNormalization"]
    x, channels = n.x(0), n.x(0)[1]
    for index in (1, 2, 3, 4):
        n.give(list(x))
        n.unify(n.x(index)[0], n.fresh(dims.length(channels), f"/{index}"))
    n.give(list(x))


BROKEN = {
    "Add": add_without_unifying,
    "Transpose": shuffle_without_turning,
    "BatchNormalization": bias_of_another_channel,
}


@pytest.mark.parametrize("op_type", BROKEN)
def test_the_twin_catches_a_broken_rule(op_type, monkeypatch):
    monkeypatch.setitem(RULES, ("", op_type), BROKEN[op_type])
    coupling = analyze(model(RESIDUAL, CONSTANTS))
    drawn = (random_keep(coupling, seed) for seed in range(12))
    plans = [keep for keep in drawn if not all(mask.all() for mask in keep.values())]  # those that remove something
    caught = 0
    for seed, keep in enumerate(plans[:4]):
        try:
            caught += not prove(coupling, keep, seed).ok
        except GraphError:  # the shapes do not even fit
            caught += 1
    assert caught == 4


def test_the_rules_as_they_are_pass_the_same_plans():
    coupling = analyze(model(RESIDUAL, CONSTANTS))
    assert len(coupling.free) >= 1
    assert all(prove(coupling, random_keep(coupling, seed), seed).ok for seed in range(4))
    assert np.isfinite(prove(coupling, {}, 0).max_abs)
