"""The table of coupling rules: (domain, op_type) -> function. Domain "" is ai.onnx."""

from collections.abc import Callable

from onnxprune.coupling.node import NodeAxes

Rule = Callable[[NodeAxes], None]
RULES: dict[tuple[str, str], Rule] = {}


def coupling_rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule of these operators; a later registration wins.

    The function takes a `NodeAxes` and ends with `give`: see docs/extending.md for an example.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            RULES[("" if domain == "ai.onnx" else domain, op_type)] = rule
        return rule

    return register
