"""The picture of a graph's widths: a bar per layer, its state and reason, safe against hostile names."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from onnxprune import graph
from onnxprune.errors import UsageError
from onnxprune.report import widths
from onnxprune.studies import inspection

MODEL = Path(__file__).parents[2] / "models" / "digits.onnx"


@pytest.fixture(scope="module")
def found():
    return inspection.inspect(graph.normalize(graph.load(MODEL)))


def layer(name, parts, width=8):
    return {"node": name, "op": "Conv", "width": width, "output": parts}


def part(name, state, why=""):
    return {"dim": name, "size": 8, "state": state, "why": why}


def test_every_layer_has_a_bar_in_the_order_of_the_graph(found):
    bars = widths.bars(found)
    assert [bar.node for bar in bars] == [entry["node"] for entry in found["layers"]]
    assert [bar.width for bar in bars] == [32, 32, 32, 32, 64, 64, 64, 96, 10]
    assert [bar.state for bar in bars] == ["free"] * 8 + ["frozen"]
    assert "graph output 'logits'" in bars[-1].told


def test_a_layer_that_can_shrink_in_part_is_not_frozen():
    mixed = layer("a", [part("x", "frozen", "because"), part("y", "free")])
    normed = layer("b", [part("z", "reduced", "LayerNormalization: normalizes over it")])
    bars = widths.bars({"layers": [mixed, normed, {"node": "c", "op": "Conv"}]})
    assert [bar.state for bar in bars] == ["free", "reduced"]
    assert "x [8]: because; y [8]" in bars[0].told


def test_the_page_explains_free_and_frozen_dimensions(found, tmp_path):
    widths.write_widths(found, MODEL, tmp_path / "w.html")
    page = (tmp_path / "w.html").read_text()
    for dim in found["dims"]:
        assert dim["name"] in page
        assert all(member["initializer"] in page for member in dim["members"])
    assert "graph output &#39;logits&#39;" in page
    assert "http:" not in page
    assert "<script" not in page


def test_the_image_is_well_formed_and_stands_alone(found, tmp_path):
    widths.write_widths(found, MODEL, tmp_path / "w.svg")
    root = ET.parse(tmp_path / "w.svg").getroot()
    names = {"svg": "http://www.w3.org/2000/svg"}
    titles = [title.text or "" for title in root.findall(".//svg:g/svg:title", names)]
    assert len(titles) == 9
    assert root.attrib["width"] == "1200"


def test_hostile_names_stay_text(found, tmp_path):
    evil = '</title><script>alert(1)</script>"&'
    hostile = {**found, "layers": [layer(evil, [part(evil, "frozen", evil)])]}
    widths.write_widths(hostile, evil.replace("/", ""), tmp_path / "w.svg")
    ET.parse(tmp_path / "w.svg")
    widths.write_widths(hostile, "m.onnx", tmp_path / "w.html")
    assert "<script" not in (tmp_path / "w.html").read_text() + (tmp_path / "w.svg").read_text()


@pytest.mark.parametrize(("name", "message"), [("w.png", "suffix '.png'"), ("nowhere/w.svg", "does not exist")])
def test_other_files_are_refused(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        widths.check_path(tmp_path / name)
