"""Outputs that were taken for something else: by their axes, their shapes, their names and the outputs beside them."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx_text import model, proto

import onnxprune
from onnxprune.data.samples import ArraySamples
from onnxprune.outputs import accuracies, answers, parts
from onnxprune.outputs.describe import describe
from onnxprune.outputs.kinds import SCORES, Part

IMAGE = "(float[N,3,8,8] x, float[12,3,3,3] w1, float[12] b1"
CONV = "{ a = Conv<pads=[1,1,1,1]>(x, w1, b1) e = Relu(a) "
FRAMES = "(float[N,4,16] x, float[12,4,3] w1, float[12] b1"
CONV1D = "{ a = Conv<pads=[1,1]>(x, w1, b1) e = Relu(a) "
MAP = ", float[5,12,1,1] w, float[5] b) => "
ONE = ", float[1,12,1,1] w, float[1] b, int64[1] one) => "
HEADS = ", float[C,12,1,1] w, float[C] b, float[4,12,1,1] v, float[4] c, int64[3] s, int64[3] t) => "
AT = """m = Conv(e, w, b) n = Transpose<perm=[0,2,3,1]>(m) raw = Reshape(n, s)
 q = Conv(e, v, c) r = Transpose<perm=[0,2,3,1]>(q) four = Reshape(r, t) """


def heads(outputs, body, classes):
    text = IMAGE + HEADS.replace("C", str(classes)) + outputs + CONV + AT + body + " }"
    return text, {"s": [0, -1, classes], "t": [0, -1, 4]}


CASES = {
    "maps with channels last": (
        IMAGE + MAP + "(float[N,8,8,5] y) " + CONV + "m = Conv(e, w, b) y = Transpose<perm=[0,2,3,1]>(m) }",
        {}, ["segmentation 3"],
    ),
    "one number at each place without an axis for it": (
        IMAGE + ONE + "(float[N,8,8] y) " + CONV + "m = Conv(e, w, b) y = Squeeze(m, one) }", {"one": [1]}, ["signal"],
    ),
    "depth that ends in Relu": (
        IMAGE + ONE + "(float[N,8,8] y) " + CONV + "m = Conv(e, w, b) r = Relu(m) y = Squeeze(r, one) }",
        {"one": [1]}, ["signal"],
    ),
    "classes of frames behind a convolution": (
        FRAMES + ", float[6,12,3] w, float[6] b) => (float[N,6,16] y) " + CONV1D + "y = Conv<pads=[1,1]>(e, w, b) }",
        {}, ["sequence 1"],
    ),
    "a picture of the shape of the input": (
        FRAMES + ", float[4,12,3] w, float[4] b) => (float[N,4,16] y) " + CONV1D + "y = Conv<pads=[1,1]>(e, w, b) }",
        {}, ["signal"],
    ),
    "sound that ends in Tanh": (
        FRAMES + ", float[1,12,3] w, float[1] b) => (float[N,1,16] y) "
        + CONV1D + "m = Conv<pads=[1,1]>(e, w, b) y = Tanh(m) }",
        {}, ["signal"],
    ),
    "places before samples": (
        FRAMES + ", float[12,6] w, float[6] b) => (float[16,N,6] y) "
        + CONV1D + "t = Transpose<perm=[2,0,1]>(e) m = MatMul(t, w) y = Add(m, b) }",
        {}, ["sequence 2"],
    ),
    "points of a row": (
        "(float[N,5] x, float[5,20] w, float[20] b, int64[3] s) => (float[N,10,2] y) "
        "{ a = Gemm(x, w, b) y = Reshape(a, s) }",
        {"s": [0, 10, 2]}, ["signal"],
    ),
    "a quantity by its name": (
        IMAGE + MAP + "(float[N,5,8,8] image_heatmaps) " + CONV + "image_heatmaps = Conv(e, w, b) }", {}, ["signal"],
    ),
    "heads of one number each": (
        "(float[N,5] x, float[5,1] w, float[5,1] v, float[5,1] u) => (float[N,3] y) "
        "{ a = MatMul(x, w) b = MatMul(x, v) c = MatMul(x, u) y = Concat<axis=1>(a, b, c) }",
        {}, ["signal"],
    ),
    "boxes that end in Sigmoid beside class scores": (
        *heads("(float[N,64,6] y, float[N,64,4] z) ", "y = Sigmoid(raw) z = Sigmoid(four)", 6), ["scores 2", "boxes 2"],
    ),
    "a choice of classes at the places of boxes": (
        *heads("(float[N,64,3] y, float[N,64,4] z) ", "y = Softmax(raw) z = Identity(four)", 3),
        ["scores 2", "boxes 2"],
    ),
    "as many classes as a box has numbers": (
        *heads("(float[N,64,4] y, float[N,64,4] boxes) ", "y = Softmax(raw) boxes = Identity(four)", 4),
        ["scores 2", "boxes 2"],
    ),
    "boxes scaled behind NonMaxSuppression": (
        IMAGE + HEADS.replace("C", "2").replace(
            ") =>", ", int64[1] most, float[1] iou, float[1] least, int64[2] cols, float scale) =>"
        ) + "(float[K,4] y) " + CONV + AT + """sc = Sigmoid(raw) u = Transpose<perm=[0,2,1]>(sc)
        k = NonMaxSuppression(four, u, most, iou, least) p = Gather<axis=1>(k, cols) g = GatherND(four, p)
        y = Mul(g, scale) }""",
        {"s": [0, -1, 2], "t": [0, -1, 4], "most": [8], "iou": [0.5], "least": [0.3], "cols": [0, 2], "scale": 9.0},
        ["decision"],
    ),
}  # fmt: skip


def given(net, count=24, labels=None, seed=0):
    """Random samples for every input of a model."""
    rng = np.random.default_rng(seed)
    found = {v.name: rng.normal(size=(count, *list(v.shape)[1:])).astype(np.float32) for v in net.graph.inputs}
    dtypes = {name: a.dtype for name, a in found.items()}
    return ArraySamples(found, dict.fromkeys(found, 0), dtypes, count, None if labels is None else np.asarray(labels))


def words(net, samples=None):
    """`kind axis` of each output."""
    return [f"{e.kind} {'' if e.axis is None else e.axis}".strip() for e in describe(net, samples).entries]


@pytest.mark.parametrize("name", CASES)
def test_what_an_unusual_output_is_with_samples_and_without(name):
    text, constants, wanted = CASES[name]
    net = model(text, constants)
    assert words(net) == wanted
    if "Softmax" not in text:  # random weights choose no class that means nothing
        assert words(net, given(net)) == wanted


def test_a_matrix_of_all_images_against_all_texts_is_looked_through_to_their_vectors():
    """A row of it holds as many numbers as there happen to be texts in the batch."""
    text = """(float[N,8] x, float[M,6] x2, float[8,12] w, float[6,12] v, float scale) =>
      (float[N,M] per_image, float[M,N] per_text) { a = MatMul(x, w) b = MatMul(x2, v) t = Transpose<perm=[1,0]>(b)
       s = MatMul(a, t) per_image = Mul(s, scale) per_text = Transpose<perm=[1,0]>(per_image) }"""
    net = model(text)
    for entry in describe(net, given(net)).entries:
        assert entry.kind == "decision"
        assert [(p.value, p.kind, p.axis) for p in entry.parts] == [("a", "embedding", 1), ("b", "embedding", 1)]


@pytest.mark.parametrize("peaks", [True, False])
def test_heat_maps_are_flat_but_for_peaks_and_scores_of_classes_are_not(peaks):
    """A convolution of single pixels: where its input is flat its output is."""
    text = "(float[N,6,12,12] x, float[5,6,1,1] w, float[5] b) => (float[N,5,12,12] y) { y = Conv(x, w, b) }"
    net = model(text, {"b": np.zeros(5)})
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(24, 6, 12, 12)).astype(np.float32) * (0.01 if peaks else 1)
    if peaks:
        maps[np.arange(24), rng.integers(0, 6, 24), rng.integers(0, 12, 24), rng.integers(0, 12, 24)] = 9
    samples = ArraySamples({"x": maps}, {"x": 0}, {"x": maps.dtype}, 24)
    assert words(net, samples) == (["signal"] if peaks else ["segmentation 1"])


def test_a_spectrum_has_neighbors_that_go_together_and_classes_have_none():
    text = "(float[N,3,16] x, float[20,3,1] w, float[20] b) => (float[N,20,16] y) { y = Conv(x, w, b) }"
    net = model(text)
    assert words(net, given(net)) == ["sequence 1"]
    waves = np.stack([np.sin(np.arange(20) / 3), np.cos(np.arange(20) / 3), np.cos(np.arange(20) / 5)], 1)
    net = model(text, {"w": 0.1 * waves[:, :, None]})
    assert words(net, given(net)) == ["signal"]


ROW = "(float[N,5] x, float[5,{c}] w, float[{c}] b) => (float[N,{c}] y) {{ y = Gemm(x, w, b) }}"


@pytest.mark.parametrize(
    ("count", "labels", "kind"),
    [
        (4, np.arange(24) % 4, "classes"),
        (4, np.eye(4, dtype=np.int64)[np.arange(24) % 4], "classes"),
        (4, np.arange(96).reshape(24, 4) % 3 // 2, "scores"),
        (4, np.linspace(0, 1, 96).reshape(24, 4), "signal"),
        (1, np.arange(24) % 2, "scores"),
        (1, np.linspace(0, 1, 24), "signal"),
        (1, np.arange(24), "signal"),
    ],
)
def test_labels_tell_classes_from_yes_or_no_and_from_numbers(count, labels, kind):
    net = model(ROW.format(c=count))
    (entry,) = describe(net, given(net, labels=labels)).entries
    assert entry.kind == kind
    if kind == "scores":
        assert entry.parts[0].form == "logits"


@pytest.mark.parametrize("ending", ["", "Sigmoid"])
def test_one_number_that_says_yes_or_no_is_compared_with_labels(ending):
    """A classifier of two classes with one output had no accuracy, whatever the labels."""
    text = ROW.format(c=1)
    if ending:
        text = text.replace("y = Gemm(x, w, b)", "l = Gemm(x, w, b) y = Sigmoid(l)")
    net = model(text)
    samples = given(net)
    weights = [net.graph.initializers[name].const_value.numpy() for name in ("w", "b")]
    logits = samples.batch(slice(None))["x"] @ weights[0] + weights[1]
    labels = (logits[:, 0] > 0).astype(np.int64)
    labels[:6] ^= 1
    samples = given(net, labels=labels)
    original = answers.reference(net, samples, describe(net, samples))
    found = accuracies.accuracy(accuracies.judged(original.said, original))
    assert (found.metric, found.value) == ("top1", 0.75)


@pytest.mark.parametrize("part", [
    Part("y", SCORES, 2, form="logits"),
    Part("y", SCORES, 2, form="logits", background=0),
    Part("y", SCORES, 2, form="probabilities", background=2),
    Part("y", SCORES, 2),
])  # fmt: skip
def test_scores_are_the_same_to_metrics_and_losses_and_lie_between_0_and_1(part):
    y = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32) * 3
    if part.form != "logits":
        y = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    mine, theirs = answers.numbers_of(part, y), parts.rows(part, {"y": torch.from_numpy(y)}).numpy()
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert mine.shape[-1] == (3 if part.background is None else 2)
    assert mine.min() >= 0
    assert mine.max() <= 1


def test_a_place_where_nothing_is_likely_weighs_little_in_a_choice_of_classes():
    """Boxes beside a Softmax counted at all places alike: at most of them nothing is."""
    y = torch.tensor([[[8.0, 0, 0], [0, 5.0, 0], [8.0, 0, 1]]])
    sure = parts.certainty(Part("y", SCORES, 2, form="logits", background=0), {"y": y})
    assert sure[0, 1] > 0.9
    assert sure[0, [0, 2]].max() < 0.01


def test_places_before_samples_are_moved_behind_them():
    """Answers of (T, N, C) were left out."""
    time_first = model(*CASES["places before samples"][:2])
    samples = given(time_first)
    outputs = describe(time_first, samples)
    (part,) = outputs.parts
    assert (part.batch, part.rows, part.by_sample.axis, outputs.sample_axes) == (1, True, 2, {"y": 1})
    original = answers.reference(time_first, samples, outputs)
    assert original.said["y"].shape == (24, 16, 6)
    assert accuracies.accuracy(accuracies.judged(original.said, original)).value == 1
    own = torch.from_numpy(np.moveaxis(original.said["y"], 0, 1).copy())  # as the model gives it
    assert torch.equal(parts.rows(part, {"y": own}), torch.from_numpy(original.said["y"]))
    assert parts.count_of(part, {"y": own}) == 24


def test_a_part_keeps_its_axis_where_samples_move_past_it():
    assert Part("y", SCORES, 0, batch=2).by_sample.axis == 1
    assert Part("y", SCORES, 2, batch=1).by_sample.axis == 2
    assert Part("y", SCORES, 1).by_sample.axis == 1


def one_number():
    return proto(
        """(float[N,5] x, float[5,12] w1, float[12] b1, float[12,1] w, float[1] b, int64[1] one) => (float[N] y)
        { a = Gemm(x, w1, b1) e = Relu(a) l = Gemm(e, w, b) s = Sigmoid(l) y = Squeeze(s, one) }""",
        {"one": [1]},
    )


def classifier(*nodes, outputs):
    """A classifier of four classes with these nodes behind its probabilities `p` and its answer `k`."""
    found = proto(
        """(float[N,5] x, float[5,12] w1, float[12] b1, float[12,4] w, float[4] b) => (float[N,4] p)
        { a = Gemm(x, w1, b1) e = Relu(a) l = Gemm(e, w, b) p = Softmax(l) k = ArgMax<axis=1, keepdims=0>(p) }"""
    )
    found.graph.node.extend(nodes)
    found.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    del found.graph.output[:]
    found.graph.output.extend(outputs)
    return found


NAMES = onnx.helper.make_node(
    "LabelEncoder", ["k"], ["y"], domain="ai.onnx.ml", keys_int64s=range(4), values_strings=["a", "b", "c", "d"]
)
NAMED = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.STRING, ["N"])
MAP = onnx.helper.make_map_type_proto(onnx.TensorProto.STRING, onnx.helper.make_tensor_type_proto(1, None))
MAPS = onnx.helper.make_node("ZipMap", ["p"], ["m"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c", "d"])
MAPPED = onnx.helper.make_value_info("m", onnx.helper.make_sequence_type_proto(MAP))
LISTED = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, ["N", 4])
TUNED = {
    "places before samples": (lambda: proto(*CASES["places before samples"][:2]), (4, 16), "sequence"),
    "one number per sample": (one_number, (5,), "scores"),
    "names of classes": (lambda: classifier(NAMES, outputs=[NAMED]), (5,), "decision"),
    "names and maps of classes": (lambda: classifier(NAMES, MAPS, outputs=[NAMED, MAPPED]), (5,), "decision"),
    "a sequence of outputs": (
        lambda: classifier(onnx.helper.make_node("SequenceConstruct", ["p", "l"], ["s"]), outputs=[LISTED]),
        (5,), "decision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TUNED)
def test_outputs_that_are_no_tensors_with_rows_are_fine_tuned_and_measured(name, tmp_path):
    """Fine-tuning ended in an error of each: no rows, an IndexError, no torch function for texts, lists.

    Beside names of classes their maps had no figure.
    """
    made, shape, kind = TUNED[name]
    onnx.save(made(), tmp_path / "in.onnx")
    x = np.random.default_rng(0).normal(size=(24, *shape)).astype(np.float32)
    onnxprune.prune(
        tmp_path / "in.onnx", tmp_path / "out.onnx", data={"x": x}, target={"macs": 0.8}, method="l1", epochs=1,
        align=1, latency=False, report=(tmp_path / "r.json",),
    )  # fmt: skip
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["finetune"], told["notes"]
    assert told["models"][1]["accuracy"]["value"] is not None
    assert told["outputs"][0]["kind"] == kind
