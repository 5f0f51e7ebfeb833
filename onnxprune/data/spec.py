"""`load_samples`: the one way in for every SPEC of samples."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data.folder import load_folder
from onnxprune.data.images import Preprocess, find_layout
from onnxprune.data.samples import ArraySamples, Samples, Scaling, split
from onnxprune.data.sequences import Unroller, handed_back
from onnxprune.data.sources import FUNCTION, Target, from_object, load_function, load_npy, load_npz
from onnxprune.errors import DataError
from onnxprune.graph.inputs import InputInfo

SPECS = "an .npz, .npy, folder of images, module:function or 'digits'"
DIGITS = ("digits", "digits:train", "digits:test")
# 30 % of 1,797 images: 539 to measure on, so that one image is 0.19 points.
DIGITS_TEST = 0.3
DIGITS_SEED = 0


def load_samples(
    spec: Any,
    inputs: Sequence[InputInfo],
    *,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    scale: float | None = None,
    layout: str | None = None,
    seed: int = 0,
    classes: int | None = None,
    labels: Path | None = None,
    any_labels: bool = False,
    model: ir.Model | None = None,
) -> Samples:
    """Samples that fit `inputs`.

    `spec` is an .npz (arrays named as the inputs, or `x`; `y` for labels), an .npy, a folder of images with or without
    class folders, `module:function`, `digits` or `digits:test`; from Python also what such a function may return.

    Images: `size` is the shorter side or (height, width), by default the model's; pixels 0..255 are multiplied by
    `scale` (1/255, or 1 for integer inputs), then (x - mean) / std; `layout` is the model's, nchw or nhwc. Arrays are
    scaled only where an option asks for it.

    `classes` is the model's number of classes, against which labels are checked. `labels` is a file for folders of
    images, see classes.py. any_labels: the user's own metric or loss reads them, so any numbers with a row per sample
    will do. model: whose states are handed on along sequences, see sequences.py.

    Raises DataError for whatever does not fit: which input, both shapes or numbers, what to do.
    """
    options = Preprocess(size, mean, std, scale, layout)
    pairs = {} if model is None else handed_back(model)
    unroll = Unroller(model, inputs, pairs).samples if model is not None and pairs else None
    where = str(spec) if isinstance(spec, str | Path) else f"samples ({type(spec).__name__})"
    if not isinstance(spec, str | Path):
        return from_object(spec, _target(inputs, where, classes, options, any_labels, unroll))
    if spec in DIGITS:
        return _digits(str(spec), _target(inputs, where, classes, options, any_labels))
    path = Path(spec)
    if not str(spec):
        raise DataError(f"an empty name for samples; give {SPECS}")
    if path.is_dir():
        return load_folder(path, inputs, options, where, classes, labels)
    target = _target(inputs, where, classes, options, any_labels, unroll)
    if path.is_file():
        return load_npy(path, target) if path.suffix.lower() == ".npy" else load_npz(path, target)
    if FUNCTION.fullmatch(str(spec)):
        return load_function(str(spec), target, seed)
    raise DataError(f"{where}: no such file or folder; samples are {SPECS}")


def _target(
    inputs: Sequence[InputInfo],
    where: str,
    classes: int | None,
    options: Preprocess,
    any_labels: bool,
    unroll: Callable[[Any, Target], ArraySamples | None] | None = None,
) -> Target:
    return Target(inputs, where, classes, _array_scaling(inputs, where, options), any_labels, unroll)


def _array_scaling(inputs: Sequence[InputInfo], where: str, options: Preprocess) -> Scaling | None:
    """The arithmetic asked for on arrays, None where nothing was: arrays come as the model wants them."""
    if options.size is not None:
        raise DataError(f"{where}: --size is for folders of images; arrays must have the model's size")
    if options.mean is None and options.std is None and options.scale is None:
        return None
    if len(inputs) != 1:
        raise DataError(
            f"{where}: --mean, --std and --scale are for one input, but the model has {len(inputs)}; scale the arrays"
        )
    info = inputs[0]
    several = any(np.size(v) > 1 for v in (options.mean, options.std) if v is not None)
    layout = find_layout(info, options.layout, where) if several or options.layout else "nchw"
    channels = (info.shape or (None, None))[1 if layout == "nchw" else -1] if several else None
    known = channels if isinstance(channels, int) else None
    return options.scaling(info, where, layout=layout, channels=known, scale=1.0)


def _digits(spec: str, target: Target) -> Samples:
    """scikit-learn's handwritten digits, 8 x 8, grey 0..1: the tuning part, or the part held out for measuring."""
    if len(target.inputs) != 1:
        raise DataError(
            f"{target.where}: digits feed one input, but the model has {len(target.inputs)}; give other data"
        )
    x, y = digits_arrays()
    shape = target.inputs[0].shape
    forms = {4: [(1, 8, 8), (8, 8, 1)], 3: [(8, 8)], 2: [(64,)]}.get(len(shape or (0,) * 4), [])
    form = next((f for f in forms if shape is None or _takes(shape, f)), (1, 8, 8))
    tune, held = split(target.fit({"x": x.reshape(-1, *form)}, y), DIGITS_TEST, DIGITS_SEED)
    return held if spec == "digits:test" else tune


def _takes(shape: tuple, form: tuple[int, ...]) -> bool:
    return all(not isinstance(axis, int) or axis == size for axis, size in zip(shape[1:], form, strict=True))


@cache
def digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """x (1797, 64) float32 in 0..1, y (1797,) int64, in the package's own order."""
    from sklearn.datasets import load_digits  # slow to import, and needed only here

    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)
