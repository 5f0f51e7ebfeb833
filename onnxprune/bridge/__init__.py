"""The torch bridge: a model runs and trains in torch as the very graph it is."""

from onnxprune.bridge.network import Network
from onnxprune.bridge.ops.registry import torch_function

__all__ = ["Network", "torch_function"]
