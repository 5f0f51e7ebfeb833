"""The table of coupling rules: (domain, op_type) -> function. Domain "" is ai.onnx."""

from collections.abc import Callable

from onnxprune.coupling.layers import STATED, Stated
from onnxprune.coupling.node import NodeAxes

Rule = Callable[[NodeAxes], None]
RULES: dict[tuple[str, str], Rule] = {}


def coupling_rule(*op_types: str, domain: str = "", weights: Stated | None = None) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule of these operators; a later registration wins.

    The function takes a `NodeAxes` and ends with `give`: see docs/extending.md for an example.
    weights: of an operator that multiplies by weights where these stand; they then have their roles by themselves.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            key = ("" if domain == "ai.onnx" else domain, op_type)
            RULES[key] = rule
            if weights is not None:
                STATED[key] = weights
        return rule

    return register
