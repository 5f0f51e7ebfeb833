"""A table that is a head as well, transposed, is stored once however it is quantized."""

import json

import numpy as np
import onnx
import onnx_text
import pytest

# A language model in small: its table (64, 16) looks words up and, transposed, gives the logits.
TIED = (
    "(int64[N,5] x, float[64,16] e, float[16,24] w, float[24] b, float[24,16] u) => (float[N,5,64] y) "
    "{ a = Gather(e, x) h = MatMul(a, w) g = Add(h, b) r = Relu(g) d = MatMul(r, u) s = Add(a, d) "
    "t = Transpose <perm = [1, 0]> (e) y = MatMul(s, t) }"
)


@pytest.fixture
def tied(tmp_path):
    onnx.save(onnx_text.proto(TIED), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 64, (64, 5)))
    return tmp_path


@pytest.mark.parametrize(("kind", "size"), [("fp16", 2), ("int8", 1), ("int8:symmetric=true", 1), ("dynamic", 4)])
def test_a_tied_table_is_stored_once_and_meets_the_targets_of_its_weights(kind, size, tied, cli):
    words = ("--data", tied / "x.npz", "--recover", "none", "--align", "1", "--target", "params=0.8", "--no-latency")
    files = ("--plan", tied / "p.json", "--report", tied / "r.json")
    ran = cli(tied / "in.onnx", tied / "out.onnx", *words, *files, "--quantize", kind, "-q")
    assert ran.code == 0, ran.err
    _, pruned, quantized = json.loads((tied / "r.json").read_text())["models"]
    assert quantized["params"] == pruned["params"]
    tables = [
        tensor
        for tensor in onnx.load(tied / "out.onnx").graph.initializer
        if 64 in tensor.dims and len(tensor.dims) == 2
    ]
    assert [onnx.numpy_helper.to_array(tensor).itemsize for tensor in tables] == [size]
    ran = cli("verify", tied / "in.onnx", tied / "out.onnx", "--plan", tied / "p.json")
    assert (ran.code, ran.err) == (0, "")
    assert cli("apply", tied / "in.onnx", tied / "p.json", tied / "again.onnx", *words[:2], "--no-latency").code == 0
    assert (tied / "again.onnx").read_bytes() == (tied / "out.onnx").read_bytes()
