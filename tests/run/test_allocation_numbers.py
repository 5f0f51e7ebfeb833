"""Widths of networks that classify nothing: what is tried where nobody asked for a method, and what it is judged by."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from task_networks import TASKS, network

from onnxprune.options import options_of
from onnxprune.run import allocation, schedule
from onnxprune.run.compared import compared
from onnxprune.run.settings import resolved
from onnxprune.run.subject import prepare
from onnxprune.system.clock import Clock


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(the subject of a detector that ends in NonMaxSuppression, settings as if no method was asked for, scores)."""
    path = tmp_path_factory.mktemp("detector") / "in.onnx"
    onnx.save(network("detector"), path)
    x = TASKS["detector"].samples(np.random.default_rng(0), 60)
    options = options_of({"data": x, "target": {"macs": 0.7}, "latency": False, "method": "random", "align": 1})
    settings = replace(resolved(options), method_found=True)
    subject, outcome = schedule.scored(prepare(path, options, Clock()), settings, Clock())
    assert not subject.outputs.classified
    return subject, outcome, settings


def evaluator(subject, settings):
    return lambda: allocation._evaluator(subject, settings)


def test_the_second_order_of_the_loss_is_tried_and_taken_where_it_loses_less(scored):
    subject, outcome, settings = scored
    found = allocation._better_by_hessian(subject, outcome, settings, evaluator(subject, settings))
    (note,) = (note for note in found.notes if "second order" in note)
    new, old = (float(word) for word in note.split() if word.startswith("0."))
    assert new < old


def test_it_is_not_taken_where_it_does_no_better(scored, monkeypatch):
    subject, outcome, settings = scored
    losses = iter([np.arange(8.0), np.arange(8.0)[::-1]])
    monkeypatch.setattr(allocation, "_evaluator", lambda *_: lambda choice: next(losses))
    assert allocation._better_by_hessian(subject, outcome, settings, evaluator(subject, settings)) is outcome


@pytest.mark.parametrize("found", [True, False])
def test_a_method_that_was_asked_for_is_kept_and_so_are_widths_of_classifiers(scored, monkeypatch, found):
    subject, outcome, settings = scored
    monkeypatch.setattr(allocation, "_evaluator", lambda *_: pytest.fail("nothing is to be tried"))
    if found:
        monkeypatch.setattr(type(subject.outputs), "classified", True)
    asked = replace(settings, method_found=found)
    assert allocation._better_by_hessian(subject, outcome, asked, evaluator(subject, asked)) is outcome


def test_candidates_are_compared_by_what_is_found_not_by_the_background(scored):
    """The distance of the original to itself is none; a cut loses something of the boxes that decide."""
    subject, outcome, settings = scored
    original = compared(subject, subject.tune.subset(np.arange(20)))
    assert original.losses(subject.model) == pytest.approx(np.zeros(20), abs=1e-4)
    found = allocation._tried("own", outcome, subject, settings, allocation._evaluator(subject, settings))
    assert found[0].loss > 0
