"""The normal form computes what the model does, or the model is pruned without rewritings, or it is refused."""

import json
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import CNN, filled
from onnx_text import model, proto

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.errors import GraphError, VerificationError
from onnxprune.graph import extras, shapes, simplify
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, normal_form
from onnxprune.system.isolation import CrashedError

TEXT = "(float[n,4] x, float[4,8] w, float[8,5] v) => (float[n,5] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"


def spoiled(original: ir.Model) -> ir.Model:
    """A normal form of `original` that computes something else."""
    wrong = graph.normalize(original)
    value = wrong.graph.initializers["w"]
    graph.set_constant(value, graph.array_of(value) + np.float32(0.1))
    return wrong


def test_a_normal_form_that_holds_is_taken():
    original = model(TEXT)
    found = graph.normalize(original)
    assert normal_form.proven(original, found, shapes.observe(found))[0] is found


def test_a_rewriting_that_changes_the_numbers_is_not_used():
    original = model(TEXT)
    wrong = spoiled(original)
    found, observed = normal_form.proven(original, wrong, shapes.observe(wrong))
    assert found is not wrong
    assert np.array_equal(
        graph.array_of(found.graph.initializers["w"]), graph.array_of(original.graph.initializers["w"])
    )
    assert observed.sizes["a"][1] == 8


def test_a_model_whose_every_normal_form_differs_is_refused(monkeypatch):
    original = model(TEXT)
    wrong = spoiled(original)
    monkeypatch.setattr(graph, "normalize", lambda *_, **__: wrong)
    with pytest.raises(VerificationError, match=r"normal form differs .* nothing was written"):
        normal_form.proven(original, wrong, shapes.observe(wrong))


def test_a_model_that_runs_only_in_its_normal_form_is_not_compared(monkeypatch):
    original = model(TEXT)
    found = graph.normalize(original)

    def refuse(*_, **__):
        raise GraphError("onnxruntime refuses the model")

    observed = shapes.observe(found)
    monkeypatch.setattr(normal_form.comparison, "compare", refuse)
    monkeypatch.setattr(normal_form.sessions, "open_session", refuse)
    assert normal_form.proven(original, found, observed)[0] is found
    assert "was not compared with the model as it was given" in extras.of(found).notes[0]


def test_a_normal_form_that_alone_does_not_run_is_not_used(monkeypatch):
    """As onnxsim leaves Swin3D: of three empty tensors that are joined it keeps one."""
    original = model(TEXT)
    broken = graph.normalize(original)
    observed = shapes.observe(broken)
    graph.set_constant(broken.graph.initializers["w"], np.ones((4, 7), np.float32))
    found, _ = normal_form.proven(original, broken, observed)
    assert found is not broken
    monkeypatch.setattr(graph, "normalize", lambda *_, **__: broken)
    with pytest.raises(GraphError, match="onnxruntime"):
        normal_form.proven(original, broken, observed)


def test_a_normal_form_that_runs_at_no_size_is_not_used():
    original = model(TEXT)
    broken = graph.normalize(original)
    graph.set_constant(broken.graph.initializers["v"], np.ones((7, 5), np.float32))
    broken.graph.append(ir.node("Reshape", [broken.graph.outputs[0], ir.val("missing")], name="r"))
    broken.graph.sort()
    found, observed = normal_form.observed_form(original, broken)
    assert found is not broken
    assert observed.sizes["a"][1] == 8


def test_shapes_of_the_trace_that_an_exporter_left_inside_are_not_believed():
    """As torch leaves them behind an LSTM: 9 steps, though the input takes any number; onnxsim made them constants."""
    given = proto(
        "(float[n,t,4] x, float[4,8] w) => (float[n,t,8] y) <float[n,9,8] a, float[n,9,8] b> "
        "{ a = MatMul(x, w) b = com.microsoft.QuickGelu(a) y = Tanh(b) }"
    )
    assert len(given.graph.value_info) == 2
    simplify._forget_inferable(given)
    assert [value.name for value in given.graph.value_info] == ["b"]  # nothing else says what it is


def test_large_weights_are_shown_to_onnxsim_only_where_it_computes_with_them():
    text = (
        "(float[n,64] x, float[64,64] w, float[64,64] v) => (float[n,64] y) "
        "{ a = MatMul(x, w) t = Transpose<perm = [1, 0]>(v) y = MatMul(a, t) }"
    )
    source = model(text)
    assert simplify._folded_away(source) == {"v"}
    proto, hidden = simplify.skeleton(source, shown={"v"})
    assert set(hidden) == {"w"}
    assert [tensor.name for tensor in proto.graph.initializer] == ["v"]
    found = graph.normalize(source)
    assert [node.op_type for node in found.graph] == ["MatMul", "MatMul"]
    assert np.array_equal(graph.array_of(found.graph.initializers["w"]), graph.array_of(source.graph.initializers["w"]))


CONVS = (
    "(float[n,3,8,8] x, float[16,3,3,3] w, float[16] b, float[5,16,1,1] v) => (float[n,5,6,6] y) "
    "{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }"
)


def test_a_plain_network_needs_no_onnxsim(monkeypatch):
    monkeypatch.setattr(graph, "simplify", lambda *_, **__: pytest.fail("onnxsim was called"))
    found = graph.normalize(model(CONVS))
    assert [str(value.shape) for node in found.graph for value in node.outputs] == [
        "[n,16,6,6]",
        "[n,16,6,6]",
        "[n,5,6,6]",
    ]
    assert graph.digest(graph.normalize(found)) == graph.digest(found)


def test_a_constant_expression_needs_onnxsim():
    assert simplify.is_plain(model(CONVS))
    assert not simplify.is_plain(model(CONVS.replace("Relu(a)", "Identity(a)")))
    computed = CONVS.replace("float[16] b", "float[16] b0, float[16] b1").replace("{ a", "{ b = Add(b0, b1) a")
    assert not simplify.is_plain(model(computed))
    assert [node.op_type for node in graph.normalize(model(computed)).graph] == ["Conv", "Relu", "Conv"]


@pytest.mark.parametrize("breaks", ["numbers", "the model"])
def test_what_onnxsim_spoils_at_the_end_is_written_without_it(cli, tmp_path, monkeypatch, breaks):
    onnx.save(filled(CNN), tmp_path / "cnn.onnx")
    finish = graph.finish

    def spoiling(source: ir.Model, *, rewrite: bool = True, join: bool = True) -> ir.Model:
        found = finish(source, rewrite=rewrite, join=join)
        weight = found.graph.initializers["w5"]
        array = graph.array_of(weight)
        if rewrite:
            graph.set_constant(weight, array + np.float32(0.5) if breaks == "numbers" else array[:, 1:])
        return found

    monkeypatch.setattr(graph, "finish", spoiling)
    ran = cli(
        tmp_path / "cnn.onnx", tmp_path / "o.onnx", "--method", "l1", "--target", "macs=0.6", "--no-latency", "-v"
    )
    assert ran.code == 0, ran.err
    assert "written without its rewritings" in ran.err
    assert "cut = mask" in ran.out


def test_a_model_that_onnxruntime_does_not_run_says_so_in_inspect_and_report(cli, tmp_path):
    """An operator that it does not know, in a place that nothing needs: the normal form is without it."""
    odd = filled(CNN)
    odd.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))
    odd.graph.node.append(onnx.helper.make_node("Mystery", ["x"], ["unused"], domain="my.domain", name="mystery"))
    onnx.save(odd, tmp_path / "odd.onnx")
    inspected = json.loads(cli("inspect", tmp_path / "odd.onnx", "--json").out)
    assert any("was not compared" in note for note in inspected["notes"])
    report = tmp_path / "r.json"
    words = ("--method", "l1", "--target", "macs=0.6", "--no-latency", "--report", report)
    assert cli(tmp_path / "odd.onnx", tmp_path / "o.onnx", *words).code == 0
    assert any("was not compared" in note for note in json.loads(report.read_text())["notes"])


def test_a_model_without_fallbacks_has_no_notes(cli, tmp_path):
    onnx.save(filled(CNN), tmp_path / "cnn.onnx")
    assert json.loads(cli("inspect", tmp_path / "cnn.onnx", "--json").out)["notes"] == []


def test_what_a_native_library_dies_of_is_written_without_it(cli, tmp_path, monkeypatch):
    """After hours of tuning nothing is lost: the file is made again without onnxsim's rewritings, and says so."""
    onnx.save(filled(CNN), tmp_path / "cnn.onnx")
    calls = []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise CrashedError("SIGSEGV")
        return whole(*arguments)

    whole = comparison.compare_file
    monkeypatch.setattr(comparison, "compare_file", dying)
    ran = cli(tmp_path / "cnn.onnx", tmp_path / "o.onnx", "--method", "l1", "--target", "macs=0.6", "--no-latency")
    assert ran.code == 0, ran.err
    assert "onnxruntime ends with SIGSEGV on what onnxsim makes of this model" in ran.err
    assert (tmp_path / "o.onnx").exists()


def test_the_file_that_was_proven_is_the_one_that_is_written(cli, tmp_path, monkeypatch):
    onnx.save(filled(CNN), tmp_path / "cnn.onnx")
    proven = []
    whole = comparison.compare_file

    def seen(file, *rest):
        proven.append(file.read_bytes())
        return whole(file, *rest)

    monkeypatch.setattr(comparison, "compare_file", seen)
    out = tmp_path / "o.onnx"
    assert cli(tmp_path / "cnn.onnx", out, "--method", "l1", "--target", "macs=0.6", "--no-latency").code == 0
    assert out.read_bytes() == proven[-1]


def test_a_file_is_proven_beside_torch_too(tmp_path):
    coupling = analyze(model(TEXT))
    keep = {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    feeds = comparison.random_feeds(coupling.model, coupling.shapes)
    import torch  # noqa: F401

    assert "torch" in sys.modules
    graph.save(cut, tmp_path / "cut.onnx")
    assert comparison.compare_file(tmp_path / "cut.onnx", masked, feeds).ok
    value = cut.graph.initializers["v"]
    graph.set_constant(value, graph.array_of(value) * 2)
    graph.save(cut, tmp_path / "cut.onnx")
    assert not comparison.compare_file(tmp_path / "cut.onnx", masked, feeds).ok
