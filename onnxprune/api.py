"""What Python users call."""

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxprune import graph, pipeline
from onnxprune.coupling import Coupling
from onnxprune.coupling import analyze as analyze_normalized
from onnxprune.options import Options


def prune(source: str | Path, out: str | Path, **options: Any) -> pipeline.Result:
    """Prunes the model in file `source` into file `out`; options are those of the command line, see `Options`.

    Raises: OnnxPruneError when the input is bad, a target cannot be met or the proof fails; `out` is not written then.
    """
    return pipeline.prune(source, out, Options(**options, command=f"onnxprune.prune({source!s}, {out!s}, ...)"))


def analyze(model: str | Path | onnx.ModelProto | ir.Model) -> Coupling:
    """The coupling of a model, given as a file, an onnx or an onnx_ir model: its Dims, where they stand, why frozen."""
    if isinstance(model, str | Path):
        loaded = graph.load(model)
    else:
        loaded = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return analyze_normalized(graph.normalize(loaded))


__all__ = ["Coupling", "analyze", "prune"]
