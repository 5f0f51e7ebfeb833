"""The front of sizes from one scoring, and the search for the smallest model that loses little, which reads it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from networks import DIGITS

from onnxprune import api
from onnxprune.errors import BudgetError, UsageError
from onnxprune.options import Options
from onnxprune.outputs.metrics import Accuracy
from onnxprune.recover import levels
from onnxprune.run import finish, front, settings, trials
from onnxprune.run.subject import parted, prepare
from onnxprune.run.trials import Trial, Trials
from onnxprune.system.clock import Clock

WORDS = ("--method", "l1", "--align", 1, "--no-latency")
ACCURACY = Accuracy("agreement", 0.9, 100, None)


# Accuracy -----------------------------------------------------------------------------------------------------------


def test_max_drop_finds_a_small_model_and_tells_its_trials(cli, tmp_path):
    report = tmp_path / "r.json"
    words = (DIGITS, tmp_path / "o.onnx", *WORDS, "--data", "digits", "--recover", "constants")
    ran = cli(*words, "--max-drop", 2, "--report", report)
    assert ran.code == 0
    found = json.loads(report.read_text())
    before, after = (model["accuracy"]["value"] for model in found["models"])
    assert 100 * (before - after) <= 2
    assert found["ratios"]["macs"] < 0.97
    assert "note: searched for at most 2 points lost; after a quick recovery macs=" in ran.err
    assert "; after the full one macs=" in ran.err
    assert "points of 2 allowed" in ran.err
    promised = found["models"][0]["accuracy"]["samples"]
    assert f"note: --max-drop chose on {539 - promised} samples, and promises on {promised} others" in ran.err


def test_max_drop_promises_on_samples_that_it_did_not_choose_on():
    """It chose the smallest model on the samples on which it then promised, which flatters."""
    options = Options(method="l1", data="digits", max_drop=1.0)
    seen = prepare(DIGITS, options, Clock())
    assert seen.searched is not None
    assert seen.held is not None
    whole = prepare(DIGITS, replace(options, max_drop=None), Clock())
    assert whole.held is not None
    assert len(seen.searched) + len(seen.held) == len(whole.held)
    assert whole.searched is None
    ours, theirs = (next(iter(part.batch(slice(None)).values())) for part in (seen.searched, seen.held))
    assert not {row.tobytes() for row in ours} & {row.tobytes() for row in theirs}


def test_max_drop_with_few_samples_says_that_it_flatters(digits, monkeypatch):
    subject, outcome = digits
    monkeypatch.setattr(trials, "drop", lambda *_: 0.0)
    options = Options(method="l1", data="digits", max_drop=1.0, recover="none", align=1)
    few = replace(subject, held=subject.held.subset(slice(0, 40)))
    assert parted(few.held, options) == (None, few.held)
    notes = next(front.choices(few, outcome, settings.resolved(options), Clock())).selection.notes
    assert any("chose and promises on the same 40 samples, which flatters; give 200 or more" in n for n in notes)


def test_max_drop_stays_below_a_target(cli, tmp_path):
    words = (DIGITS, tmp_path / "o.onnx", *WORDS, "--data", "digits", "--recover", "constants")
    ran = cli(*words, "--max-drop", 90, "--target", "macs=0.6", "--report", tmp_path / "r.json")
    assert ran.code == 0
    assert json.loads((tmp_path / "r.json").read_text())["ratios"]["macs"] < 0.6


def test_max_drop_that_cannot_be_met_tells_the_nearest(cli, tmp_path):
    words = (DIGITS, tmp_path / "o.onnx", *WORDS, "--data", "digits", "--recover", "none")
    ran = cli(*words, "--max-drop", 0, "--target", "macs=0.3")
    assert ran.code == 1
    assert ran.err.startswith("onnxprune: --max-drop 0 cannot be met: the nearest is ")
    assert "after a quick recovery macs=0.300" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_most_trials_are_cheap_and_few_are_full(digits, monkeypatch):
    """Six trials of an epoch each told little of what the whole recovery brings, and took most of the time."""
    subject, outcome = digits
    seen = []

    def recover(given, selection, model, how, clock, *, trial=False):
        seen.append((how.level, trial))

    monkeypatch.setattr(levels, "recover", recover)
    monkeypatch.setattr(trials, "drop", lambda *_: 3.0)
    options = Options(method="l1", data="digits", max_drop=1.0, epochs=50)
    with pytest.raises(BudgetError, match=r"the nearest is 3\.00 points"):
        next(front.choices(subject, outcome, settings.resolved(options), Clock()))
    assert set(seen) == {("reconstruct", True), ("finetune", False)}
    assert seen.count(("finetune", False)) <= trials.MOST_FULL
    assert seen.count(("reconstruct", True)) <= front.SEARCHED


def test_the_search_follows_what_the_full_recovery_brings(digits, monkeypatch):
    """Trials recovered so little that a search for 1 point ended at 94 % of the MACs, where half lost 2."""
    subject, outcome = digits
    costs = subject.cost

    def measured(self, selection, model):
        share = self.share_of(selection.keep)
        cheap = 20 * (1 - share) ** 2
        return Trial(selection, share, cheap / 5 if model == "full" else cheap, ACCURACY)

    def recovered(self, selection, how, clock, *, trial=False):
        made: Any = "cheap" if trial else "full"
        return trials.Recovered(made, None)

    monkeypatch.setattr(Trials, "_measured", measured)
    monkeypatch.setattr(Trials, "_recovered", recovered)
    options = Options(method="l1", data="digits", max_drop=1.0, epochs=50, align=1)
    choice = next(front.choices(subject, outcome, settings.resolved(options), Clock()))
    share = costs.total("macs", {d: int(m.sum()) for d, m in choice.selection.keep.items()}) / costs.total("macs")
    assert 4 * (1 - share) ** 2 <= 1.0
    assert share < 1 - (front.aim_of(1.0, len(subject.held)) / 4) ** 0.5 + front.ENOUGH
    assert choice.recovered is not None
    assert choice.recovered.model == "full"


def test_the_search_leaves_room_for_the_noise_of_the_promise():
    """On 250 samples it lost nothing, and 2.2 points on the 250 that the promise was measured on."""
    assert front.aim_of(1.0, 500) == pytest.approx(1 - 0.84 * 0.445, abs=0.01)
    assert front.aim_of(1.0, 1_000_000) == pytest.approx(1.0, abs=0.01)
    assert front.aim_of(1.0, 10) == front.LEAST_AIM
    assert front.aim_of(0.0, 100) == 0.0


def test_the_result_is_what_its_trial_recovered(cli, tmp_path, monkeypatch):
    """The same plan was recovered once to try it and once more to write it."""
    plans = []
    whole = levels.recover

    def recover(given, selection, model, how, clock, *, trial=False):
        if not trial:
            plans.append(trials.key_of(selection.keep))
        return whole(given, selection, model, how, clock, trial=trial)

    monkeypatch.setattr(levels, "recover", recover)
    words = (DIGITS, tmp_path / "o.onnx", *WORDS, "--data", "digits", "--recover", "constants")
    assert cli(*words, "--max-drop", 5).code == 0
    assert len(plans) == len(set(plans))
    assert len(plans) >= 1


def test_larger_plans_follow_when_the_result_misses(digits, monkeypatch):
    subject, outcome = digits
    monkeypatch.setattr(trials, "drop", lambda *_: 0.0)
    options = Options(method="l1", data="digits", max_drop=1.0, recover="none", align=1)
    found = list(front.choices(subject, outcome, settings.resolved(options), Clock()))
    kept = [sum(int(mask.sum()) for mask in choice.selection.keep.values()) for choice in found]
    assert len(found) == 1 + len(front.LARGER)
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


# The front ----------------------------------------------------------------------------------------------------------

FRONT = ("--data", "digits", "--recover", "constants", "--front")


def test_front_tells_ten_sizes_and_writes_their_plans(cli, tmp_path):
    out, report, page = tmp_path / "o.onnx", tmp_path / "r.json", tmp_path / "r.html"
    folder = tmp_path / "o.onnx.front"
    folder.mkdir()
    (folder / "99-macs-0.123.json").write_text("of an earlier run")
    (folder / "mine.txt").write_text("of the user")
    words = ("--method", "l1", "--align", 1, "--report", report, "--report", page)
    ran = cli(DIGITS, out, *words, *FRONT)
    assert ran.code == 0, ran.err
    points = json.loads(report.read_text())["front"]
    assert len(points) >= 10
    assert [p["macs"] for p in points] == sorted((p["macs"] for p in points), reverse=True)
    assert all(p["latency"] > 0 and 0 < p["params"] < 1 and p["metric"] == "top1" for p in points)
    assert points[0]["value"] > points[-1]["value"]
    assert sum(p["chosen"] for p in points) == 1
    assert {p["plan"] for p in points} == {file.name for file in folder.glob("*.json")}
    assert (folder / "mine.txt").exists()
    assert all(p["plan"] in ran.out for p in points)
    assert "the result is the knee of the front, macs=" in ran.err
    assert '<section id="front">' in page.read_text()
    chosen = next(p for p in points if p["chosen"])
    assert json.loads(report.read_text())["ratios"]["macs"] == pytest.approx(chosen["macs"], abs=0.02)
    other = points[2]
    assert cli("apply", DIGITS, folder / other["plan"], tmp_path / "b.onnx", "--no-latency").code == 0
    assert (tmp_path / "b.onnx").stat().st_size > out.stat().st_size


def test_front_with_a_target_makes_the_target_the_result(cli, tmp_path):
    ran = cli(DIGITS, tmp_path / "o.onnx", *WORDS, *FRONT, "--target", "macs=0.6", "--report", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert ran.code == 0
    assert 0.55 < found["ratios"]["macs"] <= 0.6
    assert min(p["macs"] for p in found["front"]) < 0.2
    assert max(p["macs"] for p in found["front"]) > 0.85
    assert all(p["latency"] is None for p in found["front"])


def test_front_with_quantize_tells_what_the_rounded_files_give(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(front, "SIZES", 2)
    cuts, made, cut, quantize = [], [], trials.surgery.cut, finish.quantize.quantize
    monkeypatch.setattr(trials.surgery, "cut", lambda selection: cuts.append(1) or cut(selection))
    monkeypatch.setattr(finish.quantize, "quantize", lambda *given: made.append(1) or quantize(*given))
    words = ("--quantize", "int8", "--report", tmp_path / "r.json")
    assert cli(DIGITS, tmp_path / "o.onnx", *WORDS, *FRONT, *words).code == 0
    found = json.loads((tmp_path / "r.json").read_text())
    points = found["front"]
    assert len(cuts) == len(made) == len(points) + 1  # each once for its accuracy, time and bytes; and the result
    assert all(0 <= p["quantized"] <= 1 for p in points)
    sizes = [p["bytes"] for p in points]
    assert sizes == sorted(sizes, reverse=True)
    (chosen,) = (p for p in points if p["chosen"])
    assert chosen["bytes"] == pytest.approx(found["ratios"]["bytes"], abs=0.01)
    assert any(p["quantized"] != p["quick"] for p in points)


def test_front_of_python_gives_the_plans():
    found = api.prune(onnx.load(DIGITS), data="digits", method="l1", align=1, latency=False, recover="none", front=True)
    assert len(found.plans) == len(found.report.front) >= 10
    assert [p.after["macs"] for p in found.plans] == sorted((p.after["macs"] for p in found.plans), reverse=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "l1"), "--front needs samples to measure on"),
        (("--data", "digits", "--target", "macs=0.5", "--steps", 2), "--front and --steps"),
    ],
)
def test_front_that_cannot_be_is_refused(cli, tmp_path, words, message):
    ran = cli(DIGITS, tmp_path / "o.onnx", *words, "--front")
    assert ran.code == 2
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_front_of_a_sparse_method_is_refused(digits):
    subject, outcome = digits
    sparse = replace(outcome, zeros={"w": np.ones(3, bool)})
    asked = settings.resolved(Options(method="l1", data="digits", front=True))
    with pytest.raises(UsageError, match="--method l1 sets weights to zero for one size"):
        next(front.choices(subject, sparse, asked, Clock()))


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(cli, tmp_path):
    (tmp_path / "o.onnx.front").write_text("a file")
    ran = cli(DIGITS, tmp_path / "o.onnx", "--method", "l1", *FRONT)
    assert ran.code == 2
    assert "o.onnx.front: --front writes plans into that folder, and it is a file" in ran.err
