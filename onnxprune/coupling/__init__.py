"""Which positions of which tensors live and die together: the algebra of named dimensions and its rules."""

from onnxprune.coupling.analyze import Coupling, Member, analyze
from onnxprune.coupling.dims import Axis, Dim, Keep, Reason, unit_positions
from onnxprune.coupling.layers import Weights
from onnxprune.coupling.node import Length, NodeAxes, Range
from onnxprune.coupling.registry import coupling_rule

__all__ = [
    "Axis",
    "Coupling",
    "Dim",
    "Keep",
    "Length",
    "Member",
    "NodeAxes",
    "Range",
    "Reason",
    "Weights",
    "analyze",
    "coupling_rule",
    "unit_positions",
]
