"""Cost of a model file: MACs, parameters, bytes on disk."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import analyze
from onnxprune.errors import OnnxPruneError
from onnxprune.measure.records import Measurement
from onnxprune.plan import cost


def measure_file(name: str, path: Path, totals: Mapping[str, int] | None = None) -> Measurement:
    """The cost of a model: MACs at batch 1, parameters, and bytes on disk, external data included.

    totals: the costs where they are known already, see `cost.Cost.totals`.
    """
    model = graph.load(path)
    values = list(model.graph.initializers.values())
    totals = _totals(model) if totals is None else totals
    size = path.stat().st_size + sum(file.stat().st_size for file in _external_files(path, values))
    return Measurement(name, str(path), _sha256(path), totals.get("macs"), cost.stored(model)["params"], size)


def _totals(model: ir.Model) -> dict[str, int]:
    """The costs as pruning counts them, or nothing: what cannot be analyzed can still be timed."""
    try:
        return cost.of(analyze(graph.normalize(model)), model).totals()
    except OnnxPruneError:
        return {}


def _external_files(path: Path, values: Sequence[ir.Value]) -> set[Path]:
    tensors = [v.const_value for v in values if isinstance(v.const_value, ir.ExternalTensor)]
    return {path.parent / str(tensor.location) for tensor in tensors}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
