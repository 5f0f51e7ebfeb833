"""Arrays to torch tensors and back, and the ONNX element types.

torch has no 2- and 4-bit types: their values travel in int8, uint8 or float32 and are wrapped where they are made.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.graph.inputs import Feeds

TORCH_TYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float32,
}
if hasattr(torch, "float8_e8m0fnu"):
    TORCH_TYPES[ir.DataType.FLOAT8E8M0] = torch.float8_e8m0fnu

TRAINABLE_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
REDUCED_TYPES = frozenset({torch.float16, torch.bfloat16})

# ml_dtypes arrays that torch knows under the same bits, and those whose values travel in a wider type.
_SAME_BITS = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, TORCH_TYPES.get(ir.DataType.FLOAT8E8M0, torch.uint8)),
}
_WIDER = {
    np.dtype(ml_dtypes.int4): np.int8,
    np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.int2): np.int8,
    np.dtype(ml_dtypes.uint2): np.uint8,
    np.dtype(ml_dtypes.float4_e2m1fn): np.float32,
}


def to_torch(array: np.ndarray) -> Tensor:
    """A torch copy of `array`, in torch's type for it."""
    array = np.array(array, order="C")
    if array.dtype in _SAME_BITS:
        bits, dtype = _SAME_BITS[array.dtype]
        return torch.from_numpy(array.view(bits)).view(dtype)
    if array.dtype in _WIDER:
        return torch.from_numpy(array.astype(_WIDER[array.dtype]))
    return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values of `tensor` as an array of the same type (ml_dtypes' where numpy has none)."""
    tensor = tensor.detach().cpu().contiguous()
    for dtype, (bits, torch_type) in _SAME_BITS.items():
        if tensor.dtype == torch_type and tensor.dtype != torch.uint8:
            return tensor.view(torch.int16 if bits is np.int16 else torch.uint8).numpy().view(dtype)
    return tensor.numpy()


def torch_type(onnx_type: int) -> torch.dtype:
    """torch's type for an element type of ONNX, given as the number that stands in attributes."""
    return TORCH_TYPES[ir.DataType(onnx_type)]


def ints(value: Any) -> list[int]:
    """A host input as a list of ints: it arrives as a number, a list, or (when computed) a CPU tensor."""
    if isinstance(value, Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else [value]


def number(value: Any) -> Any:
    """A host input of one element as a Python number."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.reshape(-1)[0].item()
    while isinstance(value, (list, tuple)):
        value = value[0]
    return value


def is_half(x: object) -> bool:
    """Whether `x` is a tensor of half precision, float16 or bfloat16."""
    return isinstance(x, Tensor) and x.dtype in REDUCED_TYPES


def tensors_of(feeds: Feeds, device: torch.device, *, channels_last: bool = False) -> dict[str, Tensor]:
    """Feeds as tensors on `device`; images lie channels last where asked for."""
    tensors = {name: to_torch(array).to(device, non_blocking=True) for name, array in feeds.items()}
    return with_channels_last(tensors) if channels_last else tensors


def with_channels_last(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, of which those of rank 4 lie channels last in memory."""
    return {name: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for name, x in tensors.items()}
