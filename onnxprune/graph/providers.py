"""Execution providers of onnxruntime: what they are called, what brings them, which widths and numbers they like.

Measured in this project are the CPU and CUDA (docs/results). What stands here of the others is what their makers say
of the width of their vector units and of the numbers that they compute in.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Provider:
    """A provider: its short names, how it is installed, the multiple that widths are best held to, and number formats.

    integers: whether int8 that is stored as QDQ is computed in integers. form: the `--quantize` that suits it.
    """

    names: tuple[str, ...]
    install: str
    multiple: int
    integers: bool
    form: str


GPU_PACKAGE = (
    "install onnxruntime-gpu with its CUDA and cuDNN libraries "
    "(pip install 'onnxruntime-gpu[cuda,cudnn]', or those of torch: 'import torch' before)"
)
OWN_BUILD = "it needs an onnxruntime that was built with it"
# 16: blocks of channels on AVX-512, whole blocks on narrower units; 8: tensor cores and their like in half precision.
KNOWN = {
    "CPUExecutionProvider": Provider(("cpu",), "install onnxruntime", 16, True, "int8"),
    "CUDAExecutionProvider": Provider(("cuda",), GPU_PACKAGE, 8, False, "fp16"),
    "TensorrtExecutionProvider": Provider(("tensorrt",), f"{GPU_PACKAGE} and TensorRT's", 8, True, "int8"),
    "NvTensorRTRTXExecutionProvider": Provider(("tensorrt-rtx",), f"{GPU_PACKAGE} and TensorRT RTX", 8, True, "int8"),
    "OpenVINOExecutionProvider": Provider(
        ("openvino",), "install onnxruntime-openvino in place of onnxruntime", 16, True, "int8"
    ),
    "DmlExecutionProvider": Provider(
        ("directml", "dml"), "install onnxruntime-directml in place of onnxruntime, on Windows", 8, True, "fp16"
    ),
    "CoreMLExecutionProvider": Provider(
        ("coreml",), "it is part of onnxruntime for macOS (pip install onnxruntime there)", 16, False, "fp16"
    ),
    "QNNExecutionProvider": Provider(
        ("qnn",), "install onnxruntime-qnn in place of onnxruntime, on a device with a Snapdragon", 32, True, "int8"
    ),
    "MIGraphXExecutionProvider": Provider(
        ("migraphx",), "install AMD's onnxruntime-migraphx (onnxruntime-rocm before ROCm 7)", 8, True, "fp16"
    ),
    "ROCMExecutionProvider": Provider(("rocm",), "install AMD's onnxruntime-rocm", 8, False, "fp16"),
    "WebGpuExecutionProvider": Provider(("webgpu",), OWN_BUILD, 8, False, "fp16"),
    "XnnpackExecutionProvider": Provider(("xnnpack",), OWN_BUILD, 8, True, "int8"),
    "DnnlExecutionProvider": Provider(("dnnl",), OWN_BUILD, 16, True, "int8"),
}
SHORT = {short: name for name, provider in KNOWN.items() for short in provider.names}
ELSEWHERE = Provider((), OWN_BUILD, 8, True, "fp16")


def full_name(provider: str) -> str:
    """The full name of `provider`, given short ("cuda") or full ("CUDAExecutionProvider")."""
    return SHORT.get(provider.lower(), provider)


def short_name(provider: str) -> str:
    """The short name of `provider`, given short or full; as it is given where it is not known."""
    name = full_name(provider)
    return KNOWN[name].names[0] if name in KNOWN else provider


def of(provider: str) -> Provider:
    """The facts about `provider`, whose name may be the short or the full one."""
    return KNOWN.get(full_name(provider), ELSEWHERE)


def computing_integers() -> list[str]:
    """Short names of those that compute int8 in integers."""
    return [provider.names[0] for provider in KNOWN.values() if provider.integers]
