"""The contract of every method: shapes, finite numbers, seeds, symmetry under permutation, and a dead unit last."""

import subprocess
import sys

import numpy as np
import pytest
from toys import context_of, digits_context, scaled, toy, with_model

from onnxprune import methods
from onnxprune.errors import UsageError
from onnxprune.graph import sessions
from onnxprune.methods import base
from onnxprune.methods.cci import permute

QUICK = {"epochs": 1, "lr": 1e-3, "group": 2, "samples": 64}
TRAINED = ("aswl", "cci", "gss", "paam")
SCORED = ("bn", "fpgm", "hessian", "l1", "l2", "random", "taylor")
ALL = (*SCORED, *TRAINED)


def run(name: str, context: base.Context) -> base.Outcome:
    return base.run(base.get(name), context)


@pytest.mark.parametrize("name", [n for n in ALL if n != "bn"])
@pytest.mark.parametrize("network", ["cnn", "mlp", "concat", "attention"])
def test_scores_have_the_shape_of_every_dim_and_are_finite(name, network):
    context = context_of(toy(network), **{**QUICK, "axis": "input", "group": 4})
    outcome = run(name, context)
    assert set(outcome.scores) >= set(context.dims)
    for dim in context.dims:
        assert outcome.scores[dim].shape == (dim.size,)
        assert np.isfinite(outcome.scores[dim]).all()
    if outcome.model is not None:
        sessions.open_session(outcome.model, threads=1)


@pytest.mark.parametrize("name", [n for n in ALL if n != "bn"])
def test_same_seed_gives_the_same_result(name):
    first, second = (run(name, context_of(toy("cnn"), **QUICK)) for _ in range(2))
    for a, b in zip(first.scores.values(), second.scores.values(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", ["random", "paam"])
def test_another_seed_gives_another_result(name):
    first, second = (run(name, context_of(toy("cnn"), seed=seed, **QUICK)) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first.scores.values(), second.scores.values(), strict=True))


@pytest.mark.parametrize("network", ["cnn", "mlp", "attention"])
@pytest.mark.parametrize("name", [n for n in ALL if n not in ("bn", "random", "cci", "hessian")])
def test_permuted_channels_permute_the_scores(name, network):
    context = context_of(toy(network), **QUICK)
    expected = run(name, context)
    model = context.model.clone()
    orders = {dim: np.random.default_rng(dim.size).permutation(dim.size) for dim in context.dims}
    for dim, order in orders.items():
        permute.apply(context.coupling, model, dim, order)
    found = run(name, with_model(context, model))
    for dim, order in orders.items():
        # Sums in another order round otherwise, and training carries that on.
        tolerance = (1e-2 if name in TRAINED else 1e-4) * np.abs(expected.scores[dim]).max()
        np.testing.assert_allclose(found.scores[dim], expected.scores[dim][order], atol=tolerance)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("bn", "random")])
def test_a_dead_unit_scores_lowest(name):
    context = digits_context(samples=128, train_samples=256, epochs=2, group=8)
    model = context.model
    for dim in context.dims:
        model = scaled(with_model(context, model).coupling, dim, 3)
    outcome = run(name, with_model(context, model))
    order = {dim: np.arange(dim.size) for dim in context.dims}
    for dim in context.dims:
        if name == "cci":  # it permutes channels: the dead one is where nothing is left
            order[dim] = np.argsort(outcome.scores[dim])
            assert outcome.scores[dim].min() < 0.05 * outcome.scores[dim].mean()
        else:
            assert outcome.scores[dim][3] <= np.delete(outcome.scores[dim], 3).min() + 1e-12, dim.name


def test_bn_scores_a_dead_scale_lowest_and_says_what_it_could_not_score():
    from networks import DIGITS_BN

    context = digits_context(DIGITS_BN)
    model = context.model
    for dim in context.dims:
        model = scaled(with_model(context, model).coupling, dim, 3, roles=("scales",))
    outcome = run("bn", with_model(context, model))
    assert all(outcome.scores[dim].argmin() == 3 for dim in context.dims)
    assert outcome.notes == ()


def test_bn_on_a_model_without_norms_says_what_to_do():
    with pytest.raises(UsageError, match="bn needs BatchNormalization nodes; this export folded them: choose l2"):
        run("bn", digits_context())


@pytest.mark.parametrize("name", ["taylor", "hessian", "paam", "aswl", "cci"])
def test_a_method_that_needs_samples_says_so(name):
    from dataclasses import replace

    with pytest.raises(UsageError, match=f"--method {name} needs samples"):
        run(name, replace(context_of(toy("mlp")), samples=None))


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("gss", {"form": "other"}, "form=other"),
        ("gss", {"epochs": "many"}, "option epochs=many: give a number"),
        ("gss", {"epochs": 1.5}, "give a whole number"),
        ("gss", {"outputs": "perhaps"}, "give yes or no"),
        ("aswl", {"density": 2}, "density=2"),
        ("paam", {"budget": 1}, "budget=1"),
        ("cci", {"group": 4, "kept": 5}, "kept=5 of group=4"),
        ("cci", {"axis": "depth"}, "axis=depth"),
        ("cci", {"group": 7}, "divide by 7"),
    ],
)
def test_wrong_options_are_one_clear_line(name, option, message):
    with pytest.raises(UsageError, match=message) as caught:
        run(name, context_of(toy("cnn"), **option))
    assert "\n" not in str(caught.value)


def test_an_unknown_method_lists_those_there_are():
    with pytest.raises(UsageError, match=r"aswl, bn, cci, .* taylor"):
        base.get("magic")


def test_listing_the_names_imports_no_torch():
    code = "import sys, onnxprune.methods.base as b; assert 'torch' not in sys.modules; print(*b.methods.MODULES)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(methods.MODULES)


def test_the_command_that_lists_methods_imports_no_library_of_models():
    code = "import sys, onnxprune.cli as c; c.main(['methods'])\n"
    code += "sys.exit(len({'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(methods.MODULES)


def test_every_built_in_method_registers_under_its_name():
    methods.load_all()
    assert set(methods.MODULES) <= set(base.METHODS)
    assert {name: base.told(base.METHODS[name]) for name in methods.MODULES} == methods.LISTED
    assert all(base.METHODS[name].summary for name in methods.MODULES)


def test_built_in_methods_say_which_options_they_have():
    methods.load_all()
    assert [name for name in methods.MODULES if base.get(name).options is None] == []
