"""Losses of parts: zero at the original, each in its own units, with gradients where answers are."""

import numpy as np
import pytest
import torch

from onnxprune.data.samples import ArraySamples
from onnxprune.outputs import parts
from onnxprune.outputs.kinds import Part
from onnxprune.outputs.losses import Task, labels_loss, softest

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


@pytest.mark.parametrize(
    ("part", "t"), [entry for entry in KINDS if entry[0].kind != "boxes"], ids=lambda v: getattr(v, "kind", None)
)
def test_squared_gradients_of_sampled_losses_average_to_the_second_order_of_the_distance(part, t):
    """Along one direction of the numbers, summed over samples: d'H d = 2 distance(t + d) to second order."""
    direction = torch.randn_like(t)
    if part.form == "probabilities" or part.kind == "scores":
        direction = direction * t * (1 - t) / 4
    if part.form == "probabilities":
        direction -= direction.mean(1, keepdim=True)  # they sum to 1
    t, step = t.double(), 1e-2 * direction.double()
    y = t.clone().requires_grad_()
    count, generator, found = len(t), torch.Generator().manual_seed(0), []
    for _ in range(4000):
        (grad,) = torch.autograd.grad(parts.sampled_loss(part, (part,), {"y": y}, generator), y)
        found.append(float((grad * step).sum()) ** 2 * count)
    wanted = 2 * float(parts.distance(part, (part,), {"y": t + step}, {"y": t}))
    assert float(np.mean(found)) == pytest.approx(wanted, rel=0.1)


def test_second_order_of_boxes_counts_where_something_is_found_and_by_their_size():
    """Noise on all numbers alike priced a detector's units by what it says of places where nothing is."""
    both = (Part("b", "boxes", 2, form="centers"), Part("s", "scores", 2))
    t = torch.tensor([40.0, 40.0, 8.0, 16.0]).expand(2, 9, 4).clone()
    found = parts.stiffness(both[0], both, {"b": t, "s": detector(1.0)})
    assert float(found[:, 4].sum()) > 1e4 * float(found[:, :4].sum())
    assert found[0, 4].tolist() == pytest.approx([float(found[0, 4, 0]) / k for k in (1, 4, 1, 4)])


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
    assert found is not None
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert labels_loss(task, {"y": z}, labels[:, :5]) is None  # five labels are answers of no seven places


@pytest.mark.parametrize(("classes", "found"), [(10, 4.0), (6000, 2.0), (600_000, 1.0)])
def test_the_softmax_is_softened_as_far_as_the_answer_is_still_heard(classes, found):
    """Of 6,625 letters the right one kept 3 % of what text recognition was taught by."""
    z = torch.randn(8, classes)
    z[:, 3] = 17.0
    for form, y in (("logits", z), ("probabilities", z.softmax(1)), ("log", z.log_softmax(1))):
        part = Part("y", "classes", 1, form=form)
        assert softest((part, Part("s", "scores", 1)), {"y": y, "s": torch.rand(8, 3)}) == found
    assert softest((Part("s", "scores", 1),), {"s": torch.rand(8, 3)}) == 4


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
    known = parts.labels_of(part, y, torch.zeros(5, dtype=torch.int64))
    assert known is not None
    assert known.shape == (5,)


def detector(sure, elsewhere=1e-6, places=9, samples=2):
    """Scores (samples, places, 1): sure at place 4."""
    scores = torch.full((samples, places, 1), elsewhere)
    scores[:, 4] = sure
    return scores


def test_landmarks_count_where_scores_are_sure_and_single_numbers_of_a_sample_do_not():
    both = (Part("k", "signal"), Part("s", "scores", 2))
    t = torch.randn(2, 9, 10)
    elsewhere = t.clone()
    elsewhere[:, 5:] += 10
    targets = {"k": t, "s": detector(1.0)}
    assert float(parts.distance(both[0], both, targets | {"k": elsewhere}, targets)) < 0.01
    vectors = {"k": torch.randn(2, 10), "s": torch.rand(2, 3)}
    assert parts.beside(both[0], (both[0], Part("s", "scores", 1)), vectors) is None


@pytest.mark.parametrize(
    ("along", "boxes", "form"),
    [
        (None, [3.0, 2.0, 1.0, 4.0], "distances"),
        (None, [-0.3, 0.2, 0.1, 0.4], ""),
        (2, [10.0, 20.0, 30.0, 50.0], "corners"),
        (2, [100.0, 90.0, 30.0, 50.0], "centers"),
    ],
)
def test_what_four_numbers_are_is_seen_where_the_original_is_sure(along, boxes, form):
    t = torch.randn(2, 9, 4) - 5
    t[:, 4] = torch.tensor(boxes)
    both = (Part("b", "boxes", 2, along, 0, 4), Part("s", "scores", 2))
    found = parts.with_forms(both, {"b": t, "s": detector(1.0)})
    assert [part.form for part in found] == [form, ""]


@pytest.mark.parametrize("form", ["corners", "centers", "distances"])
def test_a_pixel_matters_more_for_a_small_box_than_for_a_large_one(form):
    def lost(size):
        t = torch.tensor([size / 2, size / 2, size, size]).expand(2, 9, 4).clone()
        both = (Part("b", "boxes", 2, form=form), Part("s", "scores", 2))
        targets = {"b": t, "s": detector(1.0)}
        return float(parts.distance(both[0], both, targets | {"b": t + 1}, targets))

    assert lost(8.0) > 3 * lost(80.0) > 0


def test_the_overlap_of_boxes_is_one_for_equal_ones_and_has_a_gradient_apart():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 7.0]], requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 2.0]])
    found = parts.overlap(parts.corners(a, "corners"), parts.corners(b, "corners"))
    assert found.tolist() == pytest.approx([1, -38 / 42])  # apart: 0 - (42 - 4) / 42
    found.sum().backward()
    assert a.grad is not None
    assert (a.grad[1] != 0).all()


def test_each_thing_counts_alike_not_each_head():
    """Of three heads one finds a hundred times as much as another: each head alike let noise speak as loud as faces."""
    places = {"8": 64, "16": 16}
    both = tuple(Part(f"{k}{n}", kind, 2, form=form) for n in places for k, kind, form in KINDS_OF_HEADS)
    scores = {"s8": detector(0.9, 0.5, 64), "s16": detector(0.02, 1e-6, 16)}
    targets = {**scores, **{f"b{n}": torch.rand(2, count, 4) + 1 for n, count in places.items()}}
    worse = targets | {f"b{n}": targets[f"b{n}"] * 1.5 for n in places}
    many, few = (float(parts.distance(part, both, worse, targets)) for part in both if part.kind == "boxes")
    assert many > 100 * few > 0


KINDS_OF_HEADS = (("b", "boxes", "distances"), ("s", "scores", ""))


def test_the_units_of_a_detector_come_from_several_samples_of_a_model_that_takes_one():
    from onnxprune.recover.finetune import _several

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    samples = ArraySamples({"x": x}, {"x": 0}, {"x": x.dtype}, len(x), None)
    found = _several(lambda feeds: {"y": 2 * feeds["x"], "all": feeds["x"].sum()}, samples, 1, torch.device("cpu"))
    assert found["y"].shape == (32, 3)
    assert found["all"].ndim == 0
