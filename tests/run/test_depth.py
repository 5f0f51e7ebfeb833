"""--blocks: whole blocks that go, by name or measured, with their proof, their place in plans, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import CNN, DIGITS_BN, filled
from onnx_text import proto

from onnxprune import graph
from onnxprune.coupling import Reason
from onnxprune.errors import UsageError, VerificationError
from onnxprune.options import Options
from onnxprune.plan import cost, plan
from onnxprune.plan.select import Selection
from onnxprune.run import depth, schedule, search
from onnxprune.run.settings import resolved
from onnxprune.run.subject import prepare
from onnxprune.surgery import blocks
from onnxprune.system.clock import Clock

QUICK = ("--method", "l1", "--align", 1, "--no-latency", "-q")
DEEP = (
    "(float[n,6] x, float[6,8] s, float[8,12] a, float[12] ab, float[12,8] b, float[8] bb, float[8,12] c, "
    "float[12,8] d, float[8] db, float[8,4] h) => (float[n,4] y) { t0 = MatMul(x, s) "
    "u = MatMul(t0, a) ua = Add(u, ab) u1 = Relu(ua) "
    "u2 = MatMul(u1, b) u3 = Add(u2, bb) [first] t1 = Add(t0, u3) v = MatMul(t1, c) v1 = Relu(v) v2 = MatMul(v1, d) "
    "v3 = Add(v2, db) [second] t2 = Add(t1, v3) y = MatMul(t2, h) }"
)


@pytest.fixture
def cnn(tmp_path):
    """The file of a small network with one block, and samples of it."""
    onnx.save(filled(CNN), tmp_path / "cnn.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(40, 3, 8, 8)).astype(np.float32))
    return tmp_path / "cnn.onnx"


def without_add(cli, source, level="none"):
    out, file = source.parent / "out.onnx", source.parent / "plan.json"
    data = () if level == "none" else ("--data", source.parent / "data.npz")
    more = ("--blocks", "add", "--recover", level, "--target", "macs=0.35", "--plan", file)
    ran = cli(source, out, *QUICK, *more, *data, "--report", source.parent / "report.json")
    assert ran.code == 0, ran.err
    return out, file


@pytest.mark.parametrize("level", ["none", "constants", "reconstruct"])
def test_a_block_goes_and_the_result_is_verified_and_made_again_by_its_plan(cli, cnn, level):
    out, file = without_add(cli, cnn, level)
    assert not {"inner", "inner.weight"} & {node.name for node in onnx.load(out).graph.node}
    ran = cli("verify", cnn, out, "--plan", file)
    assert ran.code == 0, ran.err
    assert cli("check", file, "--model", cnn).code == 0
    again = cnn.parent / "again.onnx"
    data = () if level == "none" else ("--data", cnn.parent / "data.npz")
    assert cli("apply", cnn, file, again, "--no-latency", "-q", *data).code == 0
    assert cli("verify", cnn, again, "--plan", file).code == 0
    sizes = [[(t.name, *t.dims) for t in onnx.load(path).graph.initializer] for path in (out, again)]
    assert sizes[0] == sizes[1]


def test_plan_and_report_say_which_block_went_and_what_it_was(cli, cnn):
    _, file = without_add(cli, cnn)
    made, report = json.loads(file.read_text()), json.loads((cnn.parent / "report.json").read_text())
    assert made["blocks"] == [{"name": "add", "constant": False}]
    empty = [(s["initializer"], s["node"], s["axis"]) for s in made["slices"] if not s["keep"]]
    assert empty == [("w2", "inner", 0), ("b2", "inner", 0)]
    assert report["plan"]["blocks"] == ["add"]
    (row,) = [layer for layer in report["layers"] if layer["node"] == "inner"]
    assert (row["before"], row["after"], row["macs_after"]) == ([8, 8, 3, 3], [0, 0, 0, 0], 0)
    assert sum(layer["macs_before"] for layer in report["layers"]) == report["models"][0]["macs"]
    assert report["models"][1]["macs"] == made["cost"]["after"]["macs"] <= 0.35 * report["models"][0]["macs"]


def test_the_mask_of_the_plan_in_the_whole_model_gives_the_result_whoever_makes_it(cli, cnn):
    """What interfaces promise: zero the slices that are not kept, in the normalized model, and compare."""
    import onnxruntime

    out, file = without_add(cli, cnn)
    normal = cnn.parent / "normal.onnx"
    assert cli("normalize", cnn, normal).code == 0
    masked = onnx.load(normal)
    tensors = {tensor.name: tensor for tensor in masked.graph.initializer}
    for entry in json.loads(file.read_text())["slices"]:
        array = onnx.numpy_helper.to_array(tensors[entry["initializer"]]).copy()
        gone = np.ones(array.shape[entry["axis"]], bool)
        gone[entry["keep"]] = False
        array[(*[slice(None)] * entry["axis"], gone)] = 0
        tensors[entry["initializer"]].CopyFrom(onnx.numpy_helper.from_array(array, entry["initializer"]))
    x = np.random.default_rng(2).normal(size=(5, 3, 8, 8)).astype(np.float32)
    y, twin = (
        np.asarray(onnxruntime.InferenceSession(data).run(None, {"x": x})[0])
        for data in (out.read_bytes(), masked.SerializeToString())
    )
    np.testing.assert_allclose(y, twin, rtol=1e-3, atol=1e-5 * np.abs(twin).max())


@pytest.mark.parametrize("edit", ["another block", "a slice less", "a slice of a unit", "no block"])
def test_an_edited_plan_is_refused(cli, cnn, edit):
    out, file = without_add(cli, cnn)
    made = json.loads(file.read_text())
    if edit == "another block":
        made["blocks"][0]["name"] = "stem"
    elif edit == "a slice less":
        made["slices"] = [s for s in made["slices"] if s["initializer"] != "b2"]
    elif edit == "a slice of a unit":
        next(s for s in made["slices"] if s["keep"])["keep"] = []
    else:
        del made["blocks"]
    file.write_text(json.dumps(made))
    for words in (("apply", cnn, file, cnn.parent / "again.onnx"), ("verify", cnn, out, "--plan", file)):
        ran = cli(*words)
        assert ran.code == 2, (words, ran.err)
        assert ran.err.count("\n") == 1
    assert not (cnn.parent / "again.onnx").exists()


def test_a_result_with_the_block_is_not_one_without(cli, cnn):
    _, file = without_add(cli, cnn)
    ran = cli("verify", cnn, cnn, "--plan", file)
    assert ran.code == 3, ran.err


def test_a_block_that_is_removed_wrongly_is_refused_before_anything_is_written(cli, cnn, monkeypatch):
    real = blocks.without

    def wrong(model, gone, constants=None):
        left = real(model, gone, constants)
        node = next(node for node in left.graph if node.name == "add")
        node.replace_input_with(0, next(n for n in left.graph if n.name == "stem").outputs[0])  # in front of the Relu
        return left

    monkeypatch.setattr(blocks, "without", wrong)
    ran = cli(cnn, cnn.parent / "out.onnx", *QUICK, "--blocks", "add", "--target", "macs=0.35")
    assert ran.code == 3, ran.err
    assert "without add" in ran.err
    assert not (cnn.parent / "out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--blocks", "stem"), "which no block is called"),
        (("--blocks", "measured"), "needs samples"),
        (("--blocks", "add", "--target", "macs=0.001"), "cannot be met"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(cli, cnn, words, message):
    ran = cli(cnn, cnn.parent / "out.onnx", *QUICK, *words)
    assert ran.code in (1, 2)
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_inspect_lists_the_blocks(cli, cnn):
    ran = cli("inspect", cnn, "--json")
    (block,) = json.loads(ran.out)["blocks"]
    assert block["name"] == "add"
    assert block["reason"] is None
    assert 0.5 < block["share"] < 0.7
    assert "can go as a whole" in cli("inspect", cnn).out


def deep(tmp_path, weight: float, **options):
    """A network of two blocks, the second of which adds `weight` times as much, with the scores of l1."""
    made = proto(DEEP)
    for tensor in made.graph.initializer:
        if tensor.name in ("d", "db"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(made, tmp_path / "deep.onnx")
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    given = {"method": "l1", "data": x, "align": 1, "latency": False, "recover": "reconstruct", **options}
    settings = resolved(Options(**given))
    subject = prepare(tmp_path / "deep.onnx", Options(**given), Clock())
    return (*schedule.scored(subject, settings, Clock()), settings)


def test_measured_takes_the_block_that_adds_next_to_nothing_and_no_other(tmp_path):
    subject, outcome, settings = deep(tmp_path, 1e-4, blocks=("measured",), target={"macs": 0.6})
    left, carried = depth.chosen(subject, outcome, settings, Clock())
    assert left.short is not None
    assert [block.name for block in left.short.blocks] == ["second"]
    assert any(note.startswith("whole blocks: measured, 1 of 2 go") for note in carried.notes)
    assert {dim.name for dim in carried.scores} <= {dim.name for dim in outcome.scores}
    assert left.cost.total("macs") == subject.cost.total("macs")  # shares are of the original
    assert left.cost.total("macs", {}) < 0.7 * subject.cost.total("macs")


def test_measured_leaves_blocks_that_matter(tmp_path):
    subject, outcome, settings = deep(tmp_path, 3.0, blocks=("measured",), target={"macs": 0.9})
    left, carried = depth.chosen(subject, outcome, settings, Clock())
    assert left is subject
    assert "none of which loses clearly less" in carried.notes[-1]


def test_a_front_that_was_given_no_target_is_told_of_none(tmp_path):
    subject, outcome, settings = deep(tmp_path, 1.0, blocks=("measured",), front=True, floor=0.9)
    _, carried = depth.chosen(subject, outcome, settings, Clock())
    assert carried.notes[-1] == "whole blocks: none was tried, for half of the MACs cannot be met"


def test_scores_follow_the_dimensions_of_what_is_left_by_name(tmp_path):
    subject, outcome, _ = deep(tmp_path, 1.0)
    gone = blocks.named(blocks.find(subject.coupling), ["first"])
    left = depth.shortened(subject, gone, constant=True)
    carried = depth.carried(outcome, subject.coupling, left.coupling)
    before = {dim.name: scores for dim, scores in outcome.scores.items()}
    assert carried.scores
    for dim, scores in carried.scores.items():
        assert np.array_equal(scores, before[dim.name])
    names = [dim.name for dim in left.coupling.dims]
    assert len(set(names)) == len(names)
    assert {dim.name for dim in subject.coupling.free} - set(names) == {"a"}
    for dim in left.coupling.free:
        dim.frozen = Reason("not any more")
    assert not depth.carried(outcome, subject.coupling, left.coupling).scores


def test_the_constant_is_the_mean_of_what_the_block_added(tmp_path):
    subject, _, _ = deep(tmp_path, 1.0)
    gone = blocks.named(blocks.find(subject.coupling), ["second"])
    left = depth.shortened(subject, gone, constant=True)
    assert subject.tune is not None
    x = subject.tune.batch(np.arange(len(subject.tune)))["x"]
    w = {name: graph.array_of(value) for name, value in subject.model.graph.initializers.items()}
    t = x @ w["s"]
    t = t + np.maximum(t @ w["a"] + w["ab"], 0) @ w["b"] + w["bb"]
    added = np.maximum(t @ w["c"], 0) @ w["d"] + w["db"]
    constant = graph.array_of(left.coupling.model.graph.initializers[blocks.constant_of("second")])
    np.testing.assert_allclose(constant, added[:256].mean(axis=0), rtol=1e-3, atol=1e-4)


def test_a_plan_for_a_model_without_such_a_block_is_refused(tmp_path):
    subject, *_ = deep(tmp_path, 1.0)
    costs = subject.cost.totals()
    made = plan.make(Selection(subject.coupling, {}), seed=0, sha256="", name="", before=costs, after=costs)
    with pytest.raises(UsageError, match="no block 'third'"):
        depth.again(subject, plan.replace(made, blocks=(plan.BlockPlan("third"),)))


def test_a_block_of_a_trained_model_goes_with_least_squares_and_fewer_units_go_elsewhere(tmp_path):
    given = Options(method="l1", data="digits", target={"macs": 0.4}, recover="reconstruct", latency=False, align=1)
    settings = resolved(given)
    subject = prepare(DIGITS_BN, given, Clock())
    subject, outcome = schedule.scored(subject, settings, Clock())
    trial = depth._Trial(subject, outcome, settings)
    gone = blocks.named(blocks.find(subject.coupling), ["/stage1/Add"])
    with_all, without = trial.candidate(()), trial.candidate(gone)
    assert with_all is not None
    assert without is not None
    assert without.loss < 0.5
    left = depth.shortened(subject, gone, constant=True)
    depth.prove(left, gone)
    keep = trial._selected(left, depth.carried(outcome, subject.coupling, left.coupling)).keep
    assert left.cost.total("macs", cost.keep_sizes(keep)) <= 0.4 * subject.cost.total("macs")
    twin = [replace_places(block) for block in gone]
    with pytest.raises(VerificationError):
        depth.prove(left, twin)


def replace_places(block: blocks.Block) -> blocks.Block:
    """`block` of which only the bias is silenced, as a rule that forgets the weight would do."""
    return blocks.Block(block.name, block.branch, block.stream, block.nodes, block.places[1:], block.axis)


def test_with_a_latency_as_target_blocks_are_compared_where_they_are_predicted_to_be_as_fast(tmp_path):
    subject, outcome, settings = deep(tmp_path, 1e-4, target={"latency": 0.9}, latency=True)
    gone = blocks.find(subject.coupling)
    left = depth.shortened(subject, gone, constant=False)
    whole, short = (search.table_of(each, settings) for each in (subject, left))
    assert whole.ratio({}) == pytest.approx(1)
    assert short.ratio({}) < 0.95  # of the whole original's time
    trial = depth._Trial(subject, outcome, settings)
    work = [trial._work(block) for block in gone]
    assert trial.table is not None
    assert 0 < sum(work) < trial.table.total
    selection = trial._selected(left, depth.carried(outcome, subject.coupling, left.coupling))
    table = replace(trial.table, coupling=left.coupling, cost=left.cost)
    assert table.ratio(selection.keep) <= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--steps", 2, "--recover", "constants"),
        ("--quantize", "int8", "--recover", "constants"),
        ("--epochs", 1),
        ("--front", "--recover", "reconstruct"),
        ("--method", "gss", "--recover", "reconstruct", "--option", "epochs=1"),
    ],
    ids=["steps", "quantized", "fine-tuned", "front", "trained"],
)
def test_blocks_go_with_everything_else(cli, cnn, words):
    out, file = cnn.parent / "out.onnx", cnn.parent / "plan.json"
    target = () if "--front" in words else ("--target", "macs=0.35")
    given = ("--data", cnn.parent / "data.npz", "--blocks", "add", "--plan", file, *target)
    ran = cli(cnn, out, *QUICK, *given, *words)
    assert ran.code == 0, ran.err
    ran = cli("verify", cnn, out, "--plan", file, "--data", cnn.parent / "data.npz")
    assert ran.code == 0, ran.err
    assert json.loads(file.read_text())["blocks"] == [{"name": "add", "constant": "constants" in words}]
    for plan_file in (cnn.parent / "out.onnx.front").glob("*.json"):
        assert cli("check", plan_file, "--model", cnn).code == 0
