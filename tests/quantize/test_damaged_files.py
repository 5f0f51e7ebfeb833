"""`verify` of quantized files that were damaged ends with 3 and one line that names the file, whatever was damaged."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from networks import CNN, MLP, filled
from onnx import numpy_helper

from onnxprune import prune

Damage = Callable[[onnx.ModelProto], None]


def change(model: onnx.ModelProto, ending: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith(ending))
    array = np.ascontiguousarray(how(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def setting(model: onnx.ModelProto, op_type: str, name: str, number: int) -> None:
    attributes = (a for n in model.graph.node for a in n.attribute if n.op_type == op_type and a.name == name)
    next(attributes).i = number


def without(model: onnx.ModelProto, op_type: str) -> None:
    """Takes a node out; what read it reads what it read."""
    gone = next(node for node in model.graph.node if node.op_type == op_type)
    for node in model.graph.node:
        node.input[:] = [gone.input[0] if name == gone.output[0] else name for name in node.input]
    model.graph.node.remove(gone)


DAMAGE: dict[str, tuple[str, Damage]] = {
    "an axis that is none": ("int8", lambda m: setting(m, "DequantizeLinear", "axis", 9)),
    "a scale too few": ("int8", lambda m: change(m, "w1_scale", lambda a: a[:-1])),
    "a zero point too few": ("int8", lambda m: change(m, "w1_zero_point", lambda a: a[:-1])),
    "a column too few": ("int8", lambda m: change(m, "w2_quantized", lambda a: a[:, :-1])),
    "no QuantizeLinear": ("int8", lambda m: without(m, "QuantizeLinear")),
    "no Add": ("int8", lambda m: without(m, "Add")),
    "a scale of a column too few": ("dynamic", lambda m: change(m, "w1_scale", lambda a: a[:-1])),
    "no matrix": ("dynamic", lambda m: without(m, "MatMulInteger")),
    "no scales": ("dynamic", lambda m: without(m, "Mul")),
    "no Tanh": ("dynamic", lambda m: without(m, "Tanh")),
    "a block too few": ("int4", lambda m: change(m, "w1_scales", lambda a: a[:-1])),
    "a row of blocks too few": ("int4", lambda m: change(m, "w1_Q4", lambda a: a[:-1])),
    "blocks of nothing": ("int4", lambda m: setting(m, "MatMulNBits", "block_size", 0)),
    "a weight in single precision": ("fp16", lambda m: change(m, "w1", lambda a: a.astype(np.float32))),
    "no conversion": ("fp16", lambda m: without(m, "Cast")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By kind of quantization: (the model, the quantized file, its plan)."""
    folder, rng, found = tmp_path_factory.mktemp("quantized"), np.random.default_rng(0), {}
    for kind, text, shape in (("int8", CNN, (64, 3, 8, 8)), *((k, MLP, (64, 6)) for k in ("dynamic", "int4", "fp16"))):
        source, out, plan, data = (folder / f"{kind}.{end}" for end in ("in.onnx", "out.onnx", "json", "npz"))
        onnx.save(filled(text), source)
        np.savez(data, x=rng.normal(size=shape).astype(np.float32))
        prune(
            source,
            out,
            method="l1",
            recover="none",
            target={"macs": 0.8},
            data=str(data),
            quantize=kind,
            plan=plan,
            latency=False,
        )
        found[kind] = source, out, plan
    return found


@pytest.mark.parametrize("name", DAMAGE)
def test_what_was_damaged_is_told_of_by_the_name_of_the_file(made, cli, tmp_path, name):
    """These were internal errors, or exit code 2; of fp16, files that run nowhere were accepted."""
    kind, damage = DAMAGE[name]
    source, out, plan = made[kind]
    model = onnx.load(out)
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    ran = cli("verify", source, tmp_path / "damaged.onnx", "--plan", plan, "--any-weights")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith(f"onnxprune: {tmp_path / 'damaged.onnx'}")
    assert ran.err.count("\n") == 1


def test_a_quantized_file_beside_a_plan_in_floats_is_told_of(made, cli, tmp_path):
    """It was told to differ by some hundredths, and not to be made by this plan, which it was."""
    source, _, plan = made["dynamic"]
    record = json.loads(plan.read_text())
    del record["quantize"]
    (tmp_path / "plan.json").write_text(json.dumps(record))
    words = (source, tmp_path / "plan.json", tmp_path / "out.onnx", "--quantize", "dynamic", "--no-latency", "-q")
    assert cli("apply", *words).code == 0
    ran = cli("verify", source, tmp_path / "out.onnx", "--plan", tmp_path / "plan.json")
    assert ran.code == 3
    assert "it is quantized (DynamicQuantizeLinear 'x_QuantizeLinear'), and the plan says nothing of that" in ran.err
