"""Models made ready to be timed: converted where asked, opened on a provider, inputs and outputs bound to memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import UsageError
from onnxprune.graph.sessions import open_session, provider_name
from onnxprune.measure.timing import Call

Model = ir.Model | onnx.ModelProto | bytes | str | Path
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"

# Threads of one model would go on spinning into the other's turn, and take the cores from it.
SESSION_OPTIONS = {"session.force_spinning_stop": "1"}


@dataclass(frozen=True)
class Setting:
    """How a model is run; `threads` are intra-op threads."""

    provider: str
    threads: int
    batch: int
    fp16: bool = False
    cuda_graph: bool = False
    prefer_nhwc: bool = False
    sparsity: bool = False

    @property
    def precision(self) -> str:
        """The precision that is computed in, as reports say it."""
        return "float16" if self.fp16 else "as stored"


def check_setting(setting: Setting) -> None:
    """Checks that the provider knows the options of `setting`. Raises: UsageError otherwise."""
    if setting.cuda_graph and setting.provider not in (CUDA, TENSORRT):
        raise UsageError(f"CUDA graphs need the provider cuda or tensorrt, not {setting.provider}")
    if setting.prefer_nhwc and setting.provider != CUDA:
        raise UsageError(f"prefer_nhwc is an option of the provider cuda, not of {setting.provider}")
    if setting.sparsity and setting.provider != TENSORRT:
        raise UsageError(f"sparsity is an option of the provider tensorrt, not of {setting.provider}")
    if min(setting.batch, setting.threads) < 1:
        raise UsageError(f"batch {setting.batch} and threads {setting.threads} must be 1 or more")


def prepare(model: Model, setting: Setting) -> str | bytes:
    """The model as onnxruntime loads it: the file itself, or the bytes of one in memory or turned to float16."""
    # TensorRT chooses the precision layer by layer itself.
    if setting.fp16 and setting.provider != TENSORRT:
        return to_float16(_proto(model)).SerializeToString()
    if isinstance(model, (str, Path)):
        return str(model)
    return model if isinstance(model, bytes) else _proto(model).SerializeToString()


def to_float16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 copy of the model; inputs and outputs keep their types, behind casts."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return convert_float_to_float16(copy, keep_io_types=True)


def _proto(model: Model) -> onnx.ModelProto:
    if isinstance(model, ir.Model):
        return ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        return model
    return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))


def provider_options(setting: Setting) -> dict[str, str]:
    """The provider's own options for `setting`."""
    wanted = {
        CUDA: {"enable_cuda_graph": setting.cuda_graph, "prefer_nhwc": setting.prefer_nhwc},
        TENSORRT: {
            "trt_cuda_graph_enable": setting.cuda_graph,
            "trt_fp16_enable": setting.fp16,
            "trt_sparsity_enable": setting.sparsity,
        },
    }
    return {key: "1" for key, on in wanted.get(setting.provider, {}).items() if on}


def load(source: str | bytes, setting: Setting) -> tuple[ort.InferenceSession, float]:
    """(session, milliseconds that opening it took)."""
    start = perf_counter()
    session = open_session(
        source,
        provider=setting.provider,
        threads=setting.threads,
        options=provider_options(setting),
        session_options=SESSION_OPTIONS,
        as_stored=True,
    )
    return session, (perf_counter() - start) * 1e3


def bind(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, object], setting
) -> Call:
    """One run of `session` without copies between host and device: inputs lie there, outputs are written in place.

    `outputs` are arrays of the outputs' shapes by name; CUDA graphs need their memory before the first run.
    """
    if any(array.dtype.kind == "O" for array in feeds.values()):  # texts cannot be bound
        return partial(session.run, None, dict(feeds))
    device = "cuda" if setting.provider in (CUDA, TENSORRT) else "cpu"
    binding = session.io_binding()
    held = []
    for name, array in feeds.items():
        held.append(ort.OrtValue.ortvalue_from_numpy(array, device, 0))
        binding.bind_ortvalue_input(name, held[-1])
    for output in session.get_outputs():
        array = outputs.get(output.name)
        # Memory of a rank that the model does not declare, though it makes it, is refused.
        declared = isinstance(array, np.ndarray) and array.ndim == len(output.shape)
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and declared:
            held.append(ort.OrtValue.ortvalue_from_numpy(np.zeros_like(array), device, 0))
            binding.bind_ortvalue_output(output.name, held[-1])
        else:
            binding.bind_output(output.name)

    def call(held=held):  # the memory lives as long as the function that uses it
        session.run_with_iobinding(binding)

    return call


def setting_for(provider: str, threads: int, batch: int, **options) -> Setting:
    """A checked setting; `provider` may be short. Raises: UsageError."""
    setting = Setting(provider_name(provider), threads, batch, **options)
    check_setting(setting)
    return setting
