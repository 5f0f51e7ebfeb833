"""Inputs of a model: the name, shape and dtype of each, its batch axis, and random feeds for it.

Legend: an axis of a shape is an int (fixed), a str (symbolic, named) or None (symbolic, unnamed).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.errors import DataError
from onnxprune.graph import extras

Axis = int | str | None
Feeds = Mapping[str, np.ndarray]  # an array for each input

# Sizes given to symbolic axes that nobody named: deep image networks halve 64 five times, sequences can be short.
SPATIAL_SIZE = 64
SEQUENCE_SIZE = 8
ONE_BY_ONE = "the model takes one sample at a time, whatever its symbolic batch promises, and is run so"


@dataclass(frozen=True)
class InputInfo:
    """One input of a model; `shape` is None where even its rank is unknown."""

    name: str
    shape: tuple[Axis, ...] | None
    dtype: np.dtype

    def __str__(self):
        return f"'{self.name}' {shape_text(self.shape)}"


def shape_text(shape):
    """A shape as a reader writes it: (batch, 3, ?, ?)."""
    if shape is None:
        return "(any shape)"
    inner = ", ".join("?" if axis is None else str(axis) for axis in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def input_infos(model: ir.Model) -> list[InputInfo]:
    """The inputs that a caller must feed, in the order of the graph; listed initializers are not among them.

    Texts are objects. Raises DataError for an input that is no tensor.
    """
    infos = [_info(value) for value in model.graph.inputs if value.name not in model.graph.initializers]
    only = extras.of(model).only_batch
    return infos if only is None else with_batch(infos, only)


def with_batch(infos: Sequence[InputInfo], size: int) -> list[InputInfo]:
    """`infos` of a model that runs at one batch size alone, though it declares that any will do."""
    axes = batch_axes(infos)
    symbols = {info.shape[axis] for info in infos if info.shape and (axis := axes[info.name]) is not None}
    names = {symbol for symbol in symbols if isinstance(symbol, str)}

    def sized(info: InputInfo) -> InputInfo:
        shape = (
            None
            if info.shape is None
            else tuple(
                size if axis in names or (axis is None and k == axes[info.name]) else axis
                for k, axis in enumerate(info.shape)
            )
        )
        return replace(info, shape=shape)

    return [sized(info) for info in infos]


def _info(value: ir.Value) -> InputInfo:
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise DataError(f"input '{value.name}' of the model is {value.type}, not a tensor; samples cannot feed it")
    shape = None if value.shape is None else tuple(axis_of(axis) for axis in value.shape)
    # onnxruntime takes no arrays of bfloat16 from Python: such models run in single precision, see sessions.py.
    known = {ir.DataType.STRING: object, ir.DataType.BFLOAT16: np.float32}
    dtype = known.get(value.dtype) or value.dtype.numpy()
    return InputInfo(value.name or "", shape, np.dtype(dtype))


def axis_of(axis: int | str | ir.SymbolicDim | None) -> Axis:
    """A size or a name. Some exporters write 0, -1 or '?' where they mean "any": those are no names, of one size."""
    size = axis.value if isinstance(axis, ir.SymbolicDim) else axis
    if isinstance(size, int):
        return size if size > 0 else None
    return size if size and any(letter.isalpha() or letter == "_" for letter in size) else None


def is_float(dtype: np.dtype) -> bool:
    """True for every floating type, those of ml_dtypes (bfloat16, float8) too."""
    return dtype.kind == "f" or "float" in dtype.name


def fixed_batch(model: ir.Model) -> int | None:
    """The one batch size that `model` takes, None where it takes any."""
    return batch_size_of(input_infos(model))


def batch_axes(inputs: Sequence[InputInfo]) -> dict[str, int | None]:
    """For each input the axis along which samples are stacked, or None where all samples share one array.

    With a symbolic batch it is the axis that bears the batch's name (axis 1 for a recurrent state), else a symbolic
    axis 0. With a fixed batch it is axis 0 where that has the batch's size.
    """
    symbol, size = _batch(inputs)
    return {info.name: _batch_axis(info.shape, symbol, size) for info in inputs}


def batch_size_of(inputs: Sequence[InputInfo]) -> int | None:
    """The batch size that the model is fixed to, or None where it takes any."""
    return _batch(inputs)[1]


def _batch(inputs: Sequence[InputInfo]) -> tuple[str | None, int | None]:
    """(symbol, None) for a symbolic batch, (None, size) for a fixed one, (None, None) where axis 0 is free."""
    shapes = [info.shape for info in inputs if info.shape]
    symbols = [axis for axis in _firsts_first(shapes) if isinstance(axis, str)]
    named = [symbol for symbol in symbols if "batch" in symbol.lower() or symbol in ("N", "B", "bs")]
    if named:
        return named[0], None
    firsts = [shape[0] for shape in shapes]
    if any(info.shape is None for info in inputs) or not all(isinstance(axis, int) for axis in firsts):
        return next((axis for axis in firsts if isinstance(axis, str)), None), None
    # An input of rank 1 beside others is more often a length or a scale than a batch.
    sizes = [shape[0] for shape in sorted(shapes, key=lambda shape: len(shape) < 2)]
    return None, next((size for size in sizes if isinstance(size, int)), None)


def _firsts_first(shapes: Sequence[tuple[Axis, ...]]) -> list[Axis]:
    return [*(shape[0] for shape in shapes), *(axis for shape in shapes for axis in shape)]


def _batch_axis(shape: tuple[Axis, ...] | None, symbol: str | None, size: int | None) -> int | None:
    if shape is None:
        return 0
    if symbol is not None and symbol in shape:
        return shape.index(symbol)
    # Exporters often name one batch differently at each input, so any symbolic axis 0 is taken for it.
    if shape and (not isinstance(shape[0], int) or shape[0] == size):
        return 0
    return None


def random_feeds(
    inputs: Sequence[InputInfo], batch: int = 2, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """One random array per input: floats normal, integers small, masks all on; the same for the same seed.

    A fixed batch wins over `batch`. `sizes` gives the size of symbolic axes by name; one that it leaves out is
    64 on inputs of rank 4 and more (images), else 8.
    """
    rng = np.random.default_rng(seed)
    axes = batch_axes(inputs)
    return {info.name: _random(info, _sizes(info, axes[info.name], batch, sizes or {}), rng) for info in inputs}


def _sizes(info: InputInfo, batch_axis: int | None, batch: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if info.shape is None:
        raise DataError(
            f"input '{info.name}' of the model has no known rank, so it cannot be fed at random; give --data"
        )
    default = SPATIAL_SIZE if len(info.shape) >= 4 else SEQUENCE_SIZE
    return tuple(
        axis if isinstance(axis, int) else batch if k == batch_axis else sizes.get(axis or "", default)
        for k, axis in enumerate(info.shape)
    )


def texts(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Random short texts of `shape`, as objects."""
    return rng.choice(np.array(list("abcde01234"), dtype=object), size=tuple(shape))


def _random(info: InputInfo, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    name = info.name.lower()
    if "mask" in name:
        # A row that masks everything makes softmax divide by zero.
        return np.ones(shape, info.dtype)
    if info.dtype.kind == "O":
        return texts(shape, rng)
    if info.dtype.kind == "b":
        return rng.random(shape) < 0.5
    if is_float(info.dtype) or info.dtype.kind == "c":
        return rng.standard_normal(shape).astype(info.dtype)
    # Indices must lie inside a table whose length is not known here: any vocabulary has four entries,
    # token types may have one, and a scalar is a count or a step.
    if not shape:
        return np.ones(shape, info.dtype)
    high = 1 if "type" in name or "segment" in name else 4
    return rng.integers(0, high, shape).astype(info.dtype)
