"""Fine-tuning with the original as the teacher."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_text import model as text_model
from recovering import Digits, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.data import input_infos, load_samples
from onnxprune.errors import BridgeError, DataError, UsageError
from onnxprune.graph import sessions
from onnxprune.outputs.describe import describe
from onnxprune.outputs.kinds import Output, Outputs, Part
from onnxprune.outputs.losses import shared_points
from onnxprune.plan.select import Selection
from onnxprune.recover import constants, probe, training
from onnxprune.recover import finetune as finetuning
from onnxprune.recover.finetune import Settings, choose, finetune
from onnxprune.recover.judging import CLEAR, Verdict
from onnxprune.recover.refit import reconstruct
from onnxprune.recover.teacher import Teacher

QUICK = Settings(epochs=2, batch_size=64, amp="off", channels_last=False)


@pytest.fixture(scope="module")
def refitted(request: pytest.FixtureRequest):
    """(digits, keep, a function that makes a cut and refitted model anew)."""
    digits = request.getfixturevalue("folded")
    keep = random_keep(digits.coupling, 0.5)
    cut = surgery.cut(Selection(digits.coupling, keep))
    constants.push(Selection(digits.coupling, keep), cut, digits.tune)
    reconstruct.refit(Selection(digits.coupling, keep), cut, digits.tune, limit=128)

    def again():
        copy = surgery.cut(Selection(digits.coupling, keep))
        for name, value in copy.graph.initializers.items():
            graph.set_constant(value, graph.array_of(cut.graph.initializers[name]))
        return copy

    return digits, keep, again


def test_without_labels_it_comes_within_half_a_point(folded: Digits):
    digits, keep = folded, random_keep(folded.coupling, 0.7)  # half of the MACs
    cut = surgery.cut(Selection(digits.coupling, keep))
    reconstruct.refit(Selection(digits.coupling, keep), cut, digits.unlabelled(digits.tune), limit=128)
    settings = replace(QUICK, epochs=6)
    history = finetune(cut, digits.model, digits.unlabelled(digits.tune), digits.unlabelled(digits.held), settings)
    assert history.metric == "agreement"
    assert digits.accuracy(cut) >= digits.accuracy(digits.model) - 0.005
    assert history.best >= history.initial


def test_labels_are_used_where_there_are_any(refitted):
    digits, _, again = refitted
    history = finetune(again(), digits.model, digits.tune, digits.held, QUICK)
    assert history.metric == "agreement"  # with the original, on inputs that have no label
    assert history.settings.temperature == 4
    assert len(history.epochs) == 2


@pytest.mark.parametrize("extra", [{}, {"batchnorm": "on"}, {"mixup": 0.4, "crop": 1, "flip": True}])
def test_the_same_seed_gives_the_same_model(refitted, extra):
    digits, _, again = refitted
    few = digits.tune.subset(np.arange(256))
    models, losses = [], []
    for seed in (0, 0, 1):
        cut = again()
        history = finetune(cut, digits.model, few, digits.held, replace(QUICK, seed=seed, **extra))
        models.append(graph.digest(cut))
        losses.append([epoch.loss for epoch in history.epochs])
    assert models[0] == models[1]
    assert losses[0] == losses[1] != losses[2]


def test_the_best_epoch_is_kept_and_never_a_worse_one(refitted):
    digits, _, again = refitted
    cut = again()
    before = graph.digest(cut)
    worse = replace(QUICK, epochs=1, metric=lambda outputs, originals, labels: -float(next(worsening)))
    worsening = iter(range(10))
    history = finetune(cut, digits.model, digits.tune, digits.held, worse)
    assert (history.best_epoch, history.best, history.initial) == (0, 0.0, 0.0)
    assert graph.digest(cut) == before


def test_a_loss_that_is_not_finite_is_one_clear_line(refitted):
    digits, _, again = refitted
    with pytest.raises(UsageError, match="learning rate"):
        finetune(again(), digits.model, digits.tune, digits.held, replace(QUICK, lr=1e30, clip=0.0))


def test_it_stops_where_nothing_is_gained(refitted):
    digits, _, again = refitted
    settings = replace(QUICK, epochs=9, patience=2, metric=lambda outputs, originals, labels: 1.0, lr=1e-12)
    history = finetune(again(), digits.model, digits.tune.subset(np.arange(64)), digits.held, settings)
    assert len(history.epochs) < 9
    assert history.stopped == "no improvement"


def test_masked_positions_stay_zero(refitted):
    digits, _, again = refitted
    cut = again()
    name, value = next((n, v) for n, v in cut.graph.initializers.items() if len(v.shape) == 4)
    mask = np.random.default_rng(0).random(graph.array_of(value).shape) < 0.5
    for batchnorm in ("off", "on"):
        finetune(
            cut,
            digits.model,
            digits.tune,
            digits.held,
            replace(QUICK, epochs=1, batchnorm=batchnorm),
            masks={name: mask},
        )
        tuned = graph.array_of(cut.graph.initializers[name])
        assert (tuned[~mask] == 0).all()
        assert (tuned[mask] != 0).any()


def test_a_mask_that_fits_nothing_is_refused(refitted):
    digits, _, again = refitted
    with pytest.raises(UsageError, match="'nothing'"):
        finetune(again(), digits.model, digits.tune, digits.held, QUICK, masks={"nothing": np.ones(3, bool)})


def test_batchnorm_is_put_back_and_taken_out_again(refitted):
    digits, _, again = refitted
    cut = again()
    nodes = [(node.op_type, node.name) for node in cut.graph]
    history = finetune(cut, digits.model, digits.tune, digits.held, replace(QUICK, batchnorm="on", epochs=3))
    assert [(node.op_type, node.name) for node in cut.graph] == nodes
    assert history.best_epoch > 0
    assert digits.accuracy(cut) > 0.97


def test_outputs_that_are_no_classes_are_regressed():
    text = (
        "(float[N,3,8,8] x, float[8,3,3,3] w, float[8] b, float[2,8,3,3] v, float[2] c)"
        " => (float[N,2,8,8] y, float[N,8,8,8] z)"
        "{ a = Conv<pads = [1,1,1,1]>(x, w, b) z = Relu(a) y = Conv<pads = [1,1,1,1]>(z, v, c) }"
    )
    dense = text_model(text)
    student = dense.clone()
    value = student.graph.initializers["w"]
    noise = np.random.default_rng(1).normal(size=graph.array_of(value).shape, scale=0.5)
    graph.set_constant(value, (graph.array_of(value) + noise).astype(np.float32))
    x = np.random.default_rng(0).normal(size=(160, 3, 8, 8)).astype(np.float32)
    samples = load_samples({"x": x}, input_infos(dense))
    numbers = describe(dense, overrides={"y": "signal"})
    settings = replace(QUICK, epochs=8, batch_size=16, optimizer="adamw", lr=0.01, outputs=numbers)
    history = finetune(student, dense, samples, samples.subset(np.arange(32)), settings)
    assert history.metric == "share_kept"  # between a model that answers all alike and the original
    assert 1 - history.best < 0.5 * (1 - history.initial)
    wanted, got = (sessions.run(sessions.open_session(m), {"x": x[:8]})["y"] for m in (dense, student))
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.3


def test_shared_intermediate_values_can_be_compared(refitted):
    digits, _, _ = refitted
    keep = {dim: mask for dim, mask in random_keep(digits.coupling, 0.5).items() if "body" in dim.name}
    cut = surgery.cut(Selection(digits.coupling, keep))
    history = finetune(cut, digits.model, digits.tune, digits.held, replace(QUICK, epochs=1, features=0.5))
    assert history.best >= history.initial


def test_what_is_left_of_cut_values_can_be_compared(refitted):
    digits, keep, again = refitted
    positions = surgery.kept_positions(Selection(digits.coupling, keep))
    points = shared_points(again(), digits.model, positions)
    assert len(points) == 4
    assert all(name in positions for name in points)
    x = digits.held.batch(np.arange(64))

    def distance(cut):
        """Mean over points of the squared error in units of the original's variance."""
        was, now = (sessions.run(sessions.open_session(with_outputs(m, points)), x) for m in (digits.model, cut))
        parts = {name: np.take(was[name], positions[name][1], 1) for name in points}
        return np.mean([np.square(now[name] - part).mean() / part.var() for name, part in parts.items()])

    found = []
    for features in (0.0, 30.0):
        cut = again()
        settings = replace(QUICK, epochs=3, features=features)
        finetune(cut, digits.model, digits.tune, digits.held, settings, positions=positions)
        found.append(distance(cut))
    assert found[1] < 0.9 * found[0]


def with_outputs(model: ir.Model, names) -> ir.Model:
    """A copy of `model` that gives these values as well."""
    copy = model.clone()
    made = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(made[name] for name in names)
    return copy


def test_what_depends_on_data_and_model_is_chosen(folded: Digits, normed: Digits):
    chosen = choose(folded.tune, folded.model)
    assert None not in (chosen.epochs, chosen.lr, chosen.batch_size, chosen.ema, chosen.weight_decay)
    assert (chosen.optimizer, chosen.batchnorm) == ("sgd", "on")
    assert choose(normed.tune, normed.model).batchnorm == "off"
    assert choose(folded.tune, folded.model, settings=QUICK).epochs == 2
    assert choose(folded.tune, folded.model).statistics == "batch"
    assert choose(normed.tune, normed.model, settings=Settings(epochs=1), masked=True).statistics == "batch"
    assert [choose(normed.tune, normed.model, settings=Settings(epochs=n)).statistics for n in (1, 999)] == [
        "frozen",
        "batch",
    ]
    assert choose(folded.tune.subset(np.arange(10)), folded.model).batch_size == 10
    assert "lr 0." in chosen.described()


def test_boxes_and_maps_of_few_samples_are_trained_longer_in_small_steps_without_norms_put_back(folded):
    """Norms of a batch put back cost a face detector more than 160 steps brought, and YOLOv8n all that 680 did."""
    boxes = Outputs((Output("y", "boxes", 1, (Part("y", "boxes", 1),), "said here"),))
    few = folded.tune.subset(np.arange(64))
    chosen = choose(few, folded.model, settings=Settings(outputs=boxes))
    assert (chosen.optimizer, chosen.batchnorm, chosen.epochs) == ("adamw", "off", 60)
    assert choose(folded.tune, folded.model, settings=Settings(outputs=boxes, epochs=100)).batchnorm == "off"
    classes = Outputs((Output("y", "classes", 1, (Part("y", "classes", 1),), "said here"),))
    assert choose(few, folded.model, settings=Settings(outputs=classes)) == replace(
        choose(few, folded.model), outputs=classes
    )


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_statistics_of_batchnorm_stay_where_they_are_frozen(refitted, normed: Digits, statistics):
    cut = normed.model.clone()
    norms = [node.inputs[3] for node in cut.graph if node.op_type == "BatchNormalization"]
    names = [value.name or "" for value in norms if value is not None]
    before = [graph.array_of(cut.graph.initializers[name]) for name in names]
    settings = replace(QUICK, epochs=1, statistics=statistics, metric=lambda *_: next(rising))
    rising = iter(range(10))  # the trained epoch is kept
    finetune(cut, normed.model, normed.tune, normed.held, settings)
    same = [np.array_equal(graph.array_of(cut.graph.initializers[n]), b) for n, b in zip(names, before, strict=True)]
    assert names
    assert all(same) if statistics == "frozen" else not any(same)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": -1.0}, {"optimizer": "lion"}, {"labels": 2.0}, {"amp": "int8"}, {"statistics": "mine"}],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Settings(**wrong)


def test_samples_are_needed(folded: Digits):
    with pytest.raises(DataError, match="1 sample and"):
        finetune(folded.model, folded.model, folded.tune.subset([0]), folded.held, QUICK)


def test_progress_goes_to_stderr(refitted, capsys):
    digits, _, again = refitted
    few = digits.tune.subset(np.arange(128))
    finetune(again(), digits.model, few, digits.held, replace(QUICK, epochs=1, progress=True))
    said = capsys.readouterr()
    assert said.out == ""
    assert "loss" in said.err
    assert "agreement" in said.err


def test_weights_stored_small_behind_casts_are_trained_and_stay_small(folded: Digits):
    model = folded.model.clone()
    for node in list(model.graph):
        value = node.inputs[1] if node.op_type == "Conv" else None
        if value is None:
            continue
        small = graph.add_constant(model.graph, f"{value.name}.half", graph.array_of(value).astype(np.float16))
        cast = ir.Node("", "Cast", [small], {"to": ir.AttrInt64("to", 1)}, name=f"{node.name}.cast")
        cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}.wide", ir.DataType.FLOAT
        model.graph.insert_before(node, cast)
        node.replace_input_with(1, cast.outputs[0])
        del model.graph.initializers[value.name or ""]
    coupling = analyze(model)
    keep = random_keep(coupling, 0.6)
    cut = surgery.cut(Selection(coupling, keep))
    constants.push(Selection(coupling, keep), cut, folded.tune, limit=64)
    reconstruct.refit(Selection(coupling, keep), cut, folded.tune, limit=128)
    before = folded.accuracy(cut)
    history = finetune(cut, model, folded.tune, folded.held, replace(QUICK, batchnorm="on"))
    halves = [value.const_value for name, value in cut.graph.initializers.items() if name.endswith(".half")]
    kinds = {tensor.dtype for tensor in halves if tensor is not None}
    assert kinds == {ir.DataType.FLOAT16}
    assert sum(node.op_type == "Cast" for node in cut.graph) == 8
    assert history.best_epoch > 0
    assert folded.accuracy(cut) >= before - 0.01


def test_a_difference_that_chance_makes_is_not_clear():
    rng = np.random.default_rng(0)
    start = (rng.random(400) < 0.10).astype(float)
    flipped = start.copy()
    flipped[rng.permutation(400)[:12]] = 1.0  # about as many answers were lost as are gained
    flipped[np.flatnonzero(start)[:8]] = 0.0
    one, other = Verdict(0.9, tuple(start)), Verdict(0.9, tuple(flipped))
    assert 0 < other.excess_over(one) < CLEAR
    assert not other.clearly_worse_than(one)
    worse = Verdict(0.8, tuple(np.maximum(start, rng.random(400) < 0.1)))
    assert worse.clearly_worse_than(one)
    assert not one.clearly_worse_than(worse)


def test_a_single_number_is_compared_as_it_is():
    assert Verdict(0.1, (0.2,)).clearly_worse_than(Verdict(0.2, (0.1,)))
    assert not Verdict(0.1, (0.1,)).clearly_worse_than(Verdict(0.2, (0.1,)))


class Ticking:
    """A clock that goes on by a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def test_training_that_turns_out_slow_ends_in_time_at_the_lowest_rates(refitted, monkeypatch):
    """The learning rate falls towards the end of the time, not of the epochs, and reports say how much was trained."""
    digits, _, again = refitted
    some, clock = digits.tune.subset(np.arange(640)), Ticking()
    monkeypatch.setattr(training, "time", clock)
    monkeypatch.setattr(finetuning, "affordable", lambda settings, asked, *_, **__: (asked, len(some)))
    history = finetune(again(), digits.model, some, digits.held, replace(QUICK, epochs=30, seconds=80.0, lr=0.01))
    assert history.stopped == "time over"
    assert 2 <= len(history.epochs) < 30
    last = history.epochs[-1]
    assert all(epoch.share == 1 for epoch in history.epochs[:-1])
    assert 0 < last.share <= 1
    assert last.lr <= 0.0005
    assert max(epoch.lr for epoch in history.epochs) > 0.005
    passed = sum(epoch.share for epoch in history.epochs)
    assert f"after {passed:.3g} epochs" in history.told or history.best_epoch != len(history.epochs)


def test_with_time_enough_the_clock_changes_nothing(refitted):
    digits, _, again = refitted
    few = digits.tune.subset(np.arange(256))
    models = []
    for seconds in (None, 1e6):
        cut = again()
        history = finetune(cut, digits.model, few, digits.held, replace(QUICK, seconds=seconds))
        assert [epoch.share for epoch in history.epochs] == [1, 1]
        models.append(graph.digest(cut))
    assert models[0] == models[1]


def test_the_teacher_is_not_asked_where_labels_alone_count(refitted, monkeypatch):
    digits, _, again = refitted
    few, asked = digits.tune.subset(np.arange(128)), []
    targets = Teacher.targets
    monkeypatch.setattr(Teacher, "targets", lambda *given: asked.append(1) or targets(*given))
    losses = []
    for weight in (1.0, 0.999):
        asked.clear()
        settings = replace(QUICK, epochs=1, flip=True, labels=weight)
        history = finetune(again(), digits.model, few, digits.held, settings)
        losses.append((history.epochs[0].loss, len(asked)))
    assert [count for _, count in losses] == [0, 2]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.05)


@pytest.mark.parametrize(
    ("extra", "shown"), [({}, 1), ({"crop": 1, "versions": 2}, 2), ({"crop": 1, "versions": 3}, 3), ({"crop": 1}, 6)]
)
def test_the_teacher_is_asked_once_about_each_version(refitted, monkeypatch, extra, shown):
    digits, _, again = refitted
    few, asked = digits.tune.subset(np.arange(128)), []
    monkeypatch.setattr(finetuning, "_judge", lambda *_: SimpleNamespace(name="", told="", distances=None))
    monkeypatch.setattr(training, "_verdict", lambda run: Verdict(1.0, (1.0,)))
    says = Teacher.says
    monkeypatch.setattr(Teacher, "says", lambda self, feeds: asked.append(feeds) or says(self, feeds))
    settings = replace(
        QUICK, epochs=6, lr=0.01, optimizer="sgd", versions=extra.get("versions"), crop=extra.get("crop", 0)
    )
    finetune(again(), digits.model, few, digits.held, settings)
    assert len(asked) == 2 * shown  # two batches in an epoch
    (name,) = asked[0]
    seen = [torch.cat([feeds[name] for feeds in asked[k : k + 2]]) for k in range(0, len(asked), 2)]
    sums = {tuple(sorted(x.flatten(1).square().sum(1).tolist())) for x in seen}
    assert len(sums) == shown  # every epoch that it is asked in shows other images


def test_what_the_teacher_said_is_what_it_would_say_again(refitted):
    """Versions without end and more versions than epochs are the same, but for which ones are drawn."""
    digits, _, again = refitted
    few, models = digits.tune.subset(np.arange(256)), []
    for remembers in (True, False):
        cut = again()
        with pytest.MonkeyPatch.context() as patch:
            if not remembers:
                patch.setattr(Teacher, "remember", lambda *_: None)
            finetune(cut, digits.model, few, digits.held, replace(QUICK, epochs=4, crop=1, flip=True, versions=2))
        models.append({name: graph.array_of(value) for name, value in cut.graph.initializers.items()})
    for name, array in models[0].items():
        np.testing.assert_allclose(array, models[1][name], rtol=1e-4, atol=1e-5)


def test_versions_are_not_mixed_with_others():
    with pytest.raises(UsageError, match="0 with mixup"):
        Settings(versions=4, mixup=0.2)


@pytest.mark.parametrize(("factor", "chosen"), [(0.5, "bf16"), (0.9, "off")])
def test_a_busy_machine_does_not_choose_the_precision(monkeypatch, factor, chosen):
    """Neighbors take the time of the quicker way; the CPU time that it takes itself tells."""
    passed = {"wall": 0.0, "cpu": 0.0}

    def step(network, feeds, settings, device):
        quick = settings.amp == "bf16"
        passed["cpu"] += 0.4 * (factor if quick else 1)
        passed["wall"] += 4.0 if quick else 0.4

    clocks = SimpleNamespace(perf_counter=lambda: passed["wall"], process_time=lambda: passed["cpu"])
    monkeypatch.setattr(probe, "time", clocks)
    monkeypatch.setattr(probe, "_step", step)
    settings, cpu = Settings(channels_last=False), torch.device("cpu")
    assert probe.fastest(torch.nn.Linear(1, 1), {}, settings, cpu).amp == chosen
    assert probe.step_seconds(torch.nn.Linear(1, 1), {}, replace(settings, amp="bf16"), cpu) == pytest.approx(4.0)


@pytest.mark.parametrize(("factor", "told"), [(4.0, 4.0), (1.1, 1.0), (0.5, 1.0), (float("inf"), 1.0)])
def test_a_slow_precision_that_was_asked_for_is_told(refitted, monkeypatch, caplog, factor, told):
    digits, _, again = refitted
    cpu = {"s": 0.0}

    def step(network, feeds, settings, device):
        if settings.amp == "bf16" and factor == float("inf"):
            raise RuntimeError("no such kernel")
        cpu["s"] += 0.1 * (factor if settings.amp == "bf16" else 1)

    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: cpu["s"], process_time=lambda: cpu["s"]))
    monkeypatch.setattr(probe, "_step", step)
    few = digits.tune.subset(np.arange(64))
    finetune(again(), digits.model, few, digits.held, replace(QUICK, epochs=1, amp="bf16"))
    warned = [record.message for record in caplog.records if "times as long" in record.message]
    assert [f"takes {told:.1f} times as long as in float32" in text for text in warned] == [True] * (told > 1)


def test_a_precision_that_an_operator_refuses_is_not_chosen(monkeypatch):
    """torch's error of a kernel that is missing comes as the bridge's, which names the node."""
    ticks = itertools.count()

    def step(network, feeds, settings, device):
        if settings.amp == "bf16":
            raise BridgeError("Erf 'e' fails on inputs bfloat16 (1, 1)")

    monkeypatch.setattr(
        probe, "time", SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: next(ticks))
    )
    monkeypatch.setattr(probe, "_step", step)
    settings = Settings(channels_last=False)
    assert probe.fastest(torch.nn.Linear(1, 1), {}, settings, torch.device("cpu")).amp == "off"
