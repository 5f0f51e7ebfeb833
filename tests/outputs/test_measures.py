"""Metrics by kind: right on known answers, and a null model that no figure may flatter."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from onnxprune.data.samples import ArraySamples
from onnxprune.errors import UsageError
from onnxprune.outputs import accuracies, detections, measures
from onnxprune.outputs.answers import Reference
from onnxprune.outputs.kinds import Output, Outputs, Part
from onnxprune.outputs.metrics import Accuracy, PartAccuracy, share_kept
from onnxprune.run.targets import drop, within

RNG = np.random.default_rng(0)


def described(*parts, kind="joint"):
    return Outputs((Output(parts[0].value, kind, None, parts, "said here"),))


def original(said, *parts, labels=None, kind="joint"):
    count = len(next(iter(said.values())))
    samples = ArraySamples({"x": np.zeros((count, 1), np.float32)}, {"x": 0}, {"x": np.dtype("f4")}, count, labels)
    return Reference(samples, described(*parts, kind=kind), said)


def only(said, reference):
    (found,) = accuracies.judged(said, reference)
    return found


def noisy(y, size=0.1, seed=1):
    return (y + size * np.random.default_rng(seed).normal(size=y.shape)).astype(y.dtype)


def cases():
    logits = RNG.normal(size=(40, 5)).astype(np.float32) * 3
    vectors = RNG.normal(size=(40, 16)).astype(np.float32)
    scores = RNG.random((40, 6)).astype(np.float32) ** 4
    return [
        (Part("y", "classes", 1), logits, "agreement"),
        (Part("y", "sequence", 2), RNG.normal(size=(20, 7, 4)).astype(np.float32), "agreement"),
        (Part("y", "segmentation", 1), RNG.normal(size=(10, 3, 6, 6)).astype(np.float32), "mean_iou"),
        (Part("y", "scores", 1), scores, "overlap"),
        (Part("y", "embedding", 1), vectors, "rank_correlation"),
        (Part("y", "signal"), RNG.normal(size=(30, 2, 9)).astype(np.float32), "explained"),
    ]


@pytest.mark.parametrize(("part", "y", "metric"), cases(), ids=lambda v: getattr(v, "kind", None))
def test_the_original_has_all_the_null_model_nothing_and_noise_lies_between(part, y, metric):
    reference = original({"y": y}, part)
    same = only({"y": y}, reference)
    assert same.metric == metric
    assert same.value == pytest.approx(same.original)
    assert same.share == pytest.approx(1)
    assert only(reference.null, reference).share == pytest.approx(0, abs=1e-6)
    values = [only({"y": noisy(y, size)}, reference).share for size in (0.05, 0.3, 3.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.7
    assert values[2] < 0.6


@pytest.mark.parametrize(("part", "y", "metric"), cases(), ids=lambda v: getattr(v, "kind", None))
def test_zeros_for_all_outputs_keep_nothing(part, y, metric):
    assert only({"y": np.zeros_like(y)}, original({"y": y}, part)).share < 0.3


# What the tool's figures did not tell


def test_null_encoder_outputs_beside_token_ids_that_are_passed_through():
    """All float outputs of an encoder at zero read 0.004 of error, since the ids beside them were right."""
    vectors = RNG.normal(size=(30, 8)).astype(np.float32)
    ids = Output("ids", "pass-through", None, (), "a copy")
    outputs = Outputs((ids, Output("y", "embedding", 1, (Part("y", "embedding", 1),), "said here")))
    reference = Reference(original({"y": vectors}, Part("y", "embedding", 1)).samples, outputs, {"y": vectors})
    found = accuracies.accuracy(accuracies.judged({"y": np.zeros_like(vectors)}, reference))
    assert found.share == pytest.approx(0, abs=0.1)


def joint(count=12, places=60, classes=3, seed=0):
    """(N, 4 + C, A): boxes as center and size in pixels, a few places sure of a class."""
    rng = np.random.default_rng(seed)
    y = np.zeros((count, 4 + classes, places), np.float32)
    y[:, :2] = rng.uniform(40, 600, (count, 2, places))
    y[:, 2:4] = rng.uniform(20, 60, (count, 2, places))
    y[:, 4:] = rng.uniform(0, 0.02, (count, classes, places))
    for row in y:
        for place in rng.choice(places, 6, replace=False):
            row[4 + rng.integers(classes), place] = rng.uniform(0.5, 0.95)
    return y


JOINT = (Part("y", "boxes", 1, 1, 0, 4), Part("y", "scores", 1, 1, 4, 7))


def test_zero_class_scores_of_a_joint_detector():
    """With all class scores at zero the relative error of pixels and scores together was 0.00006."""
    y = joint()
    reference = original({"y": y}, *JOINT)
    blind = y.copy()
    blind[:, 4:] = 0
    found = only({"y": blind}, reference)
    assert found.metric == "detections_ap"
    assert found.original == pytest.approx(1)
    assert found.value == pytest.approx(0)
    assert np.linalg.norm(blind - y) / np.linalg.norm(y) < 0.01
    assert only({"y": y}, reference).share == pytest.approx(1)


def test_boxes_that_move_lose_precision_and_so_do_classes_that_change():
    y = joint()
    reference = original({"y": y}, *JOINT)
    moved, swapped = y.copy(), y.copy()
    moved[:, :2] += 3
    swapped[:, 4:] = swapped[:, [5, 6, 4]]
    assert 0.05 < only({"y": moved}, reference).value < 0.8
    assert only({"y": swapped}, reference).value < 0.1
    assert only({"y": noisy(y, 1e-3)}, reference).value > 0.95


def test_parts_in_heads_of_their_own_count_each_and_the_worst_share_is_the_figure():
    scores = RNG.random((20, 30, 1)).astype(np.float32) ** 6
    boxes = RNG.normal(size=(20, 30, 4)).astype(np.float32) * 50
    parts = (Part("s", "scores", 2), Part("b", "boxes", 2))
    outputs = Outputs(tuple(Output(p.value, p.kind, 2, (p,), "said here") for p in parts))
    reference = Reference(original({"s": scores}, parts[0]).samples, outputs, {"s": scores, "b": boxes})
    found = accuracies.accuracy(accuracies.judged({"s": np.zeros_like(scores), "b": boxes}, reference))
    assert found.metric == "share_kept"
    assert {part.part: round(part.share, 6) for part in found.parts}["b"] == 1
    assert found.share < 0.01


def test_boxes_count_where_the_original_is_sure():
    scores = np.full((10, 20, 1), 1e-4, np.float32)
    scores[:, 3] = 0.9
    boxes = RNG.normal(size=(10, 20, 4)).astype(np.float32) * 50
    parts = (Part("s", "scores", 2), Part("b", "boxes", 2))
    outputs = Outputs(tuple(Output(p.value, p.kind, 2, (p,), "said here") for p in parts))
    reference = Reference(original({"s": scores}, parts[0]).samples, outputs, {"s": scores, "b": boxes})
    elsewhere = boxes.copy()
    elsewhere[:, 4:] = 0
    found = {p.part: p.value for p in accuracies.judged({"s": scores, "b": elsewhere}, reference)}
    assert found["b"] > 0.99


def test_answers_are_looked_for_along_the_axis_of_the_classes():
    """(N, T, C): along axis 1 the argmax is a time step."""
    y = RNG.normal(size=(30, 9, 4)).astype(np.float32)
    flipped = y[:, :, ::-1].copy()
    found = only({"y": flipped}, original({"y": y}, Part("y", "sequence", 2)))
    assert found.value < 0.3


def ctc(texts, length=24, letters=6):
    """Class scores of texts with gaps (class 0) between and around letters, each said twice."""
    y = np.zeros((len(texts), length, letters), np.float32)
    for row, text in zip(y, texts, strict=True):
        row[:, 0] = 1
        for k, letter in enumerate(text):
            row[3 * k : 3 * k + 2, 0], row[3 * k : 3 * k + 2, letter] = 0, 1
    return y


def test_texts_are_compared_without_gaps_and_repeats():
    texts = [[1, 2, 3], [4, 5], [2, 2, 1], [5, 4, 3], [1, 1, 2]]
    y = ctc(texts)
    reference = original({"y": y}, Part("y", "sequence", 2))
    assert measures.gap_class(y) == 0
    assert measures.collapsed(y[2].argmax(-1), 0) == [2, 2, 1]
    found = only({"y": ctc([[1, 2, 4], [4, 5], [2, 2, 1], [5, 4, 3], [1, 2]])}, reference)
    assert found.metric == "text_agreement"
    assert found.value == pytest.approx(np.mean([2 / 3, 1, 1, 1, 2 / 3]))
    assert found.more["same_text"] == pytest.approx(3 / 5)
    shifted = np.roll(y, 1, axis=1)
    assert only({"y": shifted}, reference).value == 1


@pytest.mark.parametrize(("a", "b", "count"), [("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0)])
def test_edits(a, b, count):
    assert measures.edits([ord(c) for c in a], [ord(c) for c in b]) == count


def test_embeddings_are_compared_as_scipy_ranks_their_similarities():
    t, y = RNG.normal(size=(12, 6)), RNG.normal(size=(12, 6))
    values, more = measures.similarities(y[:, None], t[:, None])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (y, t)]
    rows = [np.delete(x[0] @ x.T, 0) for x in unit]
    assert values[0] == pytest.approx(spearmanr(*rows).statistic)
    assert more["cosine"] == pytest.approx((unit[0] * unit[1]).sum(1).mean())
    assert measures.similarities(y[:, None] * 7, y[:, None])[0] == pytest.approx(1)


def test_a_signal_of_equal_power_noise_has_zero_decibels():
    t = RNG.normal(size=(50, 1, 40))
    y = t + RNG.normal(size=t.shape)
    values, more = measures.explained(y, t)
    assert more["snr_db"] == pytest.approx(0, abs=0.4)
    assert values.mean() == pytest.approx(1 - ((y - t) ** 2).sum() / ((t - t.mean(0)) ** 2).sum())


def test_mean_iou_over_the_classes_that_are_there():
    wanted = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    answers = np.array([[0, 1, 1, 1], [2, 2, 2, 2]])
    assert measures.intersection(answers, wanted, 3) == pytest.approx([(1 / 2 + 2 / 3) / 2, 1])


# Detections


def test_average_precision_of_one_false_alarm_between_two_hits():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]], np.float64)
    wanted = detections.Found(boxes[[0, 2]], np.array([0.9, 0.8]), np.zeros(2, int))
    ours = detections.Found(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int))
    assert detections.precision(ours, wanted) == pytest.approx((1 + 2 / 3) / 2)
    assert detections.f1(ours, wanted) == pytest.approx(4 / 5)


def test_nothing_to_find_is_found_by_finding_nothing():
    none = detections.Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    one = detections.Found(np.array([[0.0, 0, 1, 1]]), np.ones(1), np.zeros(1, int))
    assert (detections.precision(none, none), detections.precision(one, none)) == (1, 0)
    assert (detections.f1(none, none), detections.f1(one, none), detections.f1(none, one)) == (1, 0, 0)


def test_boxes_over_one_thing_are_one_detection_unless_their_classes_differ():
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 11], [0, 0, 10, 10]], np.float64)
    scores = np.array([[0.9, 0], [0.8, 0], [0, 0.7]])
    assert detections.found(boxes, scores, 0.1).scores.tolist() == [0.9, 0.7]


# Labels


def test_top1_along_the_right_axis_with_labels_and_masks():
    y = np.zeros((4, 5, 3), np.float32)
    wanted = RNG.integers(0, 3, (4, 5))
    np.put_along_axis(y, wanted[..., None], 1, axis=2)
    part = Part("y", "sequence", 2)
    found = only({"y": y}, original({"y": y}, part, labels=wanted))
    assert (found.metric, found.value) == ("top1", 1)
    wrong = (wanted + 1) % 3
    assert only({"y": y}, original({"y": y}, part, labels=wrong)).value == 0


def test_integer_masks_are_answers_of_a_map_and_255_is_not_judged():
    y = RNG.normal(size=(6, 3, 4, 4)).astype(np.float32)
    mask = y.argmax(1)
    mask[:, 0] = 255
    found = only({"y": y}, original({"y": y}, Part("y", "segmentation", 1), labels=mask))
    assert (found.metric, found.value) == ("top1", 1)
    assert found.more["mean_iou"] == pytest.approx(1)


def test_labels_that_no_output_answers_leave_the_comparison_with_the_original():
    y = RNG.normal(size=(6, 4)).astype(np.float32)
    reference = original({"y": y}, Part("y", "classes", 1), labels=RNG.random((6, 4)))
    assert accuracies.labelled(reference) is None
    assert only({"y": y}, reference).metric == "agreement"


# A figure that cannot lull


def test_a_metric_by_which_a_null_model_does_as_well_has_no_share():
    y = np.zeros((20, 4), np.float32)
    y[:, 2] = 1 + RNG.random(20)
    found = accuracies.accuracy(accuracies.judged({"y": y}, original({"y": y}, Part("y", "classes", 1))))
    assert (found.null, found.original, found.share) == (1, 1, None)
    with pytest.raises(UsageError, match="that tells nothing") as error:
        drop(None, found)
    assert "\n" not in str(error.value)


def test_points_are_of_the_scale_between_null_model_and_original():
    found = Accuracy("agreement", 0.82, 50, (0.7, 0.9)).against(0.1, 1.0)
    assert found.share == pytest.approx(0.8)
    assert drop(None, found) == pytest.approx(20)


def test_exactly_one_point_lost_missed_a_limit_of_one():
    assert not 100 * (1 - 0.99) <= 1
    assert within(100 * (1 - 0.99), 1)
    assert not within(1.01, 1)


def test_shares_are_between_the_ends_whichever_is_larger():
    assert share_kept(0.0, 0.8, 0.0) == 1
    assert share_kept(0.4, 0.8, 0.0) == pytest.approx(0.5)
    assert share_kept(0.97, 0.96, 0.98) is None


def test_the_worst_share_is_of_parts_that_tell_anything():
    parts = [
        PartAccuracy("a", "classes", "agreement", 1.0, 1.0, 1.0, None, 10),
        PartAccuracy("b", "signal", "explained", 0.7, 0.0, 1.0, 0.7, 10, (0.6, 0.8)),
        PartAccuracy("c", "signal", "explained", 0.9, 0.0, 1.0, 0.9, 10, (0.8, 1.0)),
    ]
    found = accuracies.accuracy(parts)
    assert (found.metric, found.value, found.share, found.interval95) == ("share_kept", 0.7, 0.7, (0.6, 0.8))
    assert accuracies.accuracy([]) is None


def test_shares_by_sample_are_none_of_the_null_model_and_all_of_the_original():
    y = RNG.normal(size=(40, 6)).astype(np.float32)
    reference = original({"y": y, "z": y[:, :2]}, Part("y", "signal"), Part("z", "signal"))
    assert accuracies.by_sample(reference.said, reference) == pytest.approx(np.ones(40))
    assert float(accuracies.by_sample(reference.null, reference).mean()) == pytest.approx(0, abs=1e-6)
    worse = {**reference.said, "z": noisy(y[:, :2], 1.0)}
    found = accuracies.by_sample(worse, reference)
    assert found.shape == (40,)
    shares = [part.share for part in accuracies.judged(worse, reference)]
    assert float(found.mean()) == pytest.approx(np.mean(shares))


def test_there_are_no_shares_by_sample_where_all_samples_are_answered_alike():
    y = np.ones((40, 6), np.float32)
    assert accuracies.by_sample({"y": y}, original({"y": y}, Part("y", "classes", 1))) is None


def test_landmarks_are_judged_where_the_original_finds_something():
    """Landmarks of a place without a face are noise, and the worst share was theirs."""
    scores = np.full((10, 20, 1), 1e-4, np.float32)
    scores[:, 3] = 0.9
    marks = RNG.normal(size=(10, 20, 10)).astype(np.float32)
    parts = (Part("s", "scores", 2), Part("k", "signal"))
    outputs = Outputs(tuple(Output(p.value, p.kind, 2, (p,), "said here") for p in parts))
    reference = Reference(original({"s": scores}, parts[0]).samples, outputs, {"s": scores, "k": marks})
    elsewhere, there = marks.copy(), marks.copy()
    elsewhere[:, 4:] = 0
    there[:, 3] = 0
    values = [
        {p.part: p.value for p in accuracies.judged({"s": scores, "k": y}, reference)}["k"] for y in (elsewhere, there)
    ]
    assert values[0] > 0.99
    assert values[1] < 0.2
