"""What multiple a provider likes: found from times, kept in the user's cache folder, used by `--align calibrated`."""

import json
from math import ceil

import onnx
import pytest

from onnxprune import cli
from onnxprune.errors import UsageError
from onnxprune.measure import Rounds, alignment, calibrations
from onnxprune.measure.alignment import KINDS, WIDTHS, Alignment, choose, efficiencies
from onnxprune.measure.calibrations import alignment_for
from onnxprune.options import options_of
from onnxprune.run.settings import widths_of

SHORT = Rounds(runs=2, min_seconds=0.0, max_seconds=0.2, least=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnxprune"


def blocked(block):
    """Times of a machine that computes channels in blocks, with a constant part."""
    widths = {*alignment.FULL, *(w for row in WIDTHS.values() for w in row)}
    return {w: 0.1 + (block * ceil(w / block) / 128) ** 2 for w in widths}


@pytest.mark.parametrize("block", [1, 4, 16, 32])
def test_the_block_of_a_machine_is_found(block):
    found = efficiencies(blocked(block), 2)
    assert choose({"dense": found}, tolerance=0.01) == block
    assert all(value == pytest.approx(1, abs=1e-9) for m, value in found.items() if m % block == 0)


def test_small_losses_are_tolerated_and_the_worst_kind_decides():
    fine, bad = dict.fromkeys(WIDTHS, 0.95), {**dict.fromkeys(WIDTHS, 1.0), 1: 0.2, 2: 0.2}
    assert choose({"a": fine}) == 1
    assert choose({"a": fine, "b": bad}) == 4


def test_where_nothing_is_good_enough_the_least_bad_is_taken():
    assert choose({"a": {1: 0.5, 2: 0.5, 4: 0.6, 8: 0.9, 16: 0.7, 32: 0.8}}) == 8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_probe_models_are_valid_at_every_width(kind):
    for width in (113, 128):
        model = kind.build(width)
        onnx.checker.check_model(model, full_check=True)
        assert {width} <= set(model.graph.initializer[0].dims)


def test_calibration_measures_every_kind(monkeypatch):
    said = []
    monkeypatch.setattr(alignment, "KINDS", KINDS[1::2])
    found = alignment.calibrate(rounds=SHORT, say=said.append)
    assert found.multiple in WIDTHS
    assert set(found.efficiency) == {kind.name for kind in KINDS[1::2]}
    assert all(value > 0 for row in found.efficiency.values() for value in row.values())
    assert len(said) == 2


def test_calibrated_uses_what_was_measured_on_this_provider_only(folder):
    with pytest.raises(UsageError, match="no calibration of this machine for cpu"):
        alignment_for("calibrated", "cpu")
    calibrations.store("cpu", Alignment(32, {"dense": {32: 1.0}}))
    assert alignment_for("calibrated", "cpu") == 32
    assert alignment_for("calibrated", "CPUExecutionProvider") == 32
    with pytest.raises(UsageError, match="for cuda"):
        alignment_for("calibrated", "cuda")
    assert alignment_for(5, "cpu") == 5
    calibrations.store("cuda", Alignment(4, {}))
    assert calibrations.cached_multiple("cpu") == 32
    assert calibrations.cached_multiple("cuda") == 4


def test_what_lies_in_the_cache_of_calibrate_does_not_change_auto(folder):
    """The same command and seed gave three plans."""
    calibrations.store("cpu", Alignment(32, {}))
    assert alignment_for("auto", "cpu") == alignment_for("auto", "CPUExecutionProvider") == 16
    assert alignment_for("auto", "cuda") == 8


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": "other/1", "entries": {}}', '{"format": "onnxprune-alignment/1", "entries": 3}'],
)
def test_a_damaged_cache_is_no_cache_and_is_written_anew(folder, content):
    folder.mkdir(parents=True)
    (folder / "alignment.json").write_text(content)
    assert calibrations.cached_multiple("cpu") is None
    calibrations.store("cpu", Alignment(16, {}))
    assert calibrations.cached_multiple("cpu") == 16


@pytest.mark.parametrize("multiple", [3, -16, "16", None, 1e9])
def test_multiples_that_no_calibration_gives_are_not_believed(folder, multiple):
    folder.mkdir(parents=True)
    entries = {calibrations.key("cpu"): {"multiple": multiple}}
    (folder / "alignment.json").write_text(json.dumps({"format": calibrations.FORMAT, "entries": entries}))
    assert calibrations.cached_multiple("cpu") is None


def test_the_command_prints_the_table_and_stores_it(folder, monkeypatch, capsys):
    found = Alignment(16, {"dense 3x3": {1: 0.77, 16: 1.0}})
    monkeypatch.setattr(alignment, "calibrate", lambda *_, **__: found)
    assert cli.main(["calibrate"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["multiples", "of", "1", "16"]
    assert out[1].split() == ["dense", "3x3", "77", "%", "100", "%"]
    assert out[2] == "--align calibrated on cpu: multiples of 16"
    entry = json.loads((folder / "alignment.json").read_text())["entries"][calibrations.key("cpu")]
    assert entry["efficiency"] == {"dense 3x3": {"1": 0.77, "16": 1.0}}


def test_a_provider_that_is_not_there_is_an_error(capsys):
    assert cli.main(["calibrate", "--provider", "nowhere"]) == 2
    assert "did not load" in capsys.readouterr().err


def test_threads_below_one_are_refused(capsys):
    assert cli.main(["calibrate", "--threads", "0"]) == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_int8_is_measured_and_kept_apart_from_floats(cli, monkeypatch, folder):
    quantized = []
    times = alignment.times

    def seen(kind, provider, threads, rounds, quantize):
        model = quantize(kind.build(64))
        quantized.append(any(node.op_type == "QuantizeLinear" for node in model.graph))
        return times(kind, provider, threads, SHORT, quantize)

    monkeypatch.setattr(alignment, "times", seen)
    monkeypatch.setattr(alignment, "KINDS", KINDS[1:2])
    ran = cli("calibrate", "--quantize", "int8")
    assert ran.code == 0, ran.err
    assert "--align calibrated on cpu with int8: multiples of" in ran.out
    assert quantized == [True]
    assert alignment_for("calibrated", "cpu", "int8") in WIDTHS
    with pytest.raises(UsageError, match="no calibration of this machine for cpu; run 'onnxprune calibrate"):
        alignment_for("calibrated", "cpu")


def test_the_alignment_of_a_run_with_int8_is_that_of_int8(folder):
    calibrations.store("cpu", Alignment(8, {}))
    calibrations.store("cpu", Alignment(32, {}), "int8")
    common = {"align": "calibrated", "provider": "cpu"}
    forms = (None, "int8:per_channel=false", "fp16")
    found = [widths_of(options_of({**common, "quantize": form})).align for form in forms]
    assert found == [8, 32, 8]
