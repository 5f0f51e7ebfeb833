"""Operators of decoders in torch, against onnxruntime: caches, rotations, experts, weights of four bits."""

import numpy as np
import pytest
import torch
from bridge_models import compare, node_model, random

from onnxprune.bridge import Network
from onnxprune.errors import BridgeError

MS = "com.microsoft"
TURNS = np.arange(12)[:, None] / 100.0 ** (np.arange(8)[None] / 8)


def given(past: int, length: int, **more: np.ndarray | None) -> dict[str, np.ndarray | None]:
    """Inputs of GroupQueryAttention with 4 heads of width 16 for 2 keys."""
    cache = {"pk": random(2, 2, past, 16, seed=4), "pv": random(2, 2, past, 16, seed=5)} if past else {}
    return {
        "q": random(2, length, 64),
        "k": random(2, length, 32, seed=1),
        "v": random(2, length, 32, seed=2),
        **{"pk": None, "pv": None, **cache},
        "lengths": np.full(2, past + length - 1, np.int32),
        "total": np.array(past + length, np.int32),
        **more,
    }


@pytest.mark.parametrize(("past", "length"), [(0, 6), (4, 1)])
@pytest.mark.parametrize("rotary", [None, 0, 1], ids=["plain", "halves", "interleaved"])
def test_group_query_attention(past, length, rotary):
    tables = {"cos": np.cos(TURNS).astype(np.float32), "sin": np.sin(TURNS).astype(np.float32)}
    inputs = given(past, length, **({} if rotary is None else tables))
    how = {} if rotary is None else {"do_rotary": 1, "rotary_interleaved": rotary}
    model = node_model("GroupQueryAttention", inputs, 3, domain=MS, num_heads=4, kv_num_heads=2, **how)
    compare(model, {name: array for name, array in inputs.items() if array is not None})


def test_queries_packed_with_keys_and_values():
    inputs = {**given(0, 5), "q": random(2, 5, 128), "k": None, "v": None}
    model = node_model("GroupQueryAttention", inputs, 3, domain=MS, num_heads=4, kv_num_heads=2)
    compare(model, {name: array for name, array in inputs.items() if array is not None})


def test_a_window_is_refused():
    inputs = given(0, 6)
    how = {"num_heads": 4, "kv_num_heads": 2, "local_window_size": 2}
    model = node_model("GroupQueryAttention", inputs, 3, domain=MS, **how)
    feeds = {name: torch.from_numpy(array) for name, array in inputs.items() if array is not None}
    with pytest.raises(BridgeError, match="local_window_size"):
        Network(model)(feeds)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "block", "width"), [(4, 32, 64), (4, 16, 48), (8, 32, 64)])
def test_weights_in_blocks_of_bits(bits, block, width, zeros):
    blocks, rng = width // block, np.random.default_rng(0)
    inputs = {
        "x": random(3, width),
        "b": rng.integers(0, 256, (10, blocks, block * bits // 8)).astype(np.uint8),
        "s": random(10, blocks, seed=1),
        "z": rng.integers(0, 256, (10, -(-blocks * bits // 8))).astype(np.uint8) if zeros else None,
    }
    how = {"K": width, "N": 10, "bits": bits, "block_size": block}
    model = node_model("MatMulNBits", inputs, domain=MS, opset=21, constants=("b", "s", "z"), **how)
    compare(model, {"x": inputs["x"]}, 1e-4)


@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity"])
def test_experts(activation, normalize):
    inputs = {
        "x": random(6, 8),
        "r": random(6, 4, seed=1),
        "f": random(4, 12, 8),
        "fb": random(4, 12),
        "g": random(4, 8, 12),
        "gb": random(4, 8, seed=1),
    }
    how = {"k": 2, "activation_type": activation, "normalize_routing_weights": normalize}
    compare(node_model("MoE", inputs, domain=MS, **how), inputs, 1e-4)
