"""When memory runs out: smaller batches with a note, the same numbers, and in the end one clear line."""

import gc
import logging
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from networks import CNN, DIGITS, filled
from recover.recovering import digits_of, random_keep
from sklearn.datasets import load_digits

from onnxprune import graph, surgery
from onnxprune.bridge import Network
from onnxprune.errors import OutOfMemoryError
from onnxprune.graph import sessions
from onnxprune.plan.select import Selection
from onnxprune.recover.finetune import Settings, finetune
from onnxprune.system import memory
from onnxprune.system.memory import at_most, halving, out_of_memory, retrying

# As torch 2, onnxruntime 1 and numpy 2 really say it.
TORCH = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ARENA = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Tile node. Name:'' Status Message: "
    "bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 2048000000"
)
PLAIN = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : while running Tile node. Status Message: std::bad_alloc"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(TORCH),
        Exception(ARENA),
        Exception(PLAIN),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=["torch", "arena", "no arena", "numpy", "cuda"],
)
def test_every_library_is_understood(error):
    assert out_of_memory(error)
    wrapped = ValueError("something else")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped)
    assert not out_of_memory(ValueError("a good memory"))


@pytest.fixture
def nothing_collected(monkeypatch):
    """Garbage is left where it is: beside torch each search for it takes half a second, and here nothing ran out."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def test_halving_goes_down_to_one_and_says_so(caplog, nothing_collected):
    tried = []

    def work(batch):
        tried.append(batch)
        if batch > 3:
            raise RuntimeError(TORCH)
        return f"done with {batch}"

    with caplog.at_level(logging.WARNING):
        assert halving(work, 20, "here") == "done with 2"
    assert tried == [20, 10, 5, 2]
    assert "here: out of memory with a batch of 20; goes on with 10" in caplog.text
    with pytest.raises(OutOfMemoryError, match=r"here: out of memory with a batch of 1, the smallest \(\[enforce"):
        halving(lambda batch: work(9), 4, "here")
    with pytest.raises(OutOfMemoryError, match="a batch of 8, which the model is fixed to"):
        halving(work, 8, "here", fixed=True)
    with pytest.raises(ZeroDivisionError):
        halving(lambda batch: 1 // 0, 8, "here")


def test_retrying_caps_every_batch_of_a_step(nothing_collected):
    tried = []

    def step():
        tried.append((at_most(32), at_most(5)))
        if tried[-1][0] > 4:
            raise MemoryError
        return "done"

    assert retrying(step, "step") == "done"
    assert tried == [(32, 5), (16, 5), (8, 5), (4, 4)]
    assert at_most(32) == 32
    with pytest.raises(OutOfMemoryError, match="step: out of memory"):
        retrying(lambda: (_ for _ in ()).throw(MemoryError()), "step")


def limited(monkeypatch, most: int) -> None:
    """Lets both runtimes fail on more than `most` samples, in their own words."""
    run, forward = ort.InferenceSession.run, Network.forward

    def rows(feeds):
        return max((len(x) for x in feeds.values() if x.ndim), default=0)

    def limited_run(self, names, feeds, *rest):
        if rows(feeds) > most:
            raise Exception(ARENA)
        return run(self, names, feeds, *rest)

    def limited_forward(self, feeds, capture=()):
        if rows(feeds) > most:
            raise RuntimeError(TORCH)
        return forward(self, feeds, capture)

    monkeypatch.setattr(ort.InferenceSession, "run", limited_run)
    monkeypatch.setattr(Network, "forward", limited_forward)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"mixup": 0.4, "labels": 1.0}])
def test_fine_tuning_in_pieces_learns_the_same(monkeypatch, caplog, extra):
    digits = digits_of("digits.onnx")
    keep = random_keep(digits.coupling, 0.6)
    few = digits.tune.subset(np.arange(96))
    settings = Settings(epochs=2, batch_size=32, amp="off", channels_last=False, batchnorm="off", ema=0.0, **extra)
    tuned = []
    for most in (None, 9):
        cut = surgery.cut(Selection(digits.coupling, keep))
        with monkeypatch.context() as patch:
            if most:
                limited(patch, most)
            history = finetune(cut, digits.model, few, digits.held.subset(np.arange(40)), settings)
        tuned.append((history, {n: graph.array_of(v) for n, v in cut.graph.initializers.items()}))
    (one, first), (two, second) = tuned
    assert "fine-tuning, step 1: out of memory with a batch of 32; goes on with 16" in caplog.text
    assert "fine-tuning, step 2" not in caplog.text
    assert one.best_epoch == two.best_epoch > 0
    assert [e.loss for e in one.epochs] == pytest.approx([e.loss for e in two.epochs], rel=1e-4)
    for name, array in first.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(second[name], array, atol=1e-4 * max(1.0, np.abs(array).max()))


def test_a_whole_run_goes_on_with_less(cli, tmp_path, monkeypatch, nothing_collected):
    limited(monkeypatch, 8)
    digits = load_digits()
    np.savez(tmp_path / "x.npz", x=(digits.images[:200, None] / 16).astype(np.float32), y=digits.target[:200])
    words = ("--method", "taylor", "--target", "macs=0.6", "--data", tmp_path / "x.npz", "--epochs", 1, "--no-latency")
    ran = cli(DIGITS, tmp_path / "o.onnx", *words)
    assert ran.code == 0, ran.err
    for where in ("--method taylor", "pushing constants", "least squares", "fine-tuning", "the proof", "accuracy"):
        assert f"{where}" in ran.err, where
    assert "out of memory" in ran.err


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_ends_clearly(cli, tmp_path, monkeypatch, batch, nothing_collected):
    onnx.save(filled(CNN.replace("[N,", f"[{batch},")), tmp_path / "cnn.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32))
    limited(monkeypatch, batch - 1)
    ran = cli(tmp_path / "cnn.onnx", tmp_path / "o.onnx", "--data", tmp_path / "x.npz", "--no-latency")
    assert ran.code == 2
    assert f"the proof: out of memory with a batch of {batch}" in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "o.onnx").exists()


SCRIPT = """
import logging, resource, sys
import numpy as np, onnx
from onnxprune.graph import sessions
from onnxprune.outputs import metrics
from onnxprune.data.samples import ArraySamples
logging.basicConfig(level=logging.WARNING)
text = '''<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y)
<int64[2] r = {1, 1000000}, int64[3] s = {0, -1, 4}, int64[1] a = {1}>
{ t = Tile(x, r) u = Exp(t) v = Reshape(u, s) y = ReduceMean<axes = [1], keepdims = 0>(v) }'''
one, two = (sessions.open_session(onnx.parser.parse_model(text), threads=1) for _ in range(2))
x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
samples = ArraySamples({"x": x}, {"x": 0}, {"x": np.dtype(np.float32)}, 32, x.argmax(1))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))
print(metrics.evaluate(one, samples).value)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
@pytest.mark.parametrize("heaps", ["1", "4"])
def test_memory_that_really_runs_out(heaps):
    # 16 MB per sample and value: 32 samples do not fit into 400 MB, 8 do, unless failed runs leave arenas behind.
    # With one heap the C library has no second one to fall back on, and onnxruntime's arena loses what it just took.
    environment = {**os.environ, "MALLOC_ARENA_MAX": heaps}
    words = [sys.executable, "-c", SCRIPT]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) == 1.0
    assert "measuring accuracy: out of memory with a batch of 32; goes on with 16" in ran.stderr
    assert "goes on with 2" not in ran.stderr


def test_a_session_opened_again_still_has_its_weights(monkeypatch):
    monkeypatch.setattr(sessions, "LARGE_MODEL_BYTES", 1)
    monkeypatch.setattr(sessions, "SMALL_WEIGHT_BYTES", 1)
    session = sessions.open_session(ir.from_proto(filled(CNN)))
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    before = sessions.run(session, feeds)
    for _ in range(2):
        sessions._SPENT.add(session)
        gc.collect()
        after = sessions.run(session, feeds)
        assert session not in sessions._SPENT
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_step_holds_no_more_than_a_share_of_a_small_machine(monkeypatch):
    assert memory.may_hold(memory.VALUES_BYTES) <= memory.VALUES_BYTES
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1_000_000_000)
    assert memory.may_hold(memory.VALUES_BYTES) == 200_000_000
    assert memory.may_hold(1000) == 1000
