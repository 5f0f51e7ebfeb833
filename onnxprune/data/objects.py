"""Samples from what Python hands over: arrays, iterables, torch datasets and loaders.

An element is an array, an (x, y) tuple or a dict by input name; it is one sample, or a batch of them where its arrays
have the rank of the model's input. torch's types are known by what they can do, so that torch is never imported here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.fit import Target, by_input_name, check_labels, one_line
from onnxprune.data.samples import ArraySamples, Samples
from onnxprune.errors import DataError
from onnxprune.graph.inputs import Feeds, InputInfo, batch_axes
from onnxprune.system.memory import SAMPLES_BYTES, may_hold
from onnxprune.system.plugins import STOPS

LABEL_NAMES = ("y", "label", "labels")
# An iterable must be kept whole; one that goes on beyond this is most likely endless.
LIMIT_BYTES = 4 << 30


def from_object(made: Any, target: Target) -> Samples:
    """Samples of an object: Samples, arrays, an (x, y) tuple, a dict, an iterable of such, a dataset or a loader."""
    if isinstance(made, Samples):
        return made
    if (steps := target.unrolled(made)) is not None:
        return steps
    if isinstance(made, tuple | Mapping) or hasattr(made, "__array__"):
        return _collect([made], target)
    if _is_dataset(made):
        return _from_dataset(made, target)
    if isinstance(made, Iterable) and not isinstance(made, str | bytes):
        return _collect(made, target)
    raise DataError(
        f"{target.where}: gave {type(made).__name__}, which holds no samples; "
        "return arrays, (x, y) tuples or dicts in an iterable, or a torch Dataset or DataLoader"
    )


def _is_dataset(made: Any) -> bool:
    """True for what is read by number: it has a length and items, and is no list of elements."""
    # torch's IterableDataset inherits an item access that always raises.
    iterates = any(kind.__name__ == "IterableDataset" for kind in type(made).__mro__)
    by_number = hasattr(made, "__getitem__") and hasattr(made, "__len__")
    return by_number and not iterates and not isinstance(made, list | str | bytes)


def _from_dataset(dataset: Any, target: Target) -> Samples:
    count = len(dataset)
    if count == 0:
        raise DataError(f"{target.where}: no samples; the dataset has length 0")
    feeds, _ = _element(_item(dataset, 0, target.where), target, 0)
    # A small dataset is read once and kept, a larger one is read batch by batch.
    if count * sum(array.nbytes for array in feeds.values()) <= may_hold(SAMPLES_BYTES):
        return _collect((_item(dataset, k, target.where) for k in range(count)), target)
    return DatasetSamples(dataset, _dataset_labels(dataset, target), target)


def _item(dataset: Any, index: int, where: str) -> Any:
    try:
        return dataset[index]
    except STOPS:
        raise
    except BaseException as error:
        raise DataError(f"{where}: reading sample {index} raised {told(error)}") from error


def _dataset_labels(dataset: Any, target: Target) -> np.ndarray | None:
    """Labels of a large dataset: its `targets` where it has them (as torchvision's do), else read sample by sample."""
    labels = getattr(dataset, "targets", None)
    if labels is None:
        marks = [_element(_item(dataset, k, target.where), target, k)[1] for k in range(len(dataset))]
        labels = _join_labels(marks, target.where)
    return (
        None
        if labels is None
        else check_labels(to_numpy(labels), len(dataset), target.where, target.classes, target.any_labels)
    )


@dataclass(frozen=True, eq=False)
class DatasetSamples(Samples):
    """A dataset too large to keep, read when asked for; each batch is checked as it comes."""

    dataset: Any
    labels: np.ndarray | None
    target: Target

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices) -> Feeds:
        chosen = np.arange(len(self))[indices]
        items = (_item(self.dataset, int(k), self.target.where) for k in chosen)
        return _collect(items, self.target, labeled=False).batch(slice(None))


def _collect(elements: Iterable, target: Target, labeled: bool = True) -> ArraySamples:
    """Arrays joined over all elements, checked against the model."""
    parts: list[dict[str, np.ndarray]] = []
    marks: list[np.ndarray | None] = []
    size = 0
    for k, element in enumerate(_guarded(elements, target.where)):
        arrays, mark = _element(element, target, k)
        parts.append(arrays)
        marks.append(mark)
        size += sum(array.nbytes for array in arrays.values())
        if size > LIMIT_BYTES:
            raise DataError(
                f"{target.where}: more than {LIMIT_BYTES >> 30} GiB of samples after {k + 1} elements; "
                "end the iterable earlier, or return a Dataset, which is read batch by batch"
            )
    if not parts:
        raise DataError(f"{target.where}: no samples; the iterable is empty")
    axes = batch_axes(target.inputs)
    joined = {info.name: _join([p[info.name] for p in parts], axes[info.name], info, target) for info in target.inputs}
    return target.fit(joined, _join_labels(marks, target.where) if labeled else None)


def _guarded(elements: Iterable, where: str) -> Iterable:
    try:
        yield from elements
    except (DataError, *STOPS):
        raise
    except BaseException as error:
        raise DataError(f"{where}: reading samples raised {told(error)}") from error


def _join_labels(marks: Sequence[np.ndarray | None], where: str) -> np.ndarray | None:
    """Labels of all elements in one array, None where no element has any."""
    labels = [mark for mark in marks if mark is not None]
    if not labels:
        return None
    if len(labels) < len(marks):
        raise DataError(f"{where}: {len(labels)} of {len(marks)} elements have labels; label all or none")
    odd = next((k for k, label in enumerate(labels) if label.shape[1:] != labels[0].shape[1:]), None)
    if odd is not None:
        raise DataError(
            f"{where}: labels have shape {labels[0].shape} in element 0 but {labels[odd].shape} in element {odd}; "
            "give one class number per sample"
        )
    return np.concatenate(labels)


def _join(arrays: list[np.ndarray], axis: int | None, info: InputInfo, target: Target) -> np.ndarray:
    first = arrays[0]
    if axis is None or len(arrays) == 1:
        return first
    for k, array in enumerate(arrays):
        if array.ndim <= axis:
            raise DataError(
                f"{target.where}: element {k} of input '{info.name}' has shape {array.shape}, which has too few axes; "
                "give whole samples"
            )
        if np.delete(array.shape, axis).tolist() != np.delete(first.shape, axis).tolist():
            raise DataError(
                f"{target.where}: element 0 of input '{info.name}' has shape {first.shape} but element {k} has "
                f"{array.shape}; resize or pad all samples to one shape"
            )
    return np.concatenate(arrays, axis)


def _element(element: Any, target: Target, index: int) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(arrays by input name with a sample axis, labels (n,) or None) of one element."""
    where = f"{target.where}, element {index}"
    x, y = _parts(element, target.inputs)
    arrays = by_input_name({name: to_numpy(value, where) for name, value in x.items()}, target.inputs, where)
    labels = None if y is None else to_numpy(y, where)
    axes = batch_axes(target.inputs)
    if not any(_is_single(arrays[info.name], info, axes[info.name]) for info in target.inputs):
        return arrays, labels if labels is None or labels.ndim else labels.reshape(1)
    arrays = {name: a if (axis := axes[name]) is None else np.expand_dims(a, axis) for name, a in arrays.items()}
    # A label of more than one number stays as it is, for the check of labels to say so.
    return arrays, labels if labels is None else labels.reshape(1) if labels.size == 1 else labels[None]


def _is_single(array: np.ndarray, info: InputInfo, axis: int | None) -> bool:
    """True for one sample, which lacks the sample axis that a batch has."""
    return axis is not None and info.shape is not None and array.ndim == len(info.shape) - 1


def _parts(element: Any, inputs: Sequence[InputInfo]) -> tuple[dict[str, Any], Any]:
    """(values by input name, label or None); tuples follow the order of the model's inputs, a label comes last."""
    names = [info.name for info in inputs]
    if isinstance(element, Mapping):
        label = next((name for name in LABEL_NAMES if name in element and name not in names), None)
        values = {k: v for k, v in element.items() if k != label}
        return values, None if label is None else element[label]
    if not isinstance(element, tuple) and not (isinstance(element, list) and _holds_arrays(element)):
        return {names[0] if names else "x": element}, None
    if len(element) == 2 and (isinstance(element[0], Mapping | tuple) or _holds_arrays(element[0])):
        return _parts(element[0], inputs)[0], element[1]
    values = dict(zip(names, element, strict=False))
    return values, element[len(names)] if len(element) > len(names) else None


def _holds_arrays(value: Any) -> bool:
    """True for the lists that torch's loaders make of tuples, False for nested lists of numbers."""
    return isinstance(value, list) and any(hasattr(item, "shape") for item in value)


def to_numpy(value: Any, where: str = "samples") -> np.ndarray:
    """The array behind an array, a torch tensor on any device, an image or nested lists of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    try:
        return np.asarray(value)
    except Exception as error:
        raise DataError(
            f"{where}: {type(value).__name__} is no array ({one_line(error)}); give arrays of one shape"
        ) from error


def told(error: BaseException) -> str:
    """An error of the user's own code in one line, with the place where it arose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}: {one_line(error)}{place}"
