"""Functions of models in another process: what is sent along, what comes back, and a death there."""

import os
import signal
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from onnx_text import model

from onnxprune import graph
from onnxprune.graph import custom_ops, extras
from onnxprune.graph.apart import CrashedError, apart
from onnxprune.system import isolation

TEXT = "(float[N,4] x, float[4,8] w) => (float[N,8] y) { y = MatMul(x, w) }"


pytestmark = pytest.mark.apart


@pytest.fixture(params=["a copy", "a fresh process"])
def process(request, monkeypatch):
    """Where it is computed: in a copy, as in the command line; in a fresh process, as beside torch."""
    monkeypatch.setattr(isolation, "can_copy", lambda: request.param == "a copy")
    monkeypatch.setattr("onnxprune.graph.apart.can_copy", lambda: request.param == "a copy")
    return request.param


def seen(first, second, factor):
    first.graph.initializers.clear()  # of the copy alone
    held = extras.of(second)
    kept = {name: {k: at(4).tolist() for k, at in axes.items()} for name, axes in held.kept.items()}
    total = factor * float(graph.array_of(second.graph.initializers["w"]).sum())
    return os.getpid(), kept, held.forced, held.notes, total, custom_ops.registered()


def every_second(_length):
    return np.arange(0, 4, 2)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_models_arrive_with_what_they_carry_and_stay_as_they_are(process, monkeypatch):
    one, two = model(TEXT), model(TEXT)
    kept = {"y": {1: every_second}}
    extras.put(two, replace(extras.of(two), kept=kept, forced=({"If_0": True},), notes=("told",)))
    pid, found, forced, notes, total, libraries = apart(seen, [one, two], 3)
    assert pid != os.getpid()
    assert found == {"y": {1: [0, 2]}}
    assert forced == ({"If_0": True},)
    assert notes == ("told",)
    assert libraries == ()
    assert total == pytest.approx(3 * float(graph.array_of(two.graph.initializers["w"]).sum()), rel=1e-6)
    assert "w" in one.graph.initializers


def test_a_death_in_the_other_process_is_an_error_here(process):
    with pytest.raises(CrashedError, match="SIGKILL"):
        apart(die, [model(TEXT)])
    assert apart(divmod, [], 7, 2) == (3, 1)


def test_errors_come_back_as_they_were(process):
    with pytest.raises(ZeroDivisionError):
        apart(divmod, [], 7, 0)


def test_libraries_of_operators_are_known_in_the_other_process(monkeypatch):
    """Beside torch a model with operators of the user's own was refused: the fresh process did not know them."""
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setattr(custom_ops, "_LIBRARIES", ["/nowhere/operators.so"])
    with pytest.raises(Exception, match=r"operators\.so: no such file"):  # it was asked to load it
        apart(partial(divmod, 7), [], 2)
