"""Unlabelled samples for networks that nobody here made, from what Python packages ship; called without arguments."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images


def photos(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Random square crops of scikit-learn's two photographs: (N, 3, size, size), 0..255."""
    rng = np.random.default_rng(seed)
    pictures = load_sample_images().images
    crops = []
    for _ in range(count):
        picture = pictures[rng.integers(len(pictures))]
        side = int(rng.integers(size, 3 * size))
        y, x = rng.integers(picture.shape[0] - side), rng.integers(picture.shape[1] - side)
        picks = (np.arange(size) * side / size).astype(int)
        crops.append(picture[y : y + side, x : x + side][picks][:, picks])
    return np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32)


def faces():
    """For SCRFD: crops as it was trained on."""
    return {"input.1": (photos(96, 240) - 127.5) / 128}


def pages():
    """For the text detector of PP-OCR."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return {"x": (photos(96, 160) / 255 - mean) / std}


def voices():
    """For Silero VAD with a fixed batch of 1: voiced sounds and noise at 16 kHz, 36 ms each; a state of zeros."""
    rng = np.random.default_rng(0)
    time = np.arange(576) / 16000
    pitch, level = rng.uniform(80, 300, (200, 1)), rng.uniform(0, 0.3, (200, 1))
    sound = sum(np.sin(2 * np.pi * k * pitch * time + rng.uniform(0, 6.3, (200, 1))) / k for k in range(1, 12))
    noise = rng.normal(size=(200, 576)) * rng.uniform(0, 0.05, (200, 1))
    wave = (sound * level * rng.integers(0, 2, (200, 1)) + noise).astype(np.float32)
    return {"input": wave, "state": np.zeros((2, 1, 128), np.float32)}


def streams():
    """For Silero VAD with a free batch: 24 recordings of 20 steps, each step with 64 numbers before it."""
    rng = np.random.default_rng(0)
    time, steps = np.arange(20 * 512) / 16000, 20
    pitch = rng.uniform(80, 300, (24, 1)) * (1 + 0.05 * np.sin(2 * np.pi * 3 * time))
    phase = 2 * np.pi * np.cumsum(pitch, axis=1) / 16000
    sound = sum(np.sin(k * phase + rng.uniform(0, 6.3, (24, 1))) / k for k in range(1, 12))
    speaks = np.repeat(rng.integers(0, 2, (24, 4)), len(time) // 4, axis=1)
    noise = rng.normal(size=sound.shape) * rng.uniform(0.001, 0.03, (24, 1))
    wave = np.pad(0.1 * sound * speaks + noise, ((0, 0), (64, 0))).astype(np.float32)
    chunks = np.stack([wave[:, 512 * t : 512 * t + 576] for t in range(steps)], axis=1)
    return {"input": chunks, "sr": np.array(16000, np.int64)}


def files():
    """For Magika: the first bytes of modules of the standard library, and of what lies beside them."""
    import json

    folder = Path(json.__file__).parent.parent
    found = sorted(path for pattern in ("*.py", "*/*.py", "*/__pycache__/*.pyc") for path in folder.glob(pattern))
    picks = np.random.default_rng(0).permutation(len(found))[:400]
    rows = np.full((len(picks), 2048), 256, np.int32)  # the padding token
    for row, pick in zip(rows, picks, strict=True):
        content = found[pick].read_bytes().strip()
        head, tail = content[:1024], content[-1024:]
        row[: len(head)] = list(head)
        row[2048 - len(tail) :] = list(tail)
    return {"bytes": rows}
