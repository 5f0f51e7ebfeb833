"""Folders of images as samples: which files count, how pixels become inputs, what is told about doubtful ones."""

import logging

import numpy as np
import pytest
from PIL import Image

from onnxprune.data import InputInfo, load_samples

F32 = np.dtype(np.float32)
IMAGE = [InputInfo("image", ("batch", 3, 4, 4), F32)]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def gradient(height, width):
    """(H, W, 3) uint8; red grows downwards, green to the right, blue is 7."""
    image = np.full((height, width, 3), 7, np.uint8)
    image[..., 0] = np.arange(height)[:, None] * 10
    image[..., 1] = np.arange(width)[None] * 10
    return image


def test_class_folders_give_labels_by_name(tmp_path, caplog):
    for k, name in enumerate(["zebra/b.png", "ant/a.PNG", "ant/deep/c.png", ".hidden/d.png", "ant/.e.png"]):
        save(tmp_path / name, np.full((4, 4, 3), k * 10, np.uint8))
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    samples = load_samples(str(tmp_path), IMAGE, classes=2)
    assert samples.labels.tolist() == [0, 0, 1]
    np.testing.assert_allclose(samples.batch(slice(None))["image"][:, 0, 0, 0], np.array([10, 20, 0]) / 255, atol=1e-6)
    assert not caplog.records


def test_a_folder_without_classes_has_no_labels(tmp_path):
    for k in (2, 0, 1):
        save(tmp_path / f"{k}.png", np.full((4, 4, 3), k, np.uint8))
    samples = load_samples(tmp_path, IMAGE, scale=1)
    assert samples.labels is None
    assert samples.subset([1, 2]).batch([0])["image"].tolist() == np.full((1, 3, 4, 4), 1.0).tolist()


@pytest.mark.parametrize(
    ("shape", "options", "wanted"),
    [
        (("n", 3, 4, 4), {}, (3, 4, 4)),
        (("n", 4, 4, 3), {}, (4, 4, 3)),
        (("n", 1, 4, 4), {}, (1, 4, 4)),
        (("n", 4, 4, 1), {}, (4, 4, 1)),
        ((2, 3, "h", "w"), {"size": 5}, (3, 5, 5)),
        (("n", 3, "h", "w"), {"size": (4, 6)}, (3, 4, 6)),
        (("n", 3, 4, 4), {"size": 6}, (3, 4, 4)),
        (("n", None, None, None), {"size": 4, "layout": "NHWC"}, (4, 4, 3)),
        (("n", 3, 8, 3), {"layout": "nhwc"}, (3, 8, 3)),
    ],
)
def test_shapes_of_image_inputs(tmp_path, shape, options, wanted):
    save(tmp_path / "a.png", gradient(8, 12))
    samples = load_samples(tmp_path, [InputInfo("x", shape, F32)], **options)
    assert samples.batch([0, 0])["x"].shape == (2, *wanted)


def test_the_center_is_cut_after_the_shorter_side_is_resized(tmp_path):
    save(tmp_path / "a.png", gradient(8, 12))
    crop = load_samples(tmp_path, [InputInfo("x", ("n", 3, 8, 8), F32)], scale=1).batch([0])["x"][0]
    assert crop[0, :, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    assert crop[1, 0].tolist() == [20, 30, 40, 50, 60, 70, 80, 90]
    small = load_samples(tmp_path, [InputInfo("x", ("n", 3, 2, 2), F32)], scale=1, size=4).batch([0])["x"][0]
    # 8 x 12 becomes 4 x 6, of which rows 1, 2 and columns 2, 3 stay; each is about the mean of two source pixels.
    np.testing.assert_allclose(small[0, :, 0], [25, 45], atol=3)
    np.testing.assert_allclose(small[1, 0], [45, 65], atol=3)


def test_normalization_is_per_channel_in_both_layouts(tmp_path):
    image = gradient(4, 4)
    save(tmp_path / "a.png", image)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    wanted = (image / 255 - mean) / std
    nchw = load_samples(tmp_path, IMAGE, mean=mean, std=std).batch([0])["image"]
    nhwc = load_samples(tmp_path, [InputInfo("x", (1, 4, 4, 3), F32)], mean=mean, std=std).batch([0])["x"]
    np.testing.assert_allclose(nchw[0].transpose(1, 2, 0), wanted, atol=1e-5)
    np.testing.assert_allclose(nhwc[0], wanted, atol=1e-5)


def test_integer_inputs_take_pixels_as_they_are(tmp_path):
    save(tmp_path / "a.png", gradient(4, 4))
    x = load_samples(tmp_path, [InputInfo("x", ("n", 4, 4, 3), np.dtype(np.uint8))]).batch([0])["x"]
    assert x.dtype == np.uint8
    assert (x[0] == gradient(4, 4)).all()


def test_greys_of_16_bits_and_palettes_are_read(tmp_path):
    save(tmp_path / "a.png", np.full((4, 4), 0x8080, np.uint16))
    palette = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    palette.save(tmp_path / "b.png", transparency=b"\x00\xff")
    x = load_samples(tmp_path, IMAGE, scale=1).batch(slice(None))["image"]
    assert x[0].tolist() == np.full((3, 4, 4), 128).tolist()


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    array = np.zeros((4, 4, 3), np.uint8)
    array[0] = 255
    save(tmp_path / "a.png", array, exif=exif)
    seen = load_samples(tmp_path, IMAGE).batch([0])["image"][0, 0]
    assert seen.tolist() == [[0, 0, 0, 1]] * 4


@pytest.mark.parametrize(("high", "wanted"), [(1.0, 1.0), (255.0, 1.0), (100.0, 100 / 255)])
def test_float_tiffs_are_not_black(tmp_path, high, wanted):
    save(tmp_path / "a.tiff", np.full((4, 4), high, np.float32))
    np.testing.assert_allclose(load_samples(tmp_path, IMAGE).batch([0])["image"], wanted, atol=1e-6)


def test_broken_images_are_left_out_with_one_warning(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for k, name in enumerate(["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.png", "b/5.jpg"]):
        save(tmp_path / name, rng.integers(0, 255, (64, 64, 3)).astype(np.uint8) // (k + 1))
    truncated = tmp_path / "a" / "2.jpg"
    truncated.write_bytes(truncated.read_bytes()[:900])
    (tmp_path / "b" / "4.png").write_bytes(b"no image")
    samples = load_samples(tmp_path, IMAGE)
    assert [p.name for p in samples.paths] == ["1.jpg", "3.jpg", "5.jpg"]
    assert samples.labels.tolist() == [0, 1, 1]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "2 of 5 images cannot be read" in record.getMessage()
    assert "2.jpg" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("folders", "options", "told"),
    [
        (["a/1.png", "b/2.png", "c/"], {}, "1 class folders hold no images, the first is 'c'"),
        (["1.png"], {"mean": 123.7}, "give --scale 1"),
    ],
)
def test_doubtful_folders_are_told(tmp_path, caplog, folders, options, told):
    for name in folders:
        save(tmp_path / name, gradient(4, 4)) if name.endswith("png") else (tmp_path / name).mkdir()
    load_samples(tmp_path, IMAGE, **options)
    assert told in caplog.text
