"""Ctrl-C and SIGTERM: a run ends, whatever the libraries make of the exception."""

import contextlib
import os
import signal
import sys

import pytest

from onnxprune.system.clock import Clock
from onnxprune.system.interrupts import heed, interruptible

SIGNALS = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """A job in the background, as these tests may be one, begins with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_library_swallowed_is_raised_at_the_next_step(number):
    begun = []

    def run():
        with interruptible():
            with contextlib.suppress(BaseException):  # as an import that catches everything does
                os.kill(os.getpid(), number)
            with Clock()("score"):
                begun.append("score")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not begun
    heed()  # the next run in this process was not asked to end


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_library_made_of_it_is_an_interruption(number):
    def run():
        with interruptible():
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                raise ImportError("numpy failed to import") from None

    with pytest.raises(KeyboardInterrupt):
        run()


class Torn:
    """Its destructor does something; Python tells what that raises, and goes on."""

    def __init__(self, does):
        self.does = does

    def __del__(self):
        self.does()


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_destructor_was_told_is_no_message_and_not_lost(number, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    def run():
        with interruptible():
            Torn(lambda: os.kill(os.getpid(), number))
            heed()

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not told


def test_what_else_a_destructor_raises_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda of: told.append(of.exc_type))
    with interruptible():
        Torn(lambda: 1 / 0)
    Torn(lambda: 1 / 0)
    assert told == [ZeroDivisionError, ZeroDivisionError]


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
