"""Sounds for tools/metric_study.py: synthesized, so that what can be heard in them is known; see metric_tasks.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tools.metric_tasks import Answers, Feeds, halves


def notes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two seconds of a few notes (N, 43844, 1) at 22050 Hz, and which of 88 keys sound in 172 frames."""
    rng, time = np.random.default_rng(seed), np.arange(43844) / 22050
    sound, keys = np.zeros((count, 43844)), np.zeros((count, 172, 88), bool)
    for k in range(count):
        for _ in range(int(rng.integers(2, 6))):
            key, start, length = int(rng.integers(24, 64)), rng.uniform(0, 1.4), rng.uniform(0.3, 0.9)
            pitch, on = 27.5 * 2 ** (key / 12), (time >= start) & (time < start + length)
            wave = sum(np.sin(2 * np.pi * h * pitch * time) / h**1.5 for h in range(1, 7))
            sound[k] += on * wave * np.exp(-2 * np.clip(time - start, 0, None)) * rng.uniform(0.1, 0.3)
            frames = np.arange(172) * 256 / 22050
            keys[k, :, key] |= (frames >= start) & (frames < start + length)
    sound += rng.normal(0, 0.002, sound.shape)
    return sound[..., None].astype(np.float32), keys


def note_samples(path: Path) -> tuple[Feeds, Feeds]:
    return halves({"serving_default_input_2:0": notes(48, 8)[0]}, 24)


def note_truth(path: Path) -> Callable[[Answers], float]:
    """F1 of the frames of keys that were played: those of 0.3 and more in the output of notes."""
    x, keys = notes(24, 9)

    def f1(answers: Answers) -> float:
        found = answers({"serving_default_input_2:0": x})["StatefulPartitionedCall:1"] > 0.3
        return float(2 * (found & keys).sum() / max(1, found.sum() + keys.sum()))

    return f1


STEPS, CHUNK, CONTEXT = 40, 512, 64  # Silero takes 512 new samples of 16 kHz a step, and the last 64 before them


def streams(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vowels in noise (N, STEPS, 576), each chunk with the end of the one before, and in which a voice sounds."""
    rng, length = np.random.default_rng(seed), STEPS * CHUNK
    time, waves = np.arange(length) / 16000, np.zeros((count, length))
    voiced = np.zeros((count, STEPS), bool)
    for k in range(count):
        step = int(rng.integers(0, 8))
        while step < STEPS:
            stop = min(STEPS, step + int(rng.integers(5, 14)))
            part = slice(step * CHUNK, stop * CHUNK)
            waves[k, part] = vowel(time[part], rng)
            voiced[k, step:stop] = True
            step = stop + int(rng.integers(5, 14))
    waves += rng.normal(size=waves.shape) * rng.uniform(0.001, 0.03, (count, 1))
    padded = np.pad(waves, ((0, 0), (CONTEXT, 0)))
    chunks = [padded[:, t * CHUNK : t * CHUNK + CHUNK + CONTEXT] for t in range(STEPS)]
    return np.stack(chunks, 1).astype(np.float32), voiced


def vowel(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Harmonics of a gliding pitch under three formants that move, a few syllables a second."""
    first = time[0]
    pitch = rng.uniform(90, 240) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(2, 5) * (time - first)))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    centers = np.array([rng.uniform(300, 800), rng.uniform(900, 2200), rng.uniform(2300, 3200)])
    sway = 1 + 0.25 * np.sin(2 * np.pi * rng.uniform(1, 4, 3)[:, None] * (time - first) + rng.uniform(0, 6, (3, 1)))
    wave = np.zeros_like(time)
    for k in range(1, 30):
        near = ((k * pitch - centers[:, None] * sway) / (60 + 0.06 * centers[:, None])) ** 2
        wave += np.sin(k * phase) * (1 / (1 + near)).sum(0)
    beat = 0.55 + 0.45 * np.sin(2 * np.pi * rng.uniform(3, 6) * (time - first))
    return rng.uniform(0.05, 0.2) * wave * beat


def listened(answers: Answers, chunks: np.ndarray) -> np.ndarray:
    """Probabilities (N, STEPS) of a voice, the state handed on."""
    state = np.zeros((len(chunks), 2, 128), np.float32)
    said = []
    for t in range(chunks.shape[1]):
        found = answers({"input": chunks[:, t], "state": state})
        said.append(found["output"][:, 0])
        state = found["stateN"]
    return np.stack(said, 1)


def voice_answers(path: Path, batch: int) -> Answers:
    """Answers of a Silero file of free batch, whose state (2, N, 128) is handled as (N, 2, 128)."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        state = np.ascontiguousarray(feeds["state"].transpose(1, 0, 2))
        output, after = session.run(None, {"input": feeds["input"], "state": state, "sr": np.array(16000, np.int64)})
        return {"output": output, "stateN": after.transpose(1, 0, 2)}

    return run


def voice_samples(path: Path) -> tuple[Feeds, Feeds]:
    """Sequences: the state is handed on by onnxprune."""
    rate = np.array(16000, np.int64)
    return {"input": streams(16, 11)[0], "sr": rate}, {"input": streams(16, 13)[0], "sr": rate}


def voice_truth(path: Path) -> Callable[[Answers], float]:
    """Share of steps with the original's decision at 0.5, Silero's own threshold, along other streams, state handed on.

    Synthesized vowels are no speech: by where they were put most variants are as right as the original, within chance.
    """
    chunks = streams(40, 12)[0]
    wanted = listened(voice_answers(path, 40), chunks) > 0.5

    def right(answers: Answers) -> float:
        return float(((listened(answers, chunks) > 0.5) == wanted).mean())

    return right
