"""Checks before a run starts: paths that clash or cannot be written, weights that are no numbers."""

import hashlib
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import graph, report
from onnxprune.coupling import Coupling
from onnxprune.data.folder import SUFFIXES
from onnxprune.errors import GraphError, ProviderError, UsageError
from onnxprune.graph import sessions
from onnxprune.options import FUNCTION, PATH, SAMPLES, TABLE, Options
from onnxprune.system.atomic_files import beside, require_replaceable, rescue_of

LOG = logging.getLogger("onnxprune")
CHECKPOINTS = "finetune-*.npz"  # in the folder of --resume, see recover/state.py
WRITTEN = ("plan", "report", "resume")  # options that name what a run writes; all other paths are read
ROLES = ("produces", "consumes", "scales")  # of members whose numbers scores are made of


def check_paths(source: Path, out: Path, options: Options, *also_read: Path) -> None:
    """Checks that every output file can be written and is not one that is read. Raises: UsageError otherwise."""
    for path in options.report:
        report.check_report_path(path)
    if options.resume is not None:
        _check_resume(options.resume)
    reads = [*read(source, options), *also_read]
    if _same(out, source):
        raise UsageError(f"{out}: output and input are the same file; choose another output")
    check_writes(written(out, options), reads)
    if rescue_of(out).is_dir():
        LOG.warning(
            "%s: the proven result of a run that ended while it was measured; this run replaces it", rescue_of(out)
        )
    data = beside(out, ".data")
    if any(_same(data, path) for path in reads):
        raise UsageError(f"{out}: its weights would replace {data}, which this run reads; choose another output")
    for path in options.resume.glob(CHECKPOINTS) if options.resume else ():
        _check_unread(path, reads)


def read(source: Path, options: Options) -> list[Path]:
    """The files that a run reads: the model, its weights, samples, functions of the user's."""
    rows = [row for row in TABLE.values() if row.kind in (SAMPLES, FUNCTION, PATH) and row.name not in WRITTEN]
    return [*files_of(source), *named_files(*(getattr(options, row.name) for row in rows))]


def written(out: Path, options: Options) -> list[Path]:
    """The files that a run writes in the end."""
    return [out, *([options.plan] if options.plan else []), *options.report]


def check_writes(writes: Iterable[Path], reads: Iterable[Path]) -> None:
    """Checks that all of `writes` can be written, are different files, and none of them is one of `reads`.

    Files are the same by name, through links, and by their place on the disk. Raises: UsageError.
    """
    reads, seen = list(reads), set()
    for path in writes:
        _check_unread(path, reads)
        _check_writable(path)
        if path.resolve() in seen:
            raise UsageError(f"{path}: this run has written that file already; choose another path")
        seen.add(path.resolve())


def _check_unread(path: Path, reads: Iterable[Path]) -> None:
    found = next((read for read in reads if _same(path, read)), None)
    if found is not None:
        what = "" if path == found else f", as {found}"
        raise UsageError(f"{path}: this run has read that file already{what}; choose another path")


def _same(one: Path, two: Path) -> bool:
    try:
        return one.resolve() == two.resolve() or one.samefile(two)
    except (OSError, RuntimeError):  # there is none yet; a circle of links
        return False


def files_of(model: Path) -> list[Path]:
    """The file of a model, and those that its weights lie in; of what is no model the file alone."""
    return [model, *(model.parent / name for name in graph.external_names(model))]


def named_files(*specs: Any) -> list[Path]:
    """The files that samples and functions of the user's come from, as far as they have names."""
    found: list[Path] = []
    for spec in specs:
        if not isinstance(spec, str | Path):
            continue
        path = Path(spec)
        if path.is_dir():
            found += (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        module = str(spec).partition(":")[0].replace(".", "/")
        found += [path, Path(f"{module}.py"), Path(module, "__init__.py")]
    return found


def _check_resume(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--resume {folder}: is a file; give a folder, which is made where there is none")


def _check_writable(path: Path) -> None:
    require_replaceable(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; create it or choose another path")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # permissions do not tell of read-only and full disks
            pass
    except OSError as error:
        raise UsageError(
            f"{path}: the folder {path.parent} cannot be written ({error.strerror}); choose another path"
        ) from error


def check_apart(folder: Path, reads: Iterable[Path], option: str) -> None:
    """Checks that none of `reads` lies in `folder`, in which files are replaced. Raises: UsageError otherwise."""
    inside = next((path for path in reads if path.exists() and path.resolve().is_relative_to(folder.resolve())), None)
    if inside is not None:
        raise UsageError(f"{option} {folder}: holds {inside}, which this run reads; choose another folder")


def check_devices(device: str, provider: str | None) -> None:
    """Checks before the work that `device` can train and that `provider`, if it is to measure, can be loaded.

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


def file_sha256(path: Path) -> str:
    """SHA-256 of the model file at `path`, and of the weights beside it that it refers to."""
    hasher = hashlib.sha256()
    beside = {path.parent / location for location in _external_locations(path)}
    for file in (path, *sorted(beside)):
        if file.is_file():
            with file.open("rb") as opened:
                hasher.update(hashlib.file_digest(opened, "sha256").digest())
    return hasher.hexdigest()


def _external_locations(path: Path) -> set[str]:
    """Names of the files that hold weights of the model at `path`; one that was left by another model is none."""
    proto = onnx.load(str(path), load_external_data=False)
    tensors = (tensor for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL)
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def check_finite(coupling: Coupling) -> None:
    """Checks that all weights that could be cut are finite numbers. Raises: GraphError otherwise."""
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
