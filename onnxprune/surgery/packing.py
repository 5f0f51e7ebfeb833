"""Zeros stored small: values and positions as initializers, decoded by standard ONNX operators when a model is loaded.

Three forms, of which each weight takes the smallest:
    dense    as it is
    bitmap   its non-zero values, and one bit per position
    groups   of every G weights along an axis the same number k of values, and log2(G) bits for the place of each

The decoders are a handful of integer operators with Gather or ScatterElements. Their inputs are constants and their
shapes static: onnxruntime folds them once at load (NonZero it would leave for every run), so that runs cost the same
as dense, and every runtime that knows opset 11 reads the file.
Do not simplify a packed model afterwards: constant folding is what unpacks it.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.errors import UsageError

OPSET = 11  # of BitShift, CumSum and ScatterElements
LEAST_SAVED_BYTES = 1024  # the nodes of a decoder take some hundred bytes themselves
DECODER_BYTES = 2048  # of the nodes and names of one
FLOATS = (np.float32, np.float16, np.float64)
GROUP_SIZES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Form:
    """How one weight is stored; for groups, `size` weights along `axis` hold `kept` values each."""

    bytes: int
    axis: int | None = None
    size: int = 0
    kept: int = 0


def check(model: ir.Model) -> None:
    """Checks that `model` can be packed. Raises: UsageError when its opset is below 11."""
    opset = model.opset_imports.get("", 1)
    if opset < OPSET:
        raise UsageError(
            f"--pack needs opset {OPSET} or higher and the model has {opset}; export it again or leave it dense"
        )


def pack(model: ir.Model) -> ir.Model:
    """A new model with the same outputs in which weights full of zeros are stored small. Raises as `check` does."""
    check(model)
    packed = graph.copy(model)
    outputs = set(packed.graph.outputs)
    for name, value in list(packed.graph.initializers.items()):
        array = graph.constant(value)
        if array is None or value in outputs or array.dtype.type not in FLOATS:
            continue  # an output has to stay an output, and cannot be the result of a node of another name
        form = smallest(array)
        if form is not None:
            _replace(packed.graph, name, value, _Decoder(packed.graph, name, array, form))
    return packed


def smallest(array: np.ndarray) -> Form | None:
    """The form that takes the fewest bytes, or None where dense is about as small."""
    forms = [_bitmap(array), *_groups(array)]
    best = min(forms, key=lambda form: form.bytes)
    return best if best.bytes + LEAST_SAVED_BYTES <= array.nbytes else None


def file_bytes(model: ir.Model) -> int:
    """About as many bytes as the file of `model` has."""
    return graph.skeleton(model, 0)[0].ByteSize() + graph.size_bytes(model)


def density_for(model: ir.Model, wanted_bytes: float) -> float:
    """Share of the weights that may stay so that bitmaps bring the file of `model` to about `wanted_bytes`."""
    arrays = [a for v in model.graph.initializers.values() if (a := graph.constant(v)) is not None and _is_weight(a)]
    whole = sum(array.nbytes for array in arrays)
    fixed = file_bytes(model) - whole + DECODER_BYTES * len(arrays)
    return max(0.01, (wanted_bytes - fixed) / max(1, whole) - 1 / 32)  # a bit of the map for each float of 32


def _is_weight(array: np.ndarray) -> bool:
    return array.ndim > 1 and array.nbytes > LEAST_SAVED_BYTES and array.dtype.type in FLOATS


def _bitmap(array: np.ndarray) -> Form:
    """The values that are not zero, and one bit for each place."""
    return Form(int(np.count_nonzero(array)) * array.itemsize + -(-array.size // 8))


def _groups(array: np.ndarray) -> list[Form]:
    """The forms with as many values in each group of neighbors, and the place of each: patterns such as 2 of 4.

    The group with most values says how many; that is good where a method made patterns, and poor elsewhere.
    """
    found: list[Form] = []
    for axis in range(min(2, array.ndim)):
        for size in GROUP_SIZES:
            if array.shape[axis] % size == 0:
                kept = max(1, int(np.count_nonzero(_grouped(array, axis, size), axis=1).max()))
                values = array.size // size * kept
                found.append(Form(values * array.itemsize + -(-values * code_bits(size) // 8), axis, size, kept))
    return found


def _grouped(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """(groups, size): `size` neighbors along `axis` in a row."""
    return np.moveaxis(array, axis, -1).reshape(-1, size)


def code_bits(size: int) -> int:
    """Bits of a place among `size`, rounded up to 1, 2, 4 or 8 so that bytes hold a whole number of them."""
    bits = max(1, (size - 1).bit_length())
    return 1 << (bits - 1).bit_length()


def _replace(owner: ir.Graph, name: str, value: ir.Value, decoder: "_Decoder") -> None:
    """Lets all readers of the dense weight read what `decoder` makes, in front of all other nodes."""
    result = decoder.nodes[-1].outputs[0]
    value.replace_all_uses_with(result)
    del owner.initializers[name]
    value.name = f"{name}.dense"  # frees the name: the decoded value bears it
    result.name, result.shape, result.type = name, value.shape, value.type
    first = next(iter(owner), None)
    if first is None:
        owner.extend(decoder.nodes)
    else:
        owner.insert_before(first, decoder.nodes)


class _Decoder:
    """The nodes that rebuild one weight, in order; the last one's output is the weight."""

    def __init__(self, owner: ir.Graph, name: str, array: np.ndarray, form: Form) -> None:
        self.owner, self.name = owner, name
        self.nodes: list[ir.Node] = []
        if form.axis is None:
            self._bitmap(array)
        else:
            self._groups(array, form)

    def _bitmap(self, array: np.ndarray) -> None:
        flat = array.reshape(-1)
        bits = self._codes(np.packbits(flat != 0, bitorder="little"), 1)
        # The last byte may hold more bits than there are places.
        ends = self._constant("zero", np.array([0])), self._constant("count", np.array([array.size]))
        bits = self._add("Cast", [self._add("Slice", [bits, *ends])], to=int(ir.DataType.INT32))
        # The number of ones so far is the place of a value, 0 that of the zero before them.
        places = self._add("CumSum", [bits, self._constant("axis", np.array(0))])
        places = self._add("Mul", [places, bits])
        values = self._constant("values", np.concatenate([np.zeros(1, array.dtype), flat[flat != 0]]))
        dense = self._add("Gather", [values, places])
        self._add("Reshape", [dense, self._constant("shape", np.array(array.shape))])

    def _groups(self, array: np.ndarray, form: Form) -> None:
        assert form.axis is not None
        rows = _grouped(array, form.axis, form.size)
        # Non-zero places first, in order; where a row has fewer, zeros of it fill up: every index is used once.
        places = np.sort(np.argsort(rows == 0, axis=1, kind="stable")[:, : form.kept], axis=1)
        values = np.take_along_axis(rows, places, axis=1)
        bits = code_bits(form.size)
        codes = self._codes(_packed(places.astype(np.uint8).reshape(-1), bits), bits)
        ends = self._constant("count", np.array([places.size])), self._constant("zero", np.array([0]))
        codes = self._add("Slice", [codes, ends[1], ends[0]])
        codes = self._add("Reshape", [codes, self._constant("rows", np.array(places.shape))])
        codes = self._add("Cast", [codes], to=int(ir.DataType.INT64))
        zeros = self._zeros(array.dtype, rows.shape)
        dense = self._add("ScatterElements", [zeros, codes, self._constant("values", values)], axis=1)
        moved = np.moveaxis(array, form.axis, -1)
        dense = self._add("Reshape", [dense, self._constant("shape", np.array(moved.shape))])
        order = list(range(array.ndim - 1))
        order.insert(form.axis, array.ndim - 1)  # undoes moveaxis
        self._add("Transpose", [dense], perm=order)

    def _codes(self, packed: np.ndarray, bits: int) -> ir.Value:
        """The codes of `bits` bits in bytes, lowest first: (bytes * 8 / bits,) uint8."""
        data = self._constant("packed", packed.reshape(-1, 1))
        if bits < 8:  # ONNX has no bitwise And before opset 18: the lowest bits are the rest of a division
            shifts = self._constant("shifts", np.arange(0, 8, bits, dtype=np.uint8).reshape(1, -1))
            data = self._add("BitShift", [data, shifts], direction="RIGHT")
            data = self._add("Mod", [data, self._constant("modulus", np.array([1 << bits], np.uint8))])
        return self._add("Reshape", [data, self._constant("flat", np.array([-1]))])

    def _zeros(self, dtype: np.dtype, shape: tuple[int, ...]) -> ir.Value:
        return self._add("ConstantOfShape", [self._constant("size", np.array(shape))], value=np.zeros(1, dtype))

    def _add(self, op_type: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        given = {name: _attribute(name, value) for name, value in attributes.items()}
        node = ir.Node("", op_type, inputs, given, name=f"{self.name}.unpack.{len(self.nodes)}")
        node.outputs[0].name = f"{self.name}.unpack.{len(self.nodes)}.{op_type}"
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, part: str, array: np.ndarray) -> ir.Value:
        return graph.add_constant(self.owner, f"{self.name}.{part}", array)


def _attribute(name: str, value: object) -> ir.Attr:
    if isinstance(value, np.ndarray):
        return ir.AttrTensor(name, ir.tensor(cast(np.ndarray, value)))
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrInt64s(name, value) if isinstance(value, list) else ir.AttrInt64(name, value)  # type: ignore[arg-type]


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (M,) of `bits` bits each in bytes, lowest first."""
    per_byte = 8 // bits
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes
    return np.bitwise_or.reduce(padded.reshape(-1, per_byte) << np.arange(0, 8, bits, dtype=np.uint8), axis=1)
