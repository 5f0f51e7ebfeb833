"""The onnx package's own node cases through the torch bridge: passed, failed, not applicable, with the reasons.

python tools/conformance.py [--filter TEXT] [--failures]
"""

import argparse
import collections
import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from onnxprune.bridge import Network
from onnxprune.bridge.tensors import to_numpy, to_torch

# What a torch bridge for training cannot or need not do: operators, then single cases, by reason.
STRINGS = "strings are no tensors in torch"
OUT_OF_SCOPE_OPS = {
    STRINGS: {"StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"},
    "decodes image files": {"ImageDecoder"},
    "classical machine learning on tables": {"ArrayFeatureExtractor", "Binarizer", "LabelEncoder", "TreeEnsemble"},
    "an optimizer's update, not a network": {"Adagrad", "Adam", "Momentum"},
    "random: another generator draws other numbers": {"Bernoulli", "RandomUniformLike"},
}
OUT_OF_SCOPE_CASES = {
    "random: another generator draws other numbers": {
        "test_training_dropout",
        "test_training_dropout_default",
        "test_training_dropout_default_mask",
        "test_training_dropout_mask",
    },
    "align_corners: the operator's text, torch and onnxruntime divide by the whole length, the case by a fraction": {
        "test_resize_downsample_scales_cubic_align_corners",
        "test_resize_downsample_scales_linear_align_corners",
    },
}
# Largest difference allowed, in units of the type's rounding step and of the largest value: the cases' own tolerances
# do not say with how many roundings a half-precision product or a Fourier transform may be computed.
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One case: status is passed, failed or skipped; detail says why it is not passed."""

    case: str
    op_type: str
    status: str
    detail: str = ""


def load_cases() -> list[Any]:
    """All node cases of the installed onnx package."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def reason_to_skip(case: Any) -> str:
    """Why a case is not applicable, or an empty string."""
    for reason, names in OUT_OF_SCOPE_CASES.items():
        if case.name in names:
            return reason
    used = {node.op_type for node in _nodes(case.model.graph)}
    for reason, op_types in OUT_OF_SCOPE_OPS.items():
        if used & op_types:
            return reason
    if any(_is_string(value) for value in [*case.model.graph.input, *case.model.graph.output]):
        return STRINGS
    return ""


def run_case(case: Any) -> Outcome:
    """The outcome of one case; every data set of it has to agree."""
    op_type = case.model.graph.node[-1].op_type
    reason = reason_to_skip(case)
    if reason:
        return Outcome(case.name, op_type, "skipped", reason)
    try:
        network = Network(ir.from_proto(case.model)).eval()
        for inputs, expected in case.data_sets:
            got = _run(network, case.model, inputs)
            for value, want in zip(got, expected, strict=True):
                compare(value, want, case.rtol, case.atol)
    except Exception as error:  # the table is the place where every kind of failure is shown
        return Outcome(case.name, op_type, "failed", f"{type(error).__name__}: {str(error).strip()[:300]}")
    return Outcome(case.name, op_type, "passed")


def compare(got: Any, want: Any, rtol: float, atol: float) -> None:
    """Raises AssertionError unless types (the bridge's carriers apart), shapes and values agree."""
    if want is None or got is None:
        assert got is want, f"{got} is not {want}"
        return
    if isinstance(want, (list, tuple)):
        for a, b in zip(got, want, strict=True):
            compare(a, b, rtol, atol)
        return
    want_tensor = to_torch(_array(want))
    got_array, want_array = to_numpy(got), to_numpy(want_tensor)
    assert got.dtype == want_tensor.dtype, f"type {got.dtype}, expected {want_tensor.dtype}"
    assert got_array.shape == want_array.shape, f"shape {got_array.shape}, expected {want_array.shape}"
    if not want_tensor.dtype.is_floating_point and not want_tensor.dtype.is_complex:
        np.testing.assert_array_equal(got_array, want_array)
        return
    wide = np.complex128 if want_tensor.dtype.is_complex else np.float64
    with np.errstate(invalid="ignore"):  # signalling NaNs in the cases of 8-bit floats
        got_array, want_array = got_array.astype(wide), want_array.astype(wide)
    step = STEPS * torch.finfo(want_tensor.dtype).eps
    scale = np.max(np.abs(want_array), initial=0, where=np.isfinite(want_array))
    np.testing.assert_allclose(got_array, want_array, rtol=rtol, atol=max(atol, step * scale))


def run_all(cases: Iterable[Any]) -> list[Outcome]:
    return [run_case(case) for case in cases]


def table(outcomes: Sequence[Outcome]) -> str:
    """Passed of applicable by op, then the reasons of what is not applicable."""
    lines = ["| operator | passed | applicable |", "|---|---|---|"]
    by_op: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.status != "skipped":
            by_op[outcome.op_type].append(outcome)
    for op_type in sorted(by_op):
        passed = sum(outcome.status == "passed" for outcome in by_op[op_type])
        lines.append(f"| {op_type} | {passed} | {len(by_op[op_type])} |")
    counts = collections.Counter(outcome.status for outcome in outcomes)
    lines.append(f"| **all** | {counts['passed']} | {counts['passed'] + counts['failed']} |")
    reasons = collections.Counter(outcome.detail for outcome in outcomes if outcome.status == "skipped")
    lines += ["", "Not applicable:", ""]
    lines += [f"- {reason}: {count}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _run(network: Network, model: onnx.ModelProto, inputs: Sequence[Any]) -> list[Any]:
    names = [value.name for value in model.graph.input if value.name in network.input_names]
    feeds = {name: _fed(value) for name, value in zip(names, inputs, strict=False)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = network(feeds)
    return [results[name] for name in network.output_names]


def _fed(value: Any) -> Any:
    if value is None:
        return None
    return [_fed(item) for item in value] if isinstance(value, (list, tuple)) else to_torch(_array(value))


def _array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _is_string(value: onnx.ValueInfoProto) -> bool:
    kind = value.type
    while kind.HasField("sequence_type") or kind.HasField("optional_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
    return kind.tensor_type.elem_type == onnx.TensorProto.STRING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filter", default="", help="only cases with this text in their name")
    parser.add_argument("--failures", action="store_true", help="list failing cases with their errors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = run_all(case for case in load_cases() if arguments.filter in case.name)
    print(table(outcomes))
    if arguments.failures:
        for outcome in outcomes:
            if outcome.status == "failed":
                print(f"{outcome.case} ({outcome.op_type}): {outcome.detail}")


if __name__ == "__main__":
    main()
