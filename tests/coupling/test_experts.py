"""Whole experts as units: the router picks among those that stay, and at least as many stay as it picks."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import proto
from records import RECORDS

import onnxprune
from onnxprune import surgery
from onnxprune.coupling import Dim, analyze
from onnxprune.coupling.dims import Reason, merge, pick, split
from onnxprune.errors import CouplingError
from onnxprune.graph import quantized
from onnxprune.plan import cost
from onnxprune.plan.select import Budget, Selection, select, with_least

MIXTURES = [r for r in RECORDS if r.op_type in ("MoE", "QMoE") and "~r" in r.free]
BY_NAME = pytest.mark.parametrize("record", MIXTURES, ids=lambda record: record.name)


def given(record):
    return proto(record.text, dict(record.constants), record.opset)


@BY_NAME
def test_as_many_experts_stay_as_are_picked(record):
    coupling = analyze(_model(record))
    experts = coupling.dim("r")
    assert (experts.picks, experts.size) == (2, 4)
    cut = surgery.cut(Selection(coupling, {experts: np.array([True, False, False, True])}))
    assert next(node for node in cut.graph if "MoE" in node.op_type).inputs[2].shape[0] == 2
    with pytest.raises(CouplingError, match="2 of them are picked"):
        surgery.cut(Selection(coupling, {experts: np.array([True, False, False, False])}))


@BY_NAME
def test_experts_leave_for_parameters_but_not_for_work_of_which_they_save_none(record):
    coupling = analyze(_model(record))
    costs, experts = cost.of(coupling), coupling.dim("r")
    scores = {dim: np.arange(1.0, dim.size + 1) + (0 if dim is experts else 9) for dim in coupling.free}
    fewer = select(scores, costs, Budget({"params": 0.6}))
    assert not fewer[experts].all()
    assert fewer[experts].sum() >= 2
    assert select(scores, costs, Budget({"macs": 0.9}))[experts].all()


def test_the_least_important_experts_leave_first(tmp_path):
    """Expert 1 writes hardly anything: it is the first to go, for the price of its weights."""
    model = given(next(r for r in MIXTURES if r.name == "MoE"))
    for tensor in model.graph.initializer:
        if tensor.name in ("f", "g", "fb", "gb"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[1] *= 1e-3
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    result = onnxprune.prune(
        model, method="l1", target={"params": 0.85}, include=["r"], align=1, floor=0.5, latency=False
    )
    kept = next(dim for dim in result.plan.dims if dim.name == "r").keep
    assert list(kept) == [0, 2, 3]


def test_positions_of_which_all_are_picked_or_that_are_products_stay():
    product, whole = merge([((Dim(3),),), ((Dim(4),),)]), ((Dim(5, "e"),),)
    pick(product, 2, Reason("picked"))
    pick(whole, 5, Reason("picked"))
    assert all(dim.frozen for axis in (product, whole) for segment in axis for dim in segment)


def test_what_is_picked_among_is_not_split_later():
    axis = ((Dim(6, "e"),),)
    pick(axis, 2, Reason("picked"))
    parts = split(axis, [2, 3])
    assert all(dim.frozen for part in parts for segment in part for dim in segment)


def test_the_best_are_given_back_until_enough_stay():
    keep, scores = np.array([False, True, False, False]), np.array([1.0, 4.0, 3.0, 2.0])
    assert with_least(keep, scores, 3).tolist() == [False, True, True, True]
    assert with_least(keep, scores, 1).tolist() == keep.tolist()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("blocks", [None, 2])
def test_weights_of_experts_are_read_out_of_their_bytes(zeros, blocks):
    """Byte 0x5a holds 10, then 5; without zero points 8 stands for zero."""
    array = np.full((1, 2, 8), 0x5A, np.uint8)
    scales = np.ones((1, 2) if blocks is None else (1, 2, blocks), np.float32)
    scales[0, 1] = 2.0
    points = np.full((1, 1) if blocks is None else (1, 2, 1), 0x99, np.uint8)
    names = ["x", "r", "w", "s", "b", "v", "t", "", "", "", "", *(["z"] if zeros else [])]
    node = onnx.helper.make_node("QMoE", names, ["y"], domain="com.microsoft", k=1)
    inits = [onnx.numpy_helper.from_array(a, n) for n, a in (("w", array), ("s", scales), ("z", points))]
    info = onnx.helper.make_tensor_value_info
    graph_ = onnx.helper.make_graph([node], "g", [info(n, 1, None) for n in "xrbvt"], [info("y", 1, None)], inits)
    made = onnx.helper.make_model(graph_, opset_imports=[onnx.helper.make_opsetid("com.microsoft", 1)])
    found = quantized.dequantized(next(iter(ir.from_proto(made).graph)), 2, array)
    zero = 9 if zeros else 8
    assert found.shape == (1, 2, 8, 2)
    np.testing.assert_array_equal(found[0, 0], np.tile([10 - zero, 5 - zero], (8, 1)))
    np.testing.assert_array_equal(found[0, 1], 2 * found[0, 0])


def test_weights_that_another_provider_put_in_order_stay_whole():
    record = next(r for r in MIXTURES if r.name == "QMoE")
    text = record.text.replace("QMoE<", "QMoE<weights_prepacked = 1, ")
    coupling = analyze(_model(replace(record, text=text)))
    assert not coupling.free or all(dim.name == "w" for dim in coupling.free)


def _model(record):
    return ir.from_proto(given(record))
