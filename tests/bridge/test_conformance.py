"""The onnx package's own node cases, all of them."""

import sys
from pathlib import Path

import onnx
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import conformance

# Passed with onnx 1.23; other versions bring other cases, of which none may fail either.
FLOOR_1_23 = 1819
NOT_APPLICABLE_AT_MOST = 65


@pytest.fixture(scope="module")
def outcomes():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield conformance.run_all(conformance.load_cases())
    torch.set_num_threads(threads)


def test_no_case_fails(outcomes):
    failed = [f"{outcome.case}: {outcome.detail}" for outcome in outcomes if outcome.status == "failed"]
    assert not failed, "\n".join(failed)


@pytest.mark.skipif(not onnx.__version__.startswith("1.23"), reason="the floor was recorded with onnx 1.23")
def test_as_many_cases_pass_as_were_recorded(outcomes):
    assert sum(outcome.status == "passed" for outcome in outcomes) >= FLOOR_1_23
    assert sum(outcome.status == "skipped" for outcome in outcomes) <= NOT_APPLICABLE_AT_MOST


def test_what_is_not_applicable_has_a_reason(outcomes):
    assert all(outcome.detail for outcome in outcomes if outcome.status == "skipped")
    text = conformance.table(outcomes)
    assert "| Conv |" in text
    assert conformance.STRINGS in text


def test_a_wrong_value_is_a_failure():
    case = next(case for case in conformance.load_cases() if case.name == "test_relu")
    inputs, expected = case.data_sets[0]
    case.data_sets[0] = (inputs, [expected[0] + 0.5])
    assert conformance.run_case(case).status == "failed"
