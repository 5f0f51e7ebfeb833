"""Metrics: intervals against published values, the right answer under fixed batches, and what must be refused."""

import numpy as np
import onnx
import pytest
from scipy.stats import binomtest

from onnxprune.data.samples import ArraySamples
from onnxprune.errors import DataError
from onnxprune.graph.sessions import open_session
from onnxprune.outputs.metrics import (
    Accuracy,
    agreement,
    evaluate,
    everything,
    mean_interval,
    outputs_on,
    relative_error,
    top1,
    wilson_interval,
)

DEMO = """<ir_version: 8, opset_import: ["" : 17]>
g (float[{batch}, 3] x) => (float[{batch}, 4] y)
<float[3, 4] w = {{1, -2, 3, 0.5, 2, 1, -1, 0.25, -3, 0.75, 1.5, {last}}}>
{{ y = MatMul(x, w) }}"""


def session(batch="N", last=1.25):
    return open_session(onnx.parser.parse_model(DEMO.format(batch=batch, last=last)), threads=1)


def samples(count=11, labels=None):
    x = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    return ArraySamples({"x": x}, {"x": 0}, {"x": np.dtype(np.float32)}, count, labels)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # R: binom::binom.confint(correct, n, methods = "wilson")
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0)],
)
def test_wilson_interval(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(9173, 10000), (1, 2), (333, 900), (4999, 5000)])
def test_wilson_interval_equals_scipy(correct, n):
    expected = binomtest(correct, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_interval_surrounds_its_value_and_shrinks():
    for n in (1, 3, 7, 1000):
        for correct in range(0, n + 1, max(1, n // 7)):
            low, high = wilson_interval(correct, n)
            assert 0 <= low <= correct / n <= high <= 1
            assert high > low
    widths = [np.diff(wilson_interval(n // 2, n))[0] for n in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(DataError, match="no proportion"):
        wilson_interval(correct, n)


def test_wilson_interval_holds_the_truth_95_times_of_100():
    rng = np.random.default_rng(0)
    inside = [low <= 0.9 <= high for low, high in (wilson_interval(c, 200) for c in rng.binomial(200, 0.9, 2000))]
    assert 0.93 < np.mean(inside) < 0.97


def test_mean_interval():
    low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (low, high) == pytest.approx((2.5 - 1.26517, 2.5 + 1.26517), abs=1e-4)
    assert mean_interval(np.array([0.25])) == (0.25, 0.25)


def test_values_per_sample():
    logits = np.array([[1.0, 2, 0], [3, 1, 2]])
    np.testing.assert_array_equal(top1(logits, np.array([1, 2])), [1, 0])
    np.testing.assert_array_equal(agreement(logits, logits[:, ::-1]), [1, 0])
    np.testing.assert_allclose(relative_error(logits * 1.1, logits), [0.1, 0.1])


def test_segmentation_counts_positions_within_a_sample():
    logits = np.zeros((1, 2, 2, 2))
    logits[0, 1, 0] = 1
    np.testing.assert_array_equal(top1(logits, np.array([[[1, 0], [0, 0]]])), [0.75])


def test_top1_refuses_other_shapes_and_one_class():
    with pytest.raises(DataError, match=r"\(2, 3\) and the labels \(3,\)"):
        top1(np.zeros((2, 3)), np.zeros(3, int))
    with pytest.raises(DataError, match="one class"):
        top1(np.zeros((2, 1)), np.zeros(2, int))


@pytest.mark.parametrize("batch", ["N", 4, 1, 16])
def test_evaluate_counts_each_sample_once_whatever_the_batch(batch):
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])
    own = samples(labels=labels)
    y = own.batch(np.arange(11))["x"] @ np.array([[1, -2, 3, 0.5], [2, 1, -1, 0.25], [-3, 0.75, 1.5, 1.25]])
    found = evaluate(session(batch), own, batch_size=5)
    assert found is not None
    assert (found.metric, found.samples) == ("top1", 11)
    assert found.value == pytest.approx(np.mean(y.argmax(1) == labels))
    assert found.interval95 == wilson_interval(round(found.value * 11), 11)


def test_agreement_with_a_session_equals_agreement_with_its_outputs():
    own, other = samples(50), session(4, last=-3)
    by_session = evaluate(session(), own, other, batch_size=8)
    by_outputs = evaluate(session(), own, outputs_on(other, own), batch_size=7)
    assert by_session == by_outputs
    assert by_session is not None
    assert by_session.metric == "agreement"
    assert 0 < by_session.value < 1
    same = evaluate(session(), own, session())
    assert same is not None
    assert same.value == 1.0


def test_a_regressor_gets_a_relative_error():
    model = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 1] y)
    <float[3, 1] w = {1, -2, 3}> { y = MatMul(x, w) }"""
    half = model.replace("{1, -2, 3}", "{0.5, -1, 1.5}")
    first, second = (open_session(onnx.parser.parse_model(m), threads=1) for m in (model, half))
    found = evaluate(second, samples(), first)
    assert found is not None
    assert found.metric == "relative_error"
    assert found.value == pytest.approx(0.5)


def test_texts_are_compared_as_they_are():
    model = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (string[N] y)
    <float[3, 4] w = {{1, -2, 3, 0.5, 2, 1, -1, 0.25, -3, 0.75, 1.5, {}}}>
    {{ l = MatMul(x, w) k = ArgMax <axis = 1, keepdims = 0> (l) y = Cast <to = 8> (k) }}"""
    first, second = (open_session(onnx.parser.parse_model(model.format(m)), threads=1) for m in (1.25, -4))
    found = evaluate(second, samples(), first)
    assert found is not None
    assert found.metric == "agreement"
    assert 0 < found.value < 1


def test_an_output_that_is_the_class_itself_is_compared_with_labels():
    model = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (int64[N] y)
    { y = ArgMax <axis = 1, keepdims = 0> (x) }"""
    labels = samples().batch(np.arange(11))["x"].argmax(1)
    labels[:2] += 1
    found = evaluate(open_session(onnx.parser.parse_model(model), threads=1), samples(labels=labels))
    assert found is not None
    assert (found.metric, found.value) == ("top1", pytest.approx(9 / 11))


def test_nothing_to_compare_with_is_unknown():
    assert evaluate(session(), samples()) is None


def test_an_output_without_samples_is_refused():
    model = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[1] y)
    <float[1] w = {1}> { s = ReduceSum <keepdims = 0> (x) y = Mul(s, w) }"""
    with pytest.raises(DataError, match="output 'y' has shape"):
        evaluate(open_session(onnx.parser.parse_model(model)), samples(labels=np.zeros(11, int)))


def test_drop_counts_points_and_turns_round_for_errors():
    assert Accuracy("top1", 0.9, 10, (0, 1)).drop_from(Accuracy("top1", 0.92, 10, (0, 1))) == pytest.approx(2.0)
    errors = [Accuracy("relative_error", v, 10, (0, 1)) for v in (0.3, 0.1)]
    assert errors[0].drop_from(errors[1]) == pytest.approx(20.0)


PLACES = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3, 1] y, float[1] total)
<int64[1] at = {2}> { z = Mul (x, x) y = Unsqueeze (z, at) total = ReduceSum <keepdims = 0> (z) }"""


def test_a_number_for_each_of_several_places_is_no_row_of_classes():
    found = evaluate(
        open_session(onnx.parser.parse_model(PLACES)), samples(), open_session(onnx.parser.parse_model(PLACES))
    )
    assert found is not None
    assert (found.metric, found.value) == ("relative_error", 0.0)


def test_the_relative_error_can_be_asked_for_where_outputs_look_like_classes():
    found = evaluate(session(last=1.0), samples(labels=np.zeros(11, int)), session(), regression=True)
    assert found is not None
    assert found.metric == "relative_error"
    assert 0 < found.value < 1


def test_the_users_metric_gets_lists_where_there_is_no_row_per_sample():
    own = samples(5)
    outputs = everything(open_session(onnx.parser.parse_model(PLACES)), own)
    x = own.batch(np.arange(5))["x"]
    np.testing.assert_allclose(outputs["y"], x[:, :, None] ** 2, rtol=1e-6)
    assert isinstance(outputs["total"], list)
    np.testing.assert_allclose(np.stack(outputs["total"]), (x**2).sum(1), rtol=1e-5)
