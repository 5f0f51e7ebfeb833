"""Several steps: what recovery made in one is still there in the next."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import CNN, filled

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods import base
from onnxprune.options import Options
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison
from onnxprune.recover import asked, constants, levels
from onnxprune.run import schedule, settings
from onnxprune.run.subject import prepare
from onnxprune.system.clock import Clock

# A product of three axes: its bias becomes an Add of its own.
TOKENS = """<ir_version: 8, opset_import: ["" : 17]>
tokens (float[N, 5, 6] x) => (float[N, 5, 3] y) <float[6, 16] w1, float[16] b1, float[16, 12] w2, float[12, 3] w3>
{
  [first] a = MatMul (x, w1)
  [first_bias] a1 = Add (a, b1)
  [first_act] a2 = Sigmoid (a1)
  [second] b = MatMul (a2, w2)
  [second_act] b1_ = Sigmoid (b)
  [third] y = MatMul (b1_, w3)
}
"""


@pytest.mark.parametrize(("text", "shape"), [(CNN, (3, 8, 8)), (TOKENS, (5, 6))], ids=["convolutions", "products"])
def test_biases_that_a_step_made_are_carried_to_the_next(text, shape):
    coupling = analyze(graph.normalize(ir.from_proto(filled(text))))
    keep = {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}
    cut = surgery.cut(Selection(coupling, keep))
    before = set(cut.graph.initializers)
    feeds = {"x": np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)}
    constants.push(Selection(coupling, keep), cut, load_samples(feeds, input_infos(coupling.model)))
    assert set(cut.graph.initializers) - before, "no bias was made: the test shows nothing"
    # Cutting the restored model by the same plan gives the recovered one again.
    full = schedule.restored(Selection(coupling, keep), cut)
    again = surgery.cut(Selection(full, keep))
    one, two = (sessions.run(sessions.open_session(model, threads=1), feeds)["y"] for model in (cut, again))
    np.testing.assert_allclose(two, one, atol=1e-5 * np.abs(one).max())
    # And the next step's proof holds on it.
    fewer = Selection(full, {dim: mask & (np.arange(dim.size) % 4 == 0) for dim, mask in keep.items()})
    comparison.require(comparison.compare(surgery.cut(fewer), surgery.mask(fewer), [feeds]))


@pytest.mark.parametrize(("text", "shape"), [(CNN, (3, 8, 8)), (TOKENS, (5, 6))], ids=["convolutions", "products"])
def test_a_run_in_steps_has_a_plan_of_the_model_as_it_came(cli, tmp_path, text, shape):
    onnx.save(filled(text), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32))
    files = tmp_path / "in.onnx", tmp_path / "o.onnx"
    words = ("--method", "l1", "--target", "macs=0.5", "--align", 1, "--steps", 3, "--recover", "reconstruct")
    ran = cli(*files, *words, "--data", tmp_path / "x.npz", "--plan", tmp_path / "p.json", "--no-latency")
    assert ran.code == 0, ran.err
    known = {value.name for value in graph.normalize(graph.load(files[0])).graph.initializers.values()}
    assert {entry["initializer"] for entry in json.loads((tmp_path / "p.json").read_text())["slices"]} <= known
    assert cli("verify", *files, "--plan", tmp_path / "p.json").code == 0


@pytest.mark.parametrize(("count", "apart"), [(200, True), (40, True), (2, False)])
def test_a_method_that_trains_does_not_see_the_samples_that_choose_the_epoch(tmp_path, monkeypatch, count, apart):
    onnx.save(filled(CNN), tmp_path / "in.onnx")
    x = np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32)
    options = Options(data={"x": x}, val={"x": x[:8]}, recover="finetune", method="l1")
    subject = prepare(tmp_path / "in.onnx", options, Clock())
    seen = []
    monkeypatch.setattr(base, "run", lambda chosen, context: seen.append(context.samples))
    for needs in (base.Needs(), base.Needs(training=True)):
        schedule.score(subject, replace(base.get("l1"), needs=needs), settings.resolved(options), Clock())
    choosing = levels._parts(subject, asked.recovery_of(options))[1].batch([0])["x"]
    everything, learned = (samples.batch(np.arange(len(samples)))["x"] for samples in seen)
    assert len(everything) == count
    assert (count - len(learned) == len(levels._parts(subject, asked.recovery_of(options))[1])) == apart
    assert any((learned == choosing[0]).all((1, 2, 3))) != apart
