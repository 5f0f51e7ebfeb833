"""A model run piece by piece gives what it gives in one piece."""

from contextlib import closing

import numpy as np
import pytest
from onnx_text import model as text_model

from onnxprune import graph
from onnxprune.graph import sessions
from onnxprune.recover.refit import segments
from onnxprune.recover.refit.segments import Walk
from onnxprune.system import memory

BRANCHES = (
    "(float[N,3,6,6] x, float[4,3,3,3] w, float[4,4,3,3] v, float[2,4,1,1] u) => (float[N,2,6,6] y)"
    "{ a = Conv<pads = [1,1,1,1]>(x, w) r = Relu(a) b = Conv<pads = [1,1,1,1]>(r, v) s = Add(r, b) z = Sigmoid(a)"
    "  t = Mul(s, z) y = Conv(t, u) }"
)


def _feeds(count: int = 3):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(2, 3, 6, 6)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_pieces_give_what_the_whole_gives(share: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "SHARE", share * memory.SHARE)
    model, feeds = text_model(BRANCHES), _feeds()
    names = ["r", "b", "s", "t", "y"]
    session = sessions.open_session(model, extra_outputs=names, threads=1)
    whole = [sessions.run(session, batch) for batch in feeds]
    with closing(Walk(model, feeds, names)) as walk:
        for wanted in (["r"], ["r", "b"], ["s"], ["t", "y"]):
            for got, expected in zip(walk.to(wanted), whole, strict=True):
                for name in wanted:
                    assert np.allclose(got[name], expected[name], atol=1e-5), name


def test_memory_does_not_grow_with_that_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    """Each walk held a fifth of the machine's memory: 6.5 GB for a model of 10 MB and 200 samples."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10**15)
    monkeypatch.setattr(segments, "VALUES_BYTES", 5_000)
    with closing(Walk(text_model(BRANCHES), _feeds(8), ["y"])) as walk:
        list(walk.to(["b"]))
        assert walk.shelf.bytes <= 5_000
        assert len(walk.shelf.files) > 8
        assert sum(array.nbytes for array in walk.shelf.arrays.values()) > 5_000


def test_a_value_that_is_asked_for_later_is_kept():
    model, feeds = text_model(BRANCHES), _feeds()
    names = ["s", "b", "s"]
    whole = [sessions.run(sessions.open_session(model, extra_outputs=names[:2], threads=1), batch) for batch in feeds]
    with closing(Walk(model, feeds, names)) as walk:
        for wanted in (["s"], ["b", "s"]):
            for got, expected in zip(walk.to(wanted), whole, strict=True):
                assert all(np.allclose(got[name], expected[name], atol=1e-5) for name in wanted)


def test_every_node_runs_once_and_dead_values_are_forgotten():
    model = text_model(BRANCHES)
    with closing(Walk(model, _feeds(), ["y"])) as walk:
        list(walk.to(["b"]))
        assert walk.shelf.names == {"a", "r", "b"}
        list(walk.to(["t"]))
        assert walk.shelf.names == {"t"}


def test_a_walk_sees_weights_that_changed_behind_it():
    model, feeds = text_model(BRANCHES), _feeds(1)
    with closing(Walk(model, feeds, ["y"])) as walk:
        list(walk.to(["t"]))
        u = model.graph.initializers["u"]
        graph.set_constant(u, 2 * graph.array_of(u))
        (got,) = walk.to(["y"])
    wanted = sessions.run(sessions.open_session(model, threads=1), feeds[0])["y"]
    assert np.allclose(got["y"], wanted, atol=1e-5)


def test_values_that_subgraphs_capture_are_read():
    text = (
        "(float[N,3] x, float[3,3] w, bool c) => (float[N,3] y) { a = MatMul(x, w) b = Relu(a)"
        " y = If(c)<then_branch = t () => (float[N,3] p) { p = Add(a, b) },"
        " else_branch = e () => (float[N,3] q) { q = Sub(a, b) }> }"
    )
    model = text_model(text, {"c": True})
    feeds = [{"x": np.ones((2, 3), np.float32)}]
    with closing(Walk(model, feeds, ["y"])) as walk:
        list(walk.to(["b"]))
        (got,) = walk.to(["y"])
    assert np.allclose(got["y"], sessions.run(sessions.open_session(model, threads=1), feeds[0])["y"])
