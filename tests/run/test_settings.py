"""Every choice that the options leave open is recorded in plan and report, and `apply` does what was recorded."""

import json
from dataclasses import replace

import numpy as np
import pytest
from networks import DIGITS

from onnxprune.measure import calibrations
from onnxprune.measure.alignment import Alignment
from onnxprune.options import Options
from onnxprune.plan import plan
from onnxprune.run import settings

WORDS = ("--method", "l1", "--target", "macs=0.5", "--no-latency")
TUNED = ("--data", "digits", "--epochs", 1, "--finetune", "mixup=0.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the plan, the report) of a run that fine-tunes, as JSON."""
    from onnxprune import cli

    folder = tmp_path_factory.mktemp("tuned")
    reports = [word for end in ("json", "md", "html") for word in ("--report", folder / f"r.{end}")]
    words = (DIGITS, folder / "o.onnx", *WORDS, *TUNED, "--plan", folder / "p.json", *reports, "-q")
    assert cli.main([str(word) for word in words]) == 0
    return folder / "p.json", json.loads((folder / "r.json").read_text())


def test_every_choice_stands_in_plan_and_report(made):
    """The multiple stood in neither, so nobody could tell why the same command gave another plan."""
    path, report = made
    found = json.loads(path.read_text())["settings"]
    assert report["settings"] == found
    assert found["align"] == {"value": 16, "from": "default"}
    assert found["provider"] == {"value": "cpu", "from": "default"}
    assert found["recover"] == {"value": "finetune", "from": "data"}
    assert found["epochs"] == {"value": 1, "from": "asked"}
    assert found["mixup"] == {"value": 0.1, "from": "asked"}
    assert {found[name]["from"] for name in ("lr", "batch_size", "optimizer", "ema")} == {"data"}
    assert {found[name]["from"] for name in ("amp", "channels_last")} == {"measured"}
    assert not [name for name, entry in found.items() if entry["value"] == "auto"]
    assert "| align | 16 | default |" in path.with_name("r.md").read_text()
    assert "<dt>align</dt><dd>16 (default)</dd>" in path.with_name("r.html").read_text()


def test_apply_does_what_was_recorded_where_nothing_else_is_asked(made):
    loaded = plan.load(made[0])
    asked = Options(method="l1", data="digits", recover="finetune", lr=0.123, finetune={"mixup": 0.0})
    again = settings.again(loaded, asked)
    recorded = {name: entry["value"] for name, entry in loaded.settings.items()}
    assert (again.lr, again.epochs, again.batch_size) == (0.123, 1, recorded["batch_size"])
    assert again.finetune["mixup"] == 0.0
    assert again.finetune["optimizer"] == recorded["optimizer"]
    assert again.device == recorded["device"] == "cpu"
    assert settings.again(replace(loaded, settings={}), asked) == asked
    assert settings.again(loaded, replace(asked, recover="constants", lr=None)).lr is None


def test_the_cache_of_calibrate_changes_no_plan_that_did_not_ask_for_it(cli, tmp_path, monkeypatch):
    """The same command, model and seed gave three plans, by what 'onnxprune calibrate' had left."""
    kept, file = {}, tmp_path / "p.json"
    for multiple in (None, 2, 32):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{multiple}"))
        if multiple:
            calibrations.store("cpu", Alignment(multiple, {}))
        for align in ("auto", "calibrated"):
            ran = cli(DIGITS, tmp_path / "o.onnx", *WORDS, "--plan", file, "--align", align)
            assert ran.code == (2 if align == "calibrated" and multiple is None else 0), ran.err
            if ran.code == 0:
                read = json.loads(file.read_text())
                kept[align, multiple] = [entry["keep"] for entry in read["dims"]]
                origin = {"value": 16 if align == "auto" else multiple, "from": {"auto": "default"}.get(align, align)}
                assert read["settings"]["align"] == origin
            else:
                assert "run 'onnxprune calibrate --provider cpu', or give --align auto" in ran.err
    assert kept["auto", None] == kept["auto", 2] == kept["auto", 32]
    assert kept["calibrated", 2] != kept["auto", 2]
    assert all(np.all(np.diff(keep) > 0) for keep in kept["auto", None])
