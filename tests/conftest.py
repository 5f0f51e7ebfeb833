"""The command line as a function, and a small model as a file."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
from hypothesis import settings
from networks import CNN, filled

# The same examples in every run: a red run means a change, not luck. The slow suite draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


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


@pytest.fixture
def proofs_here(monkeypatch):
    """Proofs run in this process: what a test replaces is replaced there too."""
    monkeypatch.setattr("onnxprune.graph.apart.can_copy", lambda: True)
    monkeypatch.setattr("onnxprune.graph.apart.isolated", lambda function: function())
