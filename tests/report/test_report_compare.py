"""A report against an earlier one: noise is no regression, the rest is, and silence is one too."""

import json
from dataclasses import replace

import pytest

from onnxprune.outputs.metrics import Accuracy, wilson_interval
from onnxprune.report import Report, compare_reports, document
from onnxprune.report.document import to_json


def change_pruned(report: Report, **fields) -> Report:
    return replace(report, models=(report.models[0], replace(report.models[1], **fields)))


def kinds(old, new):
    return [found.metric for found in compare_reports(old, new)]


def test_a_report_equals_itself_in_any_form(report):
    stored = json.loads(to_json(report))
    assert compare_reports(report, report) == []
    assert compare_reports(stored, report) == []
    assert compare_reports(report, stored) == []


@pytest.mark.parametrize(("correct", "expected"), [(4660, []), (4600, []), (4400, ["top1"])])
def test_accuracy_counts_beyond_its_interval(report, correct, expected):
    new = change_pruned(report, accuracy=Accuracy("top1", correct / 5000, 5000, wilson_interval(correct, 5000)))
    assert kinds(report, new) == expected


def test_relative_error_is_worse_when_larger(report):
    small, large = (Accuracy("relative_error", v, 50, (0.9 * v, 1.1 * v)) for v in (0.1, 0.2))
    old, new = (change_pruned(report, accuracy=a) for a in (small, large))
    assert kinds(old, new) == ["relative_error"]
    assert kinds(new, old) == []


@pytest.mark.parametrize(
    ("interval", "expected"), [((0.64, 0.66), []), ((0.70, 0.74), ["latency ratio"]), ((0.5, 0.55), [])]
)
def test_latency_ratios_count_where_intervals_are_apart(report, interval, expected):
    first = replace(report.latency_ratios[0], median=sum(interval) / 2, interval95=interval)
    assert kinds(report, replace(report, latency_ratios=(first, report.latency_ratios[1]))) == expected


def test_milliseconds_count_on_the_same_machine_only(report):
    slow = tuple(
        replace(e, q1_ms=2 * e.q3_ms, median_ms=2.1 * e.q3_ms, q3_ms=2.2 * e.q3_ms) for e in report.models[1].latency
    )
    new = change_pruned(report, latency=slow)
    assert kinds(report, new) == ["latency", "latency"]
    assert kinds(report, replace(new, machine={**report.machine, "cpu": "another"})) == []
    assert kinds(replace(report, machine={}), replace(new, machine={})) == []


@pytest.mark.parametrize("key", ["macs", "params", "bytes"])
def test_costs_are_exact(report, key):
    value = getattr(report.models[1], key)
    (found,) = compare_reports(report, change_pruned(report, **{key: value + 1}))
    assert (found.metric, found.old, found.new) == (key, value, value + 1)
    assert kinds(report, change_pruned(report, **{key: value - 1})) == []


def test_what_is_no_longer_measured_counts(report):
    assert kinds(report, change_pruned(report, accuracy=None)) == ["top1"]
    assert kinds(report, change_pruned(report, macs=None)) == ["macs"]
    assert kinds(report, replace(report, latency_ratios=report.latency_ratios[:1])) == ["latency ratio"]
    assert kinds(report, replace(report, models=report.models[:1])) == ["model"]
    assert kinds(report, replace(report, verify=None)) == ["verify"]


def test_a_failed_verification_counts(report):
    assert kinds(report, replace(report, verify=replace(report.verify, ok=False))) == ["verify"]


def test_messages_name_the_place_and_both_numbers(report):
    first = replace(report.latency_ratios[0], median=0.8, interval95=(0.79, 0.81))
    (found,) = compare_reports(report, replace(report, latency_ratios=(first, report.latency_ratios[1])))
    assert found.message == (
        "pruned, CPUExecutionProvider, batch 1: latency ratio was 0.641, is 0.800, intervals apart"
    )


def test_a_report_of_an_earlier_tool_without_own_ratios_is_read(report):
    old = document(report)
    for model in old["models"]:
        model.pop("ratios", None)
    worse = replace(report.latency_ratios[0], median=0.9, interval95=(0.89, 0.91))
    assert kinds(old, replace(report, latency_ratios=(worse, report.latency_ratios[1]))) == ["latency ratio"]
