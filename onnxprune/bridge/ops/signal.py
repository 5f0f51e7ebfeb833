"""Fourier transforms and windows. Complex numbers stand as a last axis of two."""

import math
from typing import Any

import torch
from torch import Tensor

from onnxprune.bridge.ops.registry import torch_function
from onnxprune.bridge.tensors import number, torch_type


def _complex(x: Tensor) -> Tensor:
    """x (..., 1 or 2) as complex numbers (...)."""
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0].to(_complex_type(x.dtype))


def _complex_type(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


@torch_function("DFT", since=17, host=(1,))
def DFT_17(x: Tensor, dft_length: Any = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> Tensor:
    return DFT(x, dft_length, axis, inverse=inverse, onesided=onesided)


@torch_function("DFT", since=20, host=(1, 2))
def DFT(x: Tensor, dft_length: Any = None, axis: Any = None, *, inverse: int = 0, onesided: int = 0) -> Tensor:
    place = -2 if axis is None else int(number(axis))
    place = place % x.ndim
    length = None if dft_length is None else int(number(dft_length))
    if inverse and onesided:
        return torch.fft.irfft(_complex(x), length, place).unsqueeze(-1).to(x.dtype)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(_complex(x), length, place)).to(x.dtype)
    y = torch.fft.fft(_complex(x), length, place)
    y = y.narrow(place, 0, y.shape[place] // 2 + 1) if onesided else y
    return torch.view_as_real(y).to(x.dtype)


@torch_function("STFT", host=(1, 3))
def STFT(
    x: Tensor, frame_step: Any, window: Tensor | None = None, frame_length: Any = None, *, onesided: int = 1
) -> Tensor:
    """x (N, length) or (N, length, 1 or 2) -> (N, frames, bins, 2)."""
    x = x.unsqueeze(-1) if x.ndim == 2 else x
    size = int(number(frame_length)) if frame_length is not None else x.shape[1] if window is None else window.shape[0]
    frames = x.unfold(1, size, int(number(frame_step))).movedim(2, -1)  # (N, frames, size, 1 or 2)
    if window is not None:
        frames = frames * window.reshape(-1, 1)
    real = frames.shape[-1] == 1
    if onesided and real:
        return torch.view_as_real(torch.fft.rfft(frames[..., 0], dim=2)).to(x.dtype)
    y = torch.fft.fft(_complex(frames), dim=2)
    return torch.view_as_real(y[:, :, : size // 2 + 1] if onesided else y).to(x.dtype)


def _phase(size: Any, periodic: int) -> Tensor:
    """2 pi n / N for n = 0 ... size - 1, where N is size, or one less for a symmetric window."""
    length = int(number(size))
    return torch.arange(length, dtype=torch.float64) * (2 * math.pi / (length if periodic else length - 1))


@torch_function("HannWindow", host=(0,))
def HannWindow(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    return (0.5 - 0.5 * torch.cos(_phase(size, periodic))).to(torch_type(output_datatype))


@torch_function("HammingWindow", host=(0,))
def HammingWindow(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    alpha = 25 / 46
    return (alpha - (1 - alpha) * torch.cos(_phase(size, periodic))).to(torch_type(output_datatype))


@torch_function("BlackmanWindow", host=(0,))
def BlackmanWindow(size: Any, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
    phase = _phase(size, periodic)
    return (0.42 - 0.5 * torch.cos(phase) + 0.08 * torch.cos(2 * phase)).to(torch_type(output_datatype))


@torch_function("MelWeightMatrix", host=(0, 1, 2, 3, 4))
def MelWeightMatrix(
    num_mel_bins: Any,
    dft_length: Any,
    sample_rate: Any,
    lower_edge_hertz: Any,
    upper_edge_hertz: Any,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """(dft_length // 2 + 1, bins): triangles between mel-spaced edges, mel = 2595 log10(1 + hertz / 700)."""
    bins, length, rate = (int(number(value)) for value in (num_mel_bins, dft_length, sample_rate))
    low, high = (2595 * math.log10(1 + float(number(edge)) / 700) for edge in (lower_edge_hertz, upper_edge_hertz))
    mels = torch.arange(bins + 2, dtype=torch.float64) * ((high - low) / (bins + 2)) + low
    edges = torch.floor((length + 1) * 700 * (torch.pow(10.0, mels / 2595) - 1) / rate)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    row = torch.arange(length // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where((row >= left) & (row <= center), (row - left) / (center - left).clamp(min=1), 0.0)
    rising = torch.where((left == center) & (row == center), 1.0, rising)
    falling = torch.where((row >= center) & (row < right), (right - row) / (right - center).clamp(min=1), rising)
    return falling.to(torch_type(output_datatype))
