"""onnxprune: an ONNX model in, a smaller and faster ONNX model out, with the proof and the numbers.

    result = onnxprune.prune("in.onnx", "out.onnx", method="l1", target={"macs": 0.5})
    result.plan, result.before, result.after
    coupling = onnxprune.analyze("in.onnx")

Everything is loaded when it is first used: importing this package imports neither torch nor onnx.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.api import analyze, prune
    from onnxprune.bridge.ops.registry import torch_function as torch_op
    from onnxprune.coupling import Coupling, Weights, coupling_rule
    from onnxprune.errors import OnnxPruneError
    from onnxprune.methods.base import Outcome, method
    from onnxprune.plan import Plan
    from onnxprune.plan.cost import macs_rule
    from onnxprune.run.pipeline import Result

# onnxruntime 1.29 and later tell their maker about the models that they load, unless this is set before the import.
# Models given to us are often not public, so nothing is told unless the user asked for it with "0".
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Coupling": "onnxprune.coupling",
    "OnnxPruneError": "onnxprune.errors",
    "Outcome": "onnxprune.methods.base",
    "Plan": "onnxprune.plan",
    "Result": "onnxprune.run.pipeline",
    "Weights": "onnxprune.coupling",
    "analyze": "onnxprune.api",
    "coupling_rule": "onnxprune.coupling",
    "macs_rule": "onnxprune.plan.cost",
    "method": "onnxprune.methods.base",
    "prune": "onnxprune.api",
    "torch_op": "onnxprune.bridge.ops.registry:torch_function",
}
__all__ = [
    "Coupling",
    "OnnxPruneError",
    "Outcome",
    "Plan",
    "Result",
    "Weights",
    "analyze",
    "coupling_rule",
    "macs_rule",
    "method",
    "prune",
    "torch_op",
]


def _version() -> str:
    from onnxprune.plan import tool_version

    return tool_version()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)
