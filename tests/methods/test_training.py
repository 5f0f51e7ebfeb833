"""What all methods that train have in common: how fast, and on which images."""

import numpy as np
import pytest
from toys import digits_context, toy

torch = pytest.importorskip("torch")

from onnxprune.bridge.network import Network  # noqa: E402
from onnxprune.methods.training import Course, Lessons, adam  # noqa: E402


def test_small_weights_take_small_steps():
    network = Network(toy("mlp"))
    wide, narrow, *_ = (p for p in network.parameters() if p.ndim > 1)
    with torch.no_grad():
        wide.mul_(0.01 / wide.square().mean().sqrt())
        narrow.mul_(0.5 / narrow.square().mean().sqrt())
    rates = {id(p): group["lr"] for group in adam(network, 1e-3).param_groups for p in group["params"]}
    assert (rates[id(wide)], rates[id(narrow)]) == (1e-3 / 8, 1e-3)
    assert all(rates[id(p)] == 1e-3 for p in network.parameters() if p.ndim == 1)


def test_the_teacher_sees_the_images_as_they_were_moved():
    context = digits_context()
    course = Course(batch_size=32, train_samples=64, label_weight=0.0, flip=True, crop=2)
    still, moved = Lessons(context, Course(batch_size=32, train_samples=64)), Lessons(context, course)
    network = Network(context.model).eval()
    block = np.arange(32)
    seen = []
    network.gates[network.input_names[0]] = lambda x: seen.append(x) or x
    assert float(moved.loss(network, block).detach()) == pytest.approx(0, abs=1e-6)  # it is its own teacher
    moved.loss(network, block)
    still.loss(network, block)
    one, two, plain = seen
    assert not torch.equal(one, two)
    assert not torch.equal(one, plain)


@pytest.mark.parametrize("crop", [0, 1])
def test_bf16_trains_weights_in_float32_and_finds_about_the_same_gradient(crop):
    context = digits_context()
    block, found = np.arange(32), []
    for bf16 in (False, True):
        network = Network(context.model).eval()
        name = next(node.outputs[0].name for node in context.model.graph if node.op_type == "Conv")
        seen = []
        network.gates[name] = lambda x, seen=seen: seen.append(x.dtype) or x
        loss = Lessons(context, Course(batch_size=32, train_samples=64, crop=crop, bf16=bf16)).loss(network, block)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        assert (seen, loss.dtype, gradient.dtype) == (
            [torch.bfloat16 if bf16 else torch.float32],
            torch.float32,
            torch.float32,
        )
        found.append((float(loss.detach()), gradient))
    (loss, plain), (rounded, other) = found
    assert rounded == pytest.approx(loss, rel=0.05)
    assert float(torch.cosine_similarity(plain, other, 0)) > 0.98
