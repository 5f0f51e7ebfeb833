"""The network: parameters, write-back, hooks, errors, modes."""

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch
from bridge_models import node_model, parse, random, run_onnxruntime
from networks import filled

from onnxprune.bridge import Network
from onnxprune.bridge.ops.registry import find, register, torch_function
from onnxprune.errors import BridgeError

CONVNET = """
g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    a = Conv <kernel_shape=[3, 3], pads=[1, 1, 1, 1]> (x, conv.weight, conv.bias)
    b = BatchNormalization (a, bn.weight, bn.bias, bn.mean, bn.var)
    c = Relu (b)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    f = Mul (e, factor)
    y = Gemm <transB=1> (f, fc.weight, fc.bias)
}
"""


def convnet(dtype: type = np.float32) -> ir.Model:
    arrays = {
        "conv.weight": random(4, 3, 3, 3),
        "conv.bias": random(4, seed=1),
        "bn.weight": random(4, seed=2),
        "bn.bias": random(4, seed=3),
        "bn.mean": random(4, seed=4),
        "bn.var": random(4, seed=5) ** 2 + 0.5,
        "factor": np.float32(1.5).reshape(()),
        "fc.weight": random(5, 4, seed=6),
        "fc.bias": random(5, seed=7),
    }
    text = CONVNET if dtype is np.float32 else CONVNET.replace("float[", "float16[")
    return parse(text, {name: array.astype(dtype) for name, array in arrays.items()})


def feeds(dtype: type = np.float32) -> dict[str, torch.Tensor]:
    return {"x": torch.from_numpy(random(6, 3, 8, 8, seed=9).astype(dtype))}


def tensors_of(model: ir.Model) -> dict[str, object]:
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def test_parameters_are_the_trainable_initializers_by_name():
    network = Network(convnet())
    assert set(network.parameters_by_name) == {
        "conv.weight", "conv.bias", "bn.weight", "bn.bias", "fc.weight", "fc.bias",
    }  # fmt: skip
    assert set(network.statistics_by_name) == {"bn.mean", "bn.var"}
    assert len(list(network.parameters())) == 6


def test_trainable_can_be_chosen():
    network = Network(convnet(), trainable=["fc.weight", "factor"])
    assert set(network.parameters_by_name) == {"fc.weight", "factor"}
    with pytest.raises(BridgeError, match="'nothing' is no initializer"):
        Network(convnet(), trainable=["nothing"])
    with pytest.raises(BridgeError, match="'zero' is of type INT64"):
        Network(
            parse("g (float[3] x) => (float y) { y = Gather (x, zero) }", {"zero": np.array(0)}), trainable=["zero"]
        )


def test_dead_and_non_finite_initializers_are_not_trained():
    model = parse(
        "g (float[2, 3] x) => (float[2, 3] y) { u = Mul (x, dead) v = Add (x, mask) y = Mul (v, w) }",
        {"dead": random(3), "mask": np.array([0, -np.inf, 0], np.float32), "w": random(3, seed=1)},
    )
    assert set(Network(model).parameters_by_name) == {"w"}


def test_a_bias_of_one_number_behind_a_product_is_trained_and_a_scalar_is_not():
    text = "g (float[2, 3] x) => (float[2, 1] y) { u = MatMul (x, w) v = Add (u, b) y = Mul (v, half) }"
    model = parse(text, {"w": random(3, 1), "b": random(1), "half": np.float32(0.5).reshape(1)})
    assert set(Network(model).parameters_by_name) == {"w", "b"}


def test_untouched_round_trip_keeps_every_tensor_object():
    model = convnet()
    before = tensors_of(model)
    Network(model).write_back(model)
    assert all(before[name] is tensor for name, tensor in tensors_of(model).items())


def test_only_what_changed_is_written_back():
    model = convnet()
    before = tensors_of(model)
    network = Network(model)
    with torch.no_grad():
        network.parameters_by_name["fc.weight"][2, 1] = 7.0
    network.write_back(model)
    changed = {name for name, tensor in tensors_of(model).items() if tensor is not before[name]}
    assert changed == {"fc.weight"}
    assert model.graph.initializers["fc.weight"].const_value.numpy()[2, 1] == 7.0


def test_write_back_to_another_model_is_refused():
    network = Network(convnet())
    with pytest.raises(BridgeError, match="is not in this model"):
        network.write_back(node_model("Relu", {"x": random(2)}))


def test_half_precision_is_computed_in_single_and_given_and_written_as_float16():
    model = convnet(np.float16)
    before = tensors_of(model)
    network = Network(model)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    y = network.eval()(feeds(np.float16), capture=["y"])["y"]
    assert (y.requires_grad, y.dtype) == (True, torch.float32)
    with torch.no_grad():
        rounded = network(feeds(np.float16))["y"]
    assert rounded.dtype == torch.float16
    torch.testing.assert_close(rounded, y.detach().half())
    network.write_back(model)
    assert all(before[name] is tensor for name, tensor in tensors_of(model).items())
    with torch.no_grad():
        network.parameters_by_name["conv.bias"] += 0.25
    network.write_back(model)
    written = model.graph.initializers["conv.bias"].const_value
    assert written.dtype == ir.DataType.FLOAT16
    np.testing.assert_allclose(written.numpy(), before["conv.bias"].numpy() + np.float16(0.25), rtol=1e-3)


def test_capture_gates_and_overrides():
    network = Network(convnet()).eval()
    plain = network(feeds(), capture=["a", "x", "fc.bias"])
    assert plain["a"].shape == (6, 4, 8, 8)
    assert torch.equal(plain["x"], feeds()["x"])
    assert torch.equal(plain["fc.bias"], network.parameters_by_name["fc.bias"])

    mask = torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(1, 4, 1, 1)
    network.gates["c"] = lambda value: value * mask
    assert network(feeds(), capture=["d"])["d"][:, 1].abs().max() == 0
    network.gates.clear()

    network.overrides["fc.weight"] = lambda value: value * 0
    network.overrides["factor"] = lambda value: value * 3  # a constant is held too, and can be replaced
    expected = network.parameters_by_name["fc.bias"].expand(6, -1)
    torch.testing.assert_close(network(feeds())["y"], expected)


def test_gradients_flow_through_gates_and_overrides():
    network = Network(convnet()).eval()
    gate = torch.ones(4, requires_grad=True)
    network.gates["b"] = lambda value: value * gate.reshape(1, -1, 1, 1)
    network.overrides["conv.weight"] = lambda value: value * 2
    network(feeds())["y"].sum().backward()
    assert gate.grad.abs().max() > 0
    assert network.parameters_by_name["conv.weight"].grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["capture", "gate", "override"])
def test_unknown_names_are_refused(kind):
    network = Network(convnet())
    if kind != "capture":
        getattr(network, f"{kind}s")["nowhere"] = lambda value: value
    with pytest.raises(BridgeError, match=f"{kind} 'nowhere'"):
        network(feeds(), capture=["nowhere"] if kind == "capture" else ())


def test_wrong_feeds_are_refused():
    with pytest.raises(BridgeError, match=r"fed are \['z'\], but the model's inputs are \['x'\]"):
        Network(convnet())({"z": torch.zeros(1)})


def test_a_failing_node_is_named_with_its_shapes():
    with pytest.raises(
        BridgeError, match=r"Conv 'Conv_0' to BatchNormalization '\w+' fails on inputs float32 \(6, 2, 8, 8\)"
    ):
        Network(convnet())({"x": torch.zeros(6, 2, 8, 8)})


def test_a_rank_that_no_function_of_torch_has_is_said():
    model = parse("g (float[1,1,2,2,2,2] x) => (float y) { y = MaxPool<kernel_shape = [1, 1, 1, 1]>(x) }")
    with pytest.raises(BridgeError, match="nothing is known for 4"):
        Network(model)({"x": torch.zeros(1, 1, 2, 2, 2, 2)})


def test_all_unknown_ops_are_listed():
    model = parse("g (float[2] x) => (float[2] y) { u = com.microsoft.Strange (x) y = com.microsoft.Odd (u) }")
    with pytest.raises(BridgeError, match=r"com.microsoft.Odd \(opset 1\), node 'Odd_1'.*com.microsoft.Strange"):
        Network(model)


def test_an_unknown_attribute_is_refused():
    with pytest.raises(BridgeError, match="attribute 'slope' is not known"):
        Network(node_model("Relu", {"x": random(2)}, slope=2.0))


def test_users_register_their_own_ops():
    @torch_function("TimesAlpha", domain="test.domain")
    def TimesAlpha(x, *, alpha=1.0):
        return x * alpha

    model = node_model("TimesAlpha", {"x": random(3)}, domain="test.domain", alpha=2.5)
    result = Network(model)({"x": torch.from_numpy(random(3))})["y0"]
    np.testing.assert_allclose(result.numpy(), random(3) * 2.5)


def test_the_newest_function_not_newer_than_the_opset_is_found():
    for since in (1, 5, 9):
        register("Versioned", lambda x: x, domain="test.domain", since=since)
    assert [find("Versioned", "test.domain", opset).since for opset in (1, 4, 5, 8, 9, 99)] == [1, 1, 5, 5, 9, 9]
    assert find("Versioned", "other.domain", 9) is None


def twin() -> torch.nn.Module:
    """The network of `convnet` in plain torch."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5))
    names = {"0.weight": "conv.weight", "0.bias": "conv.bias", "1.weight": "bn.weight", "1.bias": "bn.bias",
             "1.running_mean": "bn.mean", "1.running_var": "bn.var"}  # fmt: skip
    arrays = {name: tensor.numpy() for name, tensor in tensors_of(convnet()).items()}
    layers.load_state_dict({key: torch.tensor(arrays[name]) for key, name in names.items()}, strict=False)
    weights = {"2.weight": arrays["fc.weight"] * 1.5, "2.bias": arrays["fc.bias"]}  # the factor is in the weight
    head.load_state_dict({key: torch.tensor(array) for key, array in weights.items()})
    return torch.nn.Sequential(layers, head)


def test_training_with_batch_statistics_is_as_in_torch():
    model = convnet()
    network, plain = Network(model).train(), twin().train()
    torch.testing.assert_close(network(feeds())["y"], plain(feeds()["x"]))
    network.write_back(model)
    mean, var = (model.graph.initializers[name].const_value.numpy() for name in ("bn.mean", "bn.var"))
    np.testing.assert_allclose(mean, plain[0][1].running_mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(var, plain[0][1].running_var.numpy(), rtol=1e-5)
    torch.testing.assert_close(network.eval()(feeds())["y"], plain.eval()(feeds()["x"]))


def test_gradients_are_those_of_the_torch_twin():
    network, plain = Network(convnet()).train(), twin().train()
    network(feeds())["y"].square().sum().backward()
    plain(feeds()["x"]).square().sum().backward()
    ours = network.parameters_by_name
    torch.testing.assert_close(ours["conv.weight"].grad, plain[0][0].weight.grad)
    torch.testing.assert_close(ours["bn.weight"].grad, plain[0][1].weight.grad)
    torch.testing.assert_close(ours["fc.weight"].grad, plain[1][2].weight.grad * 1.5)


def test_frozen_norm_uses_and_keeps_its_statistics_in_train_mode():
    model = convnet()
    network = Network(model, freeze_norm=True)
    expected = network.eval()(feeds())["y"]
    torch.testing.assert_close(network.train()(feeds())["y"], expected)
    before = tensors_of(model)
    network.write_back(model)
    assert all(before[name] is tensor for name, tensor in tensors_of(model).items())


def test_copies_are_independent():
    network = Network(convnet()).eval()
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.parameters_by_name["fc.bias"] += 1
    assert not torch.equal(network(feeds())["y"], copied(feeds())["y"])
    copied.load_state_dict(network.state_dict())
    assert torch.equal(network(feeds())["y"], copied(feeds())["y"])


def test_channels_last_and_autocast():
    network = Network(convnet()).eval()
    plain = network(feeds())["y"]
    network = network.to(memory_format=torch.channels_last)
    x = feeds()["x"].contiguous(memory_format=torch.channels_last)
    result = network({"x": x}, capture=["a"])
    assert result["a"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result["y"], plain)
    model = convnet()
    before = tensors_of(model)
    network.write_back(model)
    assert all(before[name] is tensor for name, tensor in tensors_of(model).items())
    with torch.autocast("cpu", torch.bfloat16):
        half = network({"x": x})["y"]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=0.1, rtol=0.1)


def test_the_whole_forward_compiles_without_a_break():
    text = """
    g (float[N, 3] x) => (float[N, 4] y) {
        s = Shape (x)
        n = Gather (s, zero)
        v = Unsqueeze (n, axes)
        t = Concat <axis=0> (v, rest)
        h = MatMul (x, w)
        r = Relu (h)
        y = Reshape (r, t)
    }
    """
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([4]), "w": random(3, 4)}
    network = Network(parse(text, constants))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for batch in (2, 5):
        x = torch.from_numpy(random(batch, 3))
        torch.testing.assert_close(compiled({"x": x})["y"], network({"x": x})["y"])


BRANCHES = """
g (bool c, float[2, 3] x) => (float[2, 4] y) {
    h = Mul (x, scale)
    y = If (c) <
        then_branch = one () => (float[2, 4] p) <float[3, 4] w = {}> {{ p = MatMul (h, w) }},
        else_branch = two () => (float[2, 4] q) <float[3, 4] w = {}> {{ q = MatMul (h, w) }}
    >
}}
"""


def branches() -> ir.Model:
    """An If whose branches have weights of their own, under the same name."""
    one, two = random(3, 4, seed=1), random(3, 4, seed=2)
    texts = ["{" + ", ".join(str(float(v)) for v in array.reshape(-1)) + "}" for array in (one, two)]
    text = BRANCHES.replace("{\n    h", "{{\n    h", 1).format(*texts)
    return parse(text, {"scale": random(3)})


def test_branches_have_parameters_and_gradients_of_their_own():
    model = branches()
    network = Network(model)
    assert set(network.parameters_by_name) == {"scale", "w", "w@1"}
    for condition, name, other in ((True, "w", "w@1"), (False, "w@1", "w")):
        network.zero_grad()
        inputs = {"c": np.array(condition), "x": random(2, 3)}
        result = network({key: torch.from_numpy(value) for key, value in inputs.items()})["y"]
        np.testing.assert_allclose(result.detach().numpy(), run_onnxruntime(model, inputs)["y"], rtol=1e-5, atol=1e-6)
        result.sum().backward()
        assert network.parameters_by_name[name].grad is not None
        assert network.parameters_by_name[other].grad is None
    with torch.no_grad():
        network.parameters_by_name["w@1"] += 1
    network.write_back(model)
    node = model.graph.node(1)
    changed = node.attributes["else_branch"].as_graph().initializers["w"].const_value.numpy()
    np.testing.assert_allclose(changed, random(3, 4, seed=2) + 1, rtol=1e-5)


def test_loop_states_and_scans_carry_gradients():
    text = """
    g (float[3] x) => (float[3] last, float[K, 3] all) {
        last, all = Loop (count, yes, x) <
            body = b (int64 i, bool go, float[3] s) => (bool again, float[3] t, float[3] u) {
                again = Identity (go)
                t = Mul (s, w)
                u = Add (t, w)
            }
        >
    }
    """
    model = parse(text, {"count": np.array(4), "yes": np.array(True), "w": random(3)})
    network = Network(model)
    result = network({"x": torch.from_numpy(random(3, seed=1))})
    w, x = torch.from_numpy(random(3)).requires_grad_(), torch.from_numpy(random(3, seed=1))
    torch.testing.assert_close(result["last"], x * w**4)
    torch.testing.assert_close(result["all"], torch.stack([x * w**k + w for k in range(1, 5)]))
    result["last"].sum().backward()
    (x * w**4).sum().backward()
    torch.testing.assert_close(network.parameters_by_name["w"].grad, w.grad)


def test_a_form_without_a_torch_function_says_what_to_do():
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[2, 4, 6] x) => (float[2, 4, 6] y) <float[6, 18] w, float[18] b>
    { [decoder] y = com.microsoft.Attention <num_heads = 2, do_rotary = 1> (x, w, b) }"""
    network = Network(ir.from_proto(filled(text)))
    with pytest.raises(
        BridgeError, match=r"decoder.*do_rotary.*not trained through: choose a method that needs weights"
    ):
        network({"x": torch.zeros(2, 4, 6)})
