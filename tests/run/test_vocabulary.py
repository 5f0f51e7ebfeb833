"""--keep-tokens: fewer rows of the embedding and columns of the head behind the same interface."""

import json

import numpy as np
import onnx
import onnx_text
import pytest

from onnxprune import graph
from onnxprune.graph import sessions

KEPT = [0, 3, 7, 8, 20, 49]
BODY = "a = MatMul(e, w) b = Relu(a) c = MatMul(b, v) d = Add(c, e)"
WEIGHTS = "float[16,32] w, float[32,16] v"
# Name -> (model, the arrays that have one row, or one column, per token).
MODELS = {
    "untied": (
        f"(int64[N,L] xids, float[50,16] t, {WEIGHTS}, float[16,50] h, float[50] hb) => (float[N,L,50] y) "
        f"{{ e = Gather(t, xids) {BODY} u = MatMul(d, h) y = Add(u, hb) }}",
        {"t": (6, 16), "h": (16, 6), "hb": (6,)},
    ),
    "tied": (
        f"(int64[N,L] xids, float[50,16] t, {WEIGHTS}) => (float[N,L,50] y) "
        f"{{ e = Gather(t, xids) {BODY} u = Transpose <perm: ints = [1,0]> (t) y = MatMul(d, u) }}",
        {"t": (6, 16)},
    ),
    "int8 rows with a scale each": (
        f"(int32[N,L] xids, int8[50,16] t, float[50,1] scales, {WEIGHTS}, float[16,50] h) => (float[N,L,50] y) "
        f"{{ q = Gather(t, xids) f = Cast <to: int = 1> (q) s = Gather(scales, xids) e = Mul(f, s) {BODY} "
        "y = MatMul(d, h) }",
        {"t": (6, 16), "scales": (6, 1), "h": (16, 6)},
    ),
    "int8, dequantized": (
        f"(int64[N,L] xids, int8[50,16] t, float step, {WEIGHTS}, float[16,50] h) => (float[N,L,50] y) "
        f"{{ q = Gather(t, xids) e = DequantizeLinear(q, step) {BODY} y = MatMul(d, h) }}",
        {"t": (6, 16), "h": (16, 6)},
    ),
    "half precision": (
        "(int64[N,L] xids, float16[50,16] t, float16[16,16] w, float16[16,50] h) => (float16[N,L,50] y) "
        "{ e = Gather(t, xids) a = MatMul(e, w) b = Tanh(a) y = MatMul(b, h) }",
        {"t": (6, 16), "h": (16, 6)},
    ),
    "positions beside tokens": (
        f"(int64[N,L] xids, int64[N,L] xpositions, float[50,16] t, float[20,16] p, {WEIGHTS}, float[16,50] h) "
        f"=> (float[N,L,50] y) {{ i = Gather(t, xids) j = Gather(p, xpositions) e = Add(i, j) {BODY} "
        "y = MatMul(d, h) }",
        {"t": (6, 16), "p": (20, 16), "h": (16, 6)},
    ),
    "an encoder": (
        f"(int64[N,L] xids, float[50,16] t, {WEIGHTS}) => (float[N,L,16] y) {{ e = Gather(t, xids) {BODY} "
        "y = Identity(d) }",
        {"t": (6, 16)},
    ),
}


@pytest.fixture
def files(tmp_path):
    def written(name: str):
        onnx.save(onnx_text.proto(MODELS[name][0], {"step": 0.01}), tmp_path / "in.onnx")
        (tmp_path / "ids.txt").write_text("\n".join(map(str, KEPT)))
        return tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "ids.txt"

    return written


def said(path, ids):
    model = graph.load(path)
    feeds = {v.name: (ids if v.name == "xids" else ids % 20).astype(v.dtype.numpy()) for v in model.graph.inputs}
    return sessions.run(sessions.open_session(model), feeds)["y"].astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_kept_tokens_are_answered_as_before_and_the_others_never(name, files, cli):
    source, out, ids = files(name)
    ran = cli(source, out, "--keep-tokens", ids, "--target", "params=1", "--recover", "none", "--no-latency", "-q")
    assert ran.code == 0, ran.err
    fed = np.random.default_rng(0).choice(KEPT, (2, 5))
    before, after = said(source, fed), said(out, fed)
    assert before.shape == after.shape
    kept = KEPT if before.shape[-1] == 50 else list(range(16))
    size = np.abs(before).max()
    np.testing.assert_allclose(after[..., kept], before[..., kept], atol=(1e-5 if "half" not in name else 2e-3) * size)
    others = np.setdiff1d(np.arange(before.shape[-1]), kept)
    assert (after[..., others] == -1e4).all()
    stored = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(out).graph.initializer}
    for array, shape in MODELS[name][1].items():
        assert stored.get(array) == shape, stored


def test_a_plan_keeps_the_tokens_and_is_replayed_and_verified(files, cli, tmp_path):
    source, out, ids = files("tied")
    plan, again = tmp_path / "plan.json", tmp_path / "again.onnx"
    ran = cli(source, out, "--keep-tokens", ids, "--plan", plan, "--target", "macs=0.4", "--recover", "none",
              "--no-latency", "--report", tmp_path / "r.json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(plan.read_text())["tokens"] == KEPT
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["models"][0]["params"] == 50 * 16 + 2 * 16 * 32
    assert told["models"][0]["macs"] > told["models"][1]["macs"] / 0.41
    assert "6 of 50 tokens" in json.dumps(told)
    assert cli("apply", source, plan, again, "--no-latency").code == 0
    assert onnx.load(out) == onnx.load(again)
    assert cli("verify", source, out, "--plan", plan).code == 0
    # Another row in the table is found: what the plan keeps is not what the file has.
    model = onnx.load(out)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "t")
    rows = onnx.numpy_helper.to_array(table)[::-1].copy()
    table.CopyFrom(onnx.numpy_helper.from_array(rows, "t"))
    onnx.save(model, out)
    assert cli("verify", source, out, "--plan", plan).code == 3


@pytest.mark.parametrize("name", MODELS)
def test_pruning_leaves_the_rows_of_kept_tokens(name, files, cli, tmp_path):
    """The map of ids counts on every row that it names, so the vocabulary is no dimension to score."""
    source, out, ids = files(name)
    plan = tmp_path / "plan.json"
    ran = cli(source, out, "--keep-tokens", ids, "--plan", plan, "--method", "random", "--target", "params=0.1",
              "--align", "1", "--recover", "none", "--no-latency", "-q")  # fmt: skip
    assert ran.code == 0, ran.err
    assert json.loads(plan.read_text())["dims"]
    tables = {tensor.name: tensor.dims[0] for tensor in onnx.load(out).graph.initializer if tensor.dims}
    assert (tables["t"], tables.get("scales", 6), tables.get("p", 20)) == (6, 6, 20)
    assert np.isfinite(said(out, np.arange(50).reshape(2, 25))).all()
    assert cli("verify", source, out, "--plan", plan, "-q").code == 0
    ran = cli("check", plan, "--model", source, "-q")
    assert ran.out.endswith("belongs to in.onnx\n"), ran.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("3 a", "cannot be read"),
        ("", "holds no ids"),
        ("-1", "holds no ids"),
        ("[1, 2.5]", "whole numbers"),
        ("1 50", "id 50 is none of the 50"),
    ],
)
def test_ids_that_cannot_be_are_refused(words, told, files, cli):
    source, out, ids = files("tied")
    ids.write_text(words)
    ran = cli(source, out, "--keep-tokens", ids)
    assert (ran.code, told in ran.err, out.exists()) == (2, True, False), ran.err


def test_ids_come_as_json_and_as_arrays(tmp_path):
    from onnxprune.run import vocabulary

    (tmp_path / "a.json").write_text("[3, 1, 1]")
    np.save(tmp_path / "b.npy", np.array([3, 1]))
    assert vocabulary.read_ids(tmp_path / "a.json") == vocabulary.read_ids(tmp_path / "b.npy") == (1, 3)


def test_a_model_without_a_vocabulary_is_refused(cnn_path, files, cli):
    _, out, ids = files("tied")
    ran = cli(cnn_path, out, "--keep-tokens", ids)
    assert (ran.code, "has no vocabulary" in ran.err) == (2, True), ran.err


def test_logits_that_are_filled_up_are_still_logits(files):
    from onnxprune.outputs.describe import describe
    from onnxprune.run import vocabulary

    source, _, _ = files("untied")
    whole = graph.load(source)
    part = vocabulary.restricted(whole, KEPT).model
    first, second = (describe(graph.normalize(model)).entries[0] for model in (whole, part))
    assert (first.kind, first.axis) == (second.kind, second.axis) == ("sequence", 2)


@pytest.mark.parametrize("name", MODELS)
def test_a_result_with_fewer_tokens_is_pruned_again(name, files, cli, tmp_path):
    source, out, ids = files(name)
    words = ("--recover", "none", "--no-latency", "-q")
    assert cli(source, out, "--keep-tokens", ids, "--target", "params=1", *words).code == 0
    plan, again = tmp_path / "plan.json", tmp_path / "again.onnx"
    ran = cli(out, again, "--target", "macs=0.7", "--align", "1", "--plan", plan, *words)
    assert ran.code == 0, ran.err
    assert json.loads(plan.read_text())["dims"]
    assert cli("verify", out, again, "--plan", plan, "-q").code == 0
    ran = cli(out, again, "--keep-tokens", ids, *words)
    assert (ran.code, "has fewer tokens already" in ran.err) == (2, True), ran.err


def test_the_plan_names_the_whole_model_by_its_normal_form(files, cli, tmp_path):
    """interfaces.md: the sha256 of the normalized file, whatever part of its vocabulary is kept."""
    source, out, ids = files("tied")
    plans = []
    for words in ((), ("--keep-tokens", ids)):
        plan = tmp_path / f"{len(words)}.json"
        assert cli(source, out, *words, "--plan", plan, "--align", 1, "--recover", "none", "-q").code == 0
        plans.append(json.loads(plan.read_text())["model"]["sha256"])
    assert plans[0] == plans[1]
