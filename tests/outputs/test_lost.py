"""What a cut loses of the original's answers, by which candidates for widths are compared."""

import numpy as np
import pytest

from onnxprune.outputs import lost
from onnxprune.outputs.kinds import Output, Outputs, Part

RNG = np.random.default_rng(0)


def described(*parts):
    return Outputs(tuple(Output(part.value, part.kind, part.axis, (part,), "said here") for part in parts))


def heads():
    """Twelve samples with a thing at one place of twenty each: scores, distances to four sides, landmarks."""
    scores = np.full((12, 20, 1), 1e-5, np.float32)
    scores[np.arange(12), RNG.integers(0, 20, 12)] = 0.9
    boxes = RNG.uniform(1, 5, (12, 20, 4)).astype(np.float32)
    marks = RNG.normal(size=(12, 20, 10)).astype(np.float32)
    parts = Part("s", "scores", 2), Part("b", "boxes", 2), Part("k", "signal")
    return {"s": scores, "b": boxes, "k": marks}, described(*parts)


def test_nothing_is_lost_of_the_original_and_more_by_more_noise():
    said, outputs = heads()
    known = lost.originals(said, outputs)
    assert lost.lost(said, known) == pytest.approx(np.zeros(12), abs=1e-5)
    worse = [{**said, "b": said["b"] * (1 + share * RNG.random(said["b"].shape))} for share in (0.1, 0.5)]
    one, two = (lost.lost(each, known) for each in worse)
    assert one.shape == (12,)
    assert (one > 0).all()
    assert one.mean() < two.mean() / 2


def test_places_where_nothing_is_found_weigh_nothing():
    """By the relative error of whole outputs what spoiled only background looked worse than what lost faces."""
    said, outputs = heads()
    known, sure = lost.originals(said, outputs), said["s"] > 0.5
    background, things = (
        {name: np.where(where, y + 1, y) if name != "s" else y for name, y in said.items()} for where in (~sure, sure)
    )
    assert lost.lost(background, known).mean() < 0.01 * lost.lost(things, known).mean()
    spoiled = [np.linalg.norm(each["b"] - said["b"]) for each in (background, things)]
    assert spoiled[0] > 3 * spoiled[1]


def test_what_a_boxes_head_holds_is_seen_on_all_samples():
    said, outputs = heads()
    assert {part.value: part.form for part in lost.originals(said, outputs).parts} == {
        "s": "",
        "b": "distances",
        "k": "",
    }


def test_values_that_have_no_row_per_sample_are_compared_sample_by_sample():
    """As of a detector of batch 1 whose heads are (places, 4)."""
    said, outputs = heads()
    flat = described(*(Part(p.value, p.kind, 1 if p.axis else None, rows=False) for p in outputs.parts))
    worse = {**said, "b": said["b"] * 1.3}
    values = [lost.lost(worse, lost.originals(said, each)) for each in (outputs, flat)]
    assert values[1] == pytest.approx(values[0], rel=0.2)


def test_integers_alone_cannot_be_compared():
    assert lost.originals({"y": np.zeros((3, 2), np.int64)}, described(Part("y", "decision"))) is None


@pytest.mark.parametrize("rows", [True, False])
def test_the_average_in_one_pass_is_the_mean_over_samples(rows):
    said, outputs = heads()
    known = lost.originals(
        said,
        outputs
        if rows
        else described(*(Part(p.value, p.kind, 1 if p.axis else None, rows=False) for p in outputs.parts)),
    )
    worse = {name: y * 1.2 for name, y in said.items()}
    assert lost.average(worse, known) == pytest.approx(lost.lost(worse, known).mean(), rel=1e-4)


def test_the_average_of_classes_places_and_vectors_is_the_mean_over_samples():
    said = {
        "c": RNG.normal(size=(9, 4)).astype(np.float32),
        "q": RNG.normal(size=(9, 7, 5)).astype(np.float32),
        "e": RNG.normal(size=(9, 16)).astype(np.float32),
    }
    outputs = described(
        Part("c", "classes", 1, form="logits"), Part("q", "sequence", 2, form="logits"), Part("e", "embedding", 1)
    )
    known = lost.originals(said, outputs)
    worse = {name: y + RNG.normal(size=y.shape).astype(np.float32) for name, y in said.items()}
    assert lost.average(worse, known) == pytest.approx(lost.lost(worse, known).mean(), rel=1e-4)
