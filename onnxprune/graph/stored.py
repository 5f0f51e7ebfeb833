"""Weights that stay in files: read, changed and written one at a time, so that models larger than memory are worked on.

The weights of a large model lie in files beside it. What surgery makes of them is a function that is applied when a
weight is asked for. onnxruntime maps files and copies nothing: a model of which some weights are changed is written
out once more for it, one weight after the other.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.graph.tensors import set_constant, tensor_of

ALIGNED_BYTES = 4096  # where a weight begins in a file that is mapped


class Stored(ir.ExternalTensor):
    """A weight in a file beside the model, read anew each time it is asked for: nothing of it stays in memory."""

    def numpy(self) -> np.ndarray:
        if self.dtype.bitwidth < 8:
            array = super().numpy().copy()
            self.release()
            return array
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        return np.fromfile(self.path, dtype, self.size, offset=self.offset or 0).reshape(self.shape.numpy())

    def tobytes(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset or 0)
            return file.read(self.nbytes)


def is_stored(value: ir.Value) -> bool:
    """Whether a weight is read from a file, and changed, each time it is asked for."""
    return isinstance(value.const_value, (Stored, ir.LazyTensor))


def beyond_memory(model: ir.Model) -> bool:
    """Whether weights of `model` stay in files, because it is large: what holds all of them at once is left out."""
    return any(is_stored(value) for value in model.graph.initializers.values())


def change(value: ir.Value, shape: Sequence[int], function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Makes an initializer what `function`, which must not change its argument, makes of its array: of this `shape`.

    A weight that stays on disk is read and changed each time it is asked for, so that large models are never held.
    """
    tensor = tensor_of(value)
    if not is_stored(value):
        set_constant(value, function(tensor.numpy()))
        return

    def read() -> ir.Tensor:
        array = np.ascontiguousarray(function(tensor.numpy()).astype(tensor.dtype.numpy(), copy=False))
        return ir.Tensor(array, dtype=tensor.dtype, name=value.name)

    value.shape = ir.Shape(shape)
    value.const_value = ir.LazyTensor(read, dtype=tensor.dtype, shape=value.shape, name=value.name)


class Spill:
    """A file without a name to which new weights of a large model are written; it goes when no weight needs it."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as a weight lies in it

    def take(self, value: ir.Value, array: np.ndarray) -> None:
        """Gives a weight that stays in a file another array of its shape and type, which stays in this file."""
        old = tensor_of(value)
        place = self.file.seek(0, os.SEEK_END)
        np.ascontiguousarray(array).tofile(self.file)
        self.file.flush()

        def read() -> ir.Tensor:
            found = bytearray(size)
            flat, at = memoryview(found), 0
            while at < size:  # one call reads 2 GiB at most
                at += os.preadv(self.file.fileno(), [flat[at:]], place + at)
            return ir.Tensor(np.frombuffer(found, dtype).reshape(shape), dtype=old.dtype, name=value.name)

        shape, dtype, size = array.shape, array.dtype, array.nbytes
        value.shape = ir.Shape(shape)
        value.const_value = ir.LazyTensor(read, dtype=old.dtype, shape=value.shape, name=value.name)


def folder_of(model: ir.Model) -> str | None:
    """The folder with the files of all weights of `model` that stay in files; None where some of them are changed."""
    tensors = [value.const_value for value in model.graph.initializers.values() if is_stored(value)]
    paths = [Path(str(tensor.path)) if isinstance(tensor, Stored) else None for tensor in tensors]
    folders = {path.parent for path in paths if path is not None}
    return str(*folders) if len(folders) == 1 and None not in paths else None


def referred(model: ir.Model, proto: onnx.ModelProto, hidden: Sequence[str]) -> None:
    """Adds the weights named in `hidden` to `proto`, as places in the files in which they lie."""
    for name in hidden:
        tensor = model.graph.initializers[name].const_value
        assert isinstance(tensor, Stored), name
        _refer(proto, name, tensor, Path(str(tensor.path)).name, tensor.offset or 0)


def written(model: ir.Model, proto: onnx.ModelProto, hidden: Sequence[str], folder: Path) -> None:
    """Adds the weights named in `hidden` to `proto`, as places in a file in `folder` to which they are written."""
    with open(folder / "weights", "wb") as file:
        for name in hidden:
            tensor = tensor_of(model.graph.initializers[name])
            file.seek(-(-file.tell() // ALIGNED_BYTES) * ALIGNED_BYTES)
            _refer(proto, name, tensor, "weights", file.tell())
            file.write(tensor.tobytes())


def _refer(proto: onnx.ModelProto, name: str, tensor: ir.TensorProtocol, location: str, offset: int) -> None:
    entry = proto.graph.initializer.add(name=name, data_type=tensor.dtype, dims=tensor.shape.numpy())
    entry.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", tensor.nbytes)):
        entry.external_data.add(key=key, value=str(value))
