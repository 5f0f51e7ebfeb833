"""What the simplifier costs before it does anything, and what becomes of a model where it fails."""

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.errors import GraphError
from onnxprune.graph import extras, sessions, shapes, simplify
from onnxprune.proof import comparison
from onnxprune.report import build

FOLDED = (
    "(float[2,4] x, float[4,8] w, int64[1] s, int64[1] t) => (float[p,q] y) "
    "{ a = MatMul(x, w) c = Concat<axis = 0>(s, t) f = Max(c, c) y = Reshape(a, f) }"
)
COUNT = """
import sys
from onnxprune.system import late
late.load_late()
from onnxprune.graph import simplify
module = simplify._import_onnxsim()
assert callable(module.simplify)
assert not {"torch", "sympy.core", "onnxsim.pruning"} & sys.modules.keys()
print(sum(name.startswith("onnxsim") for name in sys.modules))
import onnxsim.pruning, sympy
assert onnxsim.pruning.__file__ and callable(onnxsim.simplify) and sympy.Integer(2) == 2
"""


def test_a_few_modules_of_onnxsim_are_imported_and_who_wants_the_others_has_them():
    """The package imports more than a hundred modules, which took most of the time of small networks."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert 0 < int(ran.stdout) < 40


def failing_where(monkeypatch, fails):
    """onnxsim raises where `fails` of the steps that it is asked for."""
    whole = simplify._rewritten

    def rewritten(proto, skipped, steps, libraries):
        if fails(steps):
            raise RuntimeError("an assertion in a rewriting\nof a node")
        return whole(proto, skipped, steps, libraries)

    monkeypatch.setattr(simplify, "_rewritten", rewritten)


def folded():
    made = graph.normalize(model(FOLDED, {"s": [4], "t": [-1]}))
    return [node.op_type for node in made.graph], extras.of(made).notes


def test_what_onnxsim_breaks_while_it_folds_constants_is_rewritten_after_they_are_folded(monkeypatch):
    """cpubone_nano: a Pad of computed sizes became part of a Conv, what was reshaped behind it got wrong lengths."""
    failing_where(monkeypatch, lambda steps: len(steps) == 1)
    assert folded() == (["MatMul", "Reshape"], ())


def test_constants_are_folded_where_a_rewriting_of_onnxsim_fails(monkeypatch):
    failing_where(monkeypatch, lambda steps: any(rewrite for rewrite, _ in steps))
    kinds, notes = folded()
    assert kinds == ["MatMul", "Reshape"]
    told = "onnxsim's rewritings fail on this model (an assertion in a rewriting): only its constants were folded"
    assert notes == (told,)


def test_where_onnxsim_does_nothing_a_note_says_so(monkeypatch):
    failing_where(monkeypatch, lambda _: True)
    kinds, notes = folded()
    assert kinds == ["MatMul", "Concat", "Max", "Reshape"]
    assert len(notes) == 1
    assert notes[0].endswith("its constants were not folded")


def test_what_onnxruntime_does_not_load_is_not_taken_from_onnxsim():
    """It has been seen to write such nodes."""
    broken = ir.to_proto(model("(float[2,4] x, float[3,8] w) => (float[p,q] y) { y = MatMul(x, w) }"))
    with pytest.raises(GraphError, match="does not load what it makes"):
        simplify._load(broken.SerializeToString())


# Inference that raises ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_inference(monkeypatch):
    def raising(*_, **__):
        raise RuntimeError("[TypeInferenceError] of some operator")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", raising)


def told(found: ir.Model) -> list[str]:
    """The notes that `inspect` and reports show of a model."""
    return build.fallbacks(analyze(found, shapes.observe(found)))


def test_a_plain_model_whose_shapes_onnx_does_not_infer_has_a_note(no_inference):
    found = told(graph.normalize(model("(float[2,4] x, float[4,8] w) => (float[2,8] y) { y = Gemm(x, w) }")))
    assert [note.partition(" (")[0] for note in found] == [simplify.INFERENCE] * 3
    assert [note.rpartition(": ")[2] for note in found] == [
        "no types and shapes of inner values were written",
        "it was run instead, to see its shapes",
        "the types in the file were taken",
    ]


@pytest.mark.apart
def test_what_a_copy_of_the_process_notes_is_told_here(no_inference, monkeypatch):
    monkeypatch.setattr("onnxprune.system.isolation.can_copy", lambda: True)
    source = model("(float[n,4] x, float[4,8] w) => (float[n,8] y) { y = Gemm(x, w) }")
    assert shapes.observe(source).notes
    assert extras.of(source).notes == shapes.observe(source).notes


def test_a_model_that_onnx_infers_has_no_note():
    assert told(graph.normalize(model("(float[n,4] x, float[4,8] w) => (float[n,8] y) { y = Gemm(x, w) }"))) == []


def test_integer_inputs_that_a_model_does_not_take_are_noted():
    """An input that indexes a table in one place and another, shorter one where nobody sees it as an index."""
    text = (
        "(int64[2,3] x, float[50,4] t, float[2,4] u, int64[1] k) => (float[2,3,4] y) "
        "{ a = Gather(t, x) i = Mul(x, k) b = Gather(u, i) y = Add(a, b) }"
    )
    source = model(text, {"k": [1]})
    (batch,) = fed(source)
    assert batch["x"].max() == 1
    (note,) = extras.of(source).notes
    assert note.startswith("without samples 'x' is zeros and ones in the proof")
    taken = model(text.replace("float[2,4] u", "float[50,4] u"), {"k": [1]})
    (batch,) = fed(taken)
    assert batch["x"].max() == 49
    assert extras.of(taken).notes == ()


def test_an_input_that_a_model_does_not_take_leaves_the_others_as_they_are():
    source = model(
        "(int64[2,3] x, int64[2,3] xb, float[50,4] t, float[2,4] u, int64[1] k) => (float[2,3,4] y) "
        "{ a = Gather(t, x) b = Gather(t, xb) i = Mul(x, k) c = Gather(u, i) d = Add(a, b) y = Add(c, d) }",
        {"k": [1]},
    )
    (batch,) = fed(source)
    assert (batch["x"].max(), batch["xb"].max()) == (1, 49)
    assert all("'x' is" in note for note in extras.of(source).notes)


def fed(source: ir.Model) -> list[dict[str, np.ndarray]]:
    """The random inputs of a proof, on all of which the model runs."""
    feeds = comparison.random_feeds(source, shapes.observe(source))
    for batch in feeds:
        assert np.isfinite(sessions.run(sessions.open_session(source), batch)["y"]).all()
    return feeds


# Tails of models whose interface says nothing of shapes: onnx infers the first output; of the others it knows nothing.
OPEN = {
    "inferred": "y = Hardmax(c)",
    "not inferred": 'y = ai.onnx.ml.Normalizer <norm = "L1"> (c)',
    "passed on": 'd = ai.onnx.ml.Normalizer <norm = "L1"> (c) y = Identity(d) z = Identity(d)',
    "an input": "y = Hardmax(c) z = Identity(x)",
}


def without_shapes(tail: str) -> ir.Model:
    """y (and z) of x (N, 4), with a constant expression, all of them of unknown rank."""
    outputs = "y, float z" if "z =" in tail else "y"
    found = model(f"(float x, float[4,3] w) => (float {outputs}) {{ v = Add(w, w) c = MatMul(x, v) {tail} }}")
    found.opset_imports["ai.onnx.ml"] = 1
    for value in (*found.graph.inputs, *found.graph.outputs):
        value.shape = None
    return found


@pytest.mark.parametrize("tail", OPEN.values(), ids=OPEN)
def test_a_model_whose_interface_says_nothing_of_shapes_is_simplified_as_others(tail):
    """onnx's checker, which onnxsim asks first, refuses inputs and outputs without a shape."""
    source = without_shapes(tail)
    made = graph.normalize(source)
    assert extras.of(made).notes == ()
    assert "Add" not in [node.op_type for node in made.graph]  # its constants were folded
    for one, two in zip(
        (source.graph.inputs, source.graph.outputs), (made.graph.inputs, made.graph.outputs), strict=True
    ):
        assert [(v.name, v.shape, v.type) for v in two] == [(v.name, v.shape, v.type) for v in one]
    x = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    results = [sessions.run(sessions.open_session(found), x) for found in (source, made)]
    for name, wanted in results[0].items():
        np.testing.assert_allclose(results[1][name], wanted, rtol=1e-6)


def test_indices_of_nothing_keep_their_length():
    """tv_swin3d_t: onnxsim takes constants without elements for nothing in a Concat, so ScatterND got other indices."""
    text = """(float[3,4] x, float[4,6] w, int64[3] s, int64[0,2,1] e, float[0,2] u) => (float[3,6] y) {
        a = ConstantOfShape <value = int64[1] {0}> (s) i = Concat <axis = -1> (a, e)
        b = MatMul(x, w) y = ScatterND(b, i, u) }"""
    source = model(text, {"s": [0, 2, 1]})
    made = graph.normalize(source)
    assert "Concat" not in [node.op_type for node in made.graph]
    x = {"x": np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)}
    one, two = (sessions.run(sessions.open_session(found), x)["y"] for found in (source, made))
    np.testing.assert_array_equal(one, two)


DECIDED = """(float[2,4] x, float[4,8] w, int64[2] s) => (float[2,8] y) {
    a = MatMul(x, w) n = Size(s) two = Constant <value = int64 {2}> () c = Equal(n, two)
    y = If (c) <then_branch = t () => (float[2,8] u) { u = Relu(a) },
        else_branch = e () => (float[2,8] v) { v = Neg(a) }>
}"""


def test_what_fails_in_front_of_an_if_that_is_decided_is_no_lesser_way(monkeypatch):
    """akiki-vad: onnxsim cannot rewrite its If; once the constants are folded there is none, and all is rewritten."""
    whole = simplify._rewritten

    def rewritten(given, skipped, steps, libraries):
        kinds = {node.op_type for node in onnx.ModelProto.FromString(given).graph.node}
        if "If" in kinds and any(rewrite for rewrite, _ in steps):
            raise RuntimeError("an assertion")
        return whole(given, skipped, steps, libraries)

    monkeypatch.setattr(simplify, "_rewritten", rewritten)
    made = graph.normalize(model(DECIDED, {"s": [3, 1]}))
    assert [node.op_type for node in made.graph] == ["MatMul", "Relu"]
    assert extras.of(made).notes == ()
