"""The torch bridge: a model runs and trains in torch as the very graph it is.

`batchnorm` works on the graph alone and needs no torch, so the rest is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.bridge.network import Network
    from onnxprune.bridge.ops.registry import torch_function

__all__ = ["Network", "torch_function"]


def __getattr__(name: str) -> Any:
    if name == "Network":
        from onnxprune.bridge.network import Network

        return Network
    if name == "torch_function":
        from onnxprune.bridge.ops.registry import torch_function

        return torch_function
    raise AttributeError(f"module 'onnxprune.bridge' has no attribute '{name}'")
