"""Checks of files: texts are text, names occur once, types are known, tensors hold as many numbers as declared."""

from collections import Counter
from collections.abc import Iterable, Iterator
from math import ceil, prod
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import external_data_helper, helper

from onnxprune.errors import GraphError

# Types of which several numbers share a byte, and their bits.
PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def check(proto: onnx.ModelProto, path: Path) -> None:
    """Checks that the graph of `proto` is complete: types, names and what nodes read. Raises: GraphError otherwise."""
    graph = proto.graph
    _typed(proto, path)
    _once((tensor.name for tensor in graph.initializer), "initializers", path)
    _once((name for node in graph.node for name in node.output if name), "node outputs", path)
    for tensor in graph.initializer:
        declared, held = _declared_bytes(tensor), _held_bytes(tensor, path)
        if declared is not None and held is not None and declared != held:
            raise GraphError(
                f"{path}: '{tensor.name}' is declared as {list(tensor.dims)}, which takes {declared} bytes, but holds "
                f"{held}; the file is damaged, export or copy it again"
            )


def check_texts(proto: onnx.ModelProto, path: Path) -> None:
    """Checks that all names in `proto` are valid text. Raises: GraphError otherwise."""
    spoilt = next((text for text in _texts(proto) if isinstance(text, bytes)), None)
    if spoilt is not None:
        raise GraphError(
            f"{path}: a name in it is no text (UTF-8): {spoilt[:40]!r}; the file is damaged, export or copy it again"
        )


def _texts(message: Message) -> Iterator[str | bytes]:
    """All that `message` declares as text, however deep; what is none comes as bytes. Numbers are not looked at."""
    for field in message.DESCRIPTOR.fields:
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        held = getattr(message, field.name)
        if isinstance(held, Message):  # one that is not there would have such in it without end
            yield from _texts(held) if message.HasField(field.name) else ()
        elif isinstance(held, str | bytes):
            yield held
        else:
            for value in held:
                yield from _texts(value) if isinstance(value, Message) else (value,)


def _typed(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in external_data_helper._get_all_tensors(proto):
        if tensor.data_type == onnx.TensorProto.UNDEFINED:
            raise GraphError(f"{path}: '{tensor.name}' has no type; the file is damaged, export or copy it again")


def is_text(path: str | Path) -> bool:
    """Whether a path is text: the system allows any bytes, protobuf and onnxruntime do not."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _once(names: Iterable[str], what: str, path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise GraphError(f"{path}: several {what} are called '{twice[0]}'; give each its own name and export again")


def _declared_bytes(tensor: onnx.TensorProto) -> int | None:
    """Bytes that the shape and type ask for, None for text and for types that are not known."""
    names = onnx.TensorProto.DataType
    if tensor.data_type not in names.values() or tensor.data_type in (names.UNDEFINED, names.STRING):
        return None
    bits = PACKED.get(names.Name(tensor.data_type)) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return ceil(prod(tensor.dims) * bits / 8) if all(size >= 0 for size in tensor.dims) else -1


def entry_bytes(tensor: onnx.TensorProto, key: str, path: Path) -> int:
    """The number in entry `key` of a tensor's external data, 0 where there is none. Raises: GraphError."""
    text = next((entry.value for entry in tensor.external_data if entry.key == key), "0")
    if not (text.isascii() and text.isdigit()):
        raise GraphError(
            f"{path}: external data of '{tensor.name}' has {key} '{text[:40]}', which is no number of bytes; "
            "export it again"
        )
    return int(text)


def _held_bytes(tensor: onnx.TensorProto, path: Path) -> int | None:
    """Bytes that are there, None where they are stored as numbers of their type, or the length is not told."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        told = any(entry.key == "length" for entry in tensor.external_data)
        return entry_bytes(tensor, "length", path) if told else None
    return len(tensor.raw_data) if tensor.HasField("raw_data") else None
