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
from onnxprune.errors import GraphError
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


MLP = "a = MatMul(x1, w) c = Add(a, b) r = Relu(c) o = MatMul(r, v) y1 = Mul(o, s)"
WEIGHTS = "{0}[16,32] w, {0}[32] b, {0}[32,8] v, {0}[8] s"
CONV = (
    "(double[n,3,8,8] x, double[16,3,3,3] w, double[16] b, double[16,16,1,1] u, double[16,5] v) => (double[n,5] y) "
    "{ a = Conv(x, w, b) r = Relu(a) c = Conv(r, u) p = GlobalAveragePool(c) f = Flatten(p) y = MatMul(f, v) }"
)
ENDS = "(bfloat16[n,16] x, {}) => (bfloat16[n,8] y) {{ {} {} {} }}"
# Models that onnxruntime has no kernels for, or no arrays, as they are stored.
WITHOUT_KERNELS = {
    "bfloat16": ENDS.format(WEIGHTS.format("bfloat16"), "x1 = Identity(x)", MLP, "y = Identity(y1)"),
    "bfloat16 at the ends": ENDS.format(WEIGHTS.format("float"), "x1 = Cast<to = 1>(x)", MLP, "y = Cast<to = 16>(y1)"),
    "bfloat16 inside": f"(float[n,16] x, {WEIGHTS.format('bfloat16')}) => (float[n,8] y) "
    f"{{ x1 = Cast<to = 16>(x) {MLP} y = Cast<to = 1>(y1) }}",
    "double": CONV,
}


@pytest.mark.parametrize("kind", WITHOUT_KERNELS)
def test_a_model_in_a_precision_without_kernels_is_pruned_and_proven(kind, cli, tmp_path):
    source, out, plan = (tmp_path / name for name in ("wide.onnx", "out.onnx", "plan.json"))
    given = proto(WITHOUT_KERNELS[kind])
    onnx.save(given, source)
    ran = cli(source, out, "--method", "l1", "--no-latency", "--target", "params=0.6", "--plan", plan)
    assert ran.code == 0, ran.err
    assert "in single precision" in ran.err
    made = onnx.load(out)
    assert {tensor.data_type for tensor in made.graph.initializer} <= {t.data_type for t in given.graph.initializer}
    assert made.graph.input[0] == given.graph.input[0]
    assert cli("verify", source, out, "--plan", plan).code == 0
    tensor = next(tensor for tensor in made.graph.initializer if len(tensor.dims) > 1)
    array = onnx.numpy_helper.to_array(tensor) * np.float64(1.25)
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(array.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)), tensor.name)
    )
    onnx.save(made, out)
    assert cli("verify", source, out, "--plan", plan).code == 3


@pytest.mark.parametrize("kind", ["bfloat16", "double"])
def test_a_model_in_a_precision_without_kernels_is_recovered(kind, cli, tmp_path):
    source, out, plan, data = (tmp_path / name for name in ("wide.onnx", "out.onnx", "plan.json", "data.npz"))
    onnx.save(proto(WITHOUT_KERNELS[kind]), source)
    shape = (24, 16) if kind == "bfloat16" else (24, 3, 8, 8)
    np.savez(data, x=np.random.default_rng(0).normal(size=shape).astype(np.float32))
    words = ("--method", "l1", "--allocate", "uniform", "--recover", "reconstruct", "--no-latency", "--data", data)
    ran = cli(source, out, *words, "--target", "params=0.6", "--plan", plan)
    assert ran.code == 0, ran.err
    assert "then stopped" not in ran.err
    assert cli("verify", source, out, "--plan", plan).code == 0


def test_time_is_not_taken_of_a_model_that_does_not_run_as_it_is_stored():
    source = model(WITHOUT_KERNELS["double"])
    assert sessions.open_session(source).get_inputs()[0].type == "tensor(float)"
    with pytest.raises(GraphError, match="NOT_IMPLEMENTED"):
        sessions.open_session(source, as_stored=True)


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
