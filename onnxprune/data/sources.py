"""Samples from files of arrays, and from a function of the user's."""

import random
import re
import sys
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.fit import Target, by_input_name, log, one_line
from onnxprune.data.objects import from_object, told
from onnxprune.data.samples import ArraySamples, Samples
from onnxprune.errors import DataError
from onnxprune.system.plugins import STOPS, import_here, is_absent

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
NPY = b"\x93NUMPY"


def load_npz(path: Path, target: Target) -> ArraySamples:
    """Samples of an .npz: arrays named as the model's inputs, or `x`; `y` for labels. Nothing is unpickled."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{target.where}: not an .npz file (no zip archive, or cut short); write one with np.savez")
    try:
        _check_headers(path, target.where)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise _unreadable(target.where, error) from error
    foreign = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if foreign:
        raise DataError(f"{target.where}: '{foreign[0]}' in it is not an array; write the file with np.savez")
    if (steps := target.unrolled(arrays)) is not None:
        return steps
    names = [info.name for info in target.inputs]
    extra = [name for name in arrays if name not in (*names, "y") and not (len(names) == 1 and name == "x")]
    named = by_input_name(arrays, target.inputs, target.where)
    if extra:
        log.warning(
            "%s: array '%s' is no input of the model and is not used; labels are called 'y'", target.where, extra[0]
        )
    return target.fit(named, None if "y" in names else arrays.get("y"))


def _check_headers(path: Path, where: str) -> None:
    """Checks that the arrays of an .npz are as large as their headers say. Raises: DataError otherwise.

    Memory is allocated by the header, so a damaged one could ask for more than the machine has.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                if file.read(len(NPY)) != NPY:
                    continue
                major = file.read(2)[0]
                read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                declared, held = prod(shape) * dtype.itemsize, entry.file_size - file.tell()
            if declared > held and not dtype.hasobject:
                name = entry.filename.removesuffix(".npy")
                raise DataError(
                    f"{where}: '{name}' says that it holds {declared} bytes, but there are {held}; the file is "
                    "damaged, write it again"
                )


def load_npy(path: Path, target: Target) -> ArraySamples:
    """Unlabeled samples of an .npy for a model with one input; the file stays on disk, mapped."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(NPY))
        array = np.load(path, mmap_mode="r", allow_pickle=False) if magic == NPY else None
    except Exception as error:
        raise _unreadable(target.where, error) from error
    if array is None:
        kind = (
            "an archive of arrays; name it .npz"
            if zipfile.is_zipfile(path)
            else "something else; write one with np.save"
        )
        raise DataError(f"{target.where}: not an .npy file but {kind}")
    return target.fit({"x": array} if len(target.inputs) == 1 else {}, None)


def _unreadable(where: str, error: Exception) -> DataError:
    if "pickle" in str(error) or "Python objects" in str(error):
        return DataError(f"{where}: holds pickled objects, which are never loaded; save arrays of numbers")
    return DataError(f"{where}: cannot be read ({type(error).__name__}: {one_line(error)}); write it anew with numpy")


def load_function(spec: str, target: Target, seed: int) -> Samples:
    """Calls `module:function` without arguments and returns the result; the module may lie in the current folder.

    The global random numbers are seeded first, so that the same seed gives the same samples.
    """
    made = _find(spec, target.where)
    _seed(seed)
    try:
        made = made() if callable(made) else made
    except STOPS:
        raise
    except BaseException as error:
        raise DataError(f"{target.where}: the function raised {told(error)}") from error
    return from_object(made, target)


def _find(spec: str, where: str) -> Any:
    module_name, name = spec.split(":")
    try:
        module = import_here(module_name)
    except STOPS:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and is_absent(error, module_name):
            raise DataError(
                f"{where}: no module '{error.name}' in {Path.cwd()} or on the Python path; check the name"
            ) from error
        raise DataError(f"{where}: importing the module raised {told(error)}") from error
    if not hasattr(module, name):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise DataError(f"{where}: module '{module_name}' has no '{name}'; it has {', '.join(names) or 'no functions'}")
    return getattr(module, name)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
