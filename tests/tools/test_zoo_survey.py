"""The survey of the zoo: what was done in a lesser way is counted and shown."""

import sys
from pathlib import Path

import pytest

ZOO = Path(__file__).parents[2] / "tools" / "zoo"


@pytest.fixture
def survey(monkeypatch):
    monkeypatch.syspath_prepend(str(ZOO))
    import survey

    yield survey
    for name in ("survey", "jobs", "onnxprune_worker"):
        sys.modules.pop(name, None)


def exported(name: str) -> dict:
    return {"name": name, "file": f"{name}.ts.onnx", "variant": "ts", "params": 1_000_000, "status": "exported"}


def test_fallbacks_are_counted_and_their_files_are_exceptions(survey, tmp_path):
    fine = {"ok": True, "right": True, "shrinkable": 1.0, "fallbacks": []}
    lesser = {**fine, "fallbacks": ["onnxsim fails on this model: its constants were not folded"]}
    old = {key: value for key, value in fine.items() if key != "fallbacks"}  # of a survey before these were counted
    exports = [exported(name) for name in ("fine", "lesser", "old")]
    rows = dict(zip((e["file"] for e in exports), (fine, lesser, old), strict=True))
    survey.write_tables(survey.parse([str(tmp_path), "--out", str(tmp_path / "zoo")]), exports, rows)
    text = (tmp_path / "zoo.md").read_text()
    assert "1 in 1 of the 2 files that were asked" in text
    exceptions = text.split("## Exceptions")[1].split("## Network by network")[0]
    assert "lesser" in exceptions
    assert "constants were not folded" in exceptions
    assert "| fine" not in exceptions


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ZOO))
    import families_table
    import run

    yield run, families_table
    for name in ("families_table", "survey", "run", "feeds", "jobs", "onnxprune_worker"):
        sys.modules.pop(name, None)


def test_rows_of_an_earlier_document_are_kept_and_say_that_they_are(survey, tools, tmp_path):
    exports = [exported(name) for name in ("a", "b")]
    row = {"ok": True, "right": True, "shrinkable": 1.0, "fallbacks": [], "difference": 1e-7}
    first = survey.parse([str(tmp_path), "--out", str(tmp_path / "first")])
    survey.write_tables(first, exports, dict.fromkeys(("a.ts.onnx", "b.ts.onnx"), row))
    again = survey.parse([str(tmp_path), "--out", str(tmp_path / "now"), "--former", str(tmp_path / "first.md")])
    survey.write_tables(again, exports, {"b.ts.onnx": {**row, "difference": 2e-7}})
    text = (tmp_path / "now.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| a ", "| b "))]
    assert [line.split(" | ")[-1] for line in lines] == ["former |", "this |"]
    assert "2e-07" in lines[1]
    assert "1 files of 1 networks" in text
    assert "1 more rows of the table are of the proof before it (former); cut = mask held for 1 of these." in text

    run, _ = tools
    done = {"status": "pruned", "analysed": True, "prune_s": 1.0, "cut_equals_mask": True, "message": "a | b"}
    run.write_tables(tmp_path / "one", {name: {**done, "file": name} for name in ("a", "b")})
    run.write_tables(tmp_path / "two", {"b": {**done, "file": "b"}}, tmp_path / "one.md")
    text = (tmp_path / "two.md").read_text()
    assert [line.split(" | ")[-2:] for line in text.splitlines() if line.startswith(("| a ", "| b "))] == [
        ["a \\| b", "former |"],
        ["a \\| b", "this |"],
    ]
    assert "1 pruned, cut = mask for 1 of these" in text


def test_the_tables_of_files_and_of_families_count_fallbacks_too(tools):
    run, families_table = tools
    note = "onnxsim fails on this model: its constants were not folded"
    row = {"status": "pruned", "analysed": True, "prune_s": 1.0, "shrinkable": 1.0, "verified": True}
    lines = run.summary([{**row, "fallbacks": [note]}, {**row, "fallbacks": []}, row])
    assert "fallbacks: 1 in 1 of the 2 files that were asked" in lines
    surveyed = {
        "a.ts.onnx": {"ok": True, "shrinkable": 1.0, "fallbacks": [note]},
        "b.ts.onnx": {"ok": True, "shrinkable": 0.5, "fallbacks": [], "frozen_reasons": ["graph output (2)"]},
    }
    told = families_table.exceptions(surveyed, {}, {})
    assert f"- a.ts.onnx: {note}" in told
    assert "b.ts.onnx (50%)" in told
