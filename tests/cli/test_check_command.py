"""`onnxprune check`: plans that can be replayed pass, all others are named with what is wrong."""

import json

import pytest
from networks import DIGITS

L1 = ("--method", "l1", "--no-latency", "--recover", "none", "-q")


@pytest.fixture
def plan(cli, cnn_path, tmp_path):
    path = tmp_path / "plan.json"
    assert cli(cnn_path, tmp_path / "o.onnx", *L1, "--plan", path).code == 0
    return path


def test_a_good_plan_is_told_in_one_line(cli, cnn_path, plan):
    ran = cli("check", plan)
    assert ran.code == 0
    assert ran.out.startswith(f"{plan}: valid, ")
    assert ran.out.count("\n") == 1
    found = json.loads(plan.read_text())["dims"]
    lost, whole = sum(dim["size"] - len(dim["keep"]) for dim in found), sum(dim["size"] for dim in found)
    assert f"{lost} of {whole} units by l1, for cnn.onnx" in ran.out
    assert ran.err == ""


def test_with_a_model_a_plan_must_belong_to_it(cli, cnn_path, plan):
    assert cli("check", plan, "--model", cnn_path, "-q").out.endswith("belongs to cnn.onnx\n")
    ran = cli("check", plan, "--model", DIGITS, "-q")
    assert ran.code == 2
    assert ran.err.startswith(f"onnxprune: {plan}: the plan removes positions of")
    assert "'w1' is not one of its own" in ran.err


def test_other_weights_of_the_same_model_are_told(cli, cnn_path, plan, tmp_path):
    import onnx
    from onnx import numpy_helper

    other = onnx.load(cnn_path)
    first = other.graph.initializer[0]
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * 2, first.name))
    onnx.save(other, tmp_path / "retrained.onnx")
    ran = cli("check", plan, "--model", tmp_path / "retrained.onnx", "-q")
    assert ran.code == 0
    assert "belongs to retrained.onnx, which has other weights by now" in ran.out


def test_every_bad_plan_is_named_and_the_good_ones_are_told(cli, plan, tmp_path):
    edited, none = tmp_path / "edited.json", tmp_path / "none.json"
    data = json.loads(plan.read_text())
    data["dims"][0]["keep"] = [0, 0]
    edited.write_text(json.dumps(data))
    ran = cli("check", edited, plan, none)
    assert ran.code == 2
    assert ran.out.startswith(f"{plan}: valid")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("onnxprune: 2 of 3 plans are not good: ")
    assert f"{edited}: the plan is damaged" in ran.err
    assert f"{none}: no such plan file" in ran.err


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["dims"][0].update(exact="yes"),
        lambda p: p["slices"][0].update(keep=[3, 1]),
        lambda p: p["slices"][0].update(keep=[-1]),
        lambda p: p["slices"][0].update(axis=-1),
        lambda p: p["cost"]["after"].update(macs=-5),
    ],
    ids=["exact", "order", "below", "axis", "cost"],
)
def test_what_apply_would_not_notice_is_noticed_without_the_model(cli, plan, change):
    data = json.loads(plan.read_text())
    change(data)
    plan.write_text(json.dumps(data))
    ran = cli("check", plan)
    assert ran.code == 2, ran.out
    assert "the plan is damaged" in ran.err
