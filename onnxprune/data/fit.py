"""Arrays and labels against a model's inputs: what fits becomes samples, every mismatch one clear line.

`where` opens each message and says which file, folder or function the samples came from.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from onnxprune.data.samples import ArraySamples, Scaling
from onnxprune.errors import DataError
from onnxprune.graph.inputs import InputInfo, batch_axes, is_float, shape_text

log = logging.getLogger("onnxprune")

# NaN is looked for in pieces of this many samples, so that a memory-mapped file is never held whole.
CHUNK = 1024


def fit(
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    inputs: Sequence[InputInfo],
    where: str,
    *,
    classes: int | None = None,
    scaling: Scaling | None = None,
    any_labels: bool = False,
) -> ArraySamples:
    """Samples of whole arrays by input name and labels (N,).

    Raises DataError where names, shapes, dtypes, counts or values do not fit the model.
    """
    arrays = by_input_name(arrays, inputs, where)
    axes, count = _sample_axes(arrays, inputs, where)
    sizes: dict[str, tuple[int, str]] = {}
    for info in inputs:
        array, axis = arrays[info.name], axes[info.name]
        check_shape(array.shape, info, axis, where, sizes)
        check_dtype(array, info, where, scaled=scaling is not None)
        _check_values(array, info, axis, where)
    if count == 0:
        raise DataError(f"{where}: no samples; the arrays have length 0 on their sample axis")
    checked = None if labels is None else check_labels(labels, count, where, classes, any_labels)
    dtypes = {info.name: info.dtype for info in inputs}
    return ArraySamples(arrays, axes, dtypes, count, checked, scaling)


@dataclass(frozen=True)
class Target:
    """The model that samples are made for: its inputs, number of classes, arithmetic, and the words for messages."""

    inputs: Sequence[InputInfo]
    where: str
    classes: int | None = None
    scaling: Scaling | None = None
    any_labels: bool = False
    unroll: Callable[[Any, "Target"], ArraySamples | None] | None = None  # sequences -> their steps

    def unrolled(self, made: Any) -> ArraySamples | None:
        """The steps of sequences for a model with states; None for all else."""
        return None if self.unroll is None else self.unroll(made, self)

    def fit(self, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None) -> ArraySamples:
        return fit(
            arrays,
            labels,
            self.inputs,
            self.where,
            classes=self.classes,
            scaling=self.scaling,
            any_labels=self.any_labels,
        )


def one_line(error: BaseException) -> str:
    """The message of an error of others, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def by_input_name(arrays: Mapping[str, np.ndarray], inputs: Sequence[InputInfo], where: str) -> dict[str, np.ndarray]:
    """Just the arrays that the inputs name; `x` stands for the only input of a model that has one."""
    names = [info.name for info in inputs]
    if len(names) == 1 and names[0] not in arrays and "x" in arrays:
        return {names[0]: arrays["x"]}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(
            f"{where}: no array named '{missing[0]}'; it has {_names(arrays)}, and the model's inputs are "
            f"{', '.join(str(info) for info in inputs) or 'none'}; rename the array"
            + (" or call it 'x'" if len(names) == 1 else "")
        )
    return {name: arrays[name] for name in names}


def _names(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"'{name}'" for name in arrays) or "no arrays"


def _sample_axes(arrays, inputs: Sequence[InputInfo], where: str) -> tuple[dict[str, int | None], int]:
    """The sample axis of each input (None: shared by all batches) and the number of samples."""
    axes = {k: None if arrays[k].ndim == 0 else axis for k, axis in batch_axes(inputs).items()}
    lengths = _lengths(arrays, axes)
    if len(set(lengths.values())) > 1:
        # Beside inputs with a length of their own, an array of exactly the model's shape is meant for every batch.
        shared = {info.name for info in inputs if arrays[info.name].shape == info.shape}
        axes = {name: None if name in shared else axis for name, axis in axes.items()}
        lengths = _lengths(arrays, axes)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise DataError(f"{where}: inputs differ in their number of samples: {counts}; give each as many")
    # A model all of whose inputs are shared is run on one sample.
    return axes, next(iter(lengths.values()), 1)


def _lengths(arrays: Mapping[str, np.ndarray], axes: Mapping[str, int | None]) -> dict[str, int]:
    return {k: arrays[k].shape[axis] for k, axis in axes.items() if axis is not None and arrays[k].ndim > axis}


def check_shape(shape, info: InputInfo, axis: int | None, where: str, sizes: dict[str, tuple[int, str]]) -> None:
    """Checks that an array of `shape` fits the input. Raises: DataError otherwise.

    sizes: symbol -> (its size, the input that set it), extended here, so that inputs agree on named dimensions.
    """
    wanted = info.shape
    if wanted is None:
        return
    if len(shape) != len(wanted) or any(_differs(k, shape, wanted, axis) for k in range(len(wanted))):
        raise DataError(
            f"{where}: samples have shape {shape_text(shape)}, but the model's input '{info.name}' takes "
            f"{shape_text(wanted)}; {_shape_hint(shape, wanted, axis)}"
        )
    for k, symbol in enumerate(wanted):
        if k == axis or not isinstance(symbol, str):
            continue
        size, owner = sizes.setdefault(symbol, (shape[k], info.name))
        if size != shape[k]:
            raise DataError(
                f"{where}: '{symbol}' is {size} in input '{owner}' but {shape[k]} in input '{info.name}'; "
                "give both the same length"
            )


def _differs(k: int, shape, wanted, axis: int | None) -> bool:
    return k != axis and isinstance(wanted[k], int) and wanted[k] != shape[k]


def _shape_hint(shape, wanted, axis: int | None) -> str:
    if len(shape) == len(wanted) <= 5 and axis == 0:
        for order in permutations(range(1, len(shape))):
            turned = [shape[0], *(shape[k] for k in order)]
            if not any(_differs(k, turned, wanted, axis) for k in range(len(wanted))):
                return f"transpose the array by {(0, *order)}"
    if len(shape) == len(wanted) - 1:
        return "add the missing axis (np.expand_dims)"
    return "resize or reshape the samples"


def check_dtype(array: np.ndarray, info: InputInfo, where: str, scaled: bool = False) -> None:
    """Checks that the array's numbers can become the input's type without loss of meaning. Raises: DataError otherwise.

    Floats become any float, and integers a wider integer or a float that holds them all.
    """
    if castable(array.dtype, info.dtype) or (scaled and array.dtype.kind in "fiu" and is_float(info.dtype)):
        return
    texts = info.dtype.kind == "O"
    hint = f"convert it with .astype(np.{info.dtype.name})" if array.dtype.kind in "biufc" else "give numbers"
    takes, hint = ("texts", "give an array of str") if texts else (info.dtype.name, hint)
    raise DataError(
        f"{where}: samples are {array.dtype.name}, but the model's input '{info.name}' takes {takes}; {hint}"
    )


def castable(have: np.dtype, want: np.dtype) -> bool:
    """True where samples of dtype `have` may be cast to `want` without asking."""
    if have == want:
        return True
    if want.kind == "O":  # texts
        return have.kind == "U"
    if is_float(have):
        return is_float(want)
    if have.kind not in "biu":
        return False
    # ml_dtypes' floats are unknown to numpy's rules; bytes are what images come in.
    return bool(np.can_cast(have, want, "safe")) or (is_float(want) and have.itemsize == 1)


def _check_values(array: np.ndarray, info: InputInfo, axis: int | None, where: str) -> None:
    """NaN and infinity are refused, and a number that the model's smaller float type would turn into infinity.

    Masks that are added to scores may hold minus infinity.
    """
    if not is_float(array.dtype):
        return
    masks = ("mask", "bias")
    open_below = any(word in info.name.lower() for word in masks)
    limit = _largest(info.dtype)
    rows = array[None] if axis is None else np.moveaxis(array, axis, 0)
    for start in range(0, len(rows), CHUNK):
        piece = np.asarray(rows[start : start + CHUNK])
        bad = np.isnan(piece) | (np.abs(piece) > limit)
        if open_below:
            bad &= ~np.isneginf(piece)
        if bad.any():
            first = int(np.flatnonzero(bad.reshape(len(piece), -1).any(axis=1))[0])
            what = "infinity" if np.isinf(piece[first]).any() else f"a number beyond {info.dtype.name}'s {limit:g}"
            what = "NaN" if np.isnan(piece[first]).any() else what
            raise DataError(f"{where}: sample {start + first} of input '{info.name}' holds {what}; mend or drop it")


def _largest(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).max) if dtype.kind == "f" else float(np.finfo(np.float32).max)


def check_labels(
    labels: np.ndarray, count: int, where: str, classes: int | None = None, any_labels: bool = False
) -> np.ndarray:
    """Class numbers (N,) int64, or those of every place (N, ...).

    any_labels: whatever numbers have a row per sample will do.
    Raises DataError for a wrong count, anything but whole numbers, and numbers outside 0 .. classes - 1.
    """
    if any_labels and labels.dtype.kind in "iubf":
        if labels.ndim < 1 or len(labels) != count:
            raise DataError(
                f"{where}: labels have shape {shape_text(labels.shape)} for {count} samples; give one row per sample"
            )
        return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels
    if labels.dtype.kind not in "iub":
        raise DataError(
            f"{where}: labels are {labels.dtype.name}, not integers; give class numbers (y.astype(np.int64)), "
            "give a --metric or --loss of your own that reads them, or leave y out to work without labels"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    places = labels.ndim > 2 or (labels.ndim == 2 and not _one_hot(labels))
    if places and len(labels) == count:  # of every place: they are checked against the output that has the places
        return labels.astype(np.int64)
    if labels.ndim != 1:
        raise DataError(
            f"{where}: labels have shape {shape_text(labels.shape)}, but one class number per sample ({count},) is "
            "needed; take y.argmax(1) of one-hot labels, or leave y out to work without labels"
        )
    if len(labels) != count:
        raise DataError(f"{where}: {len(labels)} labels for {count} samples; give one label per sample")
    _check_range(labels, where, classes)
    if count > 1 and (labels == labels[0]).all():
        log.warning("%s: all %d samples are of class %d; accuracy on one class says little", where, count, labels[0])
    return labels.astype(np.int64)


def _one_hot(labels: np.ndarray) -> bool:
    """Whether every row holds a single 1 and zeros."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _check_range(labels: np.ndarray, where: str, classes: int | None) -> None:
    high = np.iinfo(np.int64).max if classes is None else classes - 1
    wrong = np.flatnonzero((labels < 0) | (labels > high))
    if len(wrong):
        span = "class numbers start at 0" if classes is None else f"the model has {classes} classes, 0 to {high}"
        raise DataError(
            f"{where}: label {labels[wrong[0]]} of sample {wrong[0]} is out of range; {span}; "
            f"{len(wrong)} of {len(labels)} labels are wrong"
        )
