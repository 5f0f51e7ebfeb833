"""The HTML page: complete, self-contained, safe against names from hostile models."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from onnxprune.outputs.metrics import Accuracy
from onnxprune.report import Frozen, Layer, Measurement, Report, SensitivityCurve, TuningPoint, charts
from onnxprune.report.html import to_html

VOID = {"meta", "link", "br", "hr", "img", "input", "rect", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers what was opened."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.words = [], [], [], []
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def test_every_section_is_there_and_tags_are_closed(report):
    page = Page(to_html(report))
    sections = "accuracy cost latency widths sensitivity frozen tuning profile verification steps reproduce"
    assert page.ids == sections.split()
    words = " ".join(page.words)
    for expected in (
        "49.2 %",
        "1.56×",
        "92.58 %",
        "Passed.",
        report.command,
        "NVIDIA H200",
        "leaves through the graph output",
    ):
        assert expected in words, expected


def test_nothing_is_loaded_from_elsewhere(report):
    written = to_html(report)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", written)
    page = Page(written)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "img"}
    assert not [attrs for _, attrs in page.tags if {"src", "href", "srcset", "xlink:href"} & attrs.keys()]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_it_fits_phones_dark_rooms_and_paper(report):
    written = to_html(report)
    assert 'name="viewport" content="width=device-width' in written
    assert "@media (prefers-color-scheme: dark)" in written
    assert "@media print" in written


def test_names_cannot_break_out(report):
    evil = '"><script>alert(1)</script>'
    hostile = replace(
        report,
        command=evil,
        models=tuple(replace(m, name=evil + m.name) for m in report.models),
        layers=(Layer(evil, evil, (evil,), (4, 3), (2, 3)),),
        frozen=(Frozen(evil, evil),),
        sensitivity=(SensitivityCurve(evil, (0.0, 0.5), (1.0, 0.5)),),
        notes=(evil,),
    )
    page = Page(to_html(hostile))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if any("alert" in name for name in attrs)]


@pytest.mark.parametrize(
    "bare",
    [
        Report("cmd", (Measurement("only"),)),
        Report("cmd", ()),
        Report("cmd", (Measurement("a", macs=4), Measurement("b"))),
        Report("cmd", (Measurement("a", accuracy=Accuracy("relative_error", 0.0, 3, (0.0, 0.0))), Measurement("b"))),
        Report("cmd", (Measurement("a"),), finetune=(TuningPoint(0.0, 0.5, 0.9),)),
        Report("cmd", (Measurement("a"),), sensitivity=(SensitivityCurve("d", (), ()),)),
    ],
)
def test_what_is_unknown_is_left_out(bare):
    page = Page(to_html(bare))
    assert page.ids[-1] == "reproduce"
    assert "latency" not in page.ids
    assert "nan" not in " ".join(page.words)


def test_pictures_keep_numbers_in_proportion():
    drawn = charts.bar(80, 20, 80)
    assert 'class="before" x="0.000%" y="3" width="100.000%"' in drawn
    assert 'class="after" x="0.000%" y="7" width="25.000%"' in drawn
    columns = charts.columns(
        [Layer("n", "Conv", (), (10, 1), (5, 1)), Layer("m", "Conv", (), (20, 1), (20, 1))], height=100
    )
    assert re.findall(r' height="([\d.]+)"/>', columns) == ["50.0", "25.0", "100.0", "100.0"]
    assert "n (Conv): 10 to 5" in columns


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 1.7, [0, 0.5, 1.0, 1.5]),
        (0.918, 0.941, [0.92, 0.925, 0.93, 0.935, 0.94]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers(low, high, marks):
    assert charts.ticks(low, high) == pytest.approx(marks)
