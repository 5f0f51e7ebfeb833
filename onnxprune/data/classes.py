"""Class numbers of images in folders: by file, by a list of classes, by what folders are called.

A place in a sorted list of folders is a class number only where there are as many folders as classes: with fewer every
number after the first gap would be wrong, and nothing would tell.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from onnxprune.errors import DataError

WORDNET = re.compile(r"n\d{8}")
IMAGENET = 1000
# timm keeps the ids of ImageNet's classes in the order in which models have them.
IMAGENET_FILE = ("data", "_info", "imagenet_synsets.txt")


def read(path: Path) -> Mapping[str, str] | Sequence[str]:
    """What the file of --labels holds: {file name: label} of two columns, or the names of the classes in their order.

    Raises: DataError for a file that is neither.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--labels {path}: cannot be read ({error}); give a .csv of file name and label") from error
    widths = {min(len(row), 2) for row in rows}
    if not rows or len(widths) > 1:
        raise DataError(
            f"--labels {path}: {len(rows)} lines of {'unequal length' if rows else 'nothing'}; give lines of file name "
            "and label, or one class name a line in the model's order"
        )
    if widths == {1}:
        return [row[0] for row in rows]
    if not rows[0][1].lstrip("-").isdecimal() and all(row[1].lstrip("-").isdecimal() for row in rows[1:]):
        rows = rows[1:]  # a header
    return {row[0]: row[1] for row in rows}


def by_file(paths: Sequence[Path], folder: Path, given: Mapping[str, str], where: str) -> tuple[list[Path], np.ndarray]:
    """The images that have a label, and their class numbers. Raises: DataError where none has, or one is no number."""
    kept, labels = [], []
    for path in paths:
        names = (path.relative_to(folder).as_posix(), path.name, path.stem)
        label = next((given[name] for name in names if name in given), None)
        if label is None:
            continue
        if not label.lstrip("-").isdecimal():
            raise DataError(
                f"{where}: the label '{label}' of {path.name} is no class number; give whole numbers from 0"
            )
        kept.append(path)
        labels.append(int(label))
    if not kept:
        example = next(iter(given))
        raise DataError(
            f"{where}: none of {len(paths)} images is named by --labels, which begins with '{example}', the images "
            f"with '{paths[0].name}'; give names as they are in the folder"
        )
    return kept, np.array(labels)


def of_folders(names: Sequence[str], classes: int | None, listed: Sequence[str] | None, where: str) -> np.ndarray:
    """The class number of each folder, given the names of those that hold images.

    listed: class names in the model's order. Raises: DataError where the names do not tell.
    """
    if listed is not None:
        missing = [name for name in names if name not in listed]
        if missing:
            raise DataError(
                f"{where}: the folder '{missing[0]}' is none of the {len(listed)} classes of --labels; rename it"
            )
        return np.array([listed.index(name) for name in names])
    if all(name.isdecimal() for name in names):
        return np.array([int(name) for name in names])
    if classes is None or len(names) == classes:
        return np.arange(len(names))
    if len(names) > classes:
        raise DataError(
            f"{where}: {len(names)} class folders, but the model has {classes} classes; "
            "give one folder per class, in the model's order when sorted by name"
        )
    if classes == IMAGENET and all(WORDNET.fullmatch(name) for name in names):
        return of_folders(names, classes, _imagenet(where, len(names)), where)
    raise DataError(
        f"{where}: {len(names)} class folders for the model's {classes} classes: their places when sorted are no class "
        "numbers; name folders by number, give --labels with one class name a line in the model's order, or "
        "--labels FILE.csv of file name and label"
    )


def _imagenet(where: str, count: int) -> list[str]:
    """The WordNet ids of ImageNet's classes in their order."""
    found = find_spec("timm")
    path = Path(found.origin).parent.joinpath(*IMAGENET_FILE) if found is not None and found.origin else None
    if path is None or not path.is_file():
        raise DataError(
            f"{where}: {count} folders named by WordNet ids for 1000 classes: their order is needed; install timm, "
            "which has it, or give --labels with one id a line in the model's order"
        )
    return path.read_text(encoding="utf-8").split()
