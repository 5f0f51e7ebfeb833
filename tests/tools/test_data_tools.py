"""The loaders in tools/ for the shared data folder; skipped where that folder is not at hand."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data import InputInfo, load_samples

ROOT = Path(__file__).parents[2]
F32 = np.dtype(np.float32)


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name, folder):
        module = importlib.import_module(f"tools.{name}")
        if not (module.DATA / folder).is_dir():
            pytest.skip(f"no {folder} in {module.DATA}; set ONNXPRUNE_DATA to the folder of shared data")
        return module

    return load


@pytest.mark.slow
def test_cifar_slices_reach_over_files_and_match_their_labels(tool):
    cifar = tool("cifar", "cifar10")
    x, y = cifar.load("vgg", "train", 9990, 20)
    head, tail = cifar.load("vgg", "train", 9990, 10), cifar.load("vgg", "train", 10_000, 10)
    assert (x == np.concatenate([head[0], tail[0]])).all()
    assert (y == np.concatenate([head[1], tail[1]])).all()
    assert (x.shape, x.dtype, x.min(), x.max()) == ((20, 3, 32, 32), F32, 0, 1)
    normalized = cifar.load("resnet", "train", 9990, 20)[0]
    np.testing.assert_allclose(normalized * cifar.STD + cifar.MEAN, x, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vgg_train7", ("vgg", "train", 0, 7)),
        ("test5", ("resnet", "test", 0, 5)),
        ("choose6", ("resnet", "train", 49_994, 6)),
    ],
)
def test_cifar_has_a_function_for_every_number_of_images(tool, name, wanted):
    cifar = tool("cifar", "cifar10")
    for found, image in zip(getattr(cifar, name)(), cifar.load(*wanted), strict=True):
        np.testing.assert_array_equal(found, image)
    with pytest.raises(AttributeError, match="no validation5"):
        cifar.validation5  # noqa: B018


@pytest.mark.slow
def test_cifar_writes_an_npz_for_data(tool, tmp_path, monkeypatch):
    cifar = tool("cifar", "cifar10")
    out = tmp_path / "cifar.npz"
    monkeypatch.setattr(sys, "argv", ["cifar.py", "--split", "test", "--count", "50", "--out", str(out)])
    cifar.main()
    samples = load_samples(out, [InputInfo("input", ("batch", 3, 32, 32), F32)], classes=10)
    assert (len(samples), len(set(samples.labels))) == (50, 10)


@pytest.mark.slow
def test_imagenet_is_decoded_when_asked_for(tool):
    tool("imagenet", "imagenet")
    samples = load_samples("tools.imagenet:val900", [InputInfo("x", ("N", 3, 224, 224), F32)], classes=1000)
    assert (len(samples), len(np.unique(samples.labels)) > 400) == (900, True)
    assert samples.batch([0, 899])["x"].shape == (2, 3, 224, 224)
