"""onnxruntime sessions: the one place that opens them, and that refuses a provider which did not load."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import GraphError, ProviderError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ort.set_default_logger_severity(4)


def provider_name(provider: str) -> str:
    """The full name of `provider`, given short ("cuda") or full ("CUDAExecutionProvider")."""
    return PROVIDERS.get(provider.lower(), provider)


def open_session(
    model: ir.Model | onnx.ModelProto | bytes | str | Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    extra_outputs: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    session_options: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A session of `model` on `provider`, with the values named in `extra_outputs` as further outputs.

    threads: intra-op threads, None for onnxruntime's own choice. options: provider options.
    session_options: onnxruntime session configuration entries.
    Raises: ProviderError when the provider did not load, GraphError when onnxruntime refuses the model.
    """
    source = _source(model, extra_outputs)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if threads is not None:
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (session_options or {}).items():
        settings.add_session_config_entry(key, value)
    name = provider_name(provider)
    require_provider(name)
    wanted = [(name, dict(options or {}))]
    if name != "CPUExecutionProvider":
        wanted.append(("CPUExecutionProvider", {}))
    try:
        session = ort.InferenceSession(source, settings, providers=wanted)
    except Exception as error:  # onnxruntime raises a dozen pybind types without a common base
        raise GraphError(f"onnxruntime refuses the model: {_first_line(error)}") from error
    if name not in session.get_providers():
        raise ProviderError(_not_loaded(name, "onnxruntime fell back to " + ", ".join(session.get_providers())))
    return session


def require_provider(name: str) -> None:
    """Nothing, when onnxruntime was built with provider `name`. Raises: ProviderError otherwise."""
    if name not in ort.get_available_providers():
        raise ProviderError(_not_loaded(name, "this onnxruntime offers " + ", ".join(ort.get_available_providers())))


def run(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of `session` by name.

    Raises: GraphError when the model fails on these inputs.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:
        shapes = ", ".join(f"{name} {np.shape(array)}" for name, array in feeds.items())
        raise GraphError(f"the model fails in onnxruntime on inputs {shapes}: {_first_line(error)}") from error


def _source(model: ir.Model | onnx.ModelProto | bytes | str | Path, extra_outputs: Sequence[str]) -> str | bytes:
    if isinstance(model, (str, Path)) and not extra_outputs:
        return str(model)
    if isinstance(model, bytes) and not extra_outputs:
        return model
    if isinstance(model, ir.Model):
        proto = ir.to_proto(model)
    elif isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    else:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in present)
    return proto.SerializeToString()


def _not_loaded(name: str, seen: str) -> str:
    fix = "install onnxruntime-gpu and its CUDA and cuDNN libraries (onnxruntime.preload_dlls() after 'import torch' finds torch's)"
    return f"execution provider {name} did not load: {seen}; {fix}, or choose --provider cpu"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
