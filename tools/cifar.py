"""CIFAR-10 as samples for the trained models in the shared data folder; nothing is stored in the repository.

    python tools/cifar.py --model resnet --split train --start 0 --count 5000 --out cifar.npz
    onnxprune IN.onnx OUT.onnx --data tools.cifar:train5000 --val tools.cifar:test

The folder is $ONNXPRUNE_DATA, by default ../shared/data beside the repository. ResNets take (x/255 - mean)/std in an
input `input`, the VGG takes x/255 in an input `x`; functions for the latter start with `vgg_`. `train5000` are the
first 5,000 training images, `unlabelled5000` the same without their labels, `train` all of them, `choose5000` the last
5,000, to choose on.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(os.environ.get("ONNXPRUNE_DATA") or Path(__file__).parents[1] / "../shared/data")
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1)
INPUTS = {"resnet": "input", "vgg": "x"}
SPLITS = {"train": 50_000, "test": 10_000}
GRID = 10_000  # images in one file
CHOOSE = 5000


def load(model: str, split: str, start: int = 0, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 3, 32, 32) float32 as `model` wants it, y (N,) int64: images start .. start + count of a split."""
    stop = SPLITS[split] if count is None else min(start + count, SPLITS[split])
    names = [f"train-{k}.webp" for k in range(5)] if split == "train" else ["test.webp"]
    parts = [
        _images(DATA / "cifar10" / name)[max(start - k * GRID, 0) : stop - k * GRID]
        for k, name in enumerate(names)
        if start < (k + 1) * GRID and stop > k * GRID
    ]
    x = np.concatenate(parts).transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255)
    with np.load(DATA / "cifar10" / "labels.npz") as labels:
        y = labels[split][start:stop].astype(np.int64)
    return (x - MEAN) / STD if model == "resnet" else x, y


def _images(path: Path) -> np.ndarray:
    """(10000, 32, 32, 3) uint8 of one file, a grid of 100 x 100 images."""
    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB"))
    return grid.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(GRID, 32, 32, 3)


def __getattr__(name: str) -> Callable[[], Any]:
    """train5000, vgg_test4000, choose5000 ...: functions that load so many images, all of them without a number."""
    found = re.fullmatch(r"(vgg_)?(train|unlabelled|choose|test)(\d*)", name)
    if found is None:
        raise AttributeError(f"tools.cifar has no {name}; there are train5000, vgg_test4000, choose5000 and their like")
    prefix, split, count = found.groups()
    model = "vgg" if prefix else "resnet"
    if split == "unlabelled":
        return lambda: load(model, "train", 0, int(count) if count else None)[0]
    if split != "choose":
        return lambda: load(model, split, 0, int(count) if count else None)
    number = int(count or CHOOSE)
    return lambda: load(model, "train", SPLITS["train"] - number, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(INPUTS), default="resnet")
    parser.add_argument("--split", choices=sorted(SPLITS), default="train")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not (DATA / "cifar10").is_dir():
        parser.error(f"no folder cifar10 in {DATA}; set ONNXPRUNE_DATA to the folder that holds it")
    if not 0 <= args.start < SPLITS[args.split] or (args.count is not None and args.count < 1):
        parser.error(f"the {args.split} split has images 0 to {SPLITS[args.split] - 1}; --start and --count leave none")
    x, y = load(args.model, args.split, args.start, args.count)
    np.savez(args.out, **{INPUTS[args.model]: x, "y": y})
    print(f"{args.out}: {INPUTS[args.model]} {x.shape}, y {y.shape}")


if __name__ == "__main__":
    main()
