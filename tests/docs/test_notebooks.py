"""The notebooks are those that tools/notebooks.py writes, and run from the first cell to the last."""

import json
from pathlib import Path

import pytest

from tools import notebooks


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_a_notebook_is_what_its_script_says(name):
    assert (notebooks.FOLDER / f"{name}.ipynb").read_text() == notebooks.written(name), "run: python tools/notebooks.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_a_notebook_runs(name, monkeypatch, capsys):
    monkeypatch.chdir(Path(notebooks.FOLDER))
    space: dict = {}
    for number, cell in enumerate(json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), space)
    assert space["result"].after.macs < space["result"].before.macs
    assert "<table>" in space["result"]._repr_html_()
    assert capsys.readouterr().out
