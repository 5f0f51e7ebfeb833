"""What a caller has set for torch around a call of `prune`."""

from typing import Any

import numpy as np
import pytest
import torch

import onnxprune


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)


SET = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "another device": lambda: torch.device("meta"),
    "lower precision": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", SET)
def test_what_a_caller_has_set_for_torch_changes_nothing(cnn_path, samples, tmp_path, name):
    """'No gradient flows from the outputs' was the answer inside of torch.no_grad(), a TypeError that on 'meta'."""
    options: dict[str, Any] = {
        "data": samples,
        "method": "taylor",
        "epochs": 1,
        "target": {"macs": 0.7},
        "latency": False,
    }
    plain = onnxprune.prune(cnn_path, tmp_path / "plain.onnx", **options)
    with SET[name]():
        found = onnxprune.prune(cnn_path, tmp_path / "found.onnx", **options)
    assert found.plan.dims == plain.plan.dims
    assert (tmp_path / "found.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.parametrize("name", ["target", "finetune", "kinds"])
def test_a_table_of_options_that_is_a_number_is_told(cnn_path, name):
    """A TypeError of Python: 'float' object is not iterable."""
    wrong: dict[str, Any] = {name: 0.5}
    with pytest.raises(onnxprune.OnnxPruneError, match=f"{name}=0.5: give a mapping such as"):
        onnxprune.prune(cnn_path, **wrong)
    absent: dict[str, Any] = {name: None, "method": "l1", "latency": False}
    assert onnxprune.prune(cnn_path, **absent).plan.dims
