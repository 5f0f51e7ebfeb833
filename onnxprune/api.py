"""What Python users call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling
from onnxprune.coupling import analyze as analyze_normalized
from onnxprune.errors import UsageError
from onnxprune.options import PREPROCESS, Options
from onnxprune.run import pipeline

SEVERAL = ("include", "exclude", "report")  # options of which there may be one or several


def prune(source: str | Path, out: str | Path, **options: Any) -> pipeline.Result:
    """Prunes the model in file `source` into file `out`; options are those of the command line, see `Options`.

    Raises: OnnxPruneError when the input is bad, a target cannot be met or the proof fails; `out` is not written then.
    """
    return pipeline.prune(source, out, _options(options, f"onnxprune.prune({str(source)!r}, {str(out)!r}, ...)"))


def _options(given: Mapping[str, Any], command: str) -> Options:
    """`given` in the forms that `Options` holds. Raises: UsageError for names that are no option."""
    unknown = sorted(set(given) - set(Options.__dataclass_fields__) - set(PREPROCESS))
    if unknown:
        known = ", ".join(sorted({*Options.__dataclass_fields__, *PREPROCESS}))
        raise UsageError(f"prune() has no option '{unknown[0]}'; choose of {known}")
    values = {key: value for key, value in given.items() if key not in PREPROCESS}
    images = {key: given[key] for key in PREPROCESS if given.get(key) is not None}
    values["preprocess"] = {**values.get("preprocess", {}), **images}
    for name in SEVERAL:
        held = values.get(name) or ()
        values[name] = (held,) if isinstance(held, str | Path) else tuple(held)
    values["report"] = tuple(map(Path, values["report"]))
    for name in ("plan", "resume"):
        values[name] = None if values.get(name) is None else Path(values[name])
    if not isinstance(values.get("target", {}), Mapping):
        raise UsageError(f"target={values['target']!r}: give a mapping such as {{'macs': 0.5}}")
    return Options(**{"command": command, **values})


def analyze(model: str | Path | onnx.ModelProto | ir.Model) -> Coupling:
    """The coupling of a model, given as a file, an onnx or an onnx_ir model: its Dims, where they stand, why frozen."""
    if isinstance(model, str | Path):
        loaded = graph.load(model)
    else:
        loaded = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return analyze_normalized(graph.normalize(loaded))


__all__ = ["Coupling", "analyze", "prune"]
