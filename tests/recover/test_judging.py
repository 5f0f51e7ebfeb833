"""A fair test of fine-tuning: inputs that nobody knows by heart, clear differences, and what follows from time."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_text import model as text_model
from recovering import Digits, random_keep
from task_networks import TASKS, network

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.data import batch_axes, input_infos, load_samples
from onnxprune.outputs.describe import describe
from onnxprune.plan.select import Selection
from onnxprune.recover import fair
from onnxprune.recover.augment import augment, known_in_a_mirror
from onnxprune.recover.finetune import NO_TIME, Settings, choose, finetune
from onnxprune.recover.refit import reconstruct
from onnxprune.recover.settings import LEAST_STEPS, ZOOM, affordable, small_images

IMAGES = "(float[N,3,32,32] x, float[4,3,3,3] w) => (float[N,4,30,30] y) { y = Conv(x, w) }"
TEXTS = """(int64[N,T] x, int64[N,T] x_mask, int64[N] x_lengths, float[9,4] table) => (float[N,T,4] y)
    { y = Gather(table, x) }"""


def samples_of(text: str, arrays: dict):
    model = text_model(text)
    return load_samples(arrays, input_infos(model)), batch_axes(input_infos(model))


def test_numbers_are_mixed_seven_to_three_with_another_sample():
    x = np.random.default_rng(0).normal(size=(10, 3, 32, 32)).astype(np.float32)
    samples, axes = samples_of(IMAGES, {"x": x})
    found = fair.mixed(samples, axes, most=40)
    assert len(found) == 60  # the fewest inputs that tell anything are 64
    mixed = found.batch(np.arange(60))["x"]
    for number, image in enumerate(mixed):
        own = number % 10
        partners = [k for k in range(10) if np.allclose(image, 0.7 * x[own] + 0.3 * x[k], atol=1e-6)]
        assert len(partners) == 1
        assert partners[0] != own
    assert len({image.tobytes() for image in mixed}) == 60
    assert np.array_equal(found.batch([37])["x"][0], mixed[37])  # whatever batch it is in


def test_tokens_are_exchanged_at_the_same_places_and_lengths_stay():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 9, (12, 20))
    samples, axes = samples_of(TEXTS, {"x": ids, "x_mask": ids * 10, "x_lengths": np.arange(12)})
    found = fair.mixed(samples, axes).batch(np.arange(12))
    changed = found["x"] != ids
    assert 0 < changed.any(axis=0).sum() <= 6  # of 20 places
    assert np.array_equal(found["x_mask"], found["x"] * 10)
    assert np.array_equal(found["x_lengths"], np.arange(12))
    assert found["x"].dtype == ids.dtype


def test_boxes_are_judged_by_the_loss_that_is_trained_and_the_user_is_told():
    """By average precision on mixtures a face detector got worse while it got better on photographs."""
    model = graph.normalize(ir.from_proto(network("detector")))
    tune = load_samples(TASKS["detector"].samples(np.random.default_rng(0), 40), input_infos(model))
    outputs = describe(model, tune)
    coupling = analyze(model)
    keep = random_keep(coupling, 0.7)
    cut = surgery.cut(Selection(coupling, keep))
    settings = Settings(epochs=2, outputs=outputs, lr=1e-4, optimizer="adamw", batchnorm="off")
    history = finetune(cut, model, tune.subset(np.arange(30)), tune.subset(np.arange(30, 40)), settings)
    assert history.metric == "share_kept"
    assert "distance of boxes and what stands beside them" in history.told
    before, after = (float(word) for word in history.told.replace(",", "").split() if word.startswith("0."))
    assert after < before
    assert after == pytest.approx(history.epochs[-1].held_loss, abs=1e-4)


def test_one_sample_alone_is_left_as_it_is():
    x = np.ones((1, 3, 32, 32), np.float32)
    samples, axes = samples_of(IMAGES, {"x": x})
    assert np.array_equal(fair.mixed(samples, axes).batch([0])["x"], x)


def test_the_end_is_kept_unless_it_is_clearly_worse_and_the_user_is_told(folded: Digits):
    keep = random_keep(folded.coupling, 0.5)
    cut = surgery.cut(Selection(folded.coupling, keep))
    reconstruct.refit(Selection(folded.coupling, keep), cut, folded.tune, limit=128)
    quick = Settings(epochs=3, batch_size=64, amp="off", channels_last=False)
    good = finetune(cut, folded.model, folded.tune, folded.held, quick)
    assert good.best_epoch == 3
    assert good.told.startswith("fine-tuning was kept: the model after it is ")
    assert "new inputs mixed of your samples" in good.told
    ruined = finetune(
        cut,
        folded.model,
        folded.tune,
        folded.held,
        replace(quick, epochs=2, lr=3.0, optimizer="sgd", clip=0.0, ema=0.0),
    )
    assert ruined.best_epoch < 2
    assert "worse" in ruined.told


@pytest.mark.parametrize(
    ("text", "side"),
    [
        (IMAGES, 32),
        (IMAGES.replace("[N,3,32,32]", "[N,3,224,224]").replace("30,30", "222,222"), 0),
        (IMAGES.replace("[N,3,32,32]", "[N,3,32,40]").replace("30,30", "30,38"), 0),
        (IMAGES.replace("[N,3,32,32]", "[N,1,32,32]").replace("[4,3,3,3]", "[4,1,3,3]"), 0),
        (TEXTS, 0),
    ],
)
def test_only_small_square_images_of_three_channels_are_mirrored_and_shifted(text, side):
    model = text_model(text)
    assert small_images(model) == side
    samples = load_samples({"x": np.zeros((64, 3, 32, 32), np.float32)}, input_infos(text_model(IMAGES)))
    chosen = choose(samples, model)
    assert (chosen.flip, chosen.crop) == (bool(side), side // 8)
    off = choose(samples, model, settings=Settings(flip=False, crop=0))
    assert not off.augments


MAPS = """(float[N,3,"H","W"] x, float[1,3,3,3] w) => (float[N,1,"H","W"] y)
    { z = Conv <pads = [1,1,1,1]>(x, w)  y = Sigmoid(z) }"""
PLACES = {"of samples": np.zeros(40, np.int64), "of places": np.zeros((40, 96, 128), np.int64), "none": None}


@pytest.mark.parametrize(("labels", "moved"), [("none", True), ("of samples", True), ("of places", False)])
def test_pictures_of_any_size_are_moved_where_numbers_are_learned_of_them(labels, moved):
    """Of 128 photographs a detector learned by heart where its boxes were."""
    model = text_model(MAPS)
    arrays = {"x": np.zeros((40, 3, 96, 128), np.float32)}
    arrays |= {} if PLACES[labels] is None else {"y": PLACES[labels]}
    samples = load_samples(arrays, input_infos(model))
    chosen = choose(samples, model, settings=Settings(outputs=describe(model)))
    assert (chosen.flip, chosen.crop, chosen.zoom) == ((True, 12, ZOOM) if moved else (False, 0, 0))
    assert chosen.epochs == (120 if moved else 60)
    for other in (Settings(loss=print), Settings(epochs=60)):
        assert not choose(samples, model, settings=replace(other, outputs=describe(model))).augments


TAGS = """(float[N,3,8,8] x, float[192,1] w) => (float[N,1] y)
    { f = Flatten(x)  z = Gemm(f, w)  y = Sigmoid(z) }"""


@pytest.mark.parametrize("side", ["left", "both"])
@pytest.mark.parametrize("last", ["Sigmoid", "Identity"])
def test_samples_are_mirrored_where_the_original_knows_them_in_a_mirror(side, last):
    w = np.zeros((3, 8, 8), np.float32)
    w[..., 0] = 0.5
    w[..., -1] = 0.5 if side == "both" else 0
    model = text_model(TAGS.replace("Sigmoid", last), {"w": w.reshape(192, 1)})
    x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    x[..., 0] = np.abs(x[..., 0]) * 4
    samples = load_samples({"x": x}, input_infos(model))
    settings = Settings(outputs=describe(model))
    assert known_in_a_mirror(model, samples, settings, torch.device("cpu"), 8) == (side == "both")


def test_zooming_keeps_the_center_and_mirrors_what_is_missing_at_the_edges():
    x = torch.arange(64.0).expand(2, 3, 64, 64)
    found, _ = augment({"x": x}, Settings(flip=False, crop=0, zoom=0.5), 3)
    for image in found["x"]:
        slope = float(image[0, 0, 40] - image[0, 0, 24]) / 16
        assert float(image[0, 0, 31:33].mean()) == pytest.approx(31.5, abs=1e-3)
        assert 0.6 < slope < 1.65
        assert slope != pytest.approx(1, abs=1e-3)
        assert float(image.min()) >= 0
        assert float(image.max()) <= 63


def test_epochs_follow_from_the_time_of_a_step(folded: Digits):
    chosen = choose(folded.tune, folded.model)
    count, batch = len(folded.tune), chosen.batch_size
    assert batch is not None
    steps = count // batch
    assert affordable(chosen, None, 1e-6, count) == (chosen.epochs, count)
    assert affordable(replace(chosen, seconds=3.5 * steps), None, 1.0, count) == (3, count)
    assert affordable(replace(chosen, seconds=LEAST_STEPS + 0.5), None, 1.0, count) == (1, LEAST_STEPS * batch)
    assert affordable(replace(chosen, seconds=1.0), None, 1.0, count) == (1, 0)
    assert affordable(replace(chosen, epochs=9), 9, 1e9, count) == (9, count)  # asked for, and no time was
    assert affordable(replace(chosen, epochs=9, seconds=2.5 * steps), 9, 1.0, count) == (2, count)


def test_where_the_clock_ends_training_more_is_planned_than_its_first_steps_promise():
    steps = count = 100
    chosen = Settings(epochs=20, batch_size=1, seconds=4.5 * steps)
    assert affordable(chosen, 20, 1.0, count, timed=True) == (10, count)  # lengths are coarse
    assert affordable(replace(chosen, epochs=5), 5, 1.0, count, timed=True) == (5, count)
    assert affordable(replace(chosen, seconds=0.3 * steps), 20, 1.0, count, timed=True) == (1, count)
    assert affordable(replace(chosen, seconds=1.0), 20, 1.0, count, timed=True) == (1, 0)


def test_without_time_nothing_is_trained_and_the_start_is_kept(folded: Digits):
    cut = surgery.cut(Selection(folded.coupling, random_keep(folded.coupling, 0.5)))
    history = finetune(cut, folded.model, folded.tune, folded.held, Settings(seconds=0.0))
    assert (history.epochs, history.best_epoch, history.told) == ((), 0, NO_TIME)


def test_a_fixed_batch_of_one_is_trained_in_batches_of_many():
    model = text_model(
        "(float[1,6] x, float[6,16] w1, float[16,3] w2) => (float[1,3] y)"
        " { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }"
    )
    x = np.random.default_rng(0).normal(size=(256, 6)).astype(np.float32)
    samples = load_samples({"x": x[:200]}, input_infos(model))
    chosen = choose(samples, model)
    assert chosen.batch_size == 16
    assert chosen.lr is not None
    assert chosen.lr > 1e-4
    held = load_samples({"x": x[200:]}, input_infos(model))
    history = finetune(model.clone(), model, samples, held, Settings(epochs=1))
    assert len(history.epochs) == 1
