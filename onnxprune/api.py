"""The functions for users of Python."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, cast

import onnx
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling
from onnxprune.coupling import analyze as analyze_normalized
from onnxprune.errors import UsageError
from onnxprune.options import TABLE, Options, options_of
from onnxprune.run import pipeline
from onnxprune.run.keywords import Keywords
from onnxprune.system.atomic_files import beside, scratch
from onnxprune.system.clock import Event, listening

Model = str | Path | bytes | onnx.ModelProto | ir.Model


def prune(
    source: Model,
    out: str | Path | None = None,
    *,
    on_step: Callable[[Event], object] | None = None,
    **options: Unpack[Keywords],
) -> pipeline.Result:
    """Prunes a model, given as a file, bytes, an onnx or an onnx_ir model, into file `out`, if one is given.

    options: those of the command line, see `Options`; data may also be an array, a dict of arrays, an (x, y) tuple, a
    list, an iterator, or a torch Dataset or DataLoader. `result.model` is the pruned model: of the kind of `source`
    where that is an onnx_ir model, else an onnx one. on_step: called with an Event at the begin and end of each step.
    Raises: OnnxPruneError when the input is bad, a target cannot be met or the proof fails; nothing is written then.
    """
    told = repr(str(source)) if isinstance(source, str | Path) else type(source).__name__
    asked = _options(cast(Mapping[str, Any], options), f"onnxprune.prune({told}, {str(out)!r}, ...)")
    with scratch() as folder, listening(on_step), _plain_torch():
        path = source if isinstance(source, str | Path) else _file_of(source, Path(folder, "model.onnx"))
        result = pipeline.prune(path, out if out is not None else Path(folder, "pruned.onnx"), asked)
        if out is not None:
            return result
        made = onnx.load(str(result.after.path))  # with its weights, before the folder goes
    after = replace(result.after, path="")
    models = tuple(after if model is result.after else model for model in result.report.models)
    kept = ir.from_proto(made) if isinstance(source, ir.Model) else made
    return replace(result, after=after, report=replace(result.report, models=models), made=kept)


@contextmanager
def _plain_torch() -> Iterator[None]:
    """A block in which torch, if it is loaded, is as in a fresh process: what the caller has set around a call, such as
    no gradients, another device or a lower precision, is for the caller's own model."""
    torch = sys.modules.get("torch")
    with ExitStack() as stack:
        if torch is not None:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _file_of(model: bytes | onnx.ModelProto | ir.Model, path: Path) -> Path:
    """`path`, to which `model` was written. Raises: UsageError for what is no model."""
    if isinstance(model, ir.Model):
        graph.save(model, path)
    elif isinstance(model, onnx.ModelProto):
        large = model.ByteSize() > graph.PROTOBUF_LIMIT_BYTES
        onnx.save(model, path, save_as_external_data=large, location=beside(path, ".data").name)
    elif isinstance(model, bytes | bytearray | memoryview):
        path.write_bytes(model)
    else:
        raise UsageError(f"a model is {type(model).__name__}; give a path, bytes, an onnx.ModelProto or an ir.Model")
    return path


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
    elif isinstance(model, onnx.ModelProto):
        own = onnx.ModelProto()
        own.CopyFrom(model)  # onnx_ir names tensors in the message that it read them from
        loaded = ir.from_proto(own)
    else:
        loaded = model
    return analyze_normalized(graph.normalize(loaded))


__all__ = ["Coupling", "analyze", "prune"]
