"""Initializers as numpy arrays: read, replace, add, merge; and nodes of which the numbers are random."""

import hashlib

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.system.memory import SMALL_WEIGHT_BYTES

DRAWING = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())


class Held(ir.TensorProtoTensor):
    """A tensor in a message, of which shape and size are worked out once: they are asked for dozens of times."""

    __slots__ = ("_shape", "_size")

    def __init__(self, proto: onnx.TensorProto) -> None:
        super().__init__(proto)
        self._shape = super().shape
        self._size = super().size

    @property
    def shape(self) -> ir.Shape:
        return self._shape

    @property
    def size(self) -> int:
        return self._size


def held(model: ir.Model) -> ir.Model:
    """`model`, just read from a message, with initializers that remember their shapes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if type(value.const_value) is ir.TensorProtoTensor:
                value.const_value = Held(value.const_value.raw)
    return model


def size_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of `model`."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def message_bytes(model: ir.Model) -> int:
    """Bytes of the message that `model` is, with all of its weights in it: those of its file where they all are."""
    return ir.to_proto(model).ByteSize()


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind an initializer, or None when the value is computed."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def draws(node: ir.Node) -> bool:
    """Whether `node` draws random numbers: such an operator, or a Dropout that may be in training mode."""
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        return training is None or bool(training.any())
    return node.op_type in DRAWING


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer."""
    assert value.const_value is not None, value.name
    return value.const_value


def array_of(value: ir.Value) -> np.ndarray:
    """The array of an initializer."""
    return tensor_of(value).numpy()


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes of a value; None where that is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Gives an initializer another array; shape and type follow it."""
    tensor = _tensor(array, value.name)
    if value.const_value is not None and value.const_value.dtype != tensor.dtype:
        tensor = ir.Tensor(
            array.astype(value.const_value.dtype.numpy()), dtype=value.const_value.dtype, name=value.name
        )
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)
    value.type = ir.TensorType(tensor.dtype)


def _tensor(array: np.ndarray, name: str | None) -> ir.TensorProtocol:
    array = np.ascontiguousarray(array).reshape(array.shape)
    return ir.tensor(array, name=name) if array.dtype.kind in "OSU" else ir.Tensor(array, name=name)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of `graph`; `name` is made unique."""
    taken, unique, count = graph.initializers, name, 0
    while unique in taken:
        count += 1
        unique = f"{name}.{count}"
    tensor = _tensor(array, unique)
    value = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def tie(model: ir.Model) -> None:
    """Makes equal initializers one again, as exporters do."""
    first: dict[tuple[object, ...], ir.Value] = {}
    outputs = set(model.graph.outputs)
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < 64 or value in outputs:
            continue
        key = (tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(tensor.numpy().tobytes()).digest())
        other = first.setdefault(key, value)
        if other is not value:
            value.replace_all_uses_with(other)
            del model.graph.initializers[value.name or ""]


def read_external(model: ir.Model, limit_bytes: int) -> None:
    """Reads external weights into memory, in place: all where they are `limit_bytes` at most, else the small ones."""
    external = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    few = sum(value.const_value.nbytes for value in external if value.const_value is not None) <= limit_bytes
    for value in external:
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        if few or tensor.nbytes <= SMALL_WEIGHT_BYTES:  # not worth a file access each
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
            tensor.release()
