"""What a run refuses before it starts: paths that clash or cannot be written, weights that are no numbers."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import graph, report
from onnxprune.coupling import Coupling
from onnxprune.errors import GraphError, ProviderError, UsageError
from onnxprune.graph import sessions
from onnxprune.options import Options

ROLES = ("produces", "consumes", "scales")  # of members whose numbers scores are made of


def check_paths(source: Path, out: Path, options: Options, *also_read: Path) -> None:
    """Nothing, when every file asked for can be written and none of them is one that is read. Raises: UsageError."""
    if out.resolve() == source.resolve():
        raise UsageError(f"{out}: output and input are the same file; choose another output")
    samples = (Path(spec) for spec in (options.data, options.val) if isinstance(spec, str | Path))
    used = {path.resolve(): "read" for path in (source, *also_read, *samples)}
    for path in options.report:
        report.check_report_path(path)
    for path in (out, *([options.plan] if options.plan else ()), *options.report):
        if path.resolve() in used:
            raise UsageError(f"{path}: this run has {used[path.resolve()]} that file already; choose another path")
        used[path.resolve()] = "written"
        _check_writable(path)


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the path of the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it or choose another path")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions do not tell of read-only and full disks
            pass
    except OSError as error:
        raise UsageError(
            f"{path}: the folder {path.parent} cannot be written ({error.strerror}); choose another path"
        ) from error


def check_devices(device: str, provider: str | None) -> None:
    """Nothing, when `device` can train and `provider`, where it is to measure, loads: before the work, not after it.

    Raises: ProviderError.
    """
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ProviderError("--device cuda: torch sees no CUDA device; check nvidia-smi, or choose --device cpu")
    if provider is not None and provider != "cpu":
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        opset = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "probe", [value], [result]), opset_imports=opset)
        model.ir_version = 8
        sessions.open_session(model, provider=provider)


def check_data_file(source: Path, out: Path) -> None:
    """Nothing, when the weights of a result beside `out` would not replace those that `source` is read from.

    Raises: UsageError.
    """
    data = (out.parent / f"{out.name}.data").resolve()
    for value in graph.load(source).graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() == data:
            raise UsageError(f"{out}: its weights would replace {data}, where the input's are; choose another output")


def file_sha256(path: Path) -> str:
    """SHA-256 of the model file at `path`, and of the weights that lie beside it."""
    hasher = hashlib.sha256()
    for file in (path, path.with_name(f"{path.name}.data")):
        if file.is_file():
            with file.open("rb") as opened:
                hasher.update(hashlib.file_digest(opened, "sha256").digest())
    return hasher.hexdigest()


def check_finite(coupling: Coupling) -> None:
    """Nothing, when the weights that free Dims stand in are finite numbers. Raises: GraphError."""
    names = {m.initializer for dim in coupling.free for m in coupling.members[dim] if m.role in ROLES}
    for name in sorted(names):
        array = graph.array_of(coupling.model.graph.initializers[name])
        if array.dtype.kind in "iub":
            continue
        numbers = array if array.dtype.kind == "f" else array.astype(np.float32)  # bfloat16 and smaller
        bad = int(array.size - np.isfinite(numbers).sum())
        if bad:
            raise GraphError(
                f"initializer '{name}': {bad} of {array.size} numbers are NaN or infinite, which cannot be scored or "
                "compared; export a checkpoint whose training did not diverge"
            )
