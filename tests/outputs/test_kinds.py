"""What an output is: from what stands at its end, from samples, and what was taken for something else before."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model

from onnxprune.data.samples import ArraySamples
from onnxprune.errors import UsageError
from onnxprune.outputs import kinds
from onnxprune.outputs.describe import describe
from onnxprune.outputs.kinds import Part

HEAD = "(float[N,3,8,8] x, float[6,3,3,3] w, float[6] b, float[4,6,1,1] wb, float[4] bb, float[2,6,1,1] ws, float[2] bs"
BODY = "f = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu(f) boxes = Conv(r, wb, bb) raw = Conv(r, ws, bs) s = Sigmoid(raw)"


def samples(count=24, seed=0, **arrays):
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=(count, *shape)).astype(np.float32) for name, shape in arrays.items()}
    return ArraySamples(found, dict.fromkeys(found, 0), {name: a.dtype for name, a in found.items()}, count, None)


def only(net, given=None, **options):
    (entry,) = describe(net, given, **options).entries
    return entry


# By the graph


def test_a_row_of_numbers_behind_gemm_is_class_scores_along_axis_1():
    entry = only(model("(float[N,5] x, float[5,4] w, float[4] b) => (float[N,4] y) { y = Gemm(x, w, b) }"))
    assert (entry.kind, entry.axis, entry.parts[0].form) == ("classes", 1, "logits")
    assert "Gemm" in entry.reason


def test_softmax_says_along_which_axis_classes_stand_and_a_transpose_moves_it():
    text = """(float[N,6,5] x, float[5,4] w) => (float[N,4,6] y)
      { a = MatMul(x, w) s = Softmax <axis=-1> (a) y = Transpose <perm=[0,2,1]> (s) }"""
    entry = only(model(text))
    assert (entry.kind, entry.axis, entry.parts[0].form) == ("sequence", 1, "probabilities")


def test_time_steps_taken_for_classes():
    """(N, T, C) of text recognition: axis 1 holds places, not classes."""
    text = "(float[N,7,5] x, float[5,4] w, float[4] b) => (float[N,7,4] y) { a = MatMul(x, w) y = Add(a, b) }"
    entry = only(model(text))
    assert (entry.kind, entry.axis) == ("sequence", 2)


def test_argmax_on_a_box_coordinate():
    """Concat of 4 box rows and class scores, as raw YOLO heads: two parts, of which only one holds class scores."""
    text = HEAD + ") => (float[N,6,64] y) { " + BODY
    text += " j = Concat <axis=1> (boxes, s) y = Flatten2(j) }"
    text = text.replace("y = Flatten2(j)", "y = Reshape(j, shape)").replace(
        ") => (float[N,6,64]", ", int64[3] shape) => (float[N,6,64]"
    )
    entry = only(model(text, {"shape": [0, 6, 64]}))
    assert entry.kind == "joint"
    assert entry.axis == 1
    assert [(p.kind, p.along, p.start, p.stop) for p in entry.parts] == [("boxes", 1, 0, 4), ("scores", 1, 4, 6)]
    y = np.arange(2 * 6 * 64).reshape(2, 6, 64)
    assert entry.parts[1].of(y).shape == (2, 2, 64)


def test_a_joint_output_keeps_its_parts_when_levels_are_joined_and_axes_turned():
    text = HEAD + ", int64[3] shape) => (float[N,128,6] y) { " + BODY
    text += " j = Concat <axis=1> (boxes, s) k = Reshape(j, shape) l = Concat <axis=1> (boxes, s) m = Reshape(l, shape)"
    text += " n = Concat <axis=2> (k, m) y = Transpose <perm=[0,2,1]> (n) }"
    entry = only(model(text, {"shape": [0, 6, 64]}))
    assert [(p.kind, p.along, p.start, p.stop) for p in entry.parts] == [("boxes", 2, 0, 4), ("scores", 2, 4, 6)]


def test_a_concat_of_equal_parts_is_no_joint_output():
    text = "(float[N,5] x, float[5,3] w, float[5,4] v) => (float[N,7] y)"
    text += " { a = MatMul(x, w) b = MatMul(x, v) y = Concat <axis=1> (a, b) }"
    assert only(model(text)).kind != "joint"


def test_numbers_beside_class_probabilities_are_no_classes():
    """Landmarks and box offsets of small face networks stand beside a Softmax."""
    text = """(float[N,5] x, float[5,2] w, float[5,4] v, float[5,10] u, float[10] b) =>
      (float[N,2] p, float[N,4] q, float[N,10] r) { a = MatMul(x, w) p = Softmax(a) q = MatMul(x, v)
       r = Gemm(x, u, b) }"""
    assert [entry.kind for entry in describe(model(text)).entries] == ["classes", "boxes", "signal"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = LayerNormalization <axis=-1> (f, one)", "embedding"),
        ("y = Relu(f)", "embedding"),
        ("y = Sigmoid(f)", "scores"),
        ("y = LogSoftmax <axis=1> (f)", "classes"),
    ],
)
def test_what_ends_a_row_of_numbers_tells_its_kind(body, kind):
    text = "(float[N,5] x, float[5,4] w, float[4] b, float[4] one) => (float[N,4] y) { f = Gemm(x, w, b) " + body + " }"
    assert only(model(text)).kind == kind


def test_a_mean_of_probabilities_over_time_is_a_score():
    """Silero VAD takes a mean of one Sigmoid, and was compared as a signal whose errors have no bound."""
    text = """(float[N,7,5] x, float[5,1] w, int64[1] last, int64[1] one) => (float[N,1] y)
      { a = MatMul(x, w) s = Sigmoid(a) t = Squeeze(s, last) m = ReduceMean<keepdims=0>(t, one)
        y = Unsqueeze(m, one) }"""
    entry = only(model(text, {"last": [-1], "one": [1]}))
    assert entry.kind == "scores"


def test_a_map_of_scores_is_a_segmentation_and_a_picture_is_a_signal():
    text = "(float[N,3,8,8] x, float[{c},3,1,1] w) => (float[N,{c},8,8] y) {{ y = Conv(x, w) }}"
    assert only(model(text.format(c=5))).kind == "segmentation"
    assert only(model(text.format(c=3))).kind == "signal"


# Decisions


@pytest.mark.parametrize(
    ("body", "result", "on"),
    [
        ("y = ArgMax <axis=1, keepdims=0> (l)", "int64[N]", [("l", "classes", 1)]),
        ("a = ArgMax <axis=1, keepdims=0> (l) y = Cast <to=1> (a)", "float[N]", [("l", "classes", 1)]),
        ("p, q = TopK (l, k) y = Identity(q)", "int64[N,2]", [("l", "classes", 1)]),
        ("y, q = TopK (l, k)", "float[N,2]", [("l", "classes", 1)]),
        ("y = Greater(l, t)", "bool[N,4]", [("l", "classes", 1)]),
    ],
)
def test_decisions_are_looked_through(body, result, on):
    text = (
        f"(float[N,5] x, float[5,4] w, float[4] b, int64[1] k, float t) => ({result} y) {{ l = Gemm(x, w, b) {body} }}"
    )
    entry = only(model(text, {"k": [2], "t": 0.25}))
    assert entry.kind == "decision"
    assert [(p.value, p.kind, p.axis) for p in entry.parts] == on
    assert entry.decides_on == ("l",)


NMS = (
    HEAD
    + """, int64[3] s4, int64[3] s2, int64[1] most, float[1] iou) => (int64[M,3] y) {"""
    + BODY
    + """
  b4 = Reshape(boxes, s4) bt = Transpose <perm=[0,2,1]> (b4) s3 = Reshape(s, s2)
  y = NonMaxSuppression(bt, s3, most, iou) }"""
)
NMS_SIZES = {"s4": [0, 4, 64], "s2": [0, 2, 64], "most": [5], "iou": [0.5]}


def test_non_max_suppression_is_looked_through_to_boxes_and_scores():
    found = describe(model(NMS, NMS_SIZES), samples(4, x=(3, 8, 8)))
    assert found.parts == (Part("bt", "boxes", 2, form="corners"), Part("s3", "scores", 1))
    assert found.inner == ("bt", "s3")


def test_boxes_gathered_by_what_was_selected_are_a_decision():
    text = NMS.replace("(int64[M,3] y)", "(float[M,4] y)").replace("y = NonMaxSuppression", "n = NonMaxSuppression")
    text = text.replace(" }", " g = Gather <axis=1> (n, c) y = GatherND (bt, g) }").replace(
        "float[1] iou)", "float[1] iou, int64[2] c)"
    )
    entry = only(model(text, {**NMS_SIZES, "c": [0, 2]}))
    assert entry.kind == "decision"
    assert [p.kind for p in entry.parts] == ["boxes", "scores"]


# States, copies, constants


def test_a_recurrent_state_is_told_from_the_answer():
    text = """(float[1,1,6] x, float[1,1,5] xh, float[1,15,6] w, float[1,15,5] r, int64[1] at) =>
      (float[1,1,5] y, float[1,1,5] h)
      { a, h = GRU <hidden_size=5> (x, w, r, , , xh) y = Squeeze(a, at) }"""
    found = describe(model(text, {"at": [1]}))
    assert [entry.kind for entry in found.entries] == ["signal", "state"]
    assert [part.value for part in found.parts] == ["y"]
    assert [part.value for part in found.learned] == ["y", "h"]


def test_states_are_known_by_names_that_belong_together():
    text = """(float[1,4] x, float[1,4] x1i, float[4,4] w) => (float[1,4] y, float[1,4] x1o)
      { a = Add(x, x1i) x1o = MatMul(a, w) y = Relu(x1o) }"""
    assert [entry.kind for entry in describe(model(text)).entries] == ["embedding", "state"]


def test_token_ids_taken_for_answers():
    """Inputs that are passed through say nothing about the model, and are not what it is scored by."""
    text = """(int64[N,6] x, float[20,4] table, float[4] one) => (int64[N,6] ids, float[N,6,4] y)
      { ids = Identity(x) e = Gather(table, x) y = LayerNormalization <axis=-1> (e, one) }"""
    found = describe(model(text))
    assert [entry.kind for entry in found.entries] == ["pass-through", "embedding"]
    assert [part.value for part in found.parts] == ["y"]


def test_a_float_copy_of_an_input_is_known_by_its_numbers():
    text = "(float[N,4] x, float[4,4] w, float one) => (float[N,4] y, float[N,4] same)"
    text += " { y = MatMul(x, w) same = Mul(x, one) }"
    net = model(text, {"one": 1.0})
    assert [e.kind for e in describe(net, samples(x=(4,))).entries] == ["classes", "pass-through"]
    assert describe(net).entries[1].kind != "pass-through"


def test_what_is_the_same_for_every_sample_is_left_out():
    text = "(float[N,4] x, float[4,4] w, float[N0,2] x0) => (float[N,4] y, float[2,2] c)"
    text += " { y = MatMul(x, w) c = Identity(k) }"
    text = text.replace(", float[N0,2] x0", ", float[2,2] k")
    found = describe(model(text), samples(x=(4,)))
    assert [e.kind for e in found.entries] == ["classes", "constant"]
    assert [p.value for p in found.parts] == ["y"]


# By samples


def test_numbers_that_sum_to_one_are_probabilities_whatever_made_them():
    text = """(float[N,6,4] x, int64[1] last) => (float[N,6,4] y)
      { e = Exp(x) s = ReduceSum <keepdims=1> (e, last) y = Div(e, s) }"""
    entry = only(model(text, {"last": [2]}), samples(x=(6, 4)))
    assert (entry.kind, entry.axis, entry.parts[0].form) == ("sequence", 2, "probabilities")
    assert "sum to 1" in entry.reason


def test_vectors_of_length_one_are_an_embedding():
    text = "(float[N,6] x, float[6,8] w) => (float[N,8] y)"
    text += " { a = MatMul(x, w) n = ReduceL2 <keepdims=1> (a, last) y = Div(a, n) }"
    net = model(text.replace("w)", "w, int64[1] last)", 1), {"last": [1]})
    assert only(net, samples(x=(6,))).kind == "embedding"


def test_a_row_whose_largest_number_never_moves_chooses_nothing():
    text = "(float[N,6] x, float[6,8] w, float[8] b) => (float[N,8] y) { y = Gemm(x, w, b) }"
    net = model(text)
    ir_bias = net.graph.initializers["b"]
    ir_bias.const_value = ir.tensor(np.arange(8, dtype=np.float32) * 100, name="b")
    assert only(net, samples(x=(6,))).kind == "signal"
    assert only(net).kind == "classes"


def test_pixels_before_scores_are_told_apart_without_a_concat():
    text = "(float[N,6,9] x, float[1,6,1] scale) => (float[N,6,9] y) { s = Sigmoid(x) y = Mul(s, scale) }"
    net = model(text)
    net.graph.initializers["scale"].const_value = ir.tensor(
        np.array([640, 640, 640, 640, 1, 1], np.float32).reshape(1, 6, 1), name="scale"
    )
    entry = only(net, samples(x=(6, 9)))
    assert [(p.kind, p.along, p.start, p.stop) for p in entry.parts] == [("boxes", 1, 0, 4), ("scores", 1, 4, 6)]


# What the user says


GEMM = "(float[N,5] x, float[5,4] w, float[4] b) => (float[N,4] y) { y = Gemm(x, w, b) }"


def test_what_the_user_says_holds():
    entry = only(model(GEMM), overrides={"y": "embedding"})
    assert (entry.kind, entry.axis, entry.given) == ("embedding", 1, True)
    assert only(model(GEMM), overrides={"y": "signal"}).parts == (Part("y", "signal"),)
    assert only(model(GEMM), overrides={"y": "classes:-1"}).axis == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"z": "classes"}, "no output 'z'; it has y"),
        ({"y": "class"}, "'class' is no kind"),
        ({"y": "joint"}, "'joint' is no kind that can be given"),
        ({"y": "classes:one"}, "the axis 'one' is no whole number"),
        ({"y": "classes:2"}, "the output has 2 axes"),
    ],
)
def test_wrong_overrides_are_one_clear_line(given, said):
    with pytest.raises(UsageError, match=said) as error:
        describe(model(GEMM), overrides=given)
    assert "\n" not in str(error.value)


def test_inspect_prints_what_outputs_are_and_takes_an_override(cli, cnn_path, tmp_path):
    plain = json.loads(cli("inspect", cnn_path, "--json").out)
    name = plain["outputs"][0]["name"]
    assert plain["outputs"][0]["kind"] == "classes"
    assert plain["outputs"][0]["reason"]
    ran = cli("inspect", cnn_path, "--output", f"{name}=embedding")
    assert ran.code == 0
    assert "embedding, axis 1" in ran.out
    wrong = cli("inspect", cnn_path, "--output", f"{name}=nothing")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)


def test_the_report_repeats_what_outputs_are_and_toml_overrides_it(cli, cnn_path, tmp_path):
    name = onnx.load(cnn_path).graph.output[0].name
    config = tmp_path / "o.toml"
    config.write_text(
        f'output = {{"{name}" = "signal"}}\ntarget = {{macs = 0.7}}\nmethod = "l1"\nlatency = false\n'.replace(
            "latency = false\n", ""
        )
    )
    reports = [tmp_path / f"r.{suffix}" for suffix in ("json", "md", "html")]
    words = [word for path in reports for word in ("--report", path)]
    ran = cli(cnn_path, tmp_path / "o.onnx", "--config", config, "--no-latency", *words)
    assert ran.code == 0, ran.err
    (entry,) = json.loads(reports[0].read_text())["outputs"]
    assert (entry["name"], entry["kind"], entry["given"]) == (name, "signal", True)
    assert all("said by --output" in path.read_text() for path in reports[1:])


def test_kinds_are_the_words_that_the_command_line_lists(cli):
    said = cli("-h").out
    assert all(kind in said for kind in kinds.KINDS if kind not in (kinds.JOINT, kinds.DECISION))
