"""The ImageNet excerpts in the shared data folder as samples; nothing is stored in the repository.

    python tools/imagenet.py --split val900 --count 100 --out imagenet.npz
    onnxprune IN.onnx OUT.onnx --data tools.imagenet:train1000 --val tools.imagenet:val900

The folder is $ONNXPRUNE_DATA, by default ../shared/data beside the repository. Samples are the center 224 x 224 with
the usual mean and std, for models with one input. val900 is easier than the full validation set: compare before and
after on it, do not quote it.
"""

import argparse
import csv
import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(os.environ.get("ONNXPRUNE_DATA") or Path(__file__).parents[1] / "../shared/data")
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
SPLITS = ("train1000", "val900")
SIDE = 224


class Images:
    """A dataset over a zip of images, decoded when asked for: item -> (x (3, 224, 224) float32, class number)."""

    def __init__(self, split: str, start: int = 0, count: int | None = None):
        folder = DATA / "imagenet"
        with (folder / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[start : None if count is None else start + count]
        self.names = [row["file"] for row in rows]
        self.targets = np.array([int(row["label"]) for row in rows], np.int64)
        self.zip = zipfile.ZipFile(folder / f"{split}.zip")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        with Image.open(io.BytesIO(self.zip.read(self.names[index]))) as image:
            pixels = np.asarray(image.convert("RGB"))
        top, left = ((size - SIDE) // 2 for size in pixels.shape[:2])
        x = pixels[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        return (x - MEAN) / STD, int(self.targets[index])


def train1000():
    return Images("train1000")


def train200():
    """Every fifth training image, as a quick set."""
    images = Images("train1000")
    images.names, images.targets = images.names[::5], images.targets[::5]
    return images


class Unlabelled:
    """The images of a dataset without their labels."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index][0]


def unlabelled1000():
    return Unlabelled(train1000())


def unlabelled512():
    return Unlabelled(Images("train1000", 0, 512))


def val900():
    return Images("val900")


def val200():
    return Images("val900", 0, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="val900")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--input", default="x", help="name of the model's input (default: x)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not (DATA / "imagenet").is_dir():
        parser.error(f"no folder imagenet in {DATA}; set ONNXPRUNE_DATA to the folder that holds it")
    images = Images(args.split, args.start, args.count)
    if not len(images):
        parser.error(f"--start {args.start} and --count {args.count} leave no image of {args.split}")
    x = np.stack([images[k][0] for k in range(len(images))])
    np.savez(args.out, **{args.input: x, "y": images.targets})
    print(f"{args.out}: {args.input} {x.shape}, y {images.targets.shape}")


if __name__ == "__main__":
    main()
