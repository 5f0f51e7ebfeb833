"""Losses of parts: zero at the original, each in its own units, with gradients where answers are."""

import pytest
import torch

from onnxprune.outputs import parts
from onnxprune.outputs.kinds import Part
from onnxprune.outputs.losses import Task, labels_loss

torch.manual_seed(0)
KINDS = [
    (Part("y", "classes", 1, form="logits"), torch.randn(6, 5)),
    (Part("y", "classes", 1, form="probabilities"), torch.randn(6, 5).softmax(1)),
    (Part("y", "sequence", 1, form="logits"), torch.randn(6, 5, 7)),
    (Part("y", "scores", 1), torch.rand(6, 5)),
    (Part("y", "embedding", 1), torch.randn(6, 5)),
    (Part("y", "signal"), torch.randn(6, 5, 2)),
    (Part("y", "boxes", 2), torch.randn(6, 5, 4) * 100),
]


@pytest.mark.parametrize(("part", "t"), KINDS, ids=lambda v: getattr(v, "kind", None))
def test_the_distance_is_zero_at_the_original_and_grows(part, t):
    near, far = (t + 0.05 * t.std() * torch.randn_like(t), t + 0.5 * t.std() * torch.randn_like(t))
    if part.kind == "scores" or part.form == "probabilities":
        near, far = near.clamp(0.01, 0.99), far.clamp(0.01, 0.99)
    values = [float(parts.distance(part, (part,), {"y": y}, {"y": t})) for y in (t, near, far)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert 0 < values[1] < values[2]


@pytest.mark.parametrize(("part", "t"), KINDS, ids=lambda v: getattr(v, "kind", None))
def test_own_losses_have_gradients(part, t):
    y = t.clone().requires_grad_()
    parts.own_loss(part, (part,), {"y": y}).backward()
    assert y.grad is not None
    assert float(y.grad.abs().sum()) > 0


def test_one_variance_for_pixels_and_probabilities():
    """Of a joint output pixels drowned the class scores: in parts both weigh alike."""
    t = torch.cat([torch.rand(8, 4, 20) * 600, torch.rand(8, 3, 20)], 1)
    both = (Part("y", "signal", 1, 1, 0, 4), Part("y", "signal", 1, 1, 4, 7))
    y = t.clone()
    y[:, 4:] = y[:, 4:].mean()
    whole = float(parts.distance(Part("y", "signal"), (), {"y": y}, {"y": t}))
    each = [float(parts.distance(part, both, {"y": y}, {"y": t})) for part in both]
    assert whole < 1e-4
    assert each == pytest.approx([0, 1], abs=0.01)


def test_cross_entropy_is_along_the_axis_of_the_classes():
    y = torch.randn(4, 3, 7)
    part = Part("y", "sequence", 1, form="logits")
    labels = torch.randint(0, 3, (4, 7))
    found = parts.own_loss(part, (part,), {"y": y}, labels)
    assert float(found) == pytest.approx(float(torch.nn.functional.cross_entropy(y, labels)), rel=1e-5)


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8"])
def test_labels_of_every_place_reach_the_loss_of_fine_tuning(kind):
    z = torch.randn(4, 7, 3)
    part = Part("y", "sequence", 2, form="logits")
    labels = torch.randint(0, 3, (4, 7))
    task = Task(("y",), None, parts=(part,))
    found = labels_loss(task, {"y": z}, labels.to(getattr(torch, kind)))
    wanted = torch.nn.functional.cross_entropy(z.reshape(-1, 3), labels.reshape(-1))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert labels_loss(task, {"y": z}, labels[:, :5]) is None  # five labels are answers of no seven places


def test_boxes_count_where_scores_are_sure():
    scores = torch.full((2, 9, 1), 1e-6)
    scores[:, 4] = 1
    t = torch.randn(2, 9, 4) * 50
    both = (Part("b", "boxes", 2), Part("s", "scores", 2))
    elsewhere = t.clone()
    elsewhere[:, 5:] += 100
    there = t.clone()
    there[:, 4] += 100
    said = [{"b": y, "s": scores} for y in (elsewhere, there)]
    values = [float(parts.distance(both[0], both, y, {"b": t, "s": scores})) for y in said]
    assert values[0] < 0.01 * values[1]


def test_labels_that_are_no_answers_of_a_part_are_left_out():
    part = Part("y", "classes", 1)
    y = torch.randn(5, 3)
    assert parts.labels_of(part, y, torch.zeros(5, 4)) is None
    assert parts.labels_of(Part("y", "signal"), y, torch.zeros(5)) is None
    assert parts.labels_of(part, y, torch.zeros(5, dtype=torch.int64)).shape == (5,)
