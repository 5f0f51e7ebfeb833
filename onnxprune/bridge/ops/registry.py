"""The table of torch functions: (domain, op_type) -> functions, each with the opset since which it holds.

A function is named as the op. It takes the node's inputs by position (None where one is left out) and its attributes
as keyword-only arguments, and gives a tensor, or a tuple of them. Four keyword names are served by the bridge:
`context` (the state of the forward pass), `outputs` (how many outputs the node names), `opset`, and `input_types`
(ONNX element types where the graph knows them, for types that travel in wider ones).
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

SERVED = frozenset({"context", "outputs", "opset", "input_types"})
IGNORED_ATTRIBUTES = frozenset({"consumed_inputs"})  # of opset 5 and older: a hint for in-place work


@dataclass(frozen=True)
class TorchFunction:
    """One entry: what to call, and what the bridge has to know about the inputs.

    host: inputs wanted as Python numbers, lists of them, or CPU tensors (sizes, axes, counts), never trained.
    fixed: inputs that stay tensors but are never trained (statistics, thresholds, quantization scales).
    differentiable: whether gradients can flow from the outputs to the other inputs.
    pure: same inputs, same outputs, so that constants can be computed once.
    shape_only: reads the shape of its input and nothing else; its output lives on the host.
    """

    function: Callable[..., Any]
    since: int
    host: frozenset[int]
    fixed: frozenset[int]
    differentiable: bool
    pure: bool
    shape_only: bool
    keywords: frozenset[str]
    any_keyword: bool


_TABLE: dict[tuple[str, str], list[TorchFunction]] = {}


def register(
    op_types: str | Iterable[str],
    function: Callable[..., Any],
    *,
    domain: str = "",
    since: int = 1,
    host: Iterable[int] = (),
    fixed: Iterable[int] = (),
    differentiable: bool = True,
    pure: bool = True,
    shape_only: bool = False,
) -> None:
    """Puts `function` into the table for each of `op_types`, from opset `since` on; replaces an equal entry."""
    keywords, any_keyword = _keywords(function)
    entry = TorchFunction(
        function, since, frozenset(host), frozenset(fixed), differentiable, pure, shape_only, keywords, any_keyword
    )
    for op_type in [op_types] if isinstance(op_types, str) else op_types:
        entries = [old for old in _TABLE.get((_plain(domain), op_type), []) if old.since != since]
        _TABLE[(_plain(domain), op_type)] = sorted([*entries, entry], key=lambda item: item.since)


def torch_function(
    *op_types: str, domain: str = "", **facts: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator form of `register`; public as `onnxprune.torch_op`.

    @torch_function("MyScale", domain="my")
    def MyScale(x, *, alpha=1.0):
        return alpha * x
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        register(op_types, function, domain=domain, **facts)
        return function

    return decorate


def find(op_type: str, domain: str, opset: int) -> TorchFunction | None:
    """The entry for an op at an opset, or None: the newest that is not newer than the opset."""
    entries = [entry for entry in _TABLE.get((_plain(domain), op_type), []) if entry.since <= opset]
    return entries[-1] if entries else None


def registered() -> frozenset[tuple[str, str]]:
    """All (domain, op_type) that have a torch function."""
    return frozenset(_TABLE)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _keywords(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # torch's built-in functions have no signature; they are used for ops without attributes
        return frozenset(), False
    names = frozenset(item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY)
    return names, any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
