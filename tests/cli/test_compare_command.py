"""`onnxprune compare`: rows, table and plot; what is resumed, refused, and recorded instead of stopping the rest."""

import csv
import json
import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest

from onnxprune.cli import main
from onnxprune.studies import compare
from onnxprune.studies.compare import loop


@pytest.fixture(scope="module")
def samples(tmp_path_factory, cnn_path):
    import onnxruntime as ort

    x = np.random.default_rng(1).standard_normal((80, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(cnn_path)
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    y = np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
    np.savez(path, x=x, y=(y - y.mean(0)).argmax(1))
    return path


@pytest.fixture
def command(cnn_path, samples, tmp_path):
    """Words of a command that compares l1 and random, constants pushed."""
    fixed = [cnn_path, "--data", samples, "--recover", "constants", "--align", 1, "--out", tmp_path / "out"]
    return lambda *words: ["compare", *map(str, [*fixed, *words])]


def rows_of(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]


def test_every_method_meets_every_budget_with_every_seed(command, cli, tmp_path):
    ran = cli(*command("--methods", "l1,random", "--targets", "macs=0.5", "params=0.7", "--seeds", "0,1"))
    assert ran.code == 0, ran.err
    folder = tmp_path / "out"
    rows = rows_of(folder)
    assert len(rows) == 8
    assert all(row["accuracy"]["samples"] == 16 and row["cut"] is not None for row in rows)
    assert all(row["macs"] <= 0.5 for row in rows if row["target"] == "macs=0.5")
    assert all(row["params"] <= 0.7 for row in rows if row["target"] == "params=0.7")
    found = json.loads((folder / "compare.json").read_text())
    assert found["original"]["accuracy"]["samples"] == 16
    assert [line["seeds"] for line in found["lines"]] == [[0, 1]] * 4
    assert (folder / "compare.md").read_text().count("| macs=0.5 |") == 2
    assert len(list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))) == 8
    svg = ET.fromstring((folder / "compare.svg").read_text())
    assert len(svg.findall(".//{*}g")) == 3 * 4  # a point per panel and line
    assert "random" in ran.out


def test_a_second_call_runs_what_is_missing_only(command, cli, tmp_path, monkeypatch):
    assert cli(*command("--methods", "l1")).code == 0
    (first,) = (tmp_path / "out" / "runs").glob("*.json")
    before, made = first.read_bytes(), []
    original = loop._row
    monkeypatch.setattr(loop, "_row", lambda subject, run, *rest: made.append(run.key) or original(subject, run, *rest))
    assert cli(*command("--methods", "l1", "l2")).code == 0
    assert made == ["l2 macs=0.5 seed 0"]
    assert first.read_bytes() == before


def test_all_runs_share_how_they_are_fine_tuned(command, cli, tmp_path):
    tuned = ("--methods", "l1", "--recover", "finetune", "--epochs", "1", "--finetune", "flip=true")
    assert cli(*command(*tuned)).code == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["options"]["finetune"] == {"flip": True}
    assert loop.common_of(settings).finetune == {"flip": True}
    other = cli(*command(*tuned[:-1], "flip=false"))
    assert other.code == 2
    assert "made with options.finetune.flip True, and now it is False" in other.err


def test_all_runs_share_which_blocks_go_and_where_widths_come_from(command, cli, tmp_path):
    """compare had neither --blocks nor --allocate."""
    assert cli(*command("--methods", "l1", "--blocks", "add", "--allocate", "uniform", "--keep-models")).code == 0
    (made,) = (tmp_path / "out" / "models").glob("*.onnx")
    assert "inner" not in {node.name for node in onnx.load(made).graph.node}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    common = loop.common_of(settings)
    assert (list(common.blocks), common.allocate) == (["add"], "uniform")
    other = cli(*command("--methods", "l1", "--blocks", "add"))
    assert other.code == 2
    assert "made with options.allocate uniform" in other.err


def test_an_interruption_loses_the_current_run_only(command, cli, tmp_path, monkeypatch):
    original = loop._row

    def interrupted(subject, run, *rest):
        if run.entry.method == "random":
            raise KeyboardInterrupt
        return original(subject, run, *rest)

    monkeypatch.setattr(loop, "_row", interrupted)
    ran = cli(*command("--methods", "l1,random"))
    assert ran.code == 130
    assert "goes on" in ran.err
    assert [row["method"] for row in rows_of(tmp_path / "out")] == ["l1"]
    assert "l1" in (tmp_path / "out" / "compare.md").read_text()
    monkeypatch.setattr(loop, "_row", original)
    assert cli(*command("--methods", "l1,random")).code == 0
    assert len(rows_of(tmp_path / "out")) == 2


def test_a_method_that_refuses_is_a_line_with_its_reason(command, cli, tmp_path):
    ran = cli(*command("--methods", "gss:form=none,l1"))
    assert ran.code == 0
    assert "refused" in ran.out
    refused = next(row for row in rows_of(tmp_path / "out") if "error" in row)
    assert refused["kind"] == "UsageError"
    assert "choose of" in refused["error"]
    assert "choose of" in (tmp_path / "out" / "compare.md").read_text()


def test_a_fault_of_ours_does_not_stop_the_rest(command, cli, tmp_path, monkeypatch):
    original = loop.row_of

    def broken(subject, out, options, *rest):
        if options.method == "l1":
            raise ZeroDivisionError("seven")
        return original(subject, out, options, *rest)

    monkeypatch.setattr(loop, "row_of", broken)
    assert cli(*command("--methods", "l1,l2")).code == 0
    found = {row["method"]: row.get("error") for row in rows_of(tmp_path / "out")}
    assert found == {"l1": "internal error: ZeroDivisionError: seven", "l2": None}
    monkeypatch.setattr(loop, "row_of", original)
    assert cli(*command("--methods", "l1,l2", "--again")).code == 0
    assert not any("error" in row for row in rows_of(tmp_path / "out"))


def test_exit_code_1_when_no_run_gave_a_result(command, cli):
    assert cli(*command("--methods", "l1", "--targets", "macs=0.0001")).code == 1


def test_a_folder_of_other_settings_is_refused(command, cli, tmp_path):
    assert cli(*command("--methods", "l1")).code == 0
    ran = cli(*command("--methods", "l1", "--floor", 0.3))
    assert ran.code == 2
    assert "options.floor 0.05, and now it is 0.3" in ran.err


def test_a_folder_of_other_files_is_refused(command, cli, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    ran = cli(*command("--methods", "l1"))
    assert ran.code == 2
    assert "holds other files" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "nothing"], "no such method"),
        (["--methods", "l1:samples"], "expected KEY=VALUE"),
        (["--targets", "macs=half"], "give KEY=FRACTION"),
        (["--targets", "speed=0.5"], "unknown; choose of"),
        (["--targets", "nonzeros=0.5,macs=0.5"], "stands alone"),
        (["--seeds", "one"], "list of whole numbers"),
    ],
)
def test_bad_usage_is_refused_before_the_first_run(command, cli, tmp_path, words, message):
    ran = cli(*command(*words))
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_samples_are_needed(cnn_path, tmp_path, capsys):
    assert main(["compare", str(cnn_path), "--out", str(tmp_path / "out")]) == 2
    assert "give --data or --val" in capsys.readouterr().err


def test_models_are_kept_when_asked_for(command, cli, tmp_path):
    assert cli(*command("--methods", "l1", "--keep-models")).code == 0
    (model,) = (tmp_path / "out" / "models").iterdir()
    assert model.suffix == ".onnx"


# The grid ---------------------------------------------------------------------------------------------------------


def budget(text, target, **options):
    from onnxprune.options import Options

    (run,) = compare.runs([compare.entry_of(text, options)], [target], [3])
    made = run.options(Options(data="digits"))
    return run.target, dict(made.target), dict(made.method_options)


def test_sparse_methods_are_told_a_density_and_others_parameters():
    assert budget("l1", "nonzeros=0.3") == ("nonzeros=0.3", {"params": 0.3}, {})
    assert budget("aswl", "nonzeros=0.3") == ("nonzeros=0.3", {}, {"density": 0.3})
    assert budget("cci", "nonzeros=0.3") == ("nonzeros=0.3", {}, {"group": 16, "kept": 5})
    assert budget("cci", "nonzeros=0.5", axis="input") == ("nonzeros=0.5", {}, {"axis": "input", "group": 4, "kept": 2})
    assert budget("snacs", "nonzeros=0.5", mode="connection")[2] == {"mode": "connection", "density": 0.5}
    assert budget("snacs", "nonzeros=0.5") == ("nonzeros=0.5", {"params": 0.5}, {})


def test_what_decides_by_its_own_option_runs_once_per_seed():
    entry = compare.entry_of("aswl:density=0.3", {"density": 0.3})
    found = compare.runs([entry], ["macs=0.5", "macs=0.7"], [0, 1])
    assert [run.key for run in found] == ["aswl:density=0.3 own seed 0", "aswl:density=0.3 own seed 1"]
    assert budget("snacs", "own") == ("own", {}, {})


# The intervals ----------------------------------------------------------------------------------------------------


def row(value, seed, n=100, **more):
    from onnxprune.outputs.metrics import wilson_interval

    accuracy = {"metric": "top1", "value": value, "samples": n, "interval95": wilson_interval(value * n, n)}
    return {"method": "m", "target": "t", "seed": seed, "accuracy": accuracy, "macs": 0.5, **more}


def test_one_seed_has_the_interval_of_its_samples():
    (line,) = compare.summarize([row(0.9, 0)])
    assert line.seeds95 is None
    assert line.interval95 == pytest.approx(row(0.9, 0)["accuracy"]["interval95"])


def test_seeds_widen_the_interval_by_students_t():
    values = [0.88, 0.90, 0.95]
    (line,) = compare.summarize([row(value, k) for k, value in enumerate(values)])
    half = 4.302652729696142 * np.std(values, ddof=1) / np.sqrt(3)
    mean = np.mean(values)
    assert line.accuracy == pytest.approx(mean)
    assert line.seeds95 == pytest.approx((mean - half, min(1, mean + half)))
    low = np.mean([value - row(value, 0)["accuracy"]["interval95"][0] for value in values])
    assert line.interval95 is not None
    assert line.interval95[0] == pytest.approx(mean - np.hypot(low, half))
    assert line.interval95[1] <= 1
    assert line.shares["macs"] == 0.5


def test_failed_seeds_are_told_and_left_out():
    lines = compare.summarize([row(0.9, 0), {**row(0.1, 1), "error": "no"}])
    assert (lines[0].accuracy, lines[0].seeds, lines[0].failed) == (0.9, (0,), ("no",))


def test_the_joint_interval_holds_the_truth_as_often_as_it_promises():
    """Methods whose accuracy varies by seed, seen on finite samples that all seeds share."""
    rng, held, trials = np.random.default_rng(0), 200, 0
    for _ in range(300):
        difficulty = rng.normal(size=held)  # of the samples drawn this time
        shift = 1.2 + 0.15 * rng.normal(size=3)  # of the seeds
        noise = rng.normal(size=(3, held))
        right = (shift[:, None] + noise > difficulty).mean(axis=1)
        (line,) = compare.summarize([row(float(value), k, held) for k, value in enumerate(right)])
        draws = np.random.default_rng(7).normal(size=(3, 4000))
        truth = float((1.2 + 0.15 * draws[0] + draws[1] > draws[2]).mean())
        assert line.interval95 is not None
        trials += line.interval95[0] <= truth <= line.interval95[1]
    assert trials / 300 >= 0.95


def test_results_are_compared_in_floats_and_quantized(command, cli, tmp_path):
    words = ("--methods", "l1", "--quantize", "none", "int8", "int8:per_channel=false", "--keep-models")
    ran = cli(*command(*words))
    assert ran.code == 0, ran.err
    rows = {row["method"]: row for row in rows_of(tmp_path / "out")}
    assert set(rows) == {"l1", "l1 + int8", "l1 + int8:per_channel=false"}
    floats, integers = rows["l1"], rows["l1 + int8"]
    kept = [onnx.load(path) for path in (tmp_path / "out" / "models").iterdir()]
    assert sorted(any(node.op_type == "QuantizeLinear" for node in m.graph.node) for m in kept) == [False, True, True]
    assert integers["macs"] == floats["macs"]
    assert integers["params"] == floats["params"]
    assert "l1 + int8" in (tmp_path / "out" / "compare.md").read_text()
    assert cli(*command(*words)).code == 0
    assert {row["method"]: row for row in rows_of(tmp_path / "out")} == rows  # none was run again


@pytest.mark.parametrize("form", ["int9", "int8:colour=red"])
def test_a_form_that_there_is_not_is_refused_before_the_first_run(command, cli, tmp_path, form):
    ran = cli(*command("--quantize", "none", form))
    assert (ran.code, ran.err.count("\n"), (tmp_path / "out" / "runs").exists()) == (2, 1, False)
    assert "--quantize" in ran.err


def test_every_method_keeps_its_own_order_of_units(command, cli, tmp_path):
    """Every method of a comparison was asked for: none is left for another that loses less."""
    tuned = ("--methods", "l1", "--recover", "reconstruct")
    assert cli(*command(*tuned)).code == 0
    (row,) = rows_of(tmp_path / "out")
    assert not any("least squares bring back" in note or "refit" in note for note in row["notes"]), row["notes"]
