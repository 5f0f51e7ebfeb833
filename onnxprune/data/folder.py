"""Folders of images as samples, read batch by batch: only names, labels and numbers are kept in memory."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onnxprune.data import classes as numbers
from onnxprune.data.fit import check_labels, one_line
from onnxprune.data.images import ImageFormat, Preprocess, image_format, pixels
from onnxprune.data.samples import Samples
from onnxprune.errors import DataError
from onnxprune.graph.inputs import Feeds, InputInfo

log = logging.getLogger("onnxprune")

SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])


@dataclass(frozen=True, eq=False)
class ImageSamples(Samples):
    """Image files, decoded when asked for."""

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    form: ImageFormat

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices) -> Feeds:
        chosen = np.arange(len(self.paths))[indices]
        return {self.form.info.name: self.form.array([self._pixels(self.paths[i]) for i in chosen])}

    def _pixels(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return pixels(image, self.form)
        except Exception as error:
            raise DataError(
                f"{path}: the image was readable when the run began but no longer is ({one_line(error)})"
            ) from error


def load_folder(
    folder: Path,
    inputs: Sequence[InputInfo],
    options: Preprocess,
    where: str,
    classes: int | None = None,
    labels_file: Path | None = None,
) -> ImageSamples:
    """The images of a folder; with subfolders of images their names tell the labels, see classes.py.

    Files that cannot be decoded are left out with one warning. Raises DataError where none can.
    """
    form = image_format(inputs, options, where)
    paths, labels = _find(folder, where, classes, None if labels_file is None else numbers.read(labels_file))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = list(pool.map(_fault, paths))
    good = [k for k, fault in enumerate(faults) if fault is None]
    broken = [f"{path} ({fault})" for path, fault in zip(paths, faults, strict=True) if fault is not None]
    if not good:
        raise DataError(f"{where}: none of {len(paths)} images can be read, the first is {broken[0]}; give images")
    if broken:
        log.warning(
            "%s: %d of %d images cannot be read and are left out, the first is %s",
            where,
            len(broken),
            len(paths),
            broken[0],
        )
    kept = None if labels is None else check_labels(labels[good], len(good), where, classes)
    return ImageSamples(tuple(paths[k] for k in good), kept, form)


def _fault(path: Path) -> str | None:
    """Why a file cannot be decoded, or None."""
    # A truncated file shows it only when decoded; JPEGs are decoded at an eighth of their size, which is quick.
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and others for bad files
        return one_line(error).replace(str(path), path.name)
    return None


def _find(
    folder: Path, where: str, classes: int | None, given: Mapping[str, str] | Sequence[str] | None
) -> tuple[list[Path], np.ndarray | None]:
    top = _images(folder.iterdir())
    subfolders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    nested = [_images(sub.rglob("*")) for sub in subfolders]
    if isinstance(given, Mapping):
        every = [*top, *(path for paths in nested for path in paths)]
        return numbers.by_file(_some(every, where), folder, given, where)
    if not any(nested):
        return _some(top, where), None
    if top:
        raise DataError(
            f"{where}: {len(top)} images lie beside {len(subfolders)} class folders; move them into one, or away"
        )
    empty = [sub.name for sub, paths in zip(subfolders, nested, strict=True) if not paths]
    if empty:
        log.warning("%s: %d class folders hold no images, the first is '%s'", where, len(empty), empty[0])
    found = numbers.of_folders([sub.name for sub in subfolders], classes, given, where)
    labels = np.repeat(found, [len(paths) for paths in nested])
    return [path for paths in nested for path in paths], labels


def _some(paths: list[Path], where: str) -> list[Path]:
    if not paths:
        raise DataError(f"{where}: no images in this folder; it needs files like {', '.join(sorted(SUFFIXES))}")
    return paths


def _images(paths) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
