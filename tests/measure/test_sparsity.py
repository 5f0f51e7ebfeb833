"""2:4 zeros are told from others, and TensorRT is let use them."""

import numpy as np
import onnx
import onnx_text
import pytest

from onnxprune import graph
from onnxprune.graph.sessions import provider_name
from onnxprune.measure import sparsity
from onnxprune.measure.latency import setting_for
from onnxprune.measure.sessions import check_setting, provider_options

LAYERS = (
    "(float[N,8,6,6] x, float[4,8,3,3] w, float[4,1,3,3] d, float[4,6] m) => (float[N,4,6,6] z) "
    "{ a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Conv <pads = [1, 1, 1, 1], group = 4> (a, d) z = Relu(b) "
    "q = Transpose <perm = [0, 2, 3, 1]> (b) p = MatMul(q, m) }"
)


def with_zeros(axis: int, every: int) -> onnx.ModelProto:
    """The weight `w` with all but the first `every` of four neighbors along `axis` at zero."""
    model = graph.normalize(onnx_text.model(LAYERS))
    value = model.graph.initializers["w"]
    array = np.moveaxis(graph.array_of(value).copy(), axis, 0)
    array[np.arange(len(array)) % 4 >= every] = 0
    graph.set_constant(value, np.moveaxis(array, 0, axis).copy())
    return model


@pytest.mark.parametrize(("axis", "every", "count"), [(1, 4, 0), (1, 3, 0), (1, 2, 1), (1, 1, 1), (0, 2, 0)], ids=str)
def test_two_zeros_in_every_four_input_channels_count_and_others_do_not(axis, every, count):
    found, total = sparsity.two_of_four(with_zeros(axis, every))
    assert found == count
    assert total >= 2


def test_a_file_without_such_zeros_is_told_how_to_get_them(tmp_path):
    for name, every in (("dense", 4), ("sparse", 2)):
        graph.save(with_zeros(1, every), tmp_path / f"{name}.onnx")
    assert "axis=input makes such" in sparsity.told("dense", tmp_path / "dense.onnx")
    assert "TensorRT may use that" in sparsity.told("sparse", tmp_path / "sparse.onnx")


def test_tensorrt_is_asked_for_sparse_kernels():
    setting = setting_for(provider_name("tensorrt"), 1, 1, sparsity=True)
    check_setting(setting)
    assert provider_options(setting) == {"trt_sparsity_enable": "1"}
    assert provider_options(setting_for(provider_name("tensorrt"), 1, 1)) == {}


def test_bench_refuses_it_elsewhere_in_one_line(cli, tmp_path):
    graph.save(with_zeros(1, 2), tmp_path / "sparse.onnx")
    ran = cli("bench", tmp_path / "sparse.onnx", "--sparsity")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "sparsity is an option of the provider tensorrt" in ran.err
