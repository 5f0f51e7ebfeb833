"""Targets of sparse methods count what is not zero, and say so; units are removed as well only where both are asked."""

import json

import numpy as np
import pytest
from networks import DIGITS
from toys import digits_context

from onnxprune import graph
from onnxprune.errors import BudgetError
from onnxprune.methods import aswl, layers, zeros  # noqa: F401  aswl registers itself
from onnxprune.surgery import dead

QUICK = ("--data", "digits", "--recover", "none", "--no-latency", "--option", "train_samples=256")


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (("aswl", "--option", "epochs=2"), "params=0.5"),
        (("aswl", "--option", "epochs=2"), "macs=0.5"),
        (("cci", "--option", "closed=yes"), "params=0.6"),
        (("cci", "--option", "closed=yes"), "macs=0.6"),
    ],
)
def test_a_target_counts_what_is_not_zero(cli, tmp_path, words, target):
    ran = cli(
        DIGITS, tmp_path / "o.onnx", "--method", *words, *QUICK, "--target", target, "--report", tmp_path / "r.json"
    )
    assert ran.code == 0, ran.err
    before, after = json.loads((tmp_path / "r.json").read_text())["models"]
    kind, share = target.split("=")
    key = {"params": "nonzeros", "macs": "nonzero_macs"}[kind]
    left = after[key] / before[kind]
    assert 0.8 * float(share) < left <= float(share)
    assert after[kind] > 0.9 * before[kind]  # no units but dead ones
    assert "without zeros" in ran.out
    assert "the target counts what is not zero" in ran.err


def test_a_density_beside_a_target_asks_for_both(cli, tmp_path):
    words = ("--option", "epochs=1", "--option", "density=0.5", "--target", "params=0.5", "--align", 1)
    ran = cli(DIGITS, tmp_path / "o.onnx", "--method", "aswl", *QUICK, *words, "--report", tmp_path / "r.json")
    assert ran.code == 0, ran.err
    before, after = json.loads((tmp_path / "r.json").read_text())["models"]
    assert after["params"] <= 0.5 * before["params"]
    assert after["nonzeros"] < 0.4 * before["params"]


def test_what_lies_outside_of_the_layers_makes_them_sparser():
    context = digits_context()
    chosen = [layer for layer in layers.linear_layers(context.model) if layer.groups == 1]
    pairs = [(layer.node, layer.weight) for layer in chosen]
    context = type(context)(**{**vars(context), "shares": {"params": 0.5}})
    (allowed,) = zeros.allowances(context, pairs, 0.0)
    held = sum(graph.array_of(context.model.graph.initializers[name]).size for _, name in pairs)
    assert allowed.counts.sum() == held
    assert allowed.density * held == pytest.approx(
        0.5 * context.cost.total("params") - (context.cost.total("params") - held), rel=1e-3
    )
    (given,) = zeros.allowances(context, pairs, 0.3)  # said in words
    assert (given.density, given.kind) == (0.3, None)


def test_more_zeros_than_a_method_may_make_are_refused():
    with pytest.raises(BudgetError, match=r"--target params: 0\.0% .* at least 10\.0%"):
        zeros.Allowance(np.ones(3), -0.2, "params").require(0.1)
    zeros.Allowance(np.ones(3), 0.2, "params").require(0.1)


def test_zeros_are_counted_among_weights_only():
    context = digits_context()
    model = context.model.clone()
    name, value = next((n, v) for n, v in model.graph.initializers.items() if len(v.shape or ()) == 4)
    array = graph.array_of(value).copy()
    before = dead.zeros_in(model)
    array[0] = 0.0
    graph.set_constant(value, array)
    assert dead.zeros_in(model) - before == array[0].size, name
