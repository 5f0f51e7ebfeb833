"""The interface of a model, which `verify` compares with the original's: all that callers rely on."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.errors import VerificationError
from onnxprune.graph import bodies, defaults, extras

WRONG = "it was not made by this plan, or it was changed since"
# Operators that finishing and recovery may add: they move numbers, or add and multiply all of them alike. A Cast is
# none of them: large numbers lose their last digits, or all.
PLAIN = frozenset(
    "Add Sub Mul MatMul Gemm Conv ConvTranspose BatchNormalization Identity Reshape Transpose Flatten Squeeze "
    "Unsqueeze Concat Constant Expand Shape Split".split()
)


def check(model: ir.Model, result: ir.Model, out: Path, *, same_opsets: bool = True) -> None:
    """Checks that `result`, read from `out`, has the interface of `model`. Raises: VerificationError otherwise.

    Inputs and outputs with names, types and shapes; defaults of inputs; the class names of maps; metadata, which hold
    what an application reads, such as the names of classes; of these a result may have more. The versions of operators,
    by which they may mean something else, if those are to be the same: quantizing raises them.
    """
    shapeless = {entry.node.input[0] for each in (model, result) for entry in extras.of(each).maps}
    for kind, ours, theirs in (
        ("inputs", model.graph.inputs, result.graph.inputs),
        ("outputs", model.graph.outputs, result.graph.outputs),
    ):
        left, right = ([_shown(value, shapeless) for value in values] for values in (ours, theirs))
        _require_equal(out, kind, right, left)
    _require_equal(out, "defaults of inputs", *(dict(_defaults(each)) for each in (result, model)))
    _require_equal(out, "class names", *(list(_maps(each)) for each in (result, model)))
    if same_opsets:
        ours, theirs = (_versions(each) for each in (result, model))
        both = ours.keys() & theirs.keys()
        _require_equal(out, "opsets", {k: ours[k] for k in both}, {k: theirs[k] for k in both})
    for key, value in model.metadata_props.items():
        _require_equal(out, "metadata", {key: result.metadata_props.get(key)}, {key: value})


def _shown(value: ir.Value, shapeless: set[str]) -> tuple[str | None, str, str]:
    return value.name, str(value.type), "" if value.name in shapeless else str(value.shape)


def _defaults(model: ir.Model) -> Iterator[tuple[str, object]]:
    for name, array in defaults.arrays(model).items():
        yield name, array.tolist() if array.dtype.kind != "V" else np.asarray(array).tobytes()


def _maps(model: ir.Model) -> Iterator[tuple[int, str, list[bytes]]]:
    for entry in extras.of(model).maps:
        told = sorted(attribute.SerializeToString() for attribute in entry.node.attribute)
        yield entry.position, entry.output.name, told


def _require_equal(out: Path, what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise VerificationError(f"{out}: {what} are {_cut(ours)}, in the original {_cut(theirs)}; {WRONG}")


def _cut(told: object) -> str:
    text = str(told)
    return text if len(text) <= 300 else f"{text[:300]}..."


def added(result: ir.Model, *others: ir.Model) -> Mapping[str, int]:
    """The operators, by kind, of which `result` has more than each of `others`; those in PLAIN are left out."""
    most = Counter[str]()
    for other in others:
        most |= _operators(other)
    return _operators(result) - most


def _operators(model: ir.Model) -> Counter[str]:
    nodes = [*bodies.all_nodes(model.graph), *(node for each in model.functions.values() for node in each.all_nodes())]
    named = (_named(node.domain, node.op_type) for node in nodes)
    return Counter(name for name in named if name not in PLAIN)


def _named(domain: str, op_type: str) -> str:
    """The operator as a reader knows it: one of the same name may mean something else in another domain."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}.{op_type}"


def _versions(model: ir.Model) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in model.opset_imports.items()}
