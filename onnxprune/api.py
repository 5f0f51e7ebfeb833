"""What Python users call."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling
from onnxprune.coupling import analyze as analyze_normalized
from onnxprune.errors import UsageError
from onnxprune.options import TABLE, Options, options_of
from onnxprune.run import pipeline


def prune(source: str | Path, out: str | Path, **options: Any) -> pipeline.Result:
    """Prunes the model in file `source` into file `out`; options are those of the command line, see `Options`.

    Raises: OnnxPruneError when the input is bad, a target cannot be met or the proof fails; `out` is not written then.
    """
    return pipeline.prune(source, out, _options(options, f"onnxprune.prune({str(source)!r}, {str(out)!r}, ...)"))


def _signature() -> inspect.Signature:
    """The signature of `prune` with every option by name, for help() and editors."""
    files = [p for p in inspect.signature(prune).parameters.values() if p.name != "options"]
    return inspect.Signature(
        [
            *files,
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=row.default, annotation=row.type)
                for name, row in TABLE.items()
            ),
        ],
        return_annotation=pipeline.Result,
    )


prune.__signature__ = _signature()  # type: ignore[attr-defined]


def _options(given: Mapping[str, Any], command: str) -> Options:
    """`given` as a record. Raises: UsageError for names that are no option."""
    known = {*TABLE, "command", "progress"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise UsageError(f"prune() has no option '{unknown[0]}'; choose of {', '.join(sorted(known))}")
    return options_of(given, given.get("command", command), progress=given.get("progress", False))


def analyze(model: str | Path | onnx.ModelProto | ir.Model) -> Coupling:
    """The coupling of a model, given as a file, an onnx or an onnx_ir model: its Dims, where they stand, why frozen."""
    if isinstance(model, str | Path):
        loaded = graph.load(model)
    else:
        loaded = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return analyze_normalized(graph.normalize(loaded))


__all__ = ["Coupling", "analyze", "prune"]
