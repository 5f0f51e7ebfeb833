"""onnxruntime sessions: the one place that opens them, and that refuses a provider which did not load."""

import ctypes
import gc
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import GraphError, OutOfMemoryError, ProviderError, UsageError, first_line
from onnxprune.graph import extras, half, providers, stored
from onnxprune.graph.custom_ops import session_options
from onnxprune.graph.inputs import InputInfo, axis_of, with_batch
from onnxprune.graph.integrity import is_text
from onnxprune.graph.simplify import skeleton
from onnxprune.graph.tensors import size_bytes
from onnxprune.system.atomic_files import scratch
from onnxprune.system.memory import LARGE_MODEL_BYTES, SMALL_WEIGHT_BYTES, out_of_memory
from onnxprune.system.streams import swallowed

Model = ir.Model | onnx.ModelProto | bytes | str | Path
# Nodes that a provider has no kernel for run on these.
FALLBACKS = {
    "CUDAExecutionProvider": ("CPUExecutionProvider",),
    "TensorrtExecutionProvider": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
# What each session was opened with, and the arrays it reads where they are, so that they have to stay.
_ORIGINS: weakref.WeakKeyDictionary[ort.InferenceSession, "_Origin"] = weakref.WeakKeyDictionary()
# Sessions that ran out of memory, to be opened again before they next run.
_SPENT: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()
# The only batch size of sessions whose model declares that any will do.
_ONLY_BATCH: weakref.WeakKeyDictionary[ort.InferenceSession, int] = weakref.WeakKeyDictionary()
_ONLY_BATCH_FILES: dict[str, int] = {}  # the same of files
# Sessions of models written out in single precision, which have to be fed so.
_IN_SINGLE: weakref.WeakSet[ort.InferenceSession] = weakref.WeakSet()
_FOLDERS: weakref.WeakKeyDictionary[ort.SessionOptions, TemporaryDirectory[str]] = weakref.WeakKeyDictionary()
FOLDER, PREPACKING = "session.model_external_initializers_file_folder_path", "session.disable_prepacking"
UNKNOWN_OPERATOR = "is not a registered function/op"  # what onnxruntime says
ort.set_default_logger_severity(4)


class _Origin(NamedTuple):
    settings: ort.SessionOptions
    providers: list[tuple[str, dict[str, Any]]]
    weights: list[np.ndarray]


def few_threads() -> int:
    """Threads of short runs: two, or fewer where OMP_NUM_THREADS says so."""
    return min(2, allowed_threads() or 2)


def allowed_threads() -> int | None:
    """What OMP_NUM_THREADS allows, as where several runs share a machine; onnxruntime itself does not read it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else None


def provider_name(provider: str) -> str:
    """The full name of `provider`, given short ("cuda") or full ("CUDAExecutionProvider")."""
    return providers.full_name(provider)


def open_session(
    model: Model,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    extra_outputs: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    session_options: Mapping[str, str] | None = None,
    profile_prefix: str | Path | None = None,
    lean: bool = False,
    as_stored: bool = False,
) -> ort.InferenceSession:
    """A session of `model` on `provider`, with the values named in `extra_outputs` as further outputs.

    threads: intra-op threads, None for OMP_NUM_THREADS, else onnxruntime's own choice. options: provider options.
    session_options: onnxruntime session configuration entries.
    profile_prefix: where onnxruntime's profiler writes, until `session.end_profiling()`; None: no profiling.
    lean: the weights stay where they are, as those of large models always do; opened faster, for runs that are few.
    as_stored: in the precision that is stored, as where time is taken; else a model in double or bfloat16, for
    which kernels are missing, is opened in single precision: `run` then takes the same arrays, and gives single ones.
    Raises: ProviderError when the provider did not load, GraphError when onnxruntime refuses the model.
    """
    how = (provider, threads, optimize, extra_outputs, options, session_options, profile_prefix)
    if as_stored:
        return _opened(model, *how, lean=lean)
    return in_either_precision(model, lambda m: _opened(m, *how, lean=lean))[0]


def refusal(error: Exception) -> str:
    """What is said where onnxruntime does not open a model."""
    said = f"onnxruntime refuses the model: {first_line(error)}"
    return f"{said}; name the library that has it: --custom-ops LIB" if UNKNOWN_OPERATOR in said else said


def in_either_precision(
    model: Model, opened: Callable[[Any], ort.InferenceSession]
) -> tuple[ort.InferenceSession, GraphError | None]:
    """(what `opened` makes of `model`, or of the same in single precision; why onnxruntime refuses the first of them).

    Raises: GraphError with that reason where it refuses both.
    """
    try:
        session = opened(model)
        if not any(arg.type == "tensor(bfloat16)" for arg in (*session.get_inputs(), *session.get_outputs())):
            return session, None
        refused = GraphError("onnxruntime takes and gives no arrays of bfloat16 (NOT_IMPLEMENTED)")
    except GraphError as error:
        refused = error
    wider = half.runnable(model, refused)
    with suppress(GraphError):
        if wider is not None:
            session = opened(wider)
            _IN_SINGLE.add(session)
            return session, refused
    raise refused


def kinds_in_single(model: ir.Model) -> frozenset[ir.DataType]:
    """The types that `model` is written out of where values inside it matter: they round, or have no kernels here."""
    doubles = half.has_kinds(model, [ir.DataType.DOUBLE])
    if doubles and open_session(model, threads=1, optimize=False, lean=True) in _IN_SINGLE:
        return half.UNUSUAL
    return half.HALVES if half.has_halves(model) else frozenset()


def _opened(
    model: Model,
    provider: str,
    threads: int | None,
    optimize: bool,
    extra_outputs: Sequence[str],
    options: Mapping[str, Any] | None,
    session_options: Mapping[str, str] | None,
    profile_prefix: str | Path | None,
    *,
    lean: bool,
) -> ort.InferenceSession:
    settings = _settings(threads, optimize, session_options or {})
    weights: list[np.ndarray] = []
    source = _source(model, extra_outputs, settings, weights, lean=lean)
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    name = provider_name(provider)
    require_provider(name)
    _preload(name)
    wanted = [(name, dict(options or {})), *((rest, {}) for rest in FALLBACKS.get(name, ()))]
    try:
        with swallowed() as said:  # onnxruntime prints on stdout when it falls back; stdout is for results
            session = ort.InferenceSession(source, settings, providers=wanted)
    except Exception as error:  # onnxruntime raises a dozen pybind types without a common base
        if out_of_memory(error):
            raise OutOfMemoryError(
                f"onnxruntime: out of memory while it opens the model ({first_line(error)}); nothing was written. "
                "Free memory, or use a machine with more"
            ) from error
        raise GraphError(refusal(error)) from error
    _ORIGINS[session] = _Origin(settings, wanted, weights)
    if isinstance(model, ir.Model):
        hold_batch(session, extras.of(model).only_batch)
    elif isinstance(model, (str, Path)):
        hold_batch(session, _ONLY_BATCH_FILES.get(str(model)))
    if name not in session.get_providers():
        raise ProviderError(_not_loaded(name, _missing_library(name) or _fallback_reason(said.getvalue())))
    return session


def _settings(threads: int | None, optimize: bool, entries: Mapping[str, str]):
    settings = session_options()
    settings.log_severity_level = 4
    threads = threads or allowed_threads()
    if threads is not None:
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return settings


def hold_batch(session: ort.InferenceSession, size: int | None) -> ort.InferenceSession:
    """`session`, which from now on tells that it takes batches of `size` alone; None: of what its model declares."""
    if size is not None:
        _ONLY_BATCH[session] = size
    return session


def hold_file(path: Path, size: int | None) -> None:
    """Sessions of the file at `path` will tell that they take batches of `size` alone; None: of what it declares."""
    if size is not None:
        _ONLY_BATCH_FILES[str(path)] = size


def session_inputs(session: ort.InferenceSession) -> list[InputInfo]:
    """The inputs that `session` must be fed, in the order of the graph."""
    infos = [
        InputInfo(arg.name, tuple(map(axis_of, arg.shape)), ort_dtype(arg.type))
        for arg in session.get_inputs()
        if arg.type.startswith("tensor(")
    ]
    return with_batch(infos, _ONLY_BATCH[session]) if session in _ONLY_BATCH else infos


def ort_dtype(ort_type: str) -> np.dtype:
    """The numpy dtype of onnxruntime's `tensor(float)` and its like."""
    kind = ort_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype(object if kind == "string" else ir.DataType[kind.upper()].numpy())


def require_provider(name: str) -> None:
    """Checks that this onnxruntime was built with provider `name`. Raises: ProviderError otherwise."""
    if name not in ort.get_available_providers():
        raise ProviderError(_not_loaded(name, "this onnxruntime offers " + ", ".join(ort.get_available_providers())))


def _preload(name: str) -> None:
    """Loads the CUDA and cuDNN libraries that pip packages or torch brought, where onnxruntime can find them."""
    if name != "CPUExecutionProvider" and hasattr(ort, "preload_dlls"):
        with swallowed():  # it prints what it does not find; stdout is for results
            ort.preload_dlls()


def _missing_library(name: str) -> str:
    """The loader's own words on why the provider's library does not load, or nothing where it does."""
    library = f"libonnxruntime_providers_{name.removesuffix('ExecutionProvider').lower()}.so"
    path = Path(ort.__file__).parent / "capi" / library
    try:
        if path.is_file():
            ctypes.CDLL(str(path))
    except OSError as error:
        # Its own helper symbols are missing when it is opened alone, which says nothing.
        return "" if "undefined symbol" in str(error) else first_line(error)
    return ""


def _fallback_reason(said: str) -> str:
    reasons = [line.removeprefix("EP Error").strip() for line in said.splitlines() if line.startswith("EP Error ")]
    return (
        reasons[0][:300]
        if reasons
        else "onnxruntime fell back to the CPU without a word; does nvidia-smi show a device?"
    )


def run(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of `session` by name.

    Raises: GraphError when the model fails on these inputs, OutOfMemoryError when memory runs out.
    """
    try:
        if session in _SPENT:
            _reopen(session)
        names = [output.name for output in session.get_outputs()]
        (given,) = half.single_feeds([feeds], half.UNUSUAL) if session in _IN_SINGLE else (feeds,)
        values = session.run(names, dict(given))
        return dict(zip(names, cast("list[np.ndarray]", values), strict=True))
    except Exception as error:
        shapes = ", ".join(f"{name} {np.shape(array)}" for name, array in feeds.items())
        if out_of_memory(error):
            if session in _ORIGINS:
                _SPENT.add(session)
            raise OutOfMemoryError(
                f"onnxruntime: out of memory on inputs {shapes} ({first_line(error)}); nothing was written. "
                "Give smaller samples, or free memory"
            ) from error
        raise GraphError(f"the model fails in onnxruntime on inputs {shapes}: {first_line(error)}") from error


def _reopen(session: ort.InferenceSession) -> None:
    """Opens `session` again so that it holds no more memory than a run needs.

    Arenas keep what they took, take the double of what is asked for, and lose what an allocation that fails midway had.
    """
    origin = _ORIGINS[session]
    origin.settings.enable_cpu_mem_arena = False
    frugal = {"CUDAExecutionProvider": {"arena_extend_strategy": "kSameAsRequested"}}
    session.set_providers([(name, {**options, **frugal.get(name, {})}) for name, options in origin.providers])
    _SPENT.discard(session)


def _source(
    model: Model,
    extra_outputs: Sequence[str],
    settings: ort.SessionOptions,
    weights: list[np.ndarray],
    *,
    lean: bool,
) -> str | bytes:
    """The model as onnxruntime opens it: a path, or bytes with the extra outputs."""
    if isinstance(model, (str, Path)) and not extra_outputs:
        return _openable(model)
    if isinstance(model, bytes) and not extra_outputs:
        return model
    if isinstance(model, ir.Model):
        proto = lean_proto(model, settings, weights, always=lean)
    elif isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    else:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in present)
    return proto.SerializeToString()


def _openable(path: str | Path) -> str | bytes:
    """The argument by which onnxruntime opens the file at `path`: its bytes where the path is no text."""
    if is_text(path):
        return str(path)
    proto = onnx.load(str(path), load_external_data=False)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise UsageError(f"{path}: weights beside a file are found by text (UTF-8) only; rename the file or its folder")
    return proto.SerializeToString()


def lean_proto(
    model: ir.Model, settings: ort.SessionOptions, weights: list[np.ndarray], *, always: bool = False
) -> onnx.ModelProto:
    """`model` as a message; the weights of a large one stay where they are, and `settings` lead to them.

    A message ends at 2 GiB, and each copy of the weights would cost as much memory as the model.
    weights: takes the arrays that must live as long as the session. always: so of every model, however small.
    """
    if not always and size_bytes(model) <= LARGE_MODEL_BYTES and not extras.of(model).external:
        return ir.to_proto(model)
    proto, hidden = skeleton(model, SMALL_WEIGHT_BYTES)
    inputs = [value for value in proto.graph.input if value.name not in hidden]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    if any(stored.is_stored(model.graph.initializers[name]) for name in hidden):
        _refer_to_files(model, proto, [name for name in hidden if model.graph.initializers[name].uses()], settings)
        return proto
    names, values = [], []
    for name, value in hidden.items():
        if not model.graph.initializers[name].uses():  # onnxruntime drops it, and then misses it
            continue
        tensor = value.const_value
        assert tensor is not None, name
        entry = proto.graph.initializer.add(name=name, data_type=tensor.dtype, dims=tensor.shape.numpy())
        entry.data_location = onnx.TensorProto.EXTERNAL
        entry.external_data.add(key="location", value="memory")
        entry.external_data.add(key="length", value=str(tensor.nbytes))
        weights.append(np.ascontiguousarray(_plain(tensor)))
        names.append(name)
        values.append(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(weights[-1], tensor.dtype))
    settings.add_external_initializers(names, values)
    return proto


def _refer_to_files(
    model: ir.Model, proto: onnx.ModelProto, hidden: Sequence[str], settings: ort.SessionOptions
) -> None:
    """Lets `proto` refer to files for its weights, which onnxruntime maps, so that it copies nothing.

    Where all weights are as they lie beside the model these are the files; else all are written out once more.
    """
    gc.collect()  # sessions that are over hold what they mapped
    settings.add_session_config_entry(PREPACKING, "1")  # else they are copied
    folder = stored.folder_of(model)
    if folder is not None and all(stored.is_stored(model.graph.initializers[name]) for name in hidden):
        settings.add_session_config_entry(FOLDER, folder)
        stored.referred(model, proto, hidden)
        return
    made = scratch()
    _FOLDERS[settings] = made  # which lasts as long as the settings, and so as long as the session
    settings.add_session_config_entry(FOLDER, made.name)
    stored.written(model, proto, hidden, Path(made.name))


def _plain(tensor: ir.TensorProtocol) -> np.ndarray:
    """The array of `tensor` in a dtype that numpy itself knows.

    Of numbers that share bytes onnxruntime reads the packed bytes, from an array that has a byte for each number.
    """
    if tensor.dtype.bitwidth < 8:
        room, packed = np.zeros(tensor.size, np.uint8), np.frombuffer(tensor.tobytes(), np.uint8)
        room[: packed.size] = packed  # the rest is never touched: it takes no memory
        return room.reshape(tensor.shape.numpy())
    array = tensor.numpy()
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _not_loaded(name: str, seen: str) -> str:
    fix = providers.of(name).install
    if name not in providers.KNOWN:
        fix = f"{fix}; known names are {', '.join(providers.SHORT)}"
    return f"execution provider {name} did not load: {seen}; {fix}, or choose --provider cpu"
