"""Models of float16: rounding that is coarser than the tolerance is no difference."""

import subprocess
import sys
from contextlib import closing

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model, proto

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.graph import extras, half, sessions
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover.refit.segments import Walk

HALF = (
    "(float16[n,3,8,8] x, float16[32,3,3,3] w, float16[32] g, float16[32] b, float16[32] m, float16[32] var, "
    "float16[32,32,3,3] u, float16[5,32,1,1] v) => (float16[n,5,p,q] y) { a = Conv(x, w) "
    "c = BatchNormalization(a, g, b, m, var) r = Relu(c) d = Conv(r, u) t = Relu(d) y = Conv(t, v) }"
)


def test_a_model_of_half_precision_with_norms_is_pruned(cli, tmp_path):
    source, out, plan = (tmp_path / name for name in ("half.onnx", "out.onnx", "plan.json"))
    onnx.save(proto(HALF), source)
    ran = cli(source, out, "--method", "l1", "--no-latency", "--target", "params=0.5", "--plan", plan)
    assert ran.code == 0, ran.err
    made = onnx.load(out)
    assert {tensor.data_type for tensor in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert cli("verify", source, out, "--plan", plan).code == 0


def test_a_widened_model_says_the_same_in_float32():
    source = model(HALF.replace("t = Relu(d)", "s = Cast<to = 1>(d) o = Cast<to = 10>(s) t = Relu(o)"))
    assert half.has_halves(source)
    single = half.single(source)
    assert not half.has_halves(single)
    assert source.graph.inputs[0].dtype == ir.DataType.FLOAT16
    assert single.graph.outputs[0].dtype == ir.DataType.FLOAT
    onnx.checker.check_model(ir.to_proto(single), full_check=True)


@pytest.mark.parametrize("wrong", [False, True])
def test_what_float16_rounds_away_is_compared_in_float32(monkeypatch, wrong):
    coupling = analyze(model(HALF))
    keep = {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    if wrong:
        value = cut.graph.initializers["u"]
        graph.set_constant(value, graph.array_of(value) * np.float16(1.01))
    run = comparison._outputs

    def outputs(what, batches, optimize=True, tried=()):
        off = 2.0 * (what.graph.inputs[0].dtype == ir.DataType.FLOAT16 and not extras.of(what).kept)
        return [{"y": y["y"] + y["y"].dtype.type(off)} for y in run(what, batches, optimize, tried)]

    monkeypatch.setattr(comparison, "_outputs", outputs)
    found = comparison.compare(cut, masked, comparison.random_feeds(coupling.model, coupling.shapes))
    assert found.ok != wrong
    assert found.note.startswith("compared in single precision: half moves 'y' by")


def test_least_squares_of_halves_are_computed_in_single_precision():
    source = model(HALF)
    feeds = [comparison.random_feeds(source, analyze(source).shapes)[0]]
    with closing(Walk(source, feeds, ["c", "t"])) as walk:
        batches = [found for name in ("c", "t") for found in walk.to([name])]
    single = half.single(source)
    session = sessions.open_session(single, extra_outputs=["c", "t"])
    wanted = sessions.run(session, half.single_feeds(feeds)[0])
    for name, values in (batches[0] | batches[1]).items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, wanted[name], atol=1e-5 * np.abs(wanted[name]).max())


CRASHING = (
    "(float16[n,6,16] x, float16[16] g, float16[16] c, float16[16,24] w, float16[24] b, float16[24,8] u) "
    "=> (float16[n,6,8] y) { a = LayerNormalization(x, g, c) t = Transpose<perm = [1, 0, 2]>(a) m = MatMul(t, w) "
    "s = Add(b, m) r = Sigmoid(s) q = MatMul(r, u) y = Transpose<perm = [1, 0, 2]>(q) }"
)


def test_a_model_that_onnxruntime_dies_of_is_refused_in_one_line(tmp_path):
    """In onnxruntime 1.31; where another version runs it, it is pruned."""
    onnx.save(proto(CRASHING), tmp_path / "half.onnx")
    words = [
        tmp_path / "half.onnx",
        tmp_path / "out.onnx",
        "--method",
        "l1",
        "--target",
        "params=0.6",
        "--no-latency",
        "-q",
    ]
    ran = subprocess.run([sys.executable, "-m", "onnxprune", *map(str, words)], capture_output=True, text=True)
    assert ran.returncode in (0, 2), ran.stderr
    if ran.returncode:
        assert "onnxruntime ends with SIGSEGV on this model; it cannot be run" in ran.stderr
        assert ran.stderr.count("\n") == 1
