"""Selection to targets, searches for a latency, and what is tried next where a result misses."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import DIGITS
from onnx_text import proto

from onnxprune.errors import BudgetError
from onnxprune.options import Options
from onnxprune.plan.select import Selection
from onnxprune.recover import levels
from onnxprune.report import LatencyRatio, LatencyTable
from onnxprune.run import front, measuring, schedule, search, settings
from onnxprune.system.clock import Clock

WORDS = ("--method", "l1", "--align", 1, "--no-latency")


def test_biases_that_recovery_makes_count_in_the_budget(cli, tmp_path):
    """Products of matrices without biases get some; the share of parameters was missed by their number."""
    source, data, out = (tmp_path / name for name in ("in.onnx", "x.npz", "out.onnx"))
    text = "(float[n,5,12] x, float[12,24] w, float[24,24] u, float[24,6] v) => (float[n,5,6] y) "
    onnx.save(
        proto(text + "{ a = MatMul(x, w) r = Sigmoid(a) b = MatMul(r, u) s = Sigmoid(b) y = MatMul(s, v) }"), source
    )
    np.savez(data, x=np.random.default_rng(0).normal(size=(60, 5, 12)).astype(np.float32))
    given = (source, out, *WORDS, "--data", data, "--recover", "constants", "--target", "params=0.6")
    ran = cli(*given)
    assert ran.code == 0, ran.err
    sizes = [np.prod(tensor.dims) for tensor in onnx.load(out).graph.initializer]
    assert any(len(tensor.dims) == 1 for tensor in onnx.load(out).graph.initializer)
    assert sum(sizes) <= 0.6 * (12 * 24 + 24 * 24 + 24 * 6)


# One shot -----------------------------------------------------------------------------------------------------------


def test_blocks_of_an_automatic_alignment_do_not_overshoot_a_target(digits, monkeypatch):
    """Two dimensions give all that is removed: in blocks of 16 they left 0.41 of the MACs where 0.5 was asked."""
    subject, outcome = digits
    monkeypatch.setattr(settings, "alignment_for", lambda align, provider, form: 16 if align == "auto" else align)
    scores = {d: np.linspace(0.0, 1.0, d.size) if "body" in d.name else np.full(d.size, 9.0) for d in outcome.scores}
    only_two = replace(outcome, scores=scores, comparable=False, limits={})
    options = Options(method="l1", target={"macs": 0.5})

    def left(choice):
        sizes = {dim: int(mask.sum()) for dim, mask in choice.keep.items()}
        return subject.cost.total("macs", sizes) / subject.cost.total("macs")

    assert left(search.one_shot(subject, only_two, settings.resolved(options), {"macs": 0.5})) < 0.47
    choice = search.near_the_target(subject, only_two, settings.resolved(options), {"macs": 0.5})
    assert 0.47 <= left(choice) <= 0.5
    assert "multiples of" in choice.notes[-1]
    strict = settings.resolved(replace(options, align=16))
    asked = search.near_the_target(subject, only_two, strict, {"macs": 0.5})
    assert all(mask.sum() % 16 == 0 for mask in asked.keep.values())


# Bisection ----------------------------------------------------------------------------------------------------------


def test_bisect_finds_the_smallest_that_holds():
    best, tried = search._bisect(lambda share: share, lambda value: value >= 0.3, 0.0, 1.0, 0.5)
    assert 0.3 <= best < 0.33
    assert len(tried) <= search.TRIALS
    assert [trial.held for trial in tried] == [trial.macs >= 0.3 for trial in tried]


def test_bisect_finds_the_largest_that_holds():
    best, _ = search._bisect(lambda share: share, lambda value: value <= 0.7, 1.0, 0.0, 0.6)
    assert 0.65 < best <= 0.7


def test_bisect_steps_over_what_cannot_be_made():
    def trial(share):
        if share < 0.6:
            raise BudgetError("too small")
        return share

    for low, high in ((0.0, 1.0), (1.0, 0.0)):
        best, tried = search._bisect(trial, lambda value: True, low, high, 0.5)
        assert best >= 0.6
        assert all(trial.macs >= 0.6 for trial in tried)
    with pytest.raises(BudgetError, match="too small"):
        search._bisect(lambda share: trial(0.1), lambda value: True, 0.0, 1.0, 0.5)


def test_bisect_that_never_holds_tells_all_trials():
    best, tried = search._bisect(lambda share: 5.0, lambda value: value <= 1, 0.0, 1.0, 0.5)
    assert best is None
    assert len(tried) == search.TRIALS
    assert str(tried[0]) == "macs=0.500: 5.000 misses"


# Results ------------------------------------------------------------------------------------------------------------


def noted(*words):
    """A choice for each word, which is its note."""
    return (front.Choice(Selection(None, {}, notes=(word,))) for word in words)


def test_first_that_holds_goes_on_after_misses():
    made = []

    def make(choice):
        made.append(choice.selection.keep)
        if len(made) < 3:
            raise BudgetError(f"miss {len(made)}")
        return choice.selection.notes

    assert front.first_that_holds(noted("a", "b", "c"), make, Clock()) == (
        "c",
        "2 other results were tried before and missed what was asked",
    )


def test_first_that_holds_raises_the_last_miss():
    def make(choice):
        raise BudgetError(choice.selection.notes[0])

    with pytest.raises(BudgetError, match=r"^b$"):
        front.first_that_holds(noted("a", "b"), make, Clock())


# Latency ------------------------------------------------------------------------------------------------------------


def timed(monkeypatch, ratio_of):
    """Replaces the stop watch by `ratio_of(MACs of the trial / MACs of the original)`."""
    from onnxprune import graph
    from onnxprune.coupling import analyze
    from onnxprune.plan import cost

    def macs(model):
        return cost.of(analyze(graph.normalize(model if not hasattr(model, "parts") else graph.load(model)))).total(
            "macs"
        )

    def measure(models, *_, **__):
        whole, part = map(macs, models.values())
        value = ratio_of(part / whole)
        name = list(models)[1]
        return LatencyTable({}, (LatencyRatio(name, "CPUExecutionProvider", 1, 1, value, value, value),))

    monkeypatch.setattr(search, "measure_settled", measure)
    monkeypatch.setattr(measuring, "measure_settled", measure)


def test_latency_search_keeps_as_much_as_is_fast_enough(cli, tmp_path, monkeypatch):
    timed(monkeypatch, lambda macs: 0.3 + 0.7 * macs)  # as on a small model: a part that pruning does not touch
    report = tmp_path / "r.json"
    words = (DIGITS, tmp_path / "o.onnx", "--method", "l1", "--align", 1, "--target", "latency=0.7", "--report", report)
    ran = cli(*words)
    assert ran.code == 0
    assert 0.45 < json.loads(report.read_text())["ratios"]["macs"] <= 0.57
    assert "note: searched for latency=0.7; tried macs=0." in ran.err


@pytest.mark.parametrize("wanted", [0.5, 0.7, 0.85])
def test_latency_search_ends_within_three_percent(digits, monkeypatch, wanted):
    """It aimed four percent too low, and stopped at whatever was lower."""
    subject, outcome = digits
    timed(monkeypatch, lambda macs: 0.2 + 0.8 * macs**0.7)
    options = Options(method="l1", align=1, target={"latency": wanted})
    keep = next(search.selections(subject, outcome, settings.resolved(options))).keep
    sizes = {dim: int(mask.sum()) for dim, mask in keep.items()}
    macs = subject.cost.total("macs", sizes) / subject.cost.total("macs")
    assert 0.97 * wanted <= 0.2 + 0.8 * macs**0.7 <= wanted


def test_latency_that_cannot_be_met_tells_the_nearest(cli, tmp_path, monkeypatch):
    timed(monkeypatch, lambda macs: 0.9 + 0.1 * macs)
    ran = cli(DIGITS, tmp_path / "o.onnx", "--method", "l1", "--target", "latency=0.5")
    assert ran.code == 1
    assert "--target latency=0.5 cannot be met: the nearest that was measured is latency=0.9" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_speed_gate_is_measured_on_the_result(cli, tmp_path, monkeypatch):
    timed(monkeypatch, lambda macs: 0.8)
    words = (DIGITS, tmp_path / "o.onnx", "--method", "l1", "--min-speedup")
    missed = cli(*words, 2)
    assert missed.code == 1
    assert "--min-speedup 2 was missed: the nearest is 1.250 times as fast (latency=0.800)" in missed.err
    assert cli(*words, 1.2).code == 0


# Several steps ------------------------------------------------------------------------------------------------------


def test_steps_are_nested_and_keep_what_was_learned(digits, monkeypatch):
    """What a step removed stays removed, and the weights that recovery changed are those that are cut in the end."""
    subject, _ = digits
    steps = []

    def recover(given, selection, model, *_):
        steps.append({dim: mask.copy() for dim, mask in selection.keep.items()})
        for value in model.graph.initializers.values():
            if value.name == "head.bias":
                search.graph.set_constant(value, search.graph.array_of(value) + 1)

    monkeypatch.setattr(levels, "recover", recover)
    options = Options(method="l1", target={"macs": 0.3}, steps=3, align=1)
    last, outcome = schedule.scored(subject, settings.resolved(options), Clock())
    final = next(search.selections(last, outcome, settings.resolved(replace(options, steps=1)))).keep
    for before, after in zip(steps, [*steps[1:], final], strict=True):
        for dim, mask in before.items():
            assert not (after[dim] & ~mask).any()
    costs = [subject.cost.total("macs", {d: int(m.sum()) for d, m in keep.items()}) for keep in (*steps, final)]
    shares = np.array(costs) / subject.cost.total("macs")
    assert np.all(shares <= 0.3 ** (np.arange(1, 4) / 3))
    biases = [search.graph.array_of(s.coupling.model.graph.initializers["head.bias"]) for s in (subject, last)]
    np.testing.assert_allclose(biases[1], biases[0] + 2, rtol=1e-6)
