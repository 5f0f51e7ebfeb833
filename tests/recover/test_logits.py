"""Products of queries and keys that lost positions of what they are summed over, fitted to the dense model's."""

import numpy as np
import pytest
from onnx_text import model as text_model

from onnxprune import graph, surgery
from onnxprune.coupling import analyze, dims
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover import levels
from onnxprune.recover.refit import layers, logits, reconstruct

INPUTS = "float[N,6,8] x, float[8,12] wq, float[12] bq, float[8,12] wk, float[8,12] wv, float[8,36] wqkv, float[36] b3"
SHAPES = "int64[4] heads, int64[3] joined, int64[3] thirds, float[12,5] wo, float[1] half"
CONSTANTS = {"heads": [0, 6, 2, -1], "joined": [0, 6, 12], "thirds": [12, 12, 12], "half": [0.5]}
QUERIES = "q = MatMul(x, wq) qb = Add(q, bq) qs = Mul(qb, half) qh = Reshape(qs, heads)"
KEYS = "k = MatMul(x, wk) kh = Reshape(k, heads)"
ATTENTION = """v = MatMul(x, wv) vh = Reshape(v, heads)
    qt = Transpose<perm = [0,2,1,3]>(qh) kt = Transpose<perm = [0,2,3,1]>(kh) vt = Transpose<perm = [0,2,1,3]>(vh)
    l = MatMul(qt, kt) p = Softmax<axis = -1>(l) o = MatMul(p, vt) ot = Transpose<perm = [0,2,1,3]>(o)
    oj = Reshape(ot, joined) y = MatMul(oj, wo)"""
JOINED = """m = MatMul(x, wqkv) mb = Add(m, b3) qb, kb, v = Split<axis = -1>(mb, thirds)
    qs = Mul(qb, half) qh = Reshape(qs, heads) kh = Reshape(kb, heads)"""
FORMS = {
    "queries": f"{QUERIES} {KEYS} {ATTENTION}",
    "keys, for queries are squared": f"{QUERIES.replace('Mul(qb, half)', 'Mul(qb, qb)')} {KEYS} {ATTENTION}",
    "one layer of all three": f"{JOINED} {ATTENTION.replace('v = MatMul(x, wv)', '')}",
}


def poor(rng: np.random.Generator, rank: int = 3) -> np.ndarray:
    """Weights (8, 12) of two heads of six outputs, each of which is made of `rank` numbers."""
    return np.concatenate([rng.normal(size=(8, rank)) @ rng.normal(size=(rank, 6)) for _ in range(2)], axis=1)


def pruned(text: str):
    """(dense model, selection, cut model, samples) with four of six positions left in each head."""
    rng = np.random.default_rng(0)
    weights = {"wq": poor(rng), "wk": poor(rng), "bq": np.zeros(12), "b3": np.zeros(36)}
    weights["wqkv"] = np.concatenate([weights["wq"], weights["wk"], rng.normal(size=(8, 12))], axis=1)
    model = text_model(f"({INPUTS}, {SHAPES}) => (float[N,6,5] y) {{ {text} }}", {**CONSTANTS, **weights})
    coupling = analyze(model)
    ((dim,),) = dims.resolve(coupling.axes["kh"][-1])
    selection = Selection(coupling, {dim: np.array([True, False, True, True, False, True])})
    x = rng.normal(size=(100, 6, 8)).astype(np.float32)
    return model, selection, surgery.cut(selection), load_samples({"x": x}, input_infos(model))


@pytest.mark.parametrize("name", FORMS)
def test_attention_comes_back_from_the_queries_and_keys_that_are_left(name: str):
    model, selection, cut, samples = pruned(FORMS[name])
    (item,) = (each for each in layers.find(selection, cut) if isinstance(each, logits.Logits))
    assert (item.centered, item.side) == (True, 1 if "squared" in name else 0)
    feeds = samples.batch(np.arange(20))
    before, wanted = (sessions.run(sessions.open_session(m, threads=1), feeds)["y"] for m in (cut, model))
    (record,) = (each for each in reconstruct.refit(selection, cut, samples) if each.node == item.node.name)
    y = sessions.run(sessions.open_session(cut, threads=1), feeds)["y"]
    assert record.accepted
    left = 0.5 if item.side else 0.01  # squares of queries are of full rank
    assert record.after < left * record.before
    assert np.abs(y - wanted).mean() < 2 * left**0.5 * np.abs(before - wanted).mean()


def test_queries_that_another_reads_as_well_stay():
    text = FORMS["queries"].replace(
        "oj = Reshape(ot, joined)", "jj = Reshape(ot, joined) s = ReduceMean(qs) oj = Add(jj, s)"
    )
    _, selection, cut, samples = pruned(text)
    before = graph.array_of(cut.graph.initializers["wq"]).copy()
    reconstruct.refit(selection, cut, samples)
    assert np.array_equal(before, graph.array_of(cut.graph.initializers["wq"]))


def test_the_twin_of_fitted_attention_holds():
    model, selection, cut, samples = pruned(FORMS["one layer of all three"])
    reconstruct.refit(selection, cut, samples)
    feeds = comparison.random_feeds(model, selection.coupling.shapes)
    assert comparison.compare(cut, levels.twin_of(selection, cut), feeds).ok
