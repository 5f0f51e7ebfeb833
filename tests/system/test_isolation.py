"""A library that ends the process ends a copy of it only."""

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from onnx_text import model

from onnxprune import graph
from onnxprune.errors import GraphError
from onnxprune.graph import shapes, simplify
from onnxprune.system import isolation
from onnxprune.system.isolation import CrashedError, isolated

pytestmark = pytest.mark.apart
TEXT = "(float[n,t] x, float[4,8] w, int64[2] s) => (float[p,q] y) { a = Reshape(x, s) y = MatMul(a, w) }"


@pytest.fixture(autouse=True)
def copies(monkeypatch):
    """As in the command line, before torch is loaded."""
    monkeypatch.setattr(isolation, "can_copy", lambda: hasattr(os, "fork"))


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_and_errors_come_back():
    assert isolated(lambda: {"pid": os.getpid()})["pid"] != os.getpid()
    with pytest.raises(GraphError, match="told"):
        isolated(lambda: (_ for _ in ()).throw(GraphError("told")))


def warned(text):
    logging.getLogger("onnxprune").warning("told in %s: %s", "another process", text)
    raise GraphError(text)


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_logged_there_is_logged_here(fresh, caplog):
    """Standard error leads nowhere there."""
    with pytest.raises(GraphError, match="odd"):
        isolated(partial(warned, "odd"), fresh=fresh)
    assert [each.getMessage() for each in caplog.records] == ["told in another process: odd"]


def test_a_signal_is_named():
    with pytest.raises(CrashedError, match="SIGKILL"):
        isolated(die)


def test_beside_torch_or_threads_calls_go_to_a_helper(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert isolated(os.getpid) != os.getpid()
    assert isolated(partial(divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        isolated(partial(divmod, 7, 0))


def test_a_crash_of_the_helper_ends_neither_it_nor_this_process(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", sys)
    with pytest.raises(CrashedError, match="SIGABRT"):
        isolated(os.abort)
    assert isolated(partial(divmod, 9, 4)) == (2, 1)


def test_what_cannot_be_sent_is_called_here(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert isolated(lambda: os.getpid()) == os.getpid()


def test_a_model_that_onnxsim_dies_of_is_pruned_as_it_is(monkeypatch):
    monkeypatch.setattr(simplify, "_rewritten", die)
    assert [node.op_type for node in graph.normalize(model(TEXT)).graph] == ["Reshape", "MatMul"]


def test_sizes_at_which_the_runtime_dies_are_passed_over(monkeypatch):
    attempt = shapes._attempt

    def fragile(session, inputs, probe, failure):
        return die() if probe["x"][1] == 13 else attempt(session, inputs, probe, failure)

    monkeypatch.setattr(shapes, "_attempt", fragile)
    assert shapes.observe(model(TEXT, {"s": [-1, 4]})).probe["x"][1] != 13


def test_a_model_that_the_runtime_dies_of_is_refused(monkeypatch):
    monkeypatch.setattr(shapes, "_instrumented_session", die)
    with pytest.raises(GraphError, match="SIGKILL"):
        shapes.observe(model(TEXT, {"s": [-1, 4]}))


@pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux")
def test_a_copy_ends_with_its_parent(tmp_path):
    script = (
        "import os, time\nfrom onnxprune.system.isolation import isolated\n"
        f"isolated(lambda: (open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())) and None, time.sleep(60)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    assert soon(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    assert soon(lambda: not is_running(child))


def test_where_the_kernel_does_not_end_a_copy_a_thread_does(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    isolation._watch(os.getpid())
    assert ended == [1]


def soon(holds, seconds=20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
