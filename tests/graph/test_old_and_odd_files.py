"""Files as some exporters write them: old ones, sparse ones, defaults of inputs, tied weights, promises not kept."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx_text import model, proto

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.graph import defaults, shapes, simplify
from onnxprune.plan import cost
from onnxprune.proof import normal_form
from onnxprune.system.memory import memory_limit

L1 = ("--method", "l1", "--no-latency")
CONV = (
    "(float[n,3,8,8] x, float[16,3,1,1] w, float[16] b, float[4,16,1,1] v) => (float[n,4,8,8] y) "
    "{ a = Conv(x, w, b) c = Relu(a) y = Conv(c, v) }"
)
GAIN = (
    "(float[n,3,8,8] x, float[16,3,1,1] w, float gain, float[4,16,1,1] v) => (float[n,4,8,8] y) "
    "{ a = Conv(x, w) c = Mul(a, gain) y = Conv(c, v) }"
)
OLD = (
    "(float[1,3,8,8] x, float[16,3,1,1] w, float[16] g, float[16] b, float[16] m, float[16] var, int64[2] s, "
    "float[10,1024] v, float[10] c) => (float[1,10] y) { a = Conv(x, w) d = BatchNormalization(a, g, b, m, var) "
    "e = Dropout<ratio = 0.5>(d) f = Reshape(e, s) y = Gemm<transB = 1>(f, v, c) }"
)
TIED = (
    "(int64[n,t] x, float[200,32] e, float[32,64] w, float[64,32] v) => (float[n,t,200] y) "
    "{ a = Gather(e, x) h = MatMul(a, w) r = Relu(h) o = MatMul(r, v) z = Add(o, a) "
    "k = Transpose<perm = [1, 0]>(e) y = MatMul(z, k) }"
)


def listed(message, *names, ir_version=9):
    """`message` with these initializers, or all of them, among its inputs."""
    for tensor in message.graph.initializer:
        if not names or tensor.name in names:
            message.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    message.ir_version = ir_version
    return message


@pytest.fixture
def saved(tmp_path):
    def save(message):
        onnx.save(message, tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return save


# IR 3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CONV, OLD], ids=["conv", "old"])
def test_a_file_whose_initializers_have_to_be_inputs_becomes_a_valid_smaller_one(cli, saved, tmp_path, text):
    """It was refused, or written as a file that checker, onnxsim and quantize_dynamic refuse."""
    out = tmp_path / "out.onnx"
    path = saved(listed(proto(text, {"s": [1, -1]}, opset=8), ir_version=3))
    assert cli(path, out, *L1, "--target", "macs=0.6").code == 0
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert [value.name for value in onnx.load(out).graph.input] == ["x"]
    assert out.stat().st_size < path.stat().st_size
    onnxsim = simplify._import_onnxsim()
    assert onnxsim.simplify(onnx.load(out))[0].graph.node


# Defaults of inputs -------------------------------------------------------------------------------------------------


def test_an_input_with_a_default_stays_one(cli, saved, tmp_path):
    """It used to vanish from the interface."""
    path, out = saved(listed(proto(GAIN, {"gain": 2.0}), "gain")), tmp_path / "out.onnx"
    plan = tmp_path / "p.json"
    assert cli(path, out, *L1, "--plan", plan).code == 0
    written = onnx.load(out)
    assert [value.name for value in written.graph.input] == ["x", "gain"]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    assert held["gain"] == 2.0
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    default, doubled = (session.run(None, {"x": x, **more})[0] for more in ({}, {"gain": np.array(4, np.float32)}))
    np.testing.assert_allclose(2 * default, doubled, rtol=1e-4, atol=1e-4)
    assert cli("verify", path, out, "--plan", plan).code == 0


def test_samples_need_not_say_what_has_a_default(cli, saved, tmp_path):
    path, data = saved(listed(proto(GAIN, {"gain": 2.0}), "gain")), tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32))
    assert cli(path, tmp_path / "out.onnx", "--method", "taylor", "--recover", "none", "--data", data).code == 0


def test_weights_that_an_exporter_lists_by_habit_are_no_interface(saved):
    loaded = graph.load(saved(listed(proto(CONV))))
    assert defaults.arrays(loaded) == {}
    assert analyze(graph.normalize(loaded)).free


def test_the_normal_form_keeps_defaults_and_its_own_hash(saved, tmp_path):
    form = graph.normalize(graph.load(saved(listed(proto(GAIN, {"gain": 2.0}), "gain"))))
    graph.save(form, tmp_path / "n.onnx")
    again = graph.normalize(graph.load(tmp_path / "n.onnx"))
    assert defaults.arrays(again) == {"gain": 2.0}
    assert graph.digest(again) == graph.digest(form)
    assert not any(value.is_initializer() for value in form.graph.inputs)  # it is back as it was


# Ties ---------------------------------------------------------------------------------------------------------------


def test_a_table_read_as_it_is_and_transposed_stays_one(cli, saved, tmp_path):
    """Folded, it was stored twice: the result was 1.77 times as large and called 0.94."""
    path, out, report = saved(proto(TIED)), tmp_path / "out.onnx", tmp_path / "r.json"
    assert cli(path, out, *L1, "--target", "params=0.6", "--report", report).code == 0
    found = json.loads(report.read_text())
    assert found["models"][0]["params"] == 200 * 32 + 2 * 32 * 64
    assert out.stat().st_size < 0.75 * path.stat().st_size
    stored = cost.stored(graph.load(out))["params"]
    assert found["models"][1]["params"] == stored <= 0.6 * found["models"][0]["params"]


def test_a_tied_table_of_integers_is_not_told_apart():
    text = (
        "(int64[n] x, int8[50,32] e, float s, int8 z) => (float[n,50] y) { g = Gather(e, x) "
        "a = DequantizeLinear(g, s, z) d = DequantizeLinear(e, s, z) k = Transpose(d) y = MatMul(a, k) }"
    )
    tables = [v for v in graph.normalize(model(text)).graph.initializers.values() if v.shape == (50, 32)]
    assert len(tables) == 1


def test_a_result_that_is_larger_is_told(cli, saved, tmp_path):
    """A few numbers of many that are stored sparse: what is read as dense is larger."""
    message, report = proto(CONV.replace("[16", "[160").replace(",16", ",160")), tmp_path / "r.json"
    message.graph.sparse_initializer.append(sparse(message, "w", keep=40))
    ran = cli(saved(message), tmp_path / "out.onnx", *L1, "--target", "macs=0.95", "--report", report)
    assert ran.code == 0
    assert "larger than the original" in ran.err
    assert any("larger than the original" in note for note in json.loads(report.read_text())["notes"])


# Sparse -------------------------------------------------------------------------------------------------------------


def sparse(message, name, keep, rows=False):
    """Initializer `name` of `message`, taken out of it, with every `keep`-th number alone."""
    tensor = next(tensor for tensor in message.graph.initializer if tensor.name == name)
    message.graph.initializer.remove(tensor)
    array = numpy_helper.to_array(tensor)
    places = np.arange(0, array.size, keep)
    indices = np.stack(np.unravel_index(places, array.shape), 1) if rows else places
    values = numpy_helper.from_array(array.ravel()[places], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64)), array.shape)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_sparse_tensors_are_read_as_dense(saved, rows, constant):
    """'reads w, which nothing produces', and 'Error calling _deserialize_graph'."""
    message = proto(CONV)
    want = numpy_helper.to_array(message.graph.initializer[0]).copy()
    want.ravel()[np.arange(want.size) % 3 != 0] = 0
    tensor = sparse(message, "w", 3, rows)
    if constant:
        message.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=tensor))
    else:
        message.graph.sparse_initializer.append(tensor)
    form = graph.normalize(graph.load(saved(message)))
    weights = [graph.array_of(value) for value in form.graph.initializers.values()]
    assert any(np.array_equal(w, want) for w in weights)
    assert analyze(form).free


def test_a_damaged_sparse_tensor_is_refused(cli, saved, tmp_path):
    message = proto(CONV)
    tensor = sparse(message, "w", 3)
    tensor.dims[0] = 2
    message.graph.sparse_initializer.append(tensor)
    ran = cli(saved(message), tmp_path / "out.onnx", *L1)
    assert ran.code == 2
    assert "sparse tensor is damaged" in ran.err


# A batch that is only promised --------------------------------------------------------------------------------------

ONE = (
    "(float[n,3,4,4] x, float[8,3,1,1] w, int64[2] s, float[10,128] v) => (float[n,10] y) "
    "{ a = Conv(x, w) b = Relu(a) f = Reshape(b, s) y = Gemm<transB = 1>(f, v) }"
)


@pytest.mark.parametrize("level", ["none", "finetune"])
def test_a_model_that_takes_one_sample_whatever_it_declares_is_run_one_by_one(cli, saved, tmp_path, level):
    path, data, report = saved(proto(ONE, {"s": [1, -1]})), tmp_path / "x.npz", tmp_path / "r.json"
    np.savez(data, x=np.random.default_rng(0).normal(size=(12, 3, 4, 4)).astype(np.float32))
    tune = ("--epochs", 1) if level == "finetune" else ()
    words = ("--method", "taylor", "--data", data, "--recover", level, *tune, "--report", report)
    ran = cli(path, tmp_path / "out.onnx", *words, "--no-latency")
    assert ran.code == 0, ran.err
    assert any("one sample at a time" in note for note in json.loads(report.read_text())["notes"])
    assert str(graph.load(tmp_path / "out.onnx").graph.inputs[0].shape[0]) == "n"


def test_samples_at_which_nothing_runs_are_refused(cli, saved, tmp_path):
    path, data = saved(proto(ONE.replace("x, float[8", "x, float[8"), {"s": [3, 128]})), tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(12, 3, 4, 4)).astype(np.float32))
    ran = cli(path, tmp_path / "out.onnx", *L1, "--data", data)
    assert ran.code == 2


# Names --------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_exactly_what_was_given_wins_over_a_pattern():
    """'L[1]' is a glob for L1, and there is a node of that name."""
    message = proto(
        CONV.replace("y = Conv(c, v)", "d = Conv(c, u) y = Conv(d, v)").replace(
            "float[4", "float[16,16,1,1] u, float[4"
        )
    )
    for node, name in zip([n for n in message.graph.node if n.op_type == "Conv"], ("L[1]", "L1", "head"), strict=True):
        node.name = name
    coupling = analyze(ir.from_proto(message))
    by_node = {
        member.node: dim for dim in coupling.free for member in coupling.members[dim] if member.role == "produces"
    }
    assert coupling.matching(["L[1]"]) == {by_node["L[1]"]}
    assert coupling.matching(["L*"]) == {by_node["L[1]"], by_node["L1"]}
    assert coupling.matching(["L[0-9]"]) == {by_node["L1"]}


# What a rewriting makes wrong ---------------------------------------------------------------------------------------


def test_the_model_as_it_came_is_tried_before_other_sizes_are(monkeypatch):
    """onnxsim folded a shape wrongly: 40 sizes up to 640 x 640 were tried, each with all values kept."""
    original = model(CONV)
    broken = model(
        CONV.replace("Relu(a)", "Reshape(a, s)").replace("float[16] b,", "float[16] b, int64[4] s,"),
        {"s": [7, 16, 9, 9]},
    )
    tried = []
    observe = shapes.observe

    def counted(form, samples=None, *, tries=None):
        tried.append((form is broken, tries))
        return observe(form, samples, tries=tries)

    monkeypatch.setattr(shapes, "observe", counted)
    form, observed = normal_form.observed_form(original, broken)
    assert form is not broken
    assert tried == [(True, normal_form.FIRST), (False, normal_form.FIRST)]
    assert observed.sizes["y"][1:] == (4, 8, 8)


def test_memory_is_bounded_and_the_bound_is_taken_back():
    with pytest.raises(MemoryError), memory_limit(100_000_000):
        np.ones(1_000_000_000, np.uint8)
    assert np.ones(300_000_000, np.uint8)[-1] == 1


def test_descriptions_of_inner_values_are_not_added_to_a_file(cli, saved, tmp_path):
    """They made small files grow."""
    path, out = saved(proto(CONV)), tmp_path / "out.onnx"
    assert not onnx.load(path).graph.value_info
    assert cli(path, out, *L1).code == 0
    assert not onnx.load(out).graph.value_info
    described = onnx.shape_inference.infer_shapes(proto(CONV))
    assert described.graph.value_info
    assert cli(saved(described), out, *L1).code == 0
    assert onnx.load(out).graph.value_info
