"""A finished model in the form that quantizers take: weights as initializers, nodes with names, a new enough opset."""

import contextlib
import fnmatch
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.convenience import replace_nodes_and_values

from onnxprune import graph
from onnxprune.errors import GraphError, OnnxPruneError, UsageError, first_line
from onnxprune.graph import extras, half
from onnxprune.graph.files import lift_constants, name_nodes
from onnxprune.system.memory import out_of_memory
from onnxprune.system.streams import swallowed

# How the names of quantized operators begin.
QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinear",
    "QGemm",
    "DynamicQuantize",
    "MatMulNBits",
    "MatMulInteger",
)
QUANTIZED += ("ConvInteger", "QAttention", "QMoE", "GatherBlockQuantized")
# Operators through which weights arrive, and which are computed once and for all.
CARRIERS = frozenset("Cast Transpose Reshape Identity Squeeze Unsqueeze Flatten".split())
BIASED = frozenset(("Conv", "ConvTranspose", "Gemm"))
LAYOUT = CARRIERS - {"Cast"}
LARGE_BYTES = 1_500_000_000  # a message ends at 2 GiB, and quantizers hold several
STANDARD = ("", "ai.onnx")
SINGLE = "the model computes in half precision: what is not rounded to integers is computed, and stored, in single"
FREE_INITIALIZERS = 4  # version of the format from which on initializers need not be inputs


def prepared(
    model: ir.Model, opset: int, split: bool = False, halves: bool = False
) -> tuple[ir.Model, tuple[str, ...]]:
    """(a copy of `model` that quantizers can take, at opset `opset` at least; notes). split: without Gemm.
    halves: what is computed in half precision stays so.

    Raises: GraphError where it cannot be brought to that opset, UsageError where it is quantized already.
    """
    check_model(model)
    notes = (SINGLE,) if not halves and _computes_in_halves(model) else ()
    model = folded(model, halves)
    model.ir_version = max(model.ir_version, FREE_INITIALIZERS)
    name_nodes(model)
    if split:
        split_gemms(model)
    old = model.opset_imports.get("", opset)
    if old >= opset:
        return model, notes
    raised = _raised(model, old, opset)
    lift_constants(raised)  # those that the conversion made have no names, by which the proof knows nodes
    name_nodes(raised)
    return raised, (
        *notes,
        f"opset {old} was raised to {opset}, which quantized weights with a scale per channel need",
    )


def begun(model: ir.Model, like: ir.Model) -> ir.Model:
    """`model` as quantizing begins with it, at the opset of `like`, which was made of it or of a cut of it."""
    return prepared(model, like.opset_imports.get("", 1))[0]


def check_model(model: ir.Model, kind: str = "") -> None:
    """Checks that `model` can be quantized as `kind`, which it cannot be twice. Raises: UsageError otherwise."""
    halved = next((node for node in model.graph.all_nodes() if _is_halved(node)), None)
    if kind == "fp16" and halved is not None:
        raise UsageError(
            f"--quantize fp16: the model computes in half precision already ({halved.op_type} '{halved.name}') and "
            "stays so when it is pruned; leave --quantize out"
        )
    found = quantized_node(model)
    if found is not None:
        raise UsageError(
            f"--quantize: the model is quantized already ({found.op_type} '{found.name}') and stays so when it is "
            "pruned; leave --quantize out"
        )
    if graph.size_bytes(model) > LARGE_BYTES:
        size = graph.size_bytes(model) / 1e9
        raise UsageError(
            f"--quantize: the pruned model has {size:.1f} GB of weights, and {LARGE_BYTES / 1e9:g} GB is the most that "
            "can be quantized; prune more, or quantize the result with onnxruntime's own tools"
        )


def quantized_node(model: ir.Model) -> ir.Node | None:
    """A node of `model` that makes or reads integers in the place of floats, None where there is none."""
    return next((node for node in model.graph.all_nodes() if node.op_type.startswith(QUANTIZED)), None)


def _computes_in_halves(model: ir.Model) -> bool:
    """Whether more than inputs and outputs are halves, which are cast to what is computed in."""
    return any(map(_is_halved, model.graph.all_nodes()))


def _is_halved(node: ir.Node) -> bool:
    return node.op_type not in CARRIERS and any(value.dtype in half.HALVES for value in node.outputs)


def split_gemms(model: ir.Model) -> None:
    """Takes each Gemm of a constant matrix apart to MatMul and Add, in place: what stores matrices knows MatMul only.

    onnxruntime does so too, and gets a matrix wrong that two of them share.
    """
    for node in list(model.graph):
        w = graph.constant(node.inputs[1]) if node.op_type == "Gemm" else None
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if w is None or w.ndim != 2 or not plain or node.attributes.get_int("transA", 0):
            continue
        x, output, bias = node.inputs[0], node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
        matrix = np.ascontiguousarray(w.T) if node.attributes.get_int("transB", 0) else w
        named = graph.add_constant(model.graph, f"{node.inputs[1].name}/matrix", matrix)  # type: ignore[union-attr]
        made = [ir.Node("", "MatMul", [x, named], name=node.name, num_outputs=1)]
        if bias is not None:
            made[0].outputs[0].name = f"{output.name}/product"
            made[0].outputs[0].type, made[0].outputs[0].shape = output.type, output.shape
            made.append(ir.Node("", "Add", [made[0].outputs[0], bias], name=f"{node.name}/sum", num_outputs=1))
        made[-1].outputs[0].name = output.name
        replace_nodes_and_values(model.graph, node, [node], made, node.outputs, made[-1].outputs)
    drop_unused(model)


def own_biases(model: ir.Model) -> None:
    """Gives nodes that share a bias one each, in place: onnxruntime's quantizer calls its copies by names that other
    values may have."""
    for node in model.graph:
        bias = node.inputs[2] if node.op_type in BIASED and len(node.inputs) > 2 else None
        array = graph.constant(bias)
        if bias is not None and array is not None and len(bias.uses()) > 1:
            node.replace_input_with(2, graph.add_constant(model.graph, f"{node.name}/own_bias", array))


def drop_unused(model: ir.Model) -> None:
    """Takes initializers out that nothing reads."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in model.graph.outputs:
            del model.graph.initializers[name]


def reduced(model: ir.Model, op_type: str, name: str, value: ir.Value, axes: Sequence[int]) -> ir.Node:
    """A node `name`, not yet in `model`, that reduces `value` over `axes`; its output, in floats, has the same name."""
    keep = ir.AttrInt64("keepdims", 0)
    if model.opset_imports.get("", 13) >= 18:
        named = graph.add_constant(model.graph, f"{name}/axes", np.array(axes, np.int64))
        node = ir.Node("", op_type, [value, named], [keep], name=name, num_outputs=1)
    else:
        node = ir.Node("", op_type, [value], [ir.AttrInt64s("axes", axes), keep], name=name, num_outputs=1)
    output = node.outputs[0]
    output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
    return node


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """`model` as a message with all weights inside."""
    copy = graph.copy(model)
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)
    proto = ir.to_proto(copy)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inner = [value for value in proto.graph.value_info if value.name not in stored]  # quantizers transpose weights
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(inner)
    return proto


def excluded(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Names of the nodes that `patterns` match. Raises: UsageError for one that matches none."""
    names = [node.name or "" for node in model.graph]
    found: list[str] = []
    for pattern in patterns:
        own = [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not own:
            raise UsageError(
                f"--quantize: exclude={pattern} matches no node of the finished model; its nodes are "
                f"{', '.join(names[:3])} ..."
            )
        found += own
    return list(dict.fromkeys(found))


def folded(model: ir.Model, halves: bool = False) -> ir.Model:
    """A copy of `model` in which weights are initializers themselves, and not what operators make of initializers.

    halves: what is computed in half precision stays so; integer kernels give and take single precision only.
    """
    model = _in_single(model) if not halves and _computes_in_halves(model) else graph.copy(model)
    for node in list(model.graph):
        inputs = [graph.constant(value) for value in node.inputs if value is not None]
        if node.op_type not in CARRIERS or node.domain not in STANDARD or any(array is None for array in inputs):
            continue
        output = node.outputs[0]
        if output in model.graph.outputs or not inputs or is_tied(node):
            continue
        array = _computed(model, node, [array for array in inputs if array is not None])
        made = graph.add_constant(model.graph, f"{output.name}/folded", array)
        output.replace_all_uses_with(made)
        model.graph.remove(node, safe=True)
    drop_unused(model)
    return model


def _in_single(model: ir.Model) -> ir.Model:
    """`model` in single precision between inputs and outputs of the types that they have."""
    made = half.single(model)
    for value, own in zip(made.graph.inputs, model.graph.inputs, strict=True):
        if own.dtype in half.HALVES:
            inner = _cast(f"{value.name}/single", value, ir.DataType.FLOAT)
            value.replace_all_uses_with(inner.outputs[0], replace_graph_outputs=True)
            inner.replace_input_with(0, value)
            made.graph.insert_before(made.graph[0], inner)
            value.type = own.type
    for k, own in enumerate(model.graph.outputs):
        if own.dtype is not None and own.dtype in half.HALVES:
            value = made.graph.outputs[k]
            value.name = f"{own.name}/single"
            outer = _cast(own.name or "", value, own.dtype)
            outer.outputs[0].shape = own.shape
            made.graph.append(outer)
            made.graph.outputs[k] = outer.outputs[0]
    return made


def _cast(name: str, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], name=f"{name}/cast", num_outputs=1)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, ir.TensorType(dtype), value.shape
    return node


def is_tied(node: ir.Node) -> bool:
    """Whether `node` hands on a weight that others read as it is: what it makes would be stored beside that weight."""
    source = node.inputs[0] if node.inputs else None
    if source is None or node.op_type not in LAYOUT or not source.is_initializer():
        return False
    return len({user.op_type for user, _ in source.uses()}) > 1


def _computed(model: ir.Model, node: ir.Node, inputs: list[np.ndarray]) -> np.ndarray:
    names = [value.name or "" for value in node.inputs if value is not None]
    proto = ir.to_proto(node)
    opset = onnx.helper.make_opsetid("", model.opset_imports.get("", 13))
    undefined = onnx.TypeProto()
    values = [onnx.helper.make_value_info(name, undefined) for name in (*names, proto.output[0])]
    inner = onnx.helper.make_graph([proto], "fold", values[:-1], values[-1:])
    evaluator = ReferenceEvaluator(onnx.helper.make_model(inner, opset_imports=[opset]))
    return np.asarray(evaluator.run(None, dict(zip(names, inputs, strict=True)))[0])  # type: ignore[index]


def _raised(model: ir.Model, old: int, opset: int) -> ir.Model:
    proto = proto_of(model)
    try:
        raised = onnx.version_converter.convert_version(proto, opset)
    except Exception as error:
        raise GraphError(
            f"--quantize needs opset {opset} and the model has {old}, which onnx cannot convert ({first_line(error)}); "
            f"export it at opset {opset} or higher"
        ) from error
    made = with_interface(raised, proto)
    extras.put(made, extras.of(model))
    return made


def with_interface(made: onnx.ModelProto, original: onnx.ModelProto) -> ir.Model:
    """`made` with the names, types, shapes and metadata that `original` shows to the outside."""
    for field in ("input", "output"):
        ours, theirs = getattr(made.graph, field), getattr(original.graph, field)
        if [value.name for value in ours] != [value.name for value in theirs]:
            raise GraphError(f"--quantize: the {field}s of the model were changed; please report this model")
        del ours[:]
        ours.extend(theirs)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(made, field, getattr(original, field))
    del made.metadata_props[:]
    made.metadata_props.extend(original.metadata_props)
    made.graph.name, made.graph.doc_string = original.graph.name, original.graph.doc_string
    model = ir.from_proto(made)
    model.graph.sort()
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Where quantizers of onnxruntime run: they log on the root logger, print, and raise errors of many kinds.

    Raises: GraphError for every error of theirs.
    """
    root, named = logging.getLogger(), logging.getLogger("onnxruntime.quantization")
    levels = root.level, named.level
    root.setLevel(logging.ERROR)
    named.setLevel(logging.ERROR)
    try:
        with swallowed():
            yield
    except OnnxPruneError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise GraphError(
            f"--quantize: onnxruntime's quantizer does not take this model ({line}); choose another kind, or exclude "
            "the nodes that it names"
        ) from error
    finally:
        root.setLevel(levels[0])
        named.setLevel(levels[1])
