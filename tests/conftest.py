"""The command line as a function, and a small model as a file."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import onnx
import pytest
from hypothesis import settings
from networks import CNN, filled

# The same examples in every run: a red run means a change, not luck. The slow suite draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


T = TypeVar("T")


class Ran(NamedTuple):
    """What the command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`main` with words of any type; what libraries write to the file descriptors counts as well."""
    from onnxprune.cli import main

    def run(*words: object) -> Ran:
        capfd.readouterr()
        return Ran(main([str(word) for word in words]), *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def cnn_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "cnn.onnx"
    onnx.save(filled(CNN), path)
    return path


@pytest.fixture(autouse=True)
def one_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """What goes to another process only because a library may die of it is computed in this one.

    Beside torch, which all workers load, a run takes a third of the time so. Where the other process is what a test is
    about it is marked `apart`; ONNXPRUNE_TEST_APART=1 lets all tests go the way of users.
    """
    if request.node.get_closest_marker("apart") or os.environ.get("ONNXPRUNE_TEST_APART"):
        yield
        return
    from onnxprune.graph import apart, shapes, simplify

    with pytest.MonkeyPatch.context() as patch:
        for module in (apart, shapes, simplify):
            patch.setattr(module, "isolated", _here)
        patch.setattr(apart, "can_copy", lambda: True)
        yield


def _here(function: Callable[[], T]) -> T:
    """What `function` returns or raises; what libraries say on stderr is lost, as it is in another process."""
    held = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        return function()
    finally:
        os.dup2(held, 2)
        os.close(held)
