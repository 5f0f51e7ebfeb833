"""A decoder as onnxruntime-genai exports it: grouped attention with a cache, int4 weights; token by token."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune import graph
from onnxprune.graph import sessions

WIDTH, HEADS, SHARED, HEAD, INNER, VOCABULARY, BLOCK, LAYERS = 64, 8, 4, 16, 128, 96, 32, 2


class Writer:
    """Nodes and initializers of a decoder, with random weights."""

    def __init__(self):
        self.rng = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, name, array):
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op, inputs, name, outputs=None, domain="", **attributes):
        self.nodes.append(
            helper.make_node(op, inputs, outputs or [name], name=f"{name}/{op}", domain=domain, **attributes)
        )
        return (outputs or [name])[0]

    def linear(self, x, name, inputs, outputs):
        """x times int4 weights in blocks of BLOCK."""
        packed = self.rng.integers(0, 256, (outputs, inputs // BLOCK, BLOCK // 2), np.uint8)
        scales = (self.rng.uniform(0.5, 1.5, (outputs, inputs // BLOCK)) * 0.2 / np.sqrt(inputs)).astype(np.float32)
        read = [x, self.weight(f"{name}.packed", packed), self.weight(f"{name}.scales", scales.reshape(-1))]
        return self.node(
            "MatMulNBits", read, name, domain="com.microsoft", K=inputs, N=outputs, bits=4, block_size=BLOCK
        )

    def norm(self, x, name):
        gamma = self.weight(f"{name}.gamma", self.rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
        return self.node("SimplifiedLayerNormalization", [x, gamma], name, axis=-1, epsilon=1e-5)


def decoder() -> onnx.ModelProto:
    w = Writer()
    table = w.weight("embedding", w.rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32))
    x = w.node("Gather", [table, "input_ids"], "embedded")
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "L"])]
    inputs.append(helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["N"]))
    inputs.append(helper.make_tensor_value_info("total", TensorProto.INT32, []))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "L", VOCABULARY])]
    for k in range(LAYERS):
        n = w.norm(x, f"{k}.norm")
        q, key, value = (
            w.linear(n, f"{k}.{part}", WIDTH, count * HEAD)
            for part, count in (("q", HEADS), ("k", SHARED), ("v", SHARED))
        )
        past, present = ([f"{when}.{k}.{part}" for part in ("key", "value")] for when in ("past_key_values", "present"))
        for names, found, length in ((past, inputs, "P"), (present, outputs, "S")):
            found += [helper.make_tensor_value_info(name, 1, ["N", SHARED, length, HEAD]) for name in names]
        a = w.node(
            "GroupQueryAttention", [q, key, value, *past, "seqlens_k", "total"], f"{k}.attention",
            [f"{k}.attention", *present], "com.microsoft", num_heads=HEADS, kv_num_heads=SHARED,
        )  # fmt: skip
        x = w.node("Add", [x, w.linear(a, f"{k}.o", HEADS * HEAD, WIDTH)], f"{k}.first")
        n = w.norm(x, f"{k}.norm2")
        gate, up = (w.linear(n, f"{k}.{part}", WIDTH, INNER) for part in ("gate", "up"))
        silu = w.node("Mul", [gate, w.node("Sigmoid", [gate], f"{k}.sigmoid")], f"{k}.silu")
        down = w.linear(w.node("Mul", [silu, up], f"{k}.gated"), f"{k}.down", INNER, WIDTH)
        x = w.node("Add", [x, down], f"{k}.second")
    w.linear(w.norm(x, "last"), "logits", WIDTH, VOCABULARY)
    made = helper.make_graph(w.nodes, "decoder", inputs, outputs, w.initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def generate(path, prompt, steps, choose=None):
    """(tokens, logits of every step): the most likely token each time, or those in `choose`."""
    model = graph.load(path)
    session = sessions.open_session(model)
    shapes = {v.name: v.shape for v in model.graph.inputs if (v.name or "").startswith("past")}
    past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    fed, total, tokens, said = np.array([prompt], np.int64), len(prompt), [], []
    for step in range(steps):
        lengths = {"seqlens_k": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
        out = sessions.run(session, {"input_ids": fed, **lengths, **past})
        said.append(out["logits"][0, -1])
        tokens.append(int(said[-1].argmax()) if choose is None else choose[step])
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        fed, total = np.array([[tokens[-1]]], np.int64), total + 1
    return tokens, np.array(said)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "in.onnx"
    onnx.save(decoder(), path)
    return path


def test_a_decoder_is_pruned_to_seven_tenths_and_generates_alike_with_either_interface(source, tmp_path, cli):
    words = ("--target", "params=0.7", "--recover", "none", "--no-latency", "-q", "--align", "1")
    made = {}
    for states in ("keep", "narrow"):
        out, plan = tmp_path / f"{states}.onnx", tmp_path / f"{states}.json"
        ran = cli(source, out, *words, "--states", states, "--plan", plan)
        assert ran.code == 0, ran.err
        assert cli("verify", source, out, "--plan", plan).code == 0
        made[states] = generate(out, [5, 17, 80], 6)
    assert made["keep"][0] == made["narrow"][0]
    np.testing.assert_allclose(made["keep"][1], made["narrow"][1], rtol=1e-3, atol=1e-4)
    # Token by token with the cache says what the whole text says at once.
    tokens, said = made["keep"]
    _, whole = generate(tmp_path / "keep.onnx", [5, 17, 80, *tokens[:-1]], 1)
    np.testing.assert_allclose(said[-1], whole[0], rtol=1e-3, atol=1e-4 * np.abs(whole).max())
    shapes = {v.name: list(v.shape or ()) for v in graph.load(tmp_path / "narrow.onnx").graph.inputs}
    assert min(shape[1] for name, shape in shapes.items() if str(name).startswith("past")) < SHARED


def test_a_part_of_the_vocabulary_generates_what_the_whole_one_does_among_kept_tokens(source, tmp_path, cli):
    kept = list(range(0, VOCABULARY, 3))
    (tmp_path / "ids.json").write_text(str(kept))
    words = ("--target", "params=1", "--recover", "none", "--no-latency", "-q")
    ran = cli(source, tmp_path / "out.onnx", "--keep-tokens", tmp_path / "ids.json", *words)
    assert ran.code == 0, ran.err
    tokens, said = generate(tmp_path / "out.onnx", [3, 9, 27], 5)
    assert set(tokens) <= set(kept)
    _, whole = generate(source, [3, 9, 27], 5, choose=tokens)
    np.testing.assert_allclose(said[:, kept], whole[:, kept], rtol=1e-3, atol=1e-4 * np.abs(whole).max())
    sizes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert (sizes["embedding"][0], sizes["logits.packed"][0]) == (32, 32)
