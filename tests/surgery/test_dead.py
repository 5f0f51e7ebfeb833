"""Dead units: found through chains, never where something else reads them, and cut without a change."""

import numpy as np
import onnx_ir as ir
import onnx_text
import pytest
from networks import NETWORKS, filled

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, analyze
from onnxprune.data import input_infos
from onnxprune.graph import sessions
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.surgery import dead


def coupled(name: str) -> Coupling:
    return analyze(graph.normalize(ir.from_proto(filled(NETWORKS[name]))))


def zero(coupling: Coupling, name: str, index: tuple) -> None:
    value = coupling.model.graph.initializers[name]
    array = graph.array_of(value).copy()
    array[index] = 0
    graph.set_constant(value, array)


def dropped(coupling: Coupling) -> dict[str, list[int]]:
    keep = dead.dead_units(coupling)
    return {dim.name: np.flatnonzero(~mask).tolist() for dim, mask in keep.items() if not mask.all()}


def same(coupling: Coupling, keep) -> None:
    info = input_infos(coupling.model)[0]
    shape = [d if isinstance(d, int) else 3 for d in info.shape]
    x = {info.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    y, z = (
        sessions.run(sessions.open_session(m, threads=1), x)
        for m in (coupling.model, surgery.cut(Selection(coupling, keep)))
    )
    for name in y:
        np.testing.assert_allclose(z[name], y[name], atol=1e-5 * np.abs(y[name]).max())


def test_a_dense_model_has_no_dead_units():
    assert dropped(coupled("cnn")) == {}


def test_a_unit_that_nobody_reads_is_dead_and_leaves_exactly():
    coupling = coupled("mlp")
    zero(coupling, "w2", (5,))
    keep = dead.dead_units(coupling)
    assert list(dropped(coupling).values()) == [[5]]
    same(coupling, keep)


def test_a_unit_without_weights_is_a_constant_and_leaves_exactly_where_that_is_zero():
    coupling = coupled("mlp")
    zero(coupling, "w1", (slice(None), 7))  # its bias is left
    assert [7] in dropped(coupling).values()
    zero(coupling, "b1", (7,))
    keep = dead.dead_units(coupling)
    assert [7] in [np.flatnonzero(~mask).tolist() for mask in keep.values()]
    same(coupling, keep)


def test_death_spreads_backwards_to_what_only_fed_the_dead():
    coupling = coupled("mlp")
    # Unit 3 of the second layer is read by nobody, and unit 5 of the first only fed unit 3.
    zero(coupling, "w3", (3,))
    zero(coupling, "w2", (5, [k for k in range(10) if k != 3]))
    keep = dead.dead_units(coupling)
    assert sorted(np.flatnonzero(~mask).tolist() for mask in keep.values()) == [[3], [5]]
    same(coupling, keep)


def test_death_spreads_forward_to_what_only_read_constants():
    coupling = coupled("mlp")
    zero(coupling, "w1", (slice(None), slice(0, 4)))
    zero(coupling, "b1", (slice(0, 4),))
    zero(coupling, "w2", (slice(4, None), 2))  # unit 2 reads the four dead ones alone
    keep = dead.dead_units(coupling)
    assert sorted(np.flatnonzero(~mask).tolist() for mask in keep.values()) == [[0, 1, 2, 3], [2]]
    same(coupling, keep)


def test_a_residual_unit_is_dead_only_when_all_that_produce_it_are():
    coupling = coupled("cnn")
    zero(coupling, "w2", (2,))
    zero(coupling, "b2", (2,))
    assert dropped(coupling) == {}
    zero(coupling, "w1", (2,))
    zero(coupling, "b1", (2,))
    keep = dead.dead_units(coupling)
    assert [2] in [np.flatnonzero(~mask).tolist() for mask in keep.values()]
    same(coupling, keep)


def test_what_a_consumer_makes_anew_keeps_a_residual_unit_alive():
    coupling = coupled("cnn")
    zero(coupling, "w1", (2,))  # 'inner' still writes to unit 2 of the sum
    assert [2] not in dropped(coupling).values()


DEPTHWISE = """(float[N,3,6,6] x, float[8,3,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[4,8,1,1] w3)
    => (float[N,4,6,6] y) {
    a = Conv(x, w1, b1)
    r = Relu(a)
    d = Conv<group=8, pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(d)
    y = Conv(s, w3)
}"""


@pytest.mark.parametrize("samples", [True, False])
def test_a_depthwise_kernel_of_zeros_leaves_a_constant(samples):
    from onnxprune.data import load_samples
    from onnxprune.recover import constants

    coupling = analyze(graph.normalize(onnx_text.model(DEPTHWISE)))
    zero(coupling, "w2", (5,))
    bias = coupling.model.graph.initializers["b2"]
    graph.set_constant(bias, np.abs(graph.array_of(bias)) + np.float32(0.1))  # the constant is not zero
    keep = dead.dead_units(coupling)
    assert [np.flatnonzero(~mask).tolist() for mask in keep.values() if not mask.all()] == [[5]]
    x = np.random.default_rng(0).normal(size=(7, 3, 6, 6)).astype(np.float32)
    tune = load_samples({"x": x}, input_infos(coupling.model)) if samples else None
    small = surgery.cut(Selection(coupling, keep))
    constants.push(Selection(coupling, keep), small, tune)
    y, z = (sessions.run(sessions.open_session(m, threads=1), {"x": x})["y"] for m in (coupling.model, small))
    np.testing.assert_allclose(z, y, atol=1e-5 * np.abs(y).max())


def test_a_depthwise_kernel_and_bias_of_zeros_leave_exactly():
    coupling = analyze(graph.normalize(onnx_text.model(DEPTHWISE)))
    zero(coupling, "w2", (5,))
    zero(coupling, "b2", (5,))
    assert list(dropped(coupling).values()) == [[5]]
    same(coupling, dead.dead_units(coupling))


def test_a_dead_group_of_a_grouped_convolution_is_found():
    text = """(float[N,3,6,6] x, float[8,3,1,1] w1, float[12,2,3,3] w2, float[4,12,1,1] w3) => (float[N,4,4,4] y) {
        a = Conv(x, w1)
        d = Conv<group=4>(a, w2)
        y = Conv(d, w3)
    }"""
    coupling = analyze(graph.normalize(onnx_text.model(text)))
    zero(coupling, "w2", (slice(3, 6),))
    found = [np.flatnonzero(~mask).tolist() for mask in dead.dead_units(coupling).values()]
    assert [1] in found
    same(coupling, dead.dead_units(coupling))


def test_a_dead_depthwise_kernel_beside_a_shortcut_is_not_dead():
    text = """(float[N,3,6,6] x, float[8,3,1,1] w1, float[8,1,3,3] w2, float[4,8,1,1] w3) => (float[N,4,6,6] y) {
        a = Conv(x, w1)
        d = Conv<group=8, pads=[1,1,1,1]>(a, w2)
        s = Add(a, d)
        y = Conv(s, w3)
    }"""
    coupling = analyze(graph.normalize(onnx_text.model(text)))
    zero(coupling, "w2", (5,))
    assert dropped(coupling) == {}


def test_sigmoid_moves_zero_so_the_unit_is_a_constant():
    coupling = coupled("concat")
    zero(coupling, "w3", (4,))
    assert [4] in dropped(coupling).values()


def test_a_number_added_to_every_unit_makes_it_a_constant():
    text = """(float[2,5] x, float[5,8] w1, float[1] three, float[8,3] w2) => (float[2,3] y) {
        a = MatMul(x, w1)
        b = Add(a, three)
        c = Relu(b)
        y = MatMul(c, w2)
    }"""
    coupling = analyze(graph.normalize(onnx_text.model(text, {"three": [3.0]})))
    zero(coupling, "w1", (slice(None), 6))
    assert list(dropped(coupling).values()) == [[6]]


def test_one_unit_stays_where_all_are_dead():
    coupling = coupled("mlp")
    zero(coupling, "w3", (slice(None),))
    keep = dead.dead_units(coupling)
    assert all(mask.any() for mask in keep.values())
    same(coupling, keep)


def test_units_that_meet_each_other_without_weights_are_not_called_unread():
    """q and k of attention contract with one another: no weight consumes them, so none is 'unread'."""
    text = """(float[2,5,8] x, float[8,6] wq, float[8,6] wk) => (float[2,5,5] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        kt = Transpose<perm=[0,2,1]>(k)
        y = MatMul(q, kt)
    }"""
    coupling = analyze(graph.normalize(onnx_text.model(text)))
    assert dropped(coupling) == {}
    zero(coupling, "wq", (slice(None), 3))
    assert dropped(coupling) == {}  # k is still made; q alone being zero is not seen
    zero(coupling, "wk", (slice(None), 3))
    assert list(dropped(coupling).values()) == [[3]]
    same(coupling, dead.dead_units(coupling))


def test_zeros_follow_a_cut():
    coupling = coupled("mlp")
    dim = next(dim for dim in coupling.free if dim.size == 16)
    keep = np.arange(16) % 2 == 0
    mask = np.random.default_rng(0).random((16, 10)) < 0.5
    assert np.array_equal(dead.cut_zeros(Selection(coupling, {dim: keep}, zeros={"w2": mask}))["w2"], mask[keep])


def test_density_counts_weights_and_not_biases():
    coupling = coupled("mlp")
    assert dead.density(coupling.model) == 1
    zero(coupling, "w1", (slice(None),))
    assert dead.density(coupling.model) == pytest.approx(1 - 96 / (96 + 160 + 30))


def test_macs_by_nonzeros_leave_out_products_with_zeros():
    coupling = coupled("cnn")
    dense = cost.of(coupling).by_node()
    assert dead.nonzero_macs(coupling.model) == sum(dense.values())
    zero(coupling, "w2", np.s_[:, ::2])  # half of the kernels of `inner`
    zero(coupling, "w5", np.s_[0])  # a quarter of the last Gemm
    names = {node.inputs[1].name: node.name for node in coupling.model.graph if len(node.inputs) > 1}
    left_out = dense[names["w2"]] / 2 + dense[names["w5"]] / 4
    assert dead.nonzero_macs(coupling.model) == sum(dense.values()) - left_out
