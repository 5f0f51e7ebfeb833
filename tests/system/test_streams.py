"""stdout: whose it is."""

import io
import sys
import threading

import pytest

from onnxprune.system import streams


def test_only_the_own_thread_is_silent_and_stdout_comes_back(monkeypatch):
    outer = io.StringIO()
    monkeypatch.setattr(sys, "stdout", outer)
    inside, go_on = threading.Event(), threading.Event()

    def first():
        with streams.swallowed() as said:
            print("first")
            inside.set()
            go_on.wait(10)
        assert said.getvalue() == "first\n"

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    print("between")
    with streams.swallowed() as said:  # ends before the first does: each order was seen to lose stdout
        print("second")
    go_on.set()
    thread.join()
    assert said.getvalue() == "second\n"
    assert outer.getvalue() == "between\n"
    assert sys.stdout is outer


def test_inside_itself_it_is_silent_to_the_end(monkeypatch):
    outer = io.StringIO()
    monkeypatch.setattr(sys, "stdout", outer)
    with streams.swallowed() as said:
        with streams.swallowed():
            print("inner")
        print("outer")
    assert said.getvalue() == "outer\n"
    assert (outer.getvalue(), sys.stdout) == ("", outer)


@pytest.mark.parametrize("encoding", ["cp932", "cp437", "latin-1", "ascii"])
def test_letters_that_an_encoding_lacks_are_written_plainly(monkeypatch, encoding):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    with streams.results_apart():
        print("1 – 2 ≤ \udcff", file=streams.results())
        streams.results().flush()
    assert buffer.getvalue().decode(encoding).replace("≤", "<=") == "1 - 2 <= ?\n"


def test_what_others_print_goes_to_stderr(monkeypatch, capsys):
    with streams.results_apart():
        print("of a user's function")
        print("result", file=streams.results())
    assert capsys.readouterr() == ("result\n", "of a user's function\n")


def test_a_users_function_may_close_its_stdout_but_not_ours(capsys):
    with streams.results_apart():
        sys.stdout.close()
        print("still there")
        print("result", file=streams.results())
    assert capsys.readouterr() == ("result\n", "still there\n")
