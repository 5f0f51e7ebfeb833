"""--pack: smaller files, the same weights to the last bit, on every opset that it promises."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import DIGITS

from onnxprune import graph, packing, runtime
from onnxprune.errors import UsageError
from onnxprune.packing import Form, smallest

RNG = np.random.default_rng(0)


def sparse_array(shape, density: float, dtype=np.float32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * (rng.random(shape) < density)).astype(dtype)


def grouped_array(shape, axis: int, size: int, kept: int) -> np.ndarray:
    w = np.moveaxis(np.random.default_rng(1).normal(size=shape), axis, -1)
    rows = w.reshape(-1, size).copy()
    np.put_along_axis(rows, np.argsort(np.abs(rows), axis=1)[:, : size - kept], 0, axis=1)
    return np.ascontiguousarray(np.moveaxis(rows.reshape(w.shape), -1, axis)).astype(np.float32)


def one_weight(array: np.ndarray, opset: int = 17) -> ir.Model:
    """y = x + w, so that y - 0 shows w."""
    kind = {np.dtype(np.float32): "float", np.dtype(np.float16): "float16", np.dtype(np.float64): "double"}[array.dtype]
    shape = ",".join(map(str, array.shape))
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    text = f"{head} g ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Add(x, w) }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    return ir.from_proto(proto)


def decoded(model: ir.Model, shape, dtype=np.float32) -> np.ndarray:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    session = runtime.open_session(model, threads=1)
    return runtime.run(session, {"x": np.zeros(shape, dtype)})["y"]


@pytest.mark.parametrize("shape", [(64, 64), (37, 53), (32, 16, 3, 3), (4096,), (5, 7, 11, 13)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5])
def test_bitmaps_decode_to_the_last_bit(shape, density):
    w = sparse_array(shape, density)
    packed = packing.pack(one_weight(w))
    assert "w" not in packed.graph.initializers
    assert decoded(packed, shape).tobytes() == (w + np.float32(0)).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_keep_their_type(dtype):
    w = sparse_array((64, 64), 0.2, dtype)
    packed = packing.pack(one_weight(w))
    assert np.array_equal(decoded(packed, w.shape, dtype), w)


@pytest.mark.parametrize(("axis", "size", "kept"), [(0, 8, 1), (1, 16, 2), (0, 32, 3), (1, 64, 4), (0, 16, 1)])
@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3, 3)])
def test_groups_decode_to_the_last_bit(shape, axis, size, kept):
    w = grouped_array(shape, axis, size, kept)
    form = smallest(w)
    assert form is not None
    assert form.axis is not None
    assert form.bytes < packing._bitmap(w).bytes
    assert np.array_equal(decoded(packing.pack(one_weight(w)), shape), w)


def test_groups_with_fewer_values_than_the_fullest_are_filled_up():
    w = grouped_array((64, 64), 0, 16, 2)
    w[:32] = 0
    w[0, 0] = 1
    assert np.array_equal(decoded(packing.pack(one_weight(w)), w.shape), w)


def test_negative_zero_counts_as_zero_and_dense_or_small_weights_stay():
    assert smallest(sparse_array((64, 64), 1.0)) is None
    assert smallest(np.zeros((8, 8), np.float32)) is None
    w = RNG.normal(size=(16, 16)).astype(np.float32)
    assert "w" in packing.pack(one_weight(w)).graph.initializers


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_every_opset_from_eleven_on(opset):
    w = sparse_array((48, 48), 0.3)
    assert np.array_equal(decoded(packing.pack(one_weight(w, opset)), w.shape), w)


def test_an_older_opset_is_refused_with_a_reason():
    with pytest.raises(UsageError, match="opset 11 or higher and the model has 9"):
        packing.pack(one_weight(sparse_array((48, 48), 0.3), 9))


def test_sizes_are_as_counted():
    w = sparse_array((100, 100), 0.2)
    nonzero = np.count_nonzero(w)
    assert packing._bitmap(w) == Form(4 * nonzero + 1250)
    assert [packing.code_bits(size) for size in (2, 4, 8, 16, 32, 64)] == [1, 2, 4, 4, 8, 8]
    form = smallest(grouped_array((64, 64), 0, 16, 1))
    assert form == Form(256 * 4 + 128, 0, 16, 1)


def test_a_whole_model_shrinks_and_computes_the_same(tmp_path):
    model = graph.normalize(graph.load(DIGITS)).clone()
    for value in list(model.graph.initializers.values()):
        w = graph.array_of(value)
        if w.ndim > 1:
            graph.set_constant(value, np.where(np.abs(w) < np.quantile(np.abs(w), 0.8), 0, w).astype(w.dtype))
    packed = packing.pack(model)
    graph.save(model, tmp_path / "dense.onnx")
    graph.save(packed, tmp_path / "packed.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("packed.onnx", "dense.onnx")]
    assert sizes[0] < 0.35 * sizes[1]
    x = {"image": np.random.default_rng(0).random((9, 1, 8, 8)).astype(np.float32)}
    plain = [runtime.run(runtime.open_session(m, threads=1, optimize=False), x)["logits"] for m in (model, packed)]
    np.testing.assert_array_equal(*plain)
    fused = runtime.run(runtime.open_session(packed, threads=1), x)["logits"]
    np.testing.assert_allclose(fused, plain[0], atol=1e-5 * np.abs(plain[0]).max())
    assert [v.name for v in packed.graph.inputs] == ["image"]
    again = packing.pack(graph.load(tmp_path / "packed.onnx"))
    assert set(again.graph.initializers) == set(packed.graph.initializers)  # nothing more to gain
