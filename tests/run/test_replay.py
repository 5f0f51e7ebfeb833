"""`verify` accepts exactly what a model and a plan gave, at every level of recovery, and nothing else."""

import json

import numpy as np
import onnx
import pytest
from networks import NETWORKS, filled
from onnx import numpy_helper
from task_networks import TASKS, network

from onnxprune.run.checks import file_sha256

LEVELS = ("none", "constants", "reconstruct", pytest.param("finetune", marks=pytest.mark.slow))
QUICK = ("--method", "l1", "--target", "macs=0.6", "--align", 1, "--no-latency", "-q")


def written(folder, name: str, seed: int = 0):
    """A network and samples of it, as files."""
    model = filled(NETWORKS[name], seed) if name in NETWORKS else network(name)
    path = folder / f"{name}{seed}.onnx"
    onnx.save(model, path)
    rng = np.random.default_rng(1)
    if name in NETWORKS:
        shape = [dim.dim_value or 40 for dim in model.graph.input[0].type.tensor_type.shape.dim]
        feeds = {model.graph.input[0].name: rng.normal(size=shape).astype(np.float32)}
    else:
        drawn = TASKS[name].samples(rng, 40)
        feeds = drawn if isinstance(drawn, dict) else {model.graph.input[0].name: drawn}
    np.savez(folder / "data.npz", **feeds)
    return path


def pruned(cli, folder, source, level: str):
    out, plan = folder / "out.onnx", folder / "plan.json"
    data = () if level == "none" else ("--data", folder / "data.npz")
    more = ("--epochs", 1) if level == "finetune" else ()
    ran = cli(source, out, *QUICK, "--recover", level, *data, *more, "--plan", plan)
    assert ran.code == 0, ran.err
    return out, plan


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in TASKS)])
def test_results_of_every_level_are_verified_by_their_plan_alone(cli, tmp_path, name, level):
    source = written(tmp_path, name)
    out, plan = pruned(cli, tmp_path, source, level)
    ran = cli("verify", source, out, "--plan", plan)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("cut = mask")


def test_the_result_of_another_checkpoint_is_refused(cli, tmp_path):
    first, second = written(tmp_path, "cnn", 0), written(tmp_path, "cnn", 1)
    out, plan = pruned(cli, tmp_path, first, "none")
    ran = cli("verify", second, out, "--plan", plan)
    assert ran.code == 3
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("level", ["none", "reconstruct"])
def test_weights_that_belong_to_nothing_are_refused_whatever_the_model_is(cli, tmp_path, level):
    first, second = written(tmp_path, "cnn", 0), written(tmp_path, "cnn", 1)
    out, plan = pruned(cli, tmp_path, first, level)
    model = onnx.load(out)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, 0.01, np.float32), tensor.name))
    onnx.save(model, out)
    for source in (first, second):
        assert cli("verify", source, out, "--plan", plan).code == 3
    ran = cli("verify", first, out, "--plan", plan, "--any-weights")
    assert ran.code == 0, ran.err
    assert "not those that the plan was written with (--any-weights)" in ran.out


def test_a_plan_applied_to_another_checkpoint_is_verified_and_said_to_be_so(cli, tmp_path):
    first, second = written(tmp_path, "cnn", 0), written(tmp_path, "cnn", 1)
    _, plan = pruned(cli, tmp_path, first, "none")
    other = tmp_path / "other.onnx"
    assert cli("apply", second, plan, other, "--no-latency", "-q").code == 0
    ran = cli("verify", second, other, "--plan", plan)
    assert ran.code == 0, ran.err
    assert "the plan was made for other weights of this model" in ran.out


@pytest.mark.parametrize("level", ["none", "reconstruct"])
def test_weights_left_beside_a_result_by_an_earlier_one_do_not_matter(cli, tmp_path, level):
    source = written(tmp_path, "cnn")
    out, plan = pruned(cli, tmp_path, source, level)
    out.with_name(f"{out.name}.data").write_text("left over from an earlier, larger result")
    assert cli("verify", source, out, "--plan", plan).code == 0


@pytest.mark.parametrize("level", ["constants", "finetune"])
def test_nodes_that_were_renamed_are_found_by_where_they_stand(cli, tmp_path, level):
    """As onnxsim numbers nodes anew when recovery has added some in front: Gemm_7 becomes Gemm_8."""
    source = written(tmp_path, "mlp")
    out, plan = pruned(cli, tmp_path, source, level)
    before = onnx.load(out)
    names = [node.name for node in before.graph.node]
    made = json.loads(plan.read_text())
    for node, name in zip(before.graph.node, names[1:] + names[:1], strict=True):
        node.name = name
    onnx.save(before, out)
    made["result"]["sha256"] = file_sha256(out)
    plan.write_text(json.dumps(made))
    ran = cli("verify", source, out, "--plan", plan)
    assert ran.code == 0, ran.err
