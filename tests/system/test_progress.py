"""Progress of long work: a bar on a terminal, lines in a log."""

import logging

import pytest

from onnxprune.system import progress as room
from onnxprune.system.progress import progress


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the module reads, in seconds."""
    now = [0.0]
    monkeypatch.setattr(room, "perf_counter", lambda: now[0])
    return now


def test_a_bar_is_on_stderr_and_nothing_in_the_log(capsys, caplog, clock):
    caplog.set_level(logging.INFO, "onnxprune")
    with progress("fine-tuning", "step", 4, bar=True) as shown:
        clock[0] = 1000.0
        shown.update()
        shown.tell("loss 0.5")
        shown.update(3)
    said = capsys.readouterr()
    assert said.out == ""
    assert "4/4" in said.err
    assert "loss 0.5" in said.err
    assert caplog.messages == []


def test_short_work_says_nothing(capsys, caplog, clock):
    caplog.set_level(logging.INFO, "onnxprune")
    with progress("fine-tuning", "step", 4, bar=False) as shown:
        clock[0] = 59.0
        shown.update(4)
    assert caplog.messages == []
    assert capsys.readouterr().err == ""


def test_long_work_says_how_far_it_is_and_what_is_left(caplog, clock):
    caplog.set_level(logging.INFO, "onnxprune")
    with progress("fine-tuning", "step", 1000, bar=False, done=200) as shown:
        shown.tell("epoch 2, loss 0.5000")
        for clock[0], count in ((60.0, 100), (100.0, 1), (120.0, 99), (1200.0, 100), (1300.0, 10), (1320.0, 90)):
            shown.update(count)
    assert caplog.messages == [
        "  fine-tuning: step 300 of 1000, epoch 2, loss 0.5000; about 7 min left",
        "  fine-tuning: step 400 of 1000, epoch 2, loss 0.5000; about 6 min left",
        "  fine-tuning: step 500 of 1000, epoch 2, loss 0.5000; about 33 min left",
        "  fine-tuning: step 600 of 1000, epoch 2, loss 0.5000; about 22 min left",
    ]


def test_what_is_left_follows_the_number_that_is_expected(caplog, clock):
    caplog.set_level(logging.INFO, "onnxprune")
    with progress("fine-tuning", "step", 1000, bar=False) as shown:
        shown.expect(150.0)
        clock[0] = 60.0
        shown.update(100)
    assert caplog.messages == ["  fine-tuning: step 100 of 150; about 30 s left"]
