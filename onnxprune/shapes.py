"""Shapes of every value, observed at two sizes.

Static inference is the fast path. Where it leaves holes, or where shapes are computed in the graph, the model is
run in onnxruntime at two probe sizes with every intermediate value recorded. What is equal in both runs is a
constant of the model; what differs is dynamic.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import graph, runtime
from onnxprune.errors import GraphError

SMALL = 4096  # integer tensors of up to this many elements are recorded: shapes, axes, indices

# Sizes tried for symbolic axes, larger probe first. Primes keep accidental factorizations away.
BATCH_PROBES = ((3, 2), (2, 4), (1, 1))
IMAGE_PROBES = ((64, 96), (224, 256), (320, 352), (640, 672), (48, 64), (32, 48), (28, 29))
OTHER_PROBES = ((13, 11), (64, 48), (7, 5), (160, 128), (1, 1), (512, 384))

# Ops whose integer inputs decide output shapes; these inputs have to be known as numbers.
SHAPED_BY_INPUT = frozenset(
    ("Reshape Expand Slice Pad Tile Resize Upsample ConstantOfShape Split TopK OneHot Range Unsqueeze Squeeze").split()
)

SHAPE_SUFFIX = "@shape"
NOT_TENSORS = frozenset(
    "SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SplitToSequence Optional ZipMap".split()
)
INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))  # TensorProto.DataType


@dataclass(frozen=True)
class Shapes:
    """What is known of every value: sizes at the first probe, which of them change, small integer contents."""

    sizes: dict[str, tuple[int, ...]]
    dynamic: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    contents: dict[str, np.ndarray] = field(default_factory=dict)
    constant: frozenset[str] = frozenset()  # names in `contents` whose numbers are the same in both runs
    probe: dict[str, tuple[int, ...]] = field(default_factory=dict)  # graph input -> shape
    second: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the other probe that works, if one does


def observe(model: ir.Model, samples: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Shapes of all values of a normalized `model`; `samples` are input shapes that are known to work.

    Raises: GraphError when the model runs at none of the sizes that were tried.
    """
    inputs = list(model.graph.inputs)
    symbolic = any(not isinstance(size, int) for value in inputs for size in _dims(value))
    skeleton, _ = graph.skeleton(model, 1024)
    if not _needs_running(model):
        static = _infer(skeleton, inputs, symbolic, samples)
        if static is not None:
            return static
    return _run(model, inputs, symbolic, samples)


def _dims(value: ir.Value) -> list[int | str | None]:
    if value.shape is None:
        return []
    return [size if isinstance(size, int) else (size.value or None) for size in value.shape]


def _needs_running(model: ir.Model) -> bool:
    """Whether some shape is computed in the graph, or some operator is outside static inference."""
    for node in model.graph:
        if node.domain not in ("", "ai.onnx", "com.microsoft") or any(
            a.type == ir.AttributeType.GRAPH for a in node.attributes.values()
        ):
            return True
        if node.op_type in SHAPED_BY_INPUT and any(v is not None and not v.is_initializer() for v in node.inputs[1:]):
            return True
    return False


# Static ---------------------------------------------------------------------------------------------------------


def _infer(
    skeleton: onnx.ModelProto, inputs: Sequence[ir.Value], symbolic: bool, samples: Mapping[str, Sequence[int]] | None
) -> Shapes | None:
    """Shapes by static inference at two probe sizes, None where it leaves a hole."""
    tries = islice(_probes(inputs, samples), 1)
    for first, second in tries:
        one = _infer_at(skeleton, first)
        two = _infer_at(skeleton, second) if symbolic and one is not None else one
        if one is None or two is None:
            return None
        return Shapes(one, _compare(one, two), {}, frozenset(), first, second)
    return None


def _infer_at(skeleton: onnx.ModelProto, probe: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton)
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name in probe:
            _set_shape(value, probe[value.name])
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # the inference of some operator raised: then the model is run instead
        return None
    sizes: dict[str, tuple[int, ...]] = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            sizes[value.name] = tuple(dim.dim_value for dim in dims)
    sizes.update({value.name: tuple(value.dims) for value in proto.graph.initializer})
    produced = (name for node in proto.graph.node for name in node.output if name)
    return sizes if all(name in sizes for name in produced) else None


def _set_shape(value: onnx.ValueInfoProto, sizes: Sequence[int]) -> None:
    value.type.tensor_type.ClearField("shape")
    for size in sizes:
        value.type.tensor_type.shape.dim.add().dim_value = size
    if not sizes:
        value.type.tensor_type.shape.SetInParent()


def _compare(one: Mapping[str, tuple[int, ...]], two: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[bool, ...]]:
    dynamic: dict[str, tuple[bool, ...]] = {}
    for name, sizes in one.items():
        other = two.get(name, sizes)
        same_rank = len(other) == len(sizes)
        flags = tuple(a != b for a, b in zip(sizes, other, strict=True)) if same_rank else (True,) * len(sizes)
        if any(flags):
            dynamic[name] = flags
    return dynamic


# Running --------------------------------------------------------------------------------------------------------


def _run(
    model: ir.Model, inputs: Sequence[ir.Value], symbolic: bool, samples: Mapping[str, Sequence[int]] | None
) -> Shapes:
    session = runtime.open_session(_instrumented(model), optimize=False, threads=2)
    failure = "no sizes were tried"
    for first, second in islice(_probes(inputs, samples), 60):
        one, failure = _attempt(session, inputs, first, failure)
        if one is None:
            continue
        two, failure = _attempt(session, inputs, second, failure) if symbolic else (one, failure)
        if two is None:  # only one size works
            return _recorded(model, one, one, first, {})
        return _recorded(model, one, two, first, second)
    raise GraphError(f"the model runs at none of the sizes that were tried; give samples with --data. Last: {failure}")


def _attempt(
    session: ort.InferenceSession, inputs: Sequence[ir.Value], probe: Mapping[str, tuple[int, ...]], failure: str
) -> tuple[dict[str, np.ndarray] | None, str]:
    try:
        return runtime.run(session, feeds(inputs, probe)), failure
    except GraphError as error:
        return None, str(error)


def _instrumented(model: ir.Model) -> onnx.ModelProto:
    """`model` with the shape of every computed value, and the contents of integer ones, as outputs."""
    proto = ir.to_proto(model)
    typed = onnx.shape_inference.infer_shapes(graph.skeleton(model, 1024)[0])
    kinds = {v.name: v.type for v in (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)}
    outputs = {value.name for value in proto.graph.output}
    extra: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type in NOT_TENSORS:
            continue
        for name in filter(None, node.output):
            kind = kinds.get(name)
            if kind is not None and not kind.HasField("tensor_type"):
                continue
            extra.append(onnx.helper.make_node("Shape", [name], [name + SHAPE_SUFFIX]))
            proto.graph.output.append(onnx.ValueInfoProto(name=name + SHAPE_SUFFIX))
            if kind is not None and kind.tensor_type.elem_type in INTEGERS and name not in outputs:
                proto.graph.output.append(onnx.ValueInfoProto(name=name))
    proto.graph.node.extend(extra)
    return proto


def _recorded(
    model: ir.Model,
    one: Mapping[str, np.ndarray],
    two: Mapping[str, np.ndarray],
    probe: dict[str, tuple[int, ...]],
    second: dict[str, tuple[int, ...]],
) -> Shapes:
    sizes, other = _sizes(one), _sizes(two)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            sizes[name] = tuple(value.const_value.shape.numpy())
    sizes.update(probe)
    other.update(second or probe)
    contents = {
        name: array
        for name, array in one.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "iub" and array.size <= SMALL
    }
    constant = frozenset(name for name, array in contents.items() if np.array_equal(array, two[name]))
    return Shapes(sizes, _compare(sizes, other), contents, constant, probe, second)


def _sizes(outputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(SHAPE_SUFFIX): tuple(map(int, array))
        for name, array in outputs.items()
        if name.endswith(SHAPE_SUFFIX)
    }


def _probes(
    inputs: Sequence[ir.Value], samples: Mapping[str, Sequence[int]] | None
) -> Iterator[tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]]:
    """Pairs of input shapes to try, the likeliest first."""
    if samples:
        given = {name: tuple(sizes) for name, sizes in samples.items()}
        symbolic = {value.name or "": _dims(value) for value in inputs}
        for other in (2, 3, 1):  # another batch
            second = {
                name: tuple(
                    other if i == 0 and not isinstance(symbolic[name][0], int) and symbolic[name] else size
                    for i, size in enumerate(sizes)
                )
                for name, sizes in given.items()
                if name in symbolic
            }
            yield given, second
    for batch, image, rest in sorted(
        product(range(3), range(len(IMAGE_PROBES)), range(len(OTHER_PROBES))), key=lambda t: (sum(t), t)
    ):
        sizes = (BATCH_PROBES[batch], IMAGE_PROBES[image], OTHER_PROBES[rest])
        yield tuple({value.name or "": _shape_at(value, inputs, sizes, which) for value in inputs} for which in (0, 1))  # type: ignore[misc]


def _shape_at(
    value: ir.Value, inputs: Sequence[ir.Value], sizes: Sequence[tuple[int, int]], which: int
) -> tuple[int, ...]:
    batch, image, rest = sizes
    dims = _dims(value)
    batch_name = next((d[0] for v in inputs if (d := _dims(v)) and isinstance(d[0], str)), None)
    shape = []
    for axis, size in enumerate(dims):
        if isinstance(size, int):
            shape.append(size)
        elif (axis == 0 and len(dims) > 1) or (size is not None and size == batch_name):
            shape.append(batch[which])
        elif len(dims) == 4 and axis == 1:
            shape.append(3)
        else:
            shape.append((image if len(dims) >= 4 else rest)[which])
    return tuple(shape)


def feeds(inputs: Sequence[ir.Value], probe: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for graph inputs of the given shapes: normal floats, zeros and ones elsewhere."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for value in inputs:
        name = value.name or ""
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        if dtype.kind == "f" or value.dtype == ir.DataType.BFLOAT16:
            arrays[name] = rng.normal(size=probe[name]).astype(dtype)
        elif dtype.kind in "iub":
            arrays[name] = rng.integers(0, 2, size=probe[name]).astype(dtype)
        else:
            arrays[name] = np.full(probe[name], "a", dtype=object)
    return arrays
