"""Wrong cuts that once passed the proof: each must be refused, and the honest cut of the same network must not."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from onnx_text import model

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, analyze
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, inside, noise
from onnxprune.proof.evidence import Verification

Numbers = dict[str, object]


def halved(coupling: Coupling) -> dict:
    return {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}


class Attack:
    """A network, its honest cut, and how the proof judges damaged ones."""

    def __init__(self, text: str, constants: Numbers | None = None):
        source = model(text, constants)
        # Numbers of the size that layers have, so that nothing explodes.
        for value in source.graph.initializers.values():
            array = graph.array_of(value)
            if array.ndim > 1 and array.dtype == np.float32 and value.name not in (constants or {}):
                graph.set_constant(value, array / np.float32(np.sqrt(array[0].size)))
        self.coupling = analyze(graph.normalize(source))
        self.keep = halved(self.coupling)
        self.masked = surgery.mask(Selection(self.coupling, self.keep))
        self.feeds = comparison.random_feeds(self.coupling.model, self.coupling.shapes)

    def judged(self, **damages) -> Verification:
        """How a cut is judged in which each named weight was changed by a function."""
        cut = surgery.cut(Selection(self.coupling, self.keep))
        for name, damage in damages.items():
            value = cut.graph.initializers[name]
            graph.set_constant(value, np.ascontiguousarray(damage(graph.array_of(value).copy())))
        return comparison.compare(cut, self.masked, self.feeds)


QDQ = (
    "(float[4,3,24,24] x, float[32,3,3,3] w1, float[32,32,3,3] w2, float[32,32,3,3] w3, float[10,32] w4, float[10] b4, "
    "float s, int8 z) => (float[4,10] y) { c1 = Conv<pads = [1,1,1,1]>(x, w1) r1 = Relu(c1) "
    "c2 = Conv<pads = [1,1,1,1]>(r1, w2) q = QuantizeLinear(c2, s, z) d = DequantizeLinear(q, s, z) r2 = Relu(d) "
    "c3 = Conv<pads = [1,1,1,1]>(r2, w3) r3 = Relu(c3) p = GlobalAveragePool(r3) f = Flatten(p) "
    "y = Gemm<transB = 1>(f, w4, b4) }"
)


@pytest.fixture(scope="module")
def quantized() -> Attack:
    return Attack(QDQ, {"s": 0.02, "z": 0})


def test_an_honest_cut_of_a_quantized_network_is_proven_with_its_decisions_replayed(quantized):
    found = quantized.judged()
    assert found.ok, found
    assert found.replayed == ("QuantizeLinear_3",)
    assert found.max_abs < 1e-5 * found.scale


@pytest.mark.parametrize(
    ("name", "damage"), [("w4", lambda w: w * 0), ("w3", lambda w: np.roll(w, 1, axis=0)), ("s", lambda s: s * 2)]
)
def test_a_rounding_flip_does_not_excuse_what_is_wrong_behind_it(quantized, name, damage):
    assert not quantized.judged(**{name: damage}).ok


JOINED = (
    "(float[1,3,16,16] x, float[16,3,3,3] w1, float[16,16,3,3] wh, float[20,16,1,1] wc, float[20] bc, "
    "float[4,16,1,1] wb, float[1] px) => (float[1,24,16,16] y) { c = Conv<pads = [1,1,1,1]>(x, w1) r = Relu(c) "
    "ch = Conv<pads = [1,1,1,1]>(r, wh) rh = Relu(ch) cls = Conv(rh, wc, bc) p = Sigmoid(cls) box = Conv(r, wb) "
    "bs = Sigmoid(box) pixels = Mul(bs, px) y = Concat<axis = 1>(pixels, p) }"
)


@pytest.fixture(scope="module")
def joined() -> Attack:
    return Attack(JOINED, {"px": 640, "bc": [-3] * 20})


def test_the_parts_of_a_joint_output_are_judged_by_their_own_size(joined):
    found = joined.judged()
    assert found.ok
    parts = {item.where: item for item in found.evidence if item.kind == "part"}
    assert {"y: pixels", "y: p"} <= set(parts)
    assert parts["y: p"].allowed < 1e-4


def test_pixels_do_not_hide_wrong_probabilities(joined):
    found = joined.judged(wc=lambda w: w[:, ::-1])
    assert not found.ok
    assert found.max_abs < 1  # less than 1e-4 of 640 x 24 positions, which was once allowed


TOKENS = (
    "(int64[n,s] x, float[1000,32] emb, float[32,64] w1, float[64,8] w2) => (float[n,s,8] y) "
    "{ e = Gather(emb, x) h1 = MatMul(e, w1) h2 = Relu(h1) y = MatMul(h2, w2) }"
)


@pytest.fixture(scope="module")
def tokens() -> Attack:
    return Attack(TOKENS)


def test_indices_reach_over_the_whole_table_that_they_index(tokens):
    assert tokens.judged().ok
    for batch in tokens.feeds:
        assert batch["x"].max() == 999
        assert batch["x"].min() == 0


def test_a_table_that_is_wrong_from_its_third_row_on_is_refused(tokens):
    assert not tokens.judged(emb=lambda e: np.concatenate([e[:2], e[2:, ::-1]])).ok


def test_one_wrong_row_of_a_table_that_no_input_reaches_is_refused(tokens):
    unread = next(k for k in range(1000) if not any((batch["x"] == k).any() for batch in tokens.feeds))

    def damage(e):
        e[unread] = e[unread, ::-1]
        return e

    found = tokens.judged(emb=damage)
    assert not found.ok
    assert [item.kind for item in found.evidence if not item.ok] == ["table"]


SILENT = (
    "(float[n,3,8,8] x, float[16,3,3,3] w1, float[16,16,3,3] w2, float[16] b2, float[5,16] w3) => (float[n,5] y) "
    "{ c1 = Conv<pads = [1,1,1,1]>(x, w1) r1 = Relu(c1) c2 = Conv<pads = [1,1,1,1]>(r1, w2, b2) r2 = Relu(c2) "
    "p = GlobalAveragePool(r2) f = Flatten(p) y = Gemm<transB = 1>(f, w3) }"
)


def test_wrong_weights_behind_nothing_but_zeros_are_found():
    """The output is all zeros whatever the head is: it is tried on random numbers."""
    attack = Attack(SILENT, {"b2": [-100] * 16})
    honest = attack.judged()
    assert honest.ok
    assert "'y' varies too little" in honest.note
    assert "piece" in {item.kind for item in honest.evidence}
    assert not attack.judged(w3=lambda w: w * 7 + 3).ok


def test_one_dead_channel_hides_no_wrong_weights():
    bias = np.zeros(16)
    bias[2] = -100
    attack = Attack(SILENT, {"b2": bias})

    def damage(w):
        w[:, 1] += 1  # position 2 before the cut, which never fires
        return w

    assert attack.judged().ok
    assert not attack.judged(w3=damage).ok


def test_a_channel_in_front_is_judged_by_its_own_size():
    """One channel of a thousandth of the others' size, wrong in the second digit."""
    scale = np.ones(16)
    scale[4] = 1e-3
    text = SILENT.replace("f = Flatten(p)", "g = Flatten(p) f = Mul(g, m)").replace(
        "float[5,16] w3", "float[16] m, float[5,16] w3"
    )
    attack = Attack(text, {"b2": [0.5] * 16, "m": scale})

    def damage(m):
        m[2] *= 1.02
        return m

    assert attack.judged().ok
    assert not attack.judged(m=damage).ok


def test_masks_take_both_values_and_leave_a_token_of_each_row():
    text = (
        "(int64[n,s] x, float[n,s,4] x2, int64[1] a) => (float[n,s,4] y) "
        "{ m = Cast<to = 1>(x) u = Unsqueeze(m, a) y = Mul(u, x2) }"
    )
    source = model(text, {"a": [2]})
    for batch in comparison.random_feeds(source, analyze(source).shapes):
        assert set(np.unique(batch["x"])) == {0, 1}
        assert (batch["x"][:, 0] == 1).all()


def test_floats_have_two_magnitudes():
    source = model("(float[n,64] x, float[64,5] w) => (float[n,5] y) { y = MatMul(x, w) }")
    rows = np.concatenate([batch["x"] for batch in comparison.random_feeds(source, analyze(source).shapes)])
    sizes = np.abs(rows).mean(axis=1)
    assert sizes.max() > 2.5 * sizes.min()


def test_an_unstable_model_is_not_called_wrong_and_is_told_to_be_unstable():
    text = (
        "(float[n,16] x, float[16,16] w, float[16,4] v, float[4] big) => (float[n,4] y) { a = MatMul(x, w) "
        "b = MatMul(a, v) c = Mul(b, big) y = Sin(c) }"
    )
    attack = Attack(text, {"big": [1e7] * 4})
    cut = noise.moved(surgery.cut(Selection(attack.coupling, attack.keep)), 7)
    found = comparison.compare(cut, attack.masked, attack.feeds)
    assert found.ok
    assert "unstable: rounding errors alone move it" in found.note


@pytest.mark.parametrize("network", ["quantized", "joined", "tokens"])
def test_rounding_errors_of_all_weights_are_no_difference(request, network):
    attack = request.getfixturevalue(network)
    cut = noise.moved(surgery.cut(Selection(attack.coupling, attack.keep)), 7)
    assert comparison.compare(cut, attack.masked, attack.feeds).ok


def test_ok_follows_from_the_evidence_and_can_be_written_as_json(quantized):
    for found in (quantized.judged(), quantized.judged(w4=lambda w: w * 0)):
        assert found.ok == all(item.difference <= item.allowed for item in found.evidence)
        items = json.loads(json.dumps(asdict(found)))["evidence"]
        assert {"output", "inside", "decision"} <= {item["kind"] for item in items}
        assert all(item["rows"] > 0 for item in items if not item["untested"])


def test_values_inside_that_are_too_many_are_told(monkeypatch, quantized):
    monkeypatch.setattr(inside, "NUMBERS", 1)
    found = quantized.judged()
    assert found.ok
    assert "not tested" in found.note
    assert any(item.untested for item in found.evidence)
