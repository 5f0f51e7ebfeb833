"""Samples of least squares, and the mirror images of small photographs among them."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import model

from onnxprune import graph
from onnxprune.data import input_infos, load_samples
from onnxprune.recover import levels
from onnxprune.recover.fair import Mirrored, grown
from onnxprune.recover.settings import Settings
from onnxprune.system.clock import Clock


def conv(shape: str) -> ir.Model:
    return graph.normalize(model(f"(float[{shape}] x, float[4,3,3,3] w) => (float[n,4,a,b] y) {{ y = Conv(x, w) }}"))


@pytest.fixture
def images():
    found = conv("n,3,8,8")
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    return found, x, load_samples({"x": x}, input_infos(found))


def test_behind_the_samples_come_their_mirror_images(images):
    read, x, samples = images
    found = grown(samples, read, Settings())
    assert isinstance(found, Mirrored)
    assert len(found) == 10
    (y,) = found.batch(np.array([4, 9, 0])).values()
    np.testing.assert_array_equal(y, np.stack([x[4], x[4][:, :, ::-1], x[0]]))
    (part,) = found.subset(np.arange(6, 8)).batch(slice(None)).values()
    np.testing.assert_array_equal(part, x[1:3, :, :, ::-1])


@pytest.mark.parametrize(("shape", "flip"), [("n,3,8,8", False), ("n,3,8,10", None), ("n,3,224,224", None)])
def test_what_may_not_be_mirrored_stays_as_it_is(images, shape, flip):
    """Images that are large need no more of them, and of what is no square nobody knows that it is a photograph."""
    _, _, samples = images
    assert grown(samples, conv(shape), Settings(flip=flip)) is samples


def test_least_squares_are_given_them(images, monkeypatch):
    read, _, samples = images
    seen: list[int] = []
    monkeypatch.setattr("onnxprune.recover.refit.reconstruct.refit", lambda *args, **_: seen.append(len(args[2])))
    monkeypatch.setattr("onnxprune.recover.constants.push", lambda *_: None)
    given = levels.Given(read, samples, 1000)
    for flip in (None, False):
        how = levels.Recovery("reconstruct", Settings(flip=flip))
        levels.recover(given, SimpleNamespace(zeros={}), read, how, Clock())  # type: ignore[arg-type]
    assert seen == [10, 5]
