"""onnxsim on a model of which the weights that it must not touch, or copy, are hidden from it."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import GraphError, first_line
from onnxprune.graph import custom_ops, extras, half
from onnxprune.graph.tensors import held, size_bytes, tensor_of
from onnxprune.system import late
from onnxprune.system.isolation import isolated
from onnxprune.system.memory import LARGE_MODEL_BYTES, SMALL_WEIGHT_BYTES
from onnxprune.system.streams import swallowed

# In a network of these alone, without constant expressions, onnxsim finds nothing that would help the analysis.
PLAIN = frozenset(
    "Conv ConvTranspose BatchNormalization InstanceNormalization LayerNormalization Gemm MatMul Flatten "
    "GlobalAveragePool GlobalMaxPool MaxPool AveragePool ReduceMean ReduceSum ReduceMax ReduceL2 Concat Split Slice "
    "Pad Transpose Reshape Squeeze Unsqueeze Add Sub Mul Div Pow Neg Abs Exp Log Relu LeakyRelu PRelu Elu Selu Sigmoid "
    "Tanh HardSigmoid HardSwish Clip Softplus Mish Softmax LRN Erf Sqrt Gelu DepthToSpace SpaceToDepth Gather Expand "
    "Resize Tile".split()
)
LAYOUT = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten Cast Identity".split())  # they copy what they are given
INFERENCE = "onnx's shape inference fails on this model"
SEQUENCES = 11  # the opset that has sequences
WRAPPED = "@sequence"
INFERENCE_BYTES = 1024  # larger ones are no sizes, axes or indices that shape inference reads


def simplify(model: ir.Model, skipped: list[str], *, bake: bool = False) -> ir.Model:
    """`model` through onnxsim; weights that it must not bake or copy are hidden from it as inputs.

    bake: it may compute with all weights of a model that is not large, as its value-baking fusions do.
    """
    _import_onnxsim()
    shown: Collection[str] = ()
    if size_bytes(model) <= LARGE_MODEL_BYTES:
        shown = list(model.graph.initializers) if bake else _folded_away(model)
    proto, hidden = skeleton(model, shown=shown)
    _forget_placeholders(proto)
    _forget_inferable(proto)
    sequences = _describe_interface(proto)
    simplified, notes = _attempt(proto, skipped)
    result = held(ir.from_proto(simplified))
    _unwrap(result, sequences)
    extras.put(result, extras.of(model))
    extras.note(result, *notes)
    _unhide(result, hidden)
    _order(result, model.graph.initializers)
    _restore_interface(result, model)
    return result


def _attempt(proto: onnx.ModelProto, skipped: list[str]) -> tuple[onnx.ModelProto, list[str]]:
    """(`proto` rewritten, notes); where a rewriting fails only with its constants folded, where that fails as it is.

    onnxsim raises bare RuntimeErrors, crashes, or makes a graph that onnxruntime does not load.
    """
    given, why = proto.SerializeToString(), ""
    for attempt in ATTEMPTS:
        try:
            made = isolated(partial(_rewritten, given, skipped, attempt.steps, custom_ops.registered()))
            return onnx.ModelProto.FromString(made), [f"{why}: {attempt.lesser}"] if attempt.lesser else []
        except Exception as error:  # of any kind
            why = why or f"onnxsim's rewritings fail on this model ({first_line(error)})"
    return proto, [f"{why}: its constants were not folded"]


@dataclass(frozen=True)
class _Attempt:
    """A way to call onnxsim: what each call does (rewrite nodes, infer shapes), and what is less than it should be."""

    steps: tuple[tuple[bool, bool], ...]
    lesser: str = ""


# While onnxsim rewrites nodes of which the inputs are not folded yet it may infer shapes that are wrong: a Pad of which
# the sizes are computed becomes part of a Conv, and what is reshaped behind it gets other lengths.
ATTEMPTS = (
    _Attempt(((True, True),)),
    _Attempt(((False, False), (True, True))),
    _Attempt(((False, True),), "only its constants were folded"),
)


# Where it decides an If it leaves nodes in front of those that they read, and fails; branches.py decides them.
BROKEN = ("eliminate_if_with_const_cond",)


def _rewritten(given: bytes, skipped: list[str], steps: Sequence[tuple[bool, bool]], libraries: Sequence[str]) -> bytes:
    """A model simplified by onnxsim, as bytes. Raises: GraphError when onnxruntime does not load the result."""
    onnxsim = _import_onnxsim()
    proto = onnx.ModelProto.FromString(given)
    for rewrite, infer in steps:
        said = {
            "skipped_optimizers": [*skipped, *BROKEN],
            "perform_optimization": rewrite,
            "skip_shape_inference": not infer,
        }
        with swallowed():  # it prints notes where results go
            proto = onnxsim.simplify(proto, check_n=0, certify=False, **said)[0]
    made = proto.SerializeToString()
    for library in libraries:
        custom_ops.register(library)
    _load(made)
    return made


def _forget_placeholders(proto: onnx.ModelProto) -> None:
    """Sizes of -1 and 0, by which some exporters mean 'any', become unknown: shape inference would reckon with them."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 1:
                dim.ClearField("dim_value")


def _forget_inferable(proto: onnx.ModelProto) -> None:
    """Shapes inside become unknown: exporters write sizes of their trace there, which folding would make constants."""
    own = {name for node in proto.graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    kept = [value for value in proto.graph.value_info if value.name in own]  # nothing else says what these are
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)


def _describe_interface(proto: onnx.ModelProto) -> set[str]:
    """Gives outputs without a shape, which onnx's checker refuses, the one that onnx infers.

    Where it infers none, and for inputs, a sequence of the tensor stands in its place, of which no shape is asked.
    Returns the names of those tensors.
    """
    if any(map(_lacks_shape, proto.graph.output)):
        _infer_outputs(proto)
    inputs, outputs = ([v for v in part if _lacks_shape(v)] for part in (proto.graph.input, proto.graph.output))
    if not (inputs or outputs) or not _has_sequences(proto):
        return set()
    names = {value.name for value in (*inputs, *outputs)}
    first = onnx.numpy_helper.from_array(np.array(0, np.int64), f"0{WRAPPED}")
    proto.graph.initializer.extend([first] if inputs else [])
    for value in inputs:
        node = onnx.helper.make_node("SequenceAt", [value.name + WRAPPED, first.name], [value.name])
        proto.graph.node.insert(0, node)
        _make_sequence(value)
    for value in outputs:
        proto.graph.node.append(onnx.helper.make_node("SequenceConstruct", [value.name], [value.name + WRAPPED]))
        _make_sequence(value)
    return names


def _lacks_shape(value: onnx.ValueInfoProto) -> bool:
    """Whether a tensor may have any number of axes, by what is written of it."""
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not value.type.tensor_type.HasField("shape"))


def _infer_outputs(proto: onnx.ModelProto) -> None:
    with contextlib.suppress(Exception):  # onnx raises errors without a common base
        found = onnx.shape_inference.infer_shapes(proto).graph.output
        for value, known in zip(proto.graph.output, found, strict=True):
            value.type.CopyFrom(known.type)


def _has_sequences(proto: onnx.ModelProto) -> bool:
    """Whether `proto` may have nodes that make sequences; a model without plain operators then may."""
    opsets = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not opsets:
        proto.opset_import.append(onnx.helper.make_opsetid("", SEQUENCES))
    return min(opsets, default=SEQUENCES) >= SEQUENCES


def _make_sequence(value: onnx.ValueInfoProto) -> None:
    value.name += WRAPPED
    tensor = onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, None)
    value.type.CopyFrom(onnx.helper.make_sequence_type_proto(tensor))


def _unwrap(model: ir.Model, names: Collection[str]) -> None:
    """Puts tensors into the place of the sequences of `_describe_interface`, in place, under their names."""
    sequences = {name + WRAPPED: name for name in names}
    for value in (value for value in model.graph.inputs if value.name in sequences):
        for node in [node for node, _ in value.uses()]:
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        value.name = sequences[value.name or ""]
    for position, output in enumerate(list(model.graph.outputs)):
        node = output.producer()
        given = node.inputs[0] if node is not None and output.name in sequences else None
        if node is None or given is None:
            continue
        model.graph.outputs[position] = given = _own(model, given)
        model.graph.remove(node, safe=True)
        given.name = sequences[output.name or ""]


def _own(model: ir.Model, value: ir.Value) -> ir.Value:
    """`value`, or a copy of it where its name is part of the interface already."""
    if not (value.is_graph_input() or value.is_graph_output() or value.is_initializer()):
        return value
    node = ir.Node("", "Identity", [value], num_outputs=1)
    model.graph.append(node)
    return node.outputs[0]


def is_plain(model: ir.Model) -> bool:
    """Whether onnxsim has nothing to do for the normal form of `model`: no constants to fold, no shapes to compute."""
    plain = all(node.op_type in PLAIN and node.domain in ("", "ai.onnx") for node in model.graph)
    return plain and not _folded_away(model)


def infer_shapes(model: ir.Model) -> None:
    """Writes types and shapes, as far as onnx infers them, to the values inside `model`, as onnxsim would.

    Outputs stay as they are declared: they belong to the interface. The sizes that are known go into what `model`
    carries: `shapes.observe` need not infer them again.
    """
    proto = _bare(model)
    _forget_placeholders(proto)
    made = inferred(model, proto, "no types and shapes of inner values were written")
    if made is None:
        return
    sizes = sizes_in(made.graph)
    known = {value.name: value.type for value in made.graph.value_info}
    for value in (value for node in model.graph for value in node.outputs if not value.is_graph_output()):
        written = value.shape.dims if value.shape is not None and value.type is not None else None
        whole = sizes.get(value.name or "")
        if value.name not in known or (written is not None and written == whole):
            continue
        kind = known[value.name]
        if whole is not None:
            value.type, value.shape = ir.TensorType(ir.DataType(kind.tensor_type.elem_type)), ir.Shape(whole)
        else:
            value.type = ir.serde.deserialize_type_proto_for_type(kind)
            value.shape = ir.serde.deserialize_type_proto_for_shape(kind)
    extras.put(model, replace(extras.of(model), inferred=sizes))


def static_sizes(model: ir.Model) -> Mapping[str, tuple[int, ...]]:
    """Sizes of the values of `model` that onnx infers whole, from its inputs on; of no others."""
    proto = _bare(model)
    _forget_placeholders(proto)
    made = inferred(model, proto, "numbers that it computes from sizes were left to onnxsim")
    return {} if made is None else sizes_in(made.graph)


def inferred(
    model: ir.Model, proto: onnx.ModelProto, otherwise: str, *, numbers: bool = True
) -> onnx.ModelProto | None:
    """`proto`, which stands for `model`, with the types and shapes that onnx infers; None where an operator's raises.

    numbers: whether numbers of shapes are followed, too. A note on `model` then says what was done `otherwise`.
    """
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=numbers)
    except Exception as error:  # of any kind
        extras.note(model, f"{INFERENCE} ({first_line(error)}): {otherwise}")
        return None


def _bare(model: ir.Model) -> onnx.ModelProto:
    """A message with what shape inference needs: nodes, small initializers, and of all else types and sizes."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in model.opset_imports.items())
    for node in model.graph:
        ir.serde.serialize_node_into(proto.graph.node.add(), node)
    for value in model.graph.inputs:
        ir.serde.serialize_value_into(proto.graph.input.add(), value)
    for value in model.graph.outputs:
        proto.graph.output.add(name=value.name or "")
    for name, value in model.graph.initializers.items():
        tensor = tensor_of(value)
        if _is_large(tensor, INFERENCE_BYTES):
            kind = proto.graph.input.add(name=name).type.tensor_type
            kind.elem_type = tensor.dtype
            kind.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in tensor.shape.numpy())
        else:
            ir.serde.serialize_tensor_into(proto.graph.initializer.add(), tensor)
            proto.graph.initializer[-1].name = name
    return proto


def sizes_in(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The sizes of all values of which a message tells every one."""
    found: dict[str, tuple[int, ...]] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            sizes = tuple([size.dim_value for size in dims])
            if all(sizes) or all(size.HasField("dim_value") for size in dims):  # an unknown size reads as 0
                found[value.name] = sizes
    found.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    return found


def _folded_away(model: ir.Model) -> set[str]:
    """Names of initializers that stand in constant expressions: onnxsim computes these, for which it needs numbers."""
    constant = {value for value in model.graph.initializers.values() if not value.is_graph_input()}
    found: set[str] = set()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None]
        if all(value in constant for value in read):
            constant.update(node.outputs)
            found.update(value.name or "" for value in read)
    return found


def _load(made: bytes) -> None:
    """Opens what onnxsim made in onnxruntime: it has been seen to write nodes that no runtime accepts.

    Raises: GraphError when onnxruntime does not.
    """
    options = custom_ops.session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen pybind types without a common base
        wider = half.runnable(made, error)
        if wider is not None:
            _load(ir.to_proto(wider).SerializeToString())
            return
        raise GraphError(f"onnxruntime does not load what it makes: {first_line(error)}") from error


def _import_onnxsim() -> ModuleType:
    """The module with onnxsim's `simplify`, without what that does not need, which takes a second to import.

    The package imports all of its modules, hundreds of them. torch and sympy are optional to it; of its module of
    pruning, as long as this whole project, it wants types for annotations.
    """
    name, package = "onnxsim.onnx_simplifier", "onnxsim"
    if name in sys.modules:
        return sys.modules[name]
    # None makes 'import torch' fail, as it does where torch is not installed.
    absent = {each: None for each in ("torch", "sympy") if each not in sys.modules or late.is_late(sys.modules[each])}
    with _standing_in(absent), contextlib.suppress(ImportError, AttributeError):
        spec = importlib.util.find_spec(package) if package not in sys.modules else None
        if spec is None:
            return importlib.import_module(name)
        types = ModuleType(f"{package}.pruning")
        types.__getattr__ = lambda _: Any  # type: ignore[method-assign]
        with _standing_in({package: importlib.util.module_from_spec(spec), types.__name__: types}):
            return importlib.import_module(name)
    with _standing_in(absent):
        return importlib.import_module(package)


@contextlib.contextmanager
def _standing_in(others: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Modules under these names while something else is imported; who imports the names later gets the true ones."""
    own = {name: sys.modules.pop(name) for name in others if name in sys.modules}
    sys.modules.update(others)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in others:
            del sys.modules[name]
        sys.modules.update(own)


def skeleton(
    model: ir.Model, threshold: int = SMALL_WEIGHT_BYTES, shown: Collection[str] = ()
) -> tuple[onnx.ModelProto, dict[str, ir.Value]]:
    """`model` as a protobuf message without the hidden initializers, which become inputs, and those by name.

    Hidden are weights that folding would store larger or twice, see _stays_whole, all initializers
    of more bytes than the threshold, and all that are still on disk; but for those in `shown`.
    """
    listed = set(model.graph.inputs)  # an old file as it came: these are inputs already
    hidden = {
        name: value
        for name, value in model.graph.initializers.items()
        if value not in listed
        and (_stays_whole(value) or (name not in shown and _is_large(tensor_of(value), threshold)))
    }
    if not hidden:
        return ir.to_proto(model), {}
    tensors = {name: tensor_of(value) for name, value in hidden.items()}
    inputs, names = list(model.graph.inputs), list(model.graph.initializers)
    try:
        for name, value in hidden.items():
            value.shape = ir.Shape(tensors[name].shape.numpy())
            value.type = ir.TensorType(tensors[name].dtype)
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
        return ir.to_proto(model), {name: _detached(name, tensors[name]) for name in hidden}
    finally:
        for name, value in hidden.items():
            model.graph.inputs.remove(value)
            value.const_value = tensors[name]
            model.graph.register_initializer(value)
        assert list(model.graph.inputs) == inputs
        _order(model, names)


def _is_large(tensor: ir.TensorProtocol, threshold: int) -> bool:
    return tensor.nbytes > threshold or isinstance(tensor, ir.ExternalTensor)


def _detached(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def _unhide(model: ir.Model, hidden: dict[str, ir.Value]) -> None:
    for value in [value for value in model.graph.inputs if value.name in hidden]:
        model.graph.inputs.remove(value)
        value.const_value = hidden[value.name or ""].const_value
        model.graph.register_initializer(value)


def _order(model: ir.Model, names: Iterable[str]) -> None:
    """Puts the initializers into the order of `names`, new ones first."""
    initializers = model.graph.initializers
    for name in list(names):
        if name in initializers:
            initializers[name] = initializers.pop(name)


def _stays_whole(value: ir.Value) -> bool:
    """Whether folding what reads a weight would store it larger, or twice."""
    if value.const_value is None or value.const_value.nbytes < 64:
        return False
    users = [node.op_type for node, _ in value.uses()]
    if "DequantizeLinear" in users:
        return True
    if len(value.const_value.shape) < 2:
        return False
    # A table that is read as it is, and transposed for the head, is one weight.
    tied = len(users) > 1 and not LAYOUT.isdisjoint(users)
    return tied or (set(users) == {"Cast"} and value.const_value.dtype.bitwidth <= 16)


def _restore_interface(result: ir.Model, original: ir.Model) -> None:
    """Signatures, names and metadata as they were; onnxsim may have specialised shapes or dropped properties."""
    for new, old in zip(result.graph.outputs, original.graph.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
    by_name = {value.name: value for value in result.graph.inputs}
    for old in original.graph.inputs:
        if old.name not in by_name:
            raise GraphError(f"graph input '{old.name}' was lost in simplification; please report this model")
        by_name[old.name].shape, by_name[old.name].type = old.shape, old.type
    if "" not in original.opset_imports and all(node.domain for node in result.graph):
        result.opset_imports.pop("", None)  # sequences needed it
    result.graph.inputs[:] = [by_name[value.name] for value in original.graph.inputs]
    result.graph.name, result.graph.doc_string = original.graph.name, original.graph.doc_string
    result.metadata_props.clear()
    result.metadata_props.update(original.metadata_props)
    result.producer_name, result.producer_version = original.producer_name, original.producer_version
    result.model_version, result.domain, result.doc_string = (
        original.model_version,
        original.domain,
        original.doc_string,
    )


# Normal form ----------------------------------------------------------------------------------------------------
