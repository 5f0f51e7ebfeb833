"""--pack: smaller files, the same weights to the last bit, on every opset that it promises."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from networks import DIGITS

from onnxprune import graph
from onnxprune.errors import UsageError
from onnxprune.graph import sessions
from onnxprune.surgery import packing
from onnxprune.surgery.packing import Form, smallest

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
    session = sessions.open_session(model, threads=1)
    return sessions.run(session, {"x": np.zeros(shape, dtype)})["y"]


@pytest.mark.parametrize("shape", [(64, 64), (37, 53), (32, 16, 3, 3), (4096,), (5, 7, 11, 13)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5])
def test_bitmaps_decode_to_the_last_bit(shape, density):
    w = sparse_array(shape, density)
    packed = packing.pack(one_weight(w))
    assert "w" not in packed.graph.initializers
    assert decoded(packed, shape).tobytes() == (w + np.float32(0)).tobytes()


@pytest.mark.parametrize(
    "array", [sparse_array((64, 64), 0.2), grouped_array((64, 64), 1, 8, 1)], ids=["bitmap", "groups"]
)
def test_decoders_run_at_load_and_never_again(tmp_path, array):
    packed = packing.pack(one_weight(array))
    assert len(list(packed.graph)) > 5
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(ir.to_proto(packed).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node] == ["Add"]


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
    plain = [sessions.run(sessions.open_session(m, threads=1, optimize=False), x)["logits"] for m in (model, packed)]
    np.testing.assert_array_equal(*plain)
    fused = sessions.run(sessions.open_session(packed, threads=1), x)["logits"]
    np.testing.assert_allclose(fused, plain[0], atol=1e-5 * np.abs(plain[0]).max())
    assert [v.name for v in packed.graph.inputs] == ["image"]
    again = packing.pack(graph.load(tmp_path / "packed.onnx"))
    assert set(again.graph.initializers) == set(packed.graph.initializers)  # nothing more to gain


# On the command line ----------------------------------------------------------------------------------------------

ZEROS = ["--method", "cci", "--option", "closed=yes", "--option", "kept=2", "--option", "calibration=64"]
QUICK = ["--data", "digits", "--recover", "none", "--no-latency"]


@pytest.fixture(scope="module")
def packed_run(tmp_path_factory):
    """The folder of a run with --pack: out.onnx, plan.json, report.json."""
    from onnxprune.cli import main

    folder = tmp_path_factory.mktemp("packed")
    words = [DIGITS, folder / "out.onnx", *ZEROS, *QUICK, "--pack", "--plan", folder / "plan.json"]
    assert main([str(word) for word in [*words, "--report", folder / "report.json"]]) == 0
    return folder


def test_a_packed_result_is_measured_and_told(packed_run):
    report = json.loads((packed_run / "report.json").read_text())
    found, after = report["pack"], report["models"][1]
    assert found["bytes"] == after["bytes"] == (packed_run / "out.onnx").stat().st_size
    assert found["bytes"] < 0.35 * found["bytes_dense"]
    assert found["load_ms"] > 0
    assert found["load_ms_dense"] > 0
    assert after["macs"] == report["models"][0]["macs"]  # of the weights, not of the bits that they are made of
    assert report["verify"]["ok"]
    assert any(note.startswith("packed: ") for note in report["notes"])
    assert any(".unpack." in node.name for node in onnx.load(packed_run / "out.onnx").graph.node)


def test_verify_reads_packed_files(packed_run, cli):
    ran = cli("verify", DIGITS, packed_run / "out.onnx", "--plan", packed_run / "plan.json")
    assert (ran.code, ran.err) == (0, "")


def test_verify_sees_a_damaged_packed_file(packed_run, cli, tmp_path):
    proto = onnx.load(packed_run / "out.onnx")
    values = next(v for v in proto.graph.initializer if v.name.endswith(".values"))
    array = onnx.numpy_helper.to_array(values).copy()
    array.flat[0] += 1
    values.CopyFrom(onnx.numpy_helper.from_array(array, values.name))
    onnx.save(proto, tmp_path / "out.onnx")
    assert cli("verify", DIGITS, tmp_path / "out.onnx", "--plan", packed_run / "plan.json").code == 3


def test_a_packed_file_can_be_pruned_and_replayed(packed_run, cli, tmp_path):
    source, small = packed_run / "out.onnx", tmp_path / "small.onnx"
    words = ["--no-latency", "--method", "l2", "--target", "macs=0.6", "--plan", tmp_path / "plan.json"]
    assert cli(source, small, *words).code == 0
    assert cli("apply", source, tmp_path / "plan.json", tmp_path / "again.onnx", "--no-latency", "--pack").code == 0
    assert cli("verify", source, tmp_path / "again.onnx", "--plan", tmp_path / "plan.json").code == 0
    assert (tmp_path / "again.onnx").stat().st_size < small.stat().st_size


def test_size_counts_the_packed_file(cli, tmp_path):
    out = tmp_path / "out.onnx"
    ran = cli(DIGITS, out, *ZEROS, *QUICK, "--pack", "--target", "size=0.4", "--report", tmp_path / "report.json")
    assert ran.code == 0, ran.err
    assert out.stat().st_size <= 0.4 * DIGITS.stat().st_size
    assert json.loads((tmp_path / "report.json").read_text())["ratios"]["macs"] > 0.9  # nothing was cut for it


def test_an_older_opset_is_refused_before_the_work(cli, tmp_path):
    w = sparse_array((48, 48), 0.3)
    path = tmp_path / "old.onnx"
    onnx.save(ir.to_proto(one_weight(w, 9)), path)
    ran = cli(path, tmp_path / "out.onnx", "--method", "l1", "--pack")
    assert ran.code == 2
    assert "opset 11 or higher" in ran.err
    assert not (tmp_path / "out.onnx").exists()
