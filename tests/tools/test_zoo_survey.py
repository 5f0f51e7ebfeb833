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
