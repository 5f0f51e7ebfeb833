"""Numbers as they are written, the terminal's table, Markdown, and files by suffix."""

import io
import os
import stat
from dataclasses import replace

import pytest
from rich.console import Console

from onnxprune.errors import UsageError
from onnxprune.outputs.metrics import Accuracy, wilson_interval
from onnxprune.proof.comparison import Verification
from onnxprune.report import Frozen, Measurement, Report, print_report, text, verdict, write_report
from onnxprune.report.markdown import to_markdown
from onnxprune.report.terminal import rich_table


@pytest.mark.parametrize(
    ("write", "value", "written"),
    [
        (text.count, 0, "0"),
        (text.count, 999, "999"),
        (text.count, 850_986, "851 k"),
        (text.count, 4_089_184_256, "4.09 G"),
        (text.count, None, "–"),
        (text.size, 3_439_046, "3.28 MiB"),
        (text.size, 12, "12 B"),
        (text.digits, 0.0123, "0.012"),
        (text.digits, 12.345, "12.3"),
        (text.digits, 1234.5, "1234"),
        (text.digits, 3.8e-6, "3.80e-06"),
        (text.digits, 0, "0"),
        (text.milliseconds, 2.4372, "2.44 ms"),
        (text.times, None, "–"),
        (text.percent_left, 0.5, "50.0 %"),
        (text.speedup, 0.5, "2.00x faster"),
        (text.speedup, 1.5, "1.50x slower"),
        (text.speedup, None, "–"),
        (text.seconds, 1.234, "1.23 s"),
        (text.seconds, 412, "6 min 52 s"),
        (text.seconds, 7322, "2 h 2 min"),
        (text.shape, (64, 3, 7, 7), "64x3x7x7"),
        (text.shape, (), "–"),
        (text.provider, "CUDAExecutionProvider", "CUDA"),
        (text.provider, "TensorrtExecutionProvider", "TensorRT"),
        (text.accuracy, None, "–"),
        (text.accuracy, Accuracy("relative_error", 0.01234, 5, (0.01, 0.02)), "0.012"),
    ],
)
def test_numbers(write, value, written):
    assert write(value) == written


def printed(report):
    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue()


def test_the_table_is_plain_where_there_is_no_terminal(report):
    lines = printed(report).splitlines()
    assert lines[0].split() == ["original", "pruned", "ratio"]
    by_label = {line.split("  ")[0]: line for line in lines}
    assert by_label["top1 (5000 samples)"].split("  ")[-1].strip() == "-0.80 points"
    assert by_label["MACs"].split()[1:] == ["125", "M", "61.7", "M", "0.492"]
    assert by_label["latency, CPU, batch 64, 2 threads"].endswith("0.577")
    assert "0.636 to 0.647" in printed(report)
    assert "\x1b" not in printed(report)


def test_the_table_stays_within_a_narrow_terminal(report):
    stream = io.StringIO()
    Console(file=stream, width=60, force_terminal=True, color_system=None).print(rich_table(report))
    assert max(len(line) for line in stream.getvalue().splitlines()) <= 60
    assert "0.492" in stream.getvalue()


def test_names_are_no_markup_in_the_terminal():
    stream = io.StringIO()
    hostile = Report("", (Measurement("[red]a[/red]", macs=1), Measurement("[/]", macs=1)))
    Console(file=stream, width=100, force_terminal=True, color_system=None).print(rich_table(hostile))
    assert "[red]a[/red]" in stream.getvalue()
    assert "[/]" in stream.getvalue()


def test_unknown_numbers_leave_no_line():
    lines = printed(Report("", (Measurement("a", macs=4), Measurement("b", macs=2)))).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "MACs"]


def test_three_models_have_their_ratios_in_a_line(report):
    third = replace(report.models[1], name="third")
    more = replace(report, models=(*report.models, third))
    assert "ratio to original" in printed(more)
    assert printed(more).splitlines()[0].split() == ["original", "pruned", "third"]


def test_markdown_says_the_result_first(report):
    written = to_markdown(report)
    lines = written.splitlines()
    assert lines[0] == "## onnxprune: pruned against original"
    assert lines[2] == (
        "**49.2 % of the MACs, 47.3 % of the parameters, 1.56x faster (CPU, batch 1, 2 threads), "
        "-0.80 points top-1 accuracy.**"
    )
    assert "| MACs | 125 M | 61.7 M | 0.492 |" in lines
    assert "| 95 % interval | 92.66 to 94.04 % | 91.82 to 93.27 % |  |" in lines
    assert "Verification: passed." in written
    assert "<details><summary>Layers (55)</summary>" in lines
    assert f"```sh\n{report.command}\n```" in written
    assert len([line for line in lines[: lines.index("<details><summary>Layers (55)</summary>")] if line]) < 25


def test_markdown_tells_of_failure_and_leaves_out_what_is_unknown():
    failed = Report("cmd", (Measurement("a"),), verify=Verification(0.5, 2.0, 8, False))
    written = to_markdown(failed)
    assert "Verification: **failed**" in written
    assert "differ by at most 0.500 of a scale of 2.00, on 8 samples" in written
    assert "<details>" not in written


def test_markdown_tables_survive_names_from_hostile_models(report):
    hostile = replace(report, frozen=(Frozen("a|b", "<script>alert(1)</script>\n# x"),))
    written = to_markdown(hostile)
    assert "| a\\|b | &lt;script&gt;alert(1)&lt;/script&gt; # x |" in written
    assert "<script" not in written


@pytest.mark.parametrize(("suffix", "start"), [(".json", "{"), (".md", "## onnxprune"), (".HTML", "<!doctype html>")])
def test_write_report_by_suffix(tmp_path, report, suffix, start):
    path = tmp_path / f"r{suffix}"
    path.write_text("old")
    write_report(report, path)
    assert path.read_text(encoding="utf-8").startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file stays"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize(
    ("name", "message"), [("r.pdf", "none of .json, .md, .html"), ("r", "suffix ''"), ("no/r.md", "not exist")]
)
def test_write_report_refuses(tmp_path, report, name, message):
    with pytest.raises(UsageError, match=message):
        write_report(report, tmp_path / name)


def test_a_failed_write_leaves_the_old_report(tmp_path, report, monkeypatch):
    path = tmp_path / "r.md"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        write_report(report, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.md"]


def measured(metric, value, samples=539):
    interval = wilson_interval(value * samples, samples) if metric != "relative_error" else (0.9 * value, 1.1 * value)
    return Accuracy(metric, value, samples, interval)


@pytest.mark.parametrize(
    ("metric", "before", "after", "said"),
    [
        ("top1", 0.9981, 0.9944, "Top-1 accuracy 99.44 %, 99.81 % before: within the noise of 539 samples"),
        ("top1", 0.99, 0.91, "91.00 %, 99.00 % before: worse by more than the noise of 539 samples"),
        ("top1", 0.80, 0.91, "80.00 % before: better by more than the noise of 539 samples"),
        ("mine:score", 0.99, 0.91, "worse by more than the noise of 539 samples"),
        ("agreement", 1.0, 0.982, "Agreement with the original 98.20 % (95 % interval 96.69 to 99.03 %, 539 samples)"),
    ],
)
def test_the_verdict_tells_whether_chance_explains_the_change(metric, before, after, said):
    models = (
        Measurement("original", accuracy=measured(metric, before)),
        Measurement("pruned", accuracy=measured(metric, after)),
    )
    assert verdict(Report("", models, ())).endswith(said)


@pytest.mark.parametrize(("nonzeros", "said"), [(30, ["30.0 % of the parameters are not zero"]), (100, [])])
def test_the_verdict_counts_zeros_where_there_are_many(nonzeros, said):
    models = Measurement("a", params=100), Measurement("b", params=100, nonzeros=nonzeros)
    assert [part for part in verdict(Report("", models, ())).split(", ") if "zero" in part] == said


def test_a_verdict_without_intervals_says_nothing_of_noise():
    one = Accuracy("mine:score", 3.5, 10, None)
    assert verdict(Report("", (Measurement("a", accuracy=one), Measurement("b", accuracy=one)), ())).endswith("before")
